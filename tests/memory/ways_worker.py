"""One of two processes that compare every way to hold the banks of a folder with the operator on all rows.

Indexes propose all rows, and are saved where those of the run lie.

python -m tests.memory.ways_worker BANKS
"""

import sys
from pathlib import Path

import torch

from amrg import distributed
from amrg.banks.bank import REPORTS, VISUAL, MemoryBank
from amrg.config import ShardingStrategy
from amrg.kernels import hopfield_retrieve
from amrg.models.open_banks import INDEXES
from amrg.retrieval.indexed_bank import IndexedBank, IndexKind
from amrg.retrieval.layout import ShardLayout
from amrg.retrieval.sharded_bank import ShardedBank

WAYS: list[tuple[ShardingStrategy, IndexKind | None]] = [
    ("replicate", None), ("gather", None), ("ring", None), ("gather", "ivf"), ("gather", "hnsw"),
]  # fmt: skip
#: What ``open`` does not take: without them banks as small as these get no index.
EVERY_ROW = {"candidates": 10**6, "probes": 10**6, "exact_below": 0}


def compare(bank: MemoryBank) -> None:
    generator = torch.Generator().manual_seed(distributed.global_rank())
    queries = torch.randn(3, bank.dim, generator=generator)
    group = bank.groups[:3].clone()
    rows, device = bank.load(), torch.device("cpu")
    truth = hopfield_retrieve(queries, rows, query_group=group, memory_group=bank.groups)[0]
    for way, kind in WAYS:
        memory = ShardedBank.open(
            bank, ShardLayout(None, None), device=device, strategy=way, replicate_below_bytes=0, queries=3, kind=kind,
            saved=None if kind is None else place(bank, f"{kind}"),
        )  # fmt: skip
        torch.testing.assert_close(memory.retrieve(queries, query_group=group)[0], truth, rtol=1e-4, atol=1e-5)
    for kind in ("ivf", "hnsw"):
        saved = place(bank, f"{kind}-whole-{distributed.global_rank()}")
        whole = IndexedBank(rows, group=bank.groups, kind=kind, saved=saved, content_hash=bank.content_hash)
        torch.testing.assert_close(whole.retrieve(queries, query_group=group)[0], truth, rtol=1e-4, atol=1e-5)


def place(bank: MemoryBank, name: str) -> Path:
    """Folder of a saved index of a bank."""
    banks = bank.folder.parent
    return banks.parent / INDEXES / f"{banks.name}-{bank.folder.name}-{name}"


if __name__ == "__main__":
    distributed.init_process_group()
    IndexedBank.__init__.__kwdefaults__.update(EVERY_ROW)
    for name in (VISUAL, REPORTS):
        compare(MemoryBank.open(Path(sys.argv[1]) / name))
