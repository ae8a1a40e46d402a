"""A large bank from end to end: written, sharded over two processes, queried; memory, bytes read and seconds of each.

python -m benchmarks.sharded_bank FOLDER [--rows N] [--dim D] [--dtype int8] [--way gather]
"""

import argparse
import os
import resource
import tempfile
import time
from pathlib import Path
from typing import Any, get_args

import torch
from torch import distributed, multiprocessing

from amrg.banks.bank import DTYPES, HEADER, MemoryBank
from amrg.banks.writer import BankWriter
from amrg.config import ShardingStrategy
from amrg.progress import track_progress
from amrg.retrieval.layout import ShardLayout
from amrg.retrieval.sharded_bank import ShardedBank

QUERIES, BLOCK, RANKS = 84, 16384, 2


def write(folder: Path, rows: int, dim: int, dtype: torch.dtype, about: dict[str, Any] | None = None) -> None:
    """A bank of random rows."""
    generator = torch.Generator().manual_seed(0)
    with BankWriter(folder, dim, dtype=dtype, encoder_info=about) as writer:
        for start in track_progress(range(0, rows, BLOCK), "writing rows (blocks)"):
            count = min(BLOCK, rows - start)
            origins = [
                {"key": f"s{number}", "group": f"p{number // 8}", "split": "train", "source": "region"}
                for number in range(start, start + count)
            ]
            writer.add(torch.randn(count, dim, generator=generator), origins)


def query(rank: int, folder: Path, rendezvous_file: str, strategy: ShardingStrategy) -> None:
    """One process: its shard, a retrieval and its gradient."""
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{rendezvous_file}", rank=rank, world_size=RANKS)
    before, began = read_bytes(), time.perf_counter()
    bank = MemoryBank.open(folder)
    memory = ShardedBank.open(bank, ShardLayout(), strategy=strategy)
    opened, read = time.perf_counter() - began, read_bytes() - before
    queries = torch.randn(QUERIES, bank.dim, generator=torch.Generator().manual_seed(rank)).requires_grad_()
    began = time.perf_counter()
    memory.retrieve(queries, query_group=torch.zeros(QUERIES, dtype=torch.int64)).retrieved_MD.sum().backward()
    took = time.perf_counter() - began
    print(
        f"rank {rank}: {len(memory.rows):,} of {len(bank):,} rows, {memory.strategy}; "
        f"read {read / 1e6:.0f} MB from disk in "
        f"{opened:.1f} s; forward and backward {took:.1f} s; sent {memory.layout.bytes_sent / 1e6:.1f} MB; "
        f"peak memory {peak() / 2**30:.2f} GiB",
        flush=True,
    )
    distributed.destroy_process_group()


def peak() -> int:
    """Most bytes that this process ever held in memory."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def read_bytes() -> int:
    """Bytes that this process made the disk give, page cache aside."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("read_bytes"))


def drop_page_cache(folder: Path) -> None:
    """Drop a folder's files from the page cache, so that reading them is seen."""
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def main() -> None:
    """Time retrieval from a bank on disk, on all ranks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="of the bank; one that is there already is used")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=768)
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="int8")
    parser.add_argument("--way", choices=get_args(ShardingStrategy), default="gather")
    options = parser.parse_args()
    if not (options.folder / HEADER).exists():
        began = time.perf_counter()
        write(options.folder, options.rows, options.dim, DTYPES[options.dtype])
        print(f"written in {time.perf_counter() - began:.0f} s; peak memory {peak() / 2**30:.2f} GiB", flush=True)
    drop_page_cache(options.folder)
    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.spawn(query, (options.folder, f"{folder}/meet", options.way), RANKS)


if __name__ == "__main__":
    main()
