"""Approximate against exact retrieval, side by side: mass kept, bound, speed.

python -m benchmarks.indexed_bank [--rows N] [--bank FOLDER] [--kind ivf|hnsw]

Without ``--bank`` the bank is synthetic: rows around centres, as embeddings of many alike regions are, and queries near
some of them. With it, rows of the bank itself, scaled so that a query spreads over several rows, are the queries.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from amrg.banks.bank import MemoryBank, normalise_rows
from amrg.errors import UserError
from amrg.kernels import hopfield_retrieve
from amrg.retrieval.indexed_bank import MIN_INDEXED_ROWS, IndexedBank

DIM, PER_CLUSTER, QUERIES, REPEATS = 768, 500, 84, 5
SPREAD = 8.0  # rows that a query of the benchmark spreads over (perplexity)


def synthetic(rows: int) -> Tensor:
    """[rows, DIM], clusters of about ``PER_CLUSTER``."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(max(rows // PER_CLUSTER, 1), DIM, generator=generator)
    bank = torch.empty(rows, DIM)
    for start in range(0, rows, 65536):
        part = bank[start : start + 65536]
        which = torch.randint(len(centres), (len(part),), generator=generator)
        part.copy_(normalise_rows(centres[which] + 0.5 * torch.randn(part.shape, generator=generator)))
    return bank


def queries_of(rows: Tensor) -> Tensor:
    """Rows as queries, scaled by bisection until their association has the perplexity ``SPREAD``."""
    generator = torch.Generator().manual_seed(1)
    some = rows[torch.randint(len(rows), (QUERIES,), generator=generator)]
    some = some + 0.3 * torch.randn(some.shape, generator=generator)
    low, high = 1e-4, 1.0
    for _ in range(12):
        middle = (low * high) ** 0.5
        entropy = hopfield_retrieve(some[:8] * middle, rows, return_entropy=True).entropy_M
        assert entropy is not None
        low, high = (middle, high) if float(entropy.mean().exp()) > SPREAD else (low, middle)
    return some * high


def seconds(action: Callable[[], object]) -> float:
    """The fastest of some runs."""
    action()
    taken = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        action()
        taken.append(time.perf_counter() - began)
    return min(taken)


def main() -> None:
    """Time exact and indexed search of a bank."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--bank", type=Path)
    parser.add_argument("--kind", choices=("ivf", "hnsw"), default="ivf")
    parser.add_argument("--index-always", action="store_true", help="also where the default reads all rows")
    options = parser.parse_args()
    try:
        rows = synthetic(options.rows) if options.bank is None else _vectors(options.bank)
    except UserError as error:
        parser.exit(2, f"amrg: {error}\n")
    queries = queries_of(rows)
    began = time.perf_counter()
    memory = IndexedBank(rows, kind=options.kind, exact_below=0 if options.index_always else MIN_INDEXED_ROWS)
    built = time.perf_counter() - began
    exact = hopfield_retrieve(queries, rows)
    kept = torch.exp(memory.retrieve(queries).lse_M - exact.lse_M)
    with torch.no_grad():
        slow, fast = seconds(lambda: hopfield_retrieve(queries, rows)), seconds(lambda: memory.retrieve(queries))
    print(f"{len(rows)} rows of {rows.shape[1]}, {QUERIES} queries, {options.kind}; index built in {built:.0f} s")
    print(f"mass kept: mean {float(kept.mean()):.4f}, least {float(kept.min()):.4f}")
    print(
        f"bound on the mass missed: mean {float(memory.missed_mass_bound.mean()):.4f}, "
        f"largest {float(memory.missed_mass_bound.max()):.4f}"
    )
    print(f"exact {slow * 1000:.1f} ms, approximate {fast * 1000:.1f} ms: {slow / fast:.1f} times as fast")


def _vectors(folder: Path) -> Tensor:
    bank = MemoryBank.open(folder)
    return bank.dequantized(0, len(bank))


if __name__ == "__main__":
    main()
