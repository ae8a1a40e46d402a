"""Features that never change: computed once, by one process or by all ranks, memory-mapped, resumable.

Shape legend: N rows, B rows of one batch.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from amrg.distributed import barrier, rank, world_size
from amrg.progress import track

ROWS_PER_PART = 256  # rows that one rank computes before its next part


class FeatureCache:
    """Rows [N, *shape] on disk; a run that is interrupted while filling goes on where it stopped.

    Args:
        path: the data file; ``<path>.done`` beside it counts the rows that are complete.
        rows: N.
        shape: of one row.
        dtype: of the values on disk.
    """

    def __init__(self, path: Path, rows: int, shape: Sequence[int], dtype: torch.dtype = torch.bfloat16) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._counter = path.with_name(path.name + ".done")
        size = rows
        for side in shape:
            size *= side
        self.rows_N = torch.from_file(str(path), shared=True, size=size, dtype=dtype).view(rows, *shape)

    def __len__(self) -> int:
        return len(self.rows_N)

    @property
    def done(self) -> int:
        """Rows that are complete."""
        return int(self._counter.read_text()) if self._counter.exists() else 0

    def fill(self, batches: Iterable[Tensor]) -> None:
        """Append ``batches`` [B, *shape], which must begin with row ``done``, up to the last row."""
        for batch in batches:
            self.append(batch)
        assert self.done == len(self), f"{self.done} of {len(self)} rows filled"

    def append(self, batch: Tensor) -> None:
        """Keep the rows [B, *shape] that follow those that are complete."""
        start = self.done
        self.rows_N[start : start + len(batch)] = batch.to(self.rows_N.dtype)
        self._flush()
        self._counter.write_text(str(start + len(batch)))

    def _flush(self) -> None:
        """What the counter counts outlives a lost machine, and is seen by others that share the disk."""
        descriptor = os.open(self._path, os.O_RDWR)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def __getitem__(self, rows: Tensor | slice) -> Tensor:
        """The rows as a copy in memory."""
        assert self.done == len(self), "the cache is not complete"
        return self.rows_N[rows].clone()


class DistributedFeatureCache:
    """Rows [N, *shape] that the ranks compute between them, each every W-th part, and then all read.

    What is computed together does not depend on the ranks; what was interrupted goes on, with any number of them.

    Args:
        folder: of the parts.
        rows: N.
        shape: of one row.
        batch_rows: rows computed at a time, a divisor of ``PART``.
        compute: ``compute(batches)`` yields the rows [B, *shape] of each of these ranges of row numbers.
        label: what is being done, a few words.
    """

    def __init__(
        self, folder: Path, rows: int, shape: Sequence[int], batch_rows: int,
        compute: Callable[[list[range]], Iterator[Tensor]], label: str,
    ) -> None:  # fmt: skip
        def part(start: int) -> FeatureCache:
            return FeatureCache(folder / f"{start:08d}", min(ROWS_PER_PART, rows - start), shape)

        starts = range(0, rows, ROWS_PER_PART)
        mine = {start: part(start) for start in starts[rank() :: world_size()]}
        left = [
            (cache, range(first, min(first + batch_rows, start + len(cache))))
            for start, cache in mine.items()
            for first in range(start + cache.done, start + len(cache), batch_rows)
        ]
        if left:
            total = sum(-(-len(cache) // batch_rows) for cache in mine.values())
            computed = compute([numbers for _, numbers in left])
            for (cache, _), values in track(zip(left, computed, strict=True), label, total, total - len(left)):
                cache.append(values)
        barrier()
        self._parts = [part(start).rows_N for start in starts]  # mapped when whole, whichever machine made them

    def __getitem__(self, rows: Tensor) -> Tensor:
        """Rows [B] as a copy in memory."""
        return torch.stack([self._parts[row // ROWS_PER_PART][row % ROWS_PER_PART] for row in rows.tolist()])
