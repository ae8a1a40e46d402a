"""One of two processes that compare every way to hold the banks of a folder with the operator on all rows.

python -m tests.memory.ways_worker BANKS
"""

import sys
from pathlib import Path

import torch

from amrg import distributed
from amrg.banks.bank import REPORTS, VISUAL, MemoryBank
from amrg.kernels import hopfield_retrieve
from amrg.retrieval.indexed_bank import IndexedBank
from amrg.retrieval.layout import ShardLayout
from amrg.retrieval.sharded_bank import ShardedBank


def compare(bank: MemoryBank) -> None:
    generator = torch.Generator().manual_seed(distributed.rank())
    queries = torch.randn(3, bank.dim, generator=generator)
    group = bank.groups[:3].clone()
    rows = bank.load()
    truth = hopfield_retrieve(queries, rows, query_group=group, memory_group=bank.groups)
    for way in ("replicate", "gather", "ring"):
        memory = ShardedBank.open(
            bank, ShardLayout(None, None), device=torch.device("cpu"), strategy=way, replicate_below_bytes=0, queries=3
        )
        torch.testing.assert_close(memory.retrieve(queries, query_group=group)[0], truth[0], rtol=1e-4, atol=1e-5)
    indexed = IndexedBank(rows, group=bank.groups, candidates=len(bank), probes=len(bank), exact_below=0)
    torch.testing.assert_close(indexed.retrieve(queries, query_group=group)[0], truth[0], rtol=1e-4, atol=1e-5)


if __name__ == "__main__":
    distributed.init_process_group()
    for name in (VISUAL, REPORTS):
        compare(MemoryBank.open(Path(sys.argv[1]) / name))
