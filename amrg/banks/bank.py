"""Memory banks on disk: vectors in memory-mapped chunks, and the provenance of each row.

A bank is a folder:

``rows-00000.safetensors`` …
    ``rows`` [n, D], and ``scale`` [n] for int8 rows; the file's metadata hold the number of its first row.
``provenance.parquet``
    one row per vector, in the same order (``PROVENANCE``), one row group per chunk.
``bank.json``
    format, D, N, dtype, rows by split, content hash, and the files with their hashes. Written last: a bank without it
    is incomplete.

Rows are stored normalised (``normalise_rows``), as retrieval needs them. ``amrg.banks.writer`` writes banks,
``amrg.banks.transforms`` makes new banks from existing ones.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from amrg.artifacts import sha256_of_file
from amrg.data.context import CONTEXT_FIELDS
from amrg.errors import UserError
from amrg.kernels.hopfield import reference

NO_GROUP: int = reference.NO_GROUP  # group of a row without a patient
FORMAT = 4
HEADER = "bank.json"
TABLE = "provenance.parquet"

#: Folders of the two banks inside a banks artefact.
VISUAL, REPORTS = "visual", "reports"

#: Provenance of a row. ``key`` and ``group`` are the study's, and empty for a row without a patient (a disease token).
#: ``box`` is x0, y0, x1, y1 on the encoder's patch grid, on film number ``view`` of the study. ``source`` is one of
#: ``SOURCES``. ``context`` is the study's (``amrg.data.context``). Retrieval compares ``patient_group_id``; ``hash``
#: covers the vector and ``USER_COLUMNS`` (``bank_row_hash``).
PROVENANCE = pa.schema(
    {
        "row": pa.int64(),
        "key": pa.string(),
        "group": pa.string(),
        "split": pa.string(),
        "findings": pa.list_(pa.string()),
        "source": pa.string(),
        "view": pa.int32(),
        "box": pa.list_(pa.int32(), 4),
        "text": pa.string(),
        "score": pa.float32(),
        "context": pa.struct([(name, pa.string()) for name in CONTEXT_FIELDS]),
        "group_id": pa.int64(),
        "hash": pa.int64(),
    }
)
#: Columns that the caller gives; the other columns are computed.
USER_COLUMNS = ("key", "group", "split", "findings", "source", "view", "box", "text", "score", "context")
SOURCES = ("region", "report", "sentence", "disease_token")

#: One row's provenance as a dictionary of ``USER_COLUMNS`` or of all columns; pyarrow gives and takes it untyped.
Provenance = Mapping[str, Any]

#: The only split whose rows a bank may hold without leaking reports that are to be predicted.
TRAIN = "train"

_STORED = (torch.float32, torch.bfloat16, torch.float16, torch.int8)
DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in _STORED}


class Chunk(TypedDict):
    """Entry of a chunk in ``bank.json``."""

    file: str
    rows: int
    sha256: str


class Header(TypedDict):
    """Content of ``bank.json``; ``about`` describes the encoder that made the vectors."""

    format: int
    rows: int
    dim: int
    dtype: str
    normalised: bool
    splits: dict[str, int]
    content_hash: str
    about: dict[str, Any]
    chunks: list[Chunk]
    provenance: dict[str, str]


def patient_group_id(group: str) -> int:
    """Map a patient group to a stable number in [0, 2⁶³); the empty group to ``NO_GROUP``."""
    if not group:
        return NO_GROUP
    return int.from_bytes(hashlib.blake2b(group.encode(), digest_size=8).digest()) >> 1


def normalise_rows(rows_ND: torch.Tensor) -> torch.Tensor:
    """Apply LayerNorm without affine over the last axis (design: z_j = normalise(memory_j)); float32 [N, D]."""
    return torch.nn.functional.layer_norm(rows_ND.float(), rows_ND.shape[-1:])


def bank_row_hash(vector: bytes, origin: Provenance) -> int:
    """Return a signed 64-bit hash of a stored row: its bytes (with those of its scale) and ``USER_COLUMNS``."""
    values = {name: origin.get(name) for name in USER_COLUMNS}
    if values["score"] is not None:
        values["score"] = float(np.float32(values["score"]))
    if values["box"] is not None:
        values["box"] = [int(edge) for edge in values["box"]]
    values["context"] = {name: text for name, text in (values["context"] or {}).items() if text}
    text = json.dumps(values, sort_keys=True).encode()
    return int.from_bytes(hashlib.blake2b(vector + text, digest_size=8).digest(), signed=True)


def stored_row_bytes(rows: torch.Tensor, scale: torch.Tensor | None) -> Iterator[bytes]:
    """Yield the bytes of each stored row, as ``bank_row_hash`` takes them."""
    stored = rows.contiguous().view(torch.uint8).numpy()
    scales = None if scale is None else scale.contiguous().view(torch.uint8).view(-1, 4).numpy()
    for number, row in enumerate(stored):
        yield row.tobytes() if scales is None else row.tobytes() + scales[number].tobytes()


class MemoryBank:
    """A bank on disk. Only the requested rows are read, from memory-mapped chunks and the table's row groups.

    Attributes:
        folder: folder of the bank.
        header: content of ``bank.json``.
        dim: D.
        dtype: dtype of the stored rows.
    """

    def __init__(self, folder: Path, header: Header) -> None:
        self.folder, self.header = folder, header
        self.dim: int = header["dim"]
        self.dtype = DTYPES[header["dtype"]]

    @classmethod
    def open(cls, folder: Path) -> "MemoryBank":
        """Open a bank and check that its files have the numbers of rows in its header; ``verify`` checks the contents.

        Raises:
            UserError: not a bank, or a file is missing, truncated, of another shape or out of order; the message names
                the file and the row.
        """
        path = folder / HEADER
        try:
            header = json.loads(path.read_text())
            readable = header["format"] == FORMAT and header["dtype"] in DTYPES
            if readable:
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
            raise bank.corrupt_error(HEADER, f"its chunks have {total} rows, the bank {size}")
        for first, chunk in bank.chunks():
            bank._check_chunk(first, chunk)
        if bank._table.metadata.num_rows != size:
            raise bank.corrupt_error(TABLE, bank._missing_row())
        return bank

    def __len__(self) -> int:
        return self.header["rows"]

    @property
    def content_hash(self) -> str:
        """Hash of all rows and their provenance in order; it does not depend on the chunks."""
        return self.header["content_hash"]

    def rows(self, start: int, stop: int) -> torch.Tensor:
        """Return rows start … stop − 1 as stored (int8 rows without scale), [stop − start, D]."""
        return self._read("rows", start, stop, torch.empty(0, self.dim, dtype=self.dtype))

    def scale(self, start: int, stop: int) -> torch.Tensor | None:
        """Return the scales of int8 rows, float32 [stop − start]; None for another dtype."""
        if self.dtype != torch.int8:
            return None
        return self._read("scale", start, stop, torch.empty(0))

    def dequantized(self, start: int, stop: int) -> torch.Tensor:
        """Return rows start … stop − 1 as float32."""
        rows, scale = self.rows(start, stop).float(), self.scale(start, stop)
        return rows if scale is None else rows * scale[:, None]

    def load(self) -> torch.Tensor:
        """Return all rows as stored, [N, D]."""
        return self.rows(0, len(self))

    @property
    def groups(self) -> torch.Tensor:
        """``patient_group_id`` of each row, int64 [N]."""
        return self.group_range(0, len(self))

    def group_range(self, start: int, stop: int) -> torch.Tensor:
        """Return ``patient_group_id`` of rows start … stop − 1, int64."""
        return torch.from_numpy(self.provenance_rows(start, stop, ["group_id"])["group_id"].to_numpy().copy())

    @property
    def provenance(self) -> pa.Table:
        """Provenance of all rows (``PROVENANCE``), in row order."""
        return self.provenance_rows(0, len(self))

    def provenance_rows(self, start: int, stop: int, columns: list[str] | None = None) -> pa.Table:
        """Return the provenance of rows start … stop − 1; only the row groups that hold them are read."""
        assert 0 <= start <= stop <= len(self), (start, stop, len(self))
        metadata, wanted, first, skipped = self._table.metadata, [], 0, 0
        for number in range(metadata.num_row_groups):
            after = first + metadata.row_group(number).num_rows
            if after <= start:
                skipped = after
            elif first < stop:
                wanted.append(number)
            first = after
        try:
            table = self._table.read_row_groups(wanted, columns=columns)
        except (OSError, pa.ArrowException) as error:
            raise self.corrupt_error(TABLE, f"rows from {start} on are unreadable ({type(error).__name__})") from None
        return table.slice(start - skipped, stop - start)

    def verify(self) -> None:
        """Read the bank and recompute every hash, row by row.

        Raises:
            UserError: a row was changed after it was written; names the file and the first such row.
        """
        combined = hashlib.sha256()
        for first, chunk in self.chunks():
            stop = first + chunk["rows"]
            rows, scale = self.rows(first, stop), self.scale(first, stop)
            origins = self.provenance_rows(first, stop).to_pylist()
            for number, (vector, origin) in enumerate(zip(stored_row_bytes(rows, scale), origins, strict=True), first):
                if origin["row"] != number:
                    raise self.corrupt_error(TABLE, f"row {number} is missing: row {origin['row']} stands in its place")
                if bank_row_hash(vector, origin) != origin["hash"]:
                    raise self._changed(number, chunk, rows[number - first])
                combined.update(origin["hash"].to_bytes(8, signed=True))
        if combined.hexdigest() != self.content_hash:
            raise self.corrupt_error(HEADER, "its content hash is not that of the rows")

    def _changed(self, number: int, chunk: Chunk, row: torch.Tensor) -> UserError:
        if sha256_of_file(self.folder / chunk["file"]) == chunk["sha256"]:
            return self.corrupt_error(TABLE, f"row {number} says something else than when it was written")
        finite = bool(row.isfinite().all()) if row.is_floating_point() else True
        return self.corrupt_error(chunk["file"], f"row {number} {'was changed' if finite else 'is not finite'}")

    def chunks(self) -> Iterator[tuple[int, Chunk]]:
        """Yield (number of the first row, header entry) of each chunk."""
        first = 0
        for chunk in self.header["chunks"]:
            yield first, chunk
            first += chunk["rows"]

    def _read(self, name: str, start: int, stop: int, empty: torch.Tensor) -> torch.Tensor:
        assert 0 <= start <= stop <= len(self), (start, stop, len(self))
        parts = [empty]
        for first, chunk in self.chunks():
            low, high = max(start - first, 0), min(stop - first, chunk["rows"])
            if low < high:
                with safe_open(self.folder / chunk["file"], "pt") as file:
                    parts.append(file.get_slice(name)[low:high])
        return torch.cat(parts)

    def _check_chunk(self, first: int, chunk: Chunk) -> None:
        where = f"rows {first} to {first + chunk['rows'] - 1}"
        try:
            with safe_open(self.folder / chunk["file"], "pt") as file:
                shape, stored_first = file.get_slice("rows").get_shape(), (file.metadata() or {}).get("first")
        except (OSError, SafetensorError) as error:
            raise self.corrupt_error(
                chunk["file"], f"{where} are missing or unreadable ({type(error).__name__})"
            ) from None
        if shape != [chunk["rows"], self.dim]:
            raise self.corrupt_error(chunk["file"], f"{where} have shape {shape}, not {[chunk['rows'], self.dim]}")
        if stored_first != str(first):
            raise self.corrupt_error(chunk["file"], f"holds the rows from {stored_first} on where {where} belong")

    @cached_property
    def _table(self) -> pq.ParquetFile:
        try:
            return pq.ParquetFile(self.folder / TABLE)
        except (OSError, pa.ArrowException) as error:
            raise self.corrupt_error(TABLE, f"missing or unreadable ({type(error).__name__})") from None

    def _missing_row(self) -> str:
        numbers = self._table.read(["row"])["row"].to_numpy()
        wrong = np.flatnonzero(numbers[: len(self)] != np.arange(min(len(numbers), len(self))))
        first = int(wrong[0]) if len(wrong) else min(len(numbers), len(self))
        return f"{len(numbers)} rows, the bank {len(self)}: row {first} is missing or doubled"

    def corrupt_error(self, name: str, why: str) -> UserError:
        """Build the error for a damaged file of the bank."""
        return UserError(f"{self.folder / name}: {why}: make the banks again with `amrg banks CONFIG`")


def normalize_to_rows(vectors_ND: Tensor, bank: MemoryBank) -> Tensor:
    """Convert vectors of the bank's encoder to normalised (and centered) rows, float32 [N, D]."""
    rows_ND, mean = normalise_rows(vectors_ND), bank.header["about"].get("mean")
    return rows_ND if mean is None else normalise_rows(rows_ND - torch.tensor(mean))
