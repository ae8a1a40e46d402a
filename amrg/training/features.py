"""A cache of features that never change: one memory-mapped file, filled in order, resumable.

Shape legend: N rows, B rows of one batch.
"""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor


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
