"""Memory-mapped caches of constant features, computed once by one process or by all ranks, and resumable.

Shape legend: N rows, B rows of one batch.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from amrg.distributed import barrier, global_rank, world_size
from amrg.progress import track_progress

ROWS_PER_PART = 256  # rows that one rank computes before its next part


class FeatureCache:
    """Rows [N, *shape] on disk; interrupted filling can be resumed.

    Args:
        path: the data file; ``<path>.done`` holds the number of complete rows.
        rows: N.
        shape: shape of one row.
        dtype: dtype on disk.
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
        """Number of complete rows."""
        return int(self._counter.read_text()) if self._counter.exists() else 0

    def fill(self, batches: Iterable[Tensor]) -> None:
        """Append ``batches`` [B, *shape], from row ``done`` to the last row."""
        for batch in batches:
            self.append(batch)
        assert self.done == len(self), f"{self.done} of {len(self)} rows filled"

    def append(self, batch: Tensor) -> None:
        """Append rows [B, *shape] to the complete ones."""
        start = self.done
        self.rows_N[start : start + len(batch)] = batch.to(self.rows_N.dtype)
        self._flush()
        self._counter.write_text(str(start + len(batch)))

    def _flush(self) -> None:
        """Flush the data before the counter, so that counted rows survive a crash and other machines can read them."""
        descriptor = os.open(self._path, os.O_RDWR)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def __getitem__(self, rows: Tensor | slice) -> Tensor:
        """Return rows as a copy in memory."""
        assert self.done == len(self), "the cache is not complete"
        return self.rows_N[rows].clone()


class DistributedFeatureCache:
    """Rows [N, *shape] of which each of W ranks computes every W-th part and all ranks read all.

    The batches do not depend on the number of ranks; interrupted filling can be resumed with any number of ranks.

    Args:
        folder: folder of the parts.
        rows: N.
        shape: shape of one row.
        batch_rows: rows per batch, a divisor of ``ROWS_PER_PART``.
        compute: ``compute(batches)`` yields the rows [B, *shape] for each range of row numbers.
        label: label of the progress bar.
    """

    def __init__(
        self, folder: Path, rows: int, shape: Sequence[int], batch_rows: int,
        compute: Callable[[list[range]], Iterator[Tensor]], label: str,
    ) -> None:  # fmt: skip
        def part(start: int) -> FeatureCache:
            return FeatureCache(folder / f"{start:08d}", min(ROWS_PER_PART, rows - start), shape)

        starts = range(0, rows, ROWS_PER_PART)
        local = {start: part(start) for start in starts[global_rank() :: world_size()]}
        left = [
            (cache, range(first, min(first + batch_rows, start + len(cache))))
            for start, cache in local.items()
            for first in range(start + cache.done, start + len(cache), batch_rows)
        ]
        if left:
            total = sum(-(-len(cache) // batch_rows) for cache in local.values())
            computed = compute([numbers for _, numbers in left])
            for (cache, _), values in track_progress(zip(left, computed, strict=True), label, total, total - len(left)):
                cache.append(values)
        barrier()
        self._parts = [
            part(start).rows_N for start in starts
        ]  # mapped when complete, as another machine may have written them

    def __getitem__(self, rows: Tensor) -> Tensor:
        """Return rows [B] as a copy in memory."""
        return torch.stack([self._parts[row // ROWS_PER_PART][row % ROWS_PER_PART] for row in rows.tolist()])
