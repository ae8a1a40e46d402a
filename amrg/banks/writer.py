"""Writers of memory banks: one process appends rows, or many processes write parts that are concatenated."""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from amrg.artifacts import atomic_path, sha256_of_file
from amrg.banks.bank import (
    DTYPES,
    FORMAT,
    HEADER,
    PROVENANCE,
    SOURCES,
    TABLE,
    USER_COLUMNS,
    Chunk,
    Header,
    MemoryBank,
    Provenance,
    bank_row_hash,
    normalise_rows,
    patient_group_id,
    stored_row_bytes,
)  # fmt: skip
from amrg.errors import UserError
from amrg.kernels import quantize_rows


class BankWriter:
    """Context manager that writes a bank row by row; at most one chunk is held in memory.

    An exception in the block leaves no bank, only files that the next writer in the folder removes. The bytes do not
    depend on how the rows are grouped in calls of ``add``.

    Args:
        folder: folder of the bank; created if missing, cleared of an earlier bank.
        dim: D, the length of a row.
        dtype: dtype of the stored rows; int8 rows get one scale each.
        allow_split: splits whose rows are accepted. Any split but ``train`` leaks reports that are to be predicted.
        encoder_info: description of the encoder (names, hashes), stored in the header.
        chunk_rows: rows per file.
    """

    def __init__(
        self,
        folder: Path,
        dim: int,
        *,
        dtype: torch.dtype = torch.float32,
        allow_split: Sequence[str] = ("train",),
        encoder_info: dict[str, Any] | None = None,
        chunk_rows: int = 16384,
    ) -> None:
        assert dtype in DTYPES.values(), dtype
        folder.mkdir(parents=True, exist_ok=True)
        for path in (*folder.glob("rows-*.safetensors"), folder / TABLE, folder / HEADER):
            path.unlink(missing_ok=True)
        self.folder, self.dim = folder, dim
        self._dtype, self._allow_split, self._about, self._chunk_rows = (
            dtype,
            tuple(allow_split),
            encoder_info,
            chunk_rows,
        )
        self._rows: list[torch.Tensor] = []
        self._scales: list[torch.Tensor] = []
        self._origins: list[Provenance] = []
        self._chunks: list[Chunk] = []
        self._splits: Counter[str] = Counter()
        self._content = hashlib.sha256()
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

    def add(self, rows_ND: torch.Tensor, provenance: Sequence[Provenance]) -> None:
        """Normalise an encoder's rows, quantise them for an int8 bank, and append them.

        Args:
            rows_ND: [N, D].
            provenance: N entries with ``key``, ``group``, ``split``, ``source`` and, if known, ``findings``, ``view``,
                ``box``, ``text``, ``score``, ``context`` (see ``PROVENANCE``).

        Raises:
            UserError: a row has another length, NaN or infinity, or a split that is not allowed; names the row.
        """
        assert rows_ND.ndim == 2, rows_ND.shape
        if rows_ND.shape[1] != self.dim:
            first = self._written + len(self._origins)
            raise UserError(f"{self.folder}: rows from {first} on have {rows_ND.shape[1]} numbers, the bank {self.dim}")
        self.add_normalized(normalise_rows(rows_ND.detach().cpu()), provenance)

    def add_normalized(self, rows_ND: torch.Tensor, provenance: Sequence[Provenance]) -> None:
        """Append normalised rows, float32 [N, D], as ``MemoryBank.dequantized`` returns them."""
        first = self._written + len(self._origins)
        invalid = (~rows_ND.isfinite().all(1)).nonzero().flatten()
        if len(invalid):
            raise UserError(
                f"{self.folder}: row {first + int(invalid[0])} is not finite: the encoder gave NaN or infinity"
            )
        if self._dtype == torch.int8:
            rows_ND, scale_N = quantize_rows(rows_ND)
            self.add_raw(rows_ND, scale_N, provenance)
        else:
            self.add_raw(rows_ND.to(self._dtype), None, provenance)

    def add_raw(self, rows_ND: torch.Tensor, scale_N: torch.Tensor | None, provenance: Sequence[Provenance]) -> None:
        """Append rows that are already stored in the dtype of this bank."""
        assert rows_ND.dtype == self._dtype
        assert (scale_N is None) == (self._dtype != torch.int8)
        assert len(rows_ND) == len(provenance), (len(rows_ND), len(provenance))
        numbers = range(self._written + len(self._origins), self._written + len(self._origins) + len(provenance))
        for number, origin in zip(numbers, provenance, strict=True):
            assert origin["source"] in SOURCES, origin["source"]
            if origin["split"] not in self._allow_split:
                raise UserError(
                    f"{self.folder}: row {number} comes from the split `{origin['split']}`, a bank holds "
                    f"{' and '.join(self._allow_split)} rows only: memory of held-out studies would leak their reports"
                )
        for number, vector, origin in zip(numbers, stored_row_bytes(rows_ND, scale_N), provenance, strict=True):
            values = {name: origin.get(name) for name in USER_COLUMNS}
            computed = {
                "row": number,
                "group_id": patient_group_id(origin["group"]),
                "hash": bank_row_hash(vector, values),
            }
            self._origins.append(values | computed)
        self._rows.append(rows_ND)
        if scale_N is not None:
            self._scales.append(scale_N)
        while len(self._origins) >= self._chunk_rows:
            self._flush()

    def close(self) -> None:
        """Write the last chunk and the header.

        Raises:
            UserError: no rows were added.
        """
        if self._origins:
            self._flush()
        self._table.close()
        if not self._written:
            raise UserError(f"{self.folder}: no rows for the bank")
        write_bank_header(
            self.folder, self._chunks, self.dim, self._dtype, self._splits, self._content.hexdigest(), self._about
        )

    def _flush(self) -> None:
        """Write one chunk with its provenance."""
        tensors = {"rows": torch.cat(self._rows)} | ({"scale": torch.cat(self._scales)} if self._scales else {})
        chunk = {name: values[: self._chunk_rows].contiguous() for name, values in tensors.items()}
        count = len(chunk["rows"])
        self._rows = [tensors["rows"][count:]]
        self._scales = [tensors["scale"][count:]] if self._scales else []
        origins, self._origins = self._origins[:count], self._origins[count:]
        path = self.folder / f"rows-{len(self._chunks):05d}.safetensors"
        save_file(chunk, path, {"first": str(self._written)})
        self._chunks.append({"file": path.name, "rows": count, "sha256": sha256_of_file(path)})
        self._table.write_table(pa.Table.from_pylist(origins, schema=PROVENANCE))
        self._splits.update(origin["split"] for origin in origins)
        for origin in origins:
            self._content.update(origin["hash"].to_bytes(8, signed=True))
        self._written += count


def write_bank_header(
    folder: Path, chunks: list[Chunk], dim: int, dtype: torch.dtype, splits: Counter[str], content_hash: str,
    about: dict[str, Any] | None,
) -> None:  # fmt: skip
    """Write the header, the last file of a bank: with it the bank is complete."""
    header: Header = {
        "format": FORMAT,
        "rows": sum(chunk["rows"] for chunk in chunks),
        "dim": dim,
        "dtype": str(dtype).removeprefix("torch."),
        "normalised": True,
        "splits": dict(sorted(splits.items())),
        "content_hash": content_hash,
        "about": about or {},
        "chunks": chunks,
        "provenance": {"file": TABLE, "sha256": sha256_of_file(folder / TABLE)},
    }
    with atomic_path(folder / HEADER) as temporary:
        temporary.write_text(json.dumps(header, indent=2) + "\n")


def concatenate_parts(parts: Sequence[Path], folder: Path) -> MemoryBank:
    """Concatenate the parts of several writers, in the order given, into one bank; the parts' files are moved.

    The content hash equals that of a single writer of all rows.

    Raises:
        UserError: a part is not a bank, or the parts differ in width or dtype.
    """
    banks = [MemoryBank.open(part) for part in parts]
    check_compatible(banks)
    folder.mkdir(parents=True, exist_ok=True)
    chunks: list[Chunk] = []
    splits: Counter[str] = Counter()
    content, first = hashlib.sha256(), 0
    with pq.ParquetWriter(folder / TABLE, PROVENANCE) as writer:
        for bank in banks:
            splits.update(bank.header["splits"])
            for start, chunk in bank.chunks():
                path = folder / f"rows-{len(chunks):05d}.safetensors"
                _renumber(bank.folder / chunk["file"], path, first)
                chunks.append({"file": path.name, "rows": chunk["rows"], "sha256": sha256_of_file(path)})
                table = bank.provenance_rows(start, start + chunk["rows"])
                numbers = pa.array(range(first, first + len(table)), pa.int64())
                writer.write_table(table.set_column(0, "row", numbers))
                for value in table["hash"].to_pylist():
                    content.update(value.to_bytes(8, signed=True))
                first += chunk["rows"]
    write_bank_header(
        folder, chunks, banks[0].dim, banks[0].dtype, splits, content.hexdigest(), banks[0].header["about"]
    )
    return MemoryBank.open(folder)


def check_compatible(banks: Sequence[MemoryBank]) -> None:
    """Raise UserError, naming the first bank that differs, unless all have the same width and dtype."""
    for bank in banks:
        if (bank.dim, bank.dtype) != (banks[0].dim, banks[0].dtype):
            raise UserError(
                f"{bank.folder}: {bank.header['dtype']} rows of {bank.dim} numbers, "
                f"{banks[0].folder} has {banks[0].header['dtype']} of {banks[0].dim}: only like banks can be joined"
            )


def _renumber(source: Path, path: Path, first: int) -> None:
    """Move a chunk and set the number of its first row."""
    with safe_open(source, "pt") as file:
        if (file.metadata() or {}).get("first") != str(first):
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            save_file(tensors, path, {"first": str(first)})
            return
    os.replace(source, path)
