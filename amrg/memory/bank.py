"""Memory banks on disk: vectors in memory-mapped chunks, and for each row where it came from.

A bank is a folder:

``rows-00000.safetensors`` …
    one tensor ``rows`` [n, D] each, ``chunk_rows`` rows in every chunk but the last.
``provenance.parquet``
    one row per vector, in the same order (``PROVENANCE``).
``bank.json``
    format, D, N, dtype, rows by split, and the chunks with their hashes. Written last: a bank without it is not whole.

Rows are stored normalised (``normalise_rows``), as retrieval needs them: this is done once, here.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from amrg.artifacts import file_hash
from amrg.errors import UserError

FORMAT = 1
HEADER = "bank.json"
TABLE = "provenance.parquet"

#: Folders of the two banks inside a banks artefact.
VISUAL, REPORTS = "visual", "reports"

#: What is known of a row. ``key`` and ``group`` are the study's; a row that no patient owns (a disease token) has empty
#: ones. ``box`` is x0, y0, x1, y1 on the encoder's patch grid. ``source`` is one of ``SOURCES``.
PROVENANCE = pa.schema(
    {
        "row": pa.int64(),
        "key": pa.string(),
        "group": pa.string(),
        "split": pa.string(),
        "findings": pa.list_(pa.string()),
        "source": pa.string(),
        "box": pa.list_(pa.int32(), 4),
        "text": pa.string(),
        "score": pa.float32(),
    }
)
SOURCES = ("region", "report", "sentence", "disease_token")

#: Group of the rows that no patient owns: they are visible to every query.
NO_GROUP = -1

_DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in (torch.float32, torch.bfloat16, torch.float16)}


def group_id(group: str) -> int:
    """A patient group as a stable number in [0, 2⁶³); the empty group is ``NO_GROUP``."""
    if not group:
        return NO_GROUP
    return int.from_bytes(hashlib.blake2b(group.encode(), digest_size=8).digest()) >> 1


def normalise_rows(rows_ND: torch.Tensor) -> torch.Tensor:
    """LayerNorm without affine over the last axis, in fp32 (design: z_j = normalise(memory_j)). fp32 [N, D]"""
    return torch.nn.functional.layer_norm(rows_ND.float(), rows_ND.shape[-1:])


class BankWriter:
    """Write a bank row by row; at most one chunk is held in memory. Use as a context manager.

    Leaving the block by an exception leaves no bank, only files that the next writer in the folder removes. The bytes
    do not depend on how the rows were grouped in calls of ``add``.

    Args:
        folder: of the bank; made when it is missing, emptied of an earlier bank.
        dim: D, the length of a row.
        dtype: of the stored rows.
        allow_split: splits whose rows are accepted. Anything but ``train`` leaks what is to be predicted.
        about: what made the vectors (names, hashes), kept in the header.
        chunk_rows: rows in one file.
    """

    def __init__(
        self,
        folder: Path,
        dim: int,
        *,
        dtype: torch.dtype = torch.float32,
        allow_split: Sequence[str] = ("train",),
        about: dict[str, Any] | None = None,
        chunk_rows: int = 16384,
    ) -> None:
        assert dtype in _DTYPES.values(), dtype
        folder.mkdir(parents=True, exist_ok=True)
        for path in (*folder.glob("rows-*.safetensors"), folder / TABLE, folder / HEADER):
            path.unlink(missing_ok=True)
        self.folder, self.dim = folder, dim
        self._dtype, self._allow_split, self._about, self._chunk_rows = dtype, tuple(allow_split), about, chunk_rows
        self._rows: list[torch.Tensor] = []
        self._origins: list[dict[str, Any]] = []
        self._chunks: list[dict[str, Any]] = []
        self._splits: Counter[str] = Counter()
        self._written = 0
        self._table = pq.ParquetWriter(folder / TABLE, PROVENANCE)

    def __enter__(self) -> "BankWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self._table.close()

    def add(self, rows_ND: torch.Tensor, provenance: Sequence[dict[str, Any]]) -> None:
        """Append rows.

        Args:
            rows_ND: [N, D], as the encoder gave them: normalised here.
            provenance: N entries with ``key``, ``group``, ``split``, ``source`` and what is known of ``findings``,
                ``box``, ``text``, ``score`` (see ``PROVENANCE``).

        Raises:
            UserError: a row of another length or with NaN or infinity (it is named), or of a split that is not allowed.
        """
        assert rows_ND.ndim == 2, rows_ND.shape
        assert len(rows_ND) == len(provenance), (len(rows_ND), len(provenance))
        first = self._written + len(self._origins)
        if rows_ND.shape[1] != self.dim:
            raise UserError(f"{self.folder}: rows from {first} on have {rows_ND.shape[1]} numbers, the bank {self.dim}")
        for number, origin in enumerate(provenance, first):
            assert origin["source"] in SOURCES, origin["source"]
            assert origin.keys() <= set(PROVENANCE.names) - {"row"}, origin.keys()
            if origin["split"] not in self._allow_split:
                raise UserError(
                    f"{self.folder}: row {number} comes from the split `{origin['split']}`, a bank holds "
                    f"{' and '.join(self._allow_split)} rows only: memory of held-out studies would leak their reports"
                )
        rows_ND = normalise_rows(rows_ND.detach().cpu()).to(self._dtype)
        broken = (~rows_ND.isfinite().all(1)).nonzero().flatten()
        if len(broken):
            raise UserError(
                f"{self.folder}: row {first + int(broken[0])} is not finite: the encoder gave NaN or infinity"
            )
        self._origins += ({"row": number} | origin for number, origin in enumerate(provenance, first))
        self._rows.append(rows_ND)
        while len(self._origins) >= self._chunk_rows:
            self._flush()

    def close(self) -> None:
        """Write what is left and the header.

        Raises:
            UserError: there are no rows.
        """
        if self._origins:
            self._flush()
        self._table.close()
        if not self._written:
            raise UserError(f"{self.folder}: no rows for the bank")
        header = {
            "format": FORMAT,
            "rows": self._written,
            "dim": self.dim,
            "dtype": str(self._dtype).removeprefix("torch."),
            "normalised": True,
            "splits": dict(sorted(self._splits.items())),
            "about": self._about or {},
            "chunks": self._chunks,
            "provenance": {"file": TABLE, "sha256": file_hash(self.folder / TABLE)},
        }
        temporary = self.folder / f"{HEADER}.partial"
        temporary.write_text(json.dumps(header, indent=2) + "\n")
        temporary.replace(self.folder / HEADER)

    def _flush(self) -> None:
        """Write one chunk and its rows of provenance."""
        rows_ND = torch.cat(self._rows)
        chunk, rest = rows_ND[: self._chunk_rows].contiguous(), rows_ND[self._chunk_rows :]
        origins, self._origins = self._origins[: len(chunk)], self._origins[len(chunk) :]
        path = self.folder / f"rows-{len(self._chunks):05d}.safetensors"
        save_file({"rows": chunk}, path)
        self._chunks.append({"file": path.name, "rows": len(chunk), "sha256": file_hash(path)})
        self._table.write_table(pa.Table.from_pylist(origins, schema=PROVENANCE))
        self._splits.update(origin["split"] for origin in origins)
        self._rows = [rest]
        self._written += len(chunk)


class MemoryBank:
    """A bank on disk. Vectors are read from the memory-mapped chunks when they are asked for.

    Attributes:
        folder: of the bank.
        header: the content of ``bank.json``.
        dim: D.
    """

    def __init__(self, folder: Path, header: dict[str, Any]) -> None:
        self.folder, self.header = folder, header
        self.dim: int = header["dim"]

    @classmethod
    def open(cls, folder: Path) -> "MemoryBank":
        """Open a bank and check that its files have the rows that its header says.

        Raises:
            UserError: not a bank, or a file is missing, cut or of another shape; the message names the file.
        """
        path = folder / HEADER
        try:
            header = json.loads(path.read_text())
            readable = header["format"] == FORMAT and header["dtype"] in _DTYPES
            bank, size = cls(folder, header), header["rows"]
            total = sum(chunk["rows"] for chunk in header["chunks"])
        except (OSError, ValueError, KeyError, TypeError):
            raise UserError(
                f"{folder} is not a memory bank (no readable {HEADER}): make the banks with `amrg banks CONFIG`"
            ) from None
        if not readable:
            raise UserError(
                f"{path} has a format that this version cannot read: make the banks again with `amrg banks`"
            )
        if total != size:
            raise bank._broken(HEADER, f"its chunks have {total} rows, the bank {size}")
        for chunk in header["chunks"]:
            bank._check_chunk(chunk)
        found = bank._read_table(["row"]).num_rows
        if found != size:
            raise bank._broken(TABLE, f"{found} rows, the bank {size}")
        return bank

    def __len__(self) -> int:
        return self.header["rows"]

    def rows(self, start: int, stop: int) -> torch.Tensor:
        """Rows start … stop − 1, normalised, [stop − start, D]; only these are read from the disk."""
        assert 0 <= start <= stop <= len(self), (start, stop, len(self))
        parts = [torch.empty(0, self.dim, dtype=_DTYPES[self.header["dtype"]])]
        first = 0
        for chunk in self.header["chunks"]:
            low, high = max(start - first, 0), min(stop - first, chunk["rows"])
            if low < high:
                with safe_open(self.folder / chunk["file"], "pt") as file:
                    parts.append(file.get_slice("rows")[low:high])
            first += chunk["rows"]
        return torch.cat(parts)

    def all(self) -> torch.Tensor:
        """All rows, normalised, [N, D]."""
        return self.rows(0, len(self))

    @cached_property
    def provenance(self) -> pa.Table:
        """Where each row came from (``PROVENANCE``), in row order."""
        return self._read_table(None)

    @cached_property
    def groups(self) -> torch.Tensor:
        """``group_id`` of each row, int64 [N]."""
        encoded = self.provenance["group"].combine_chunks().dictionary_encode()
        ids = np.array([group_id(group) for group in encoded.dictionary.to_pylist()], np.int64)
        return torch.from_numpy(ids[encoded.indices.to_numpy()])

    def verify(self) -> None:
        """Hash every file again. Raises UserError naming the one that was changed."""
        for part in (*self.header["chunks"], self.header["provenance"]):
            if file_hash(self.folder / part["file"]) != part["sha256"]:
                raise self._broken(part["file"], "changed after it was written (sha256)")

    def _check_chunk(self, chunk: dict[str, Any]) -> None:
        try:
            with safe_open(self.folder / chunk["file"], "pt") as file:
                shape = file.get_slice("rows").get_shape()
        except (OSError, SafetensorError) as error:
            raise self._broken(chunk["file"], f"missing or unreadable ({type(error).__name__})") from None
        if shape != [chunk["rows"], self.dim]:
            raise self._broken(chunk["file"], f"shape {shape}, not {[chunk['rows'], self.dim]}")

    def _read_table(self, columns: list[str] | None) -> pa.Table:
        try:
            return pq.read_table(self.folder / TABLE, columns=columns)
        except (OSError, pa.ArrowException) as error:
            raise self._broken(TABLE, f"missing or unreadable ({type(error).__name__})") from None

    def _broken(self, name: str, why: str) -> UserError:
        return UserError(f"{self.folder / name}: {why}: make the banks again with `amrg banks CONFIG`")
