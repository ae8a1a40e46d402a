"""Operations on banks: merge, append, select rows. All stream through the bank one block of rows at a time."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from amrg.banks.bank import MemoryBank, Provenance
from amrg.banks.sampling import k_center_sample, sample_bank_rows
from amrg.banks.writer import BankWriter, check_compatible
from amrg.errors import UserError
from amrg.progress import track_progress

BLOCK = 8192  # rows per block

Sampling = Literal["proportional", "uniform", "stratified", "k-center"]


def merge_banks(banks: Sequence[MemoryBank], folder: Path) -> MemoryBank:
    """Concatenate the rows of several banks, unchanged bit by bit, into a new bank.

    To append to a bank, merge it with another into a new folder: a bank is never changed in place.

    Raises:
        UserError: the banks differ in width, dtype or encoder.
    """
    check_compatible(banks)
    for bank in banks:
        if bank.header["about"] != banks[0].header["about"]:
            raise UserError(f"{bank.folder}: its vectors were made by another encoder than those of {banks[0].folder}")
    with _writer(banks[0], folder, banks[0].dtype, [split for bank in banks for split in bank.header["splits"]]) as out:
        for bank in banks:
            for start, stop in iter_row_blocks(len(bank)):
                out.add_raw(bank.rows(start, stop), bank.scale(start, stop), _origins(bank, start, stop))
    return MemoryBank.open(folder)


def without_texts(bank: MemoryBank, folder: Path) -> MemoryBank:
    """Copy a bank without the texts, contexts, study keys and patient groups of its rows.

    Rows of a study's own patient can no longer be hidden from it.
    """
    with _writer(bank, folder, bank.dtype, list(bank.header["splits"])) as out:
        for start, stop in iter_row_blocks(len(bank)):
            emptied = {"text": None, "context": None, "key": "", "group": ""}
            origins = [{**origin, **emptied} for origin in _origins(bank, start, stop)]
            out.add_raw(bank.rows(start, stop), bank.scale(start, stop), origins)
    return MemoryBank.open(folder)


def without_studies(bank: MemoryBank, studies: Collection[tuple[str, str]], folder: Path) -> MemoryBank:
    """Copy a bank without the rows of some studies, each given by its key and patient group.

    Raises:
        UserError: no row would be left.
    """
    with _writer(bank, folder, bank.dtype, list(bank.header["splits"])) as out:
        for start, stop in iter_row_blocks(len(bank)):
            origins = _origins(bank, start, stop)
            kept = [number for number, row in enumerate(origins) if (row["key"], row["group"]) not in studies]
            scale = bank.scale(start, stop)
            if kept:
                rows = bank.rows(start, stop)[kept]
                out.add_raw(rows, None if scale is None else scale[kept], [origins[number] for number in kept])
    return MemoryBank.open(folder)


@dataclass(frozen=True)
class RowSelection:
    """Conditions on the rows to keep, applied in this order.

    Attributes:
        splits: keep rows of these splits; None keeps all.
        findings: keep rows with any of these findings; None keeps all.
        sources: keep rows of these sources; None keeps all.
        duplicate_cosine: drop a row whose cosine with an earlier kept one is at least this.
        rows: sample this number of the rows left; None keeps all.
        sampling: sampling method (``amrg.banks.sampling``).
        seed: seed of the sampling.
    """

    splits: tuple[str, ...] | None = None
    findings: tuple[str, ...] | None = None
    sources: tuple[str, ...] | None = None
    duplicate_cosine: float | None = None
    rows: int | None = None
    sampling: Sampling = "proportional"
    seed: int = 0


def write_bank_subset(
    bank: MemoryBank, choice: RowSelection, folder: Path, dtype: torch.dtype | None = None
) -> MemoryBank:
    """Write the selected rows of a bank, in order, to a new bank.

    ``dtype`` converts the rows; int8 quantises them.

    Raises:
        UserError: no row meets the conditions.
    """
    chosen = selected_rows_of(bank, choice)
    if not len(chosen):
        raise UserError(f"{bank.folder}: no row of this bank meets the conditions")
    same = dtype is None or dtype == bank.dtype
    with _writer(bank, folder, bank.dtype if dtype is None else dtype, list(bank.header["splits"])) as out:
        for start, stop in iter_row_blocks(len(bank)):
            wanted = torch.from_numpy(chosen[(chosen >= start) & (chosen < stop)] - start)
            origins = _origins(bank, start, stop) if len(wanted) else []
            kept = [origins[number] for number in wanted.tolist()]
            if not kept:
                continue
            if same:
                scale = bank.scale(start, stop)
                out.add_raw(bank.rows(start, stop)[wanted], None if scale is None else scale[wanted], kept)
            else:
                out.add_normalized(bank.dequantized(start, stop)[wanted], kept)
    return MemoryBank.open(folder)


def selected_rows_of(bank: MemoryBank, choice: RowSelection) -> np.ndarray:
    """Return the numbers of the selected rows, ascending."""
    chosen = np.concatenate([_matching_rows(bank, choice, start, stop) for start, stop in iter_row_blocks(len(bank))])
    if choice.duplicate_cosine is not None:
        chosen = chosen[near_duplicate_mask(bank, chosen, choice.duplicate_cosine)]
    if choice.rows is not None and choice.rows < len(chosen):
        if choice.sampling == "k-center":
            picked = k_center_sample(lambda: _vectors(bank, chosen), len(chosen), choice.rows, choice.seed)
        else:
            findings = bank.provenance_rows(0, len(bank), ["findings"])["findings"].take(chosen).to_pylist()
            picked = sample_bank_rows([names or [] for names in findings], choice.rows, choice.sampling, choice.seed)
        chosen = chosen[picked]
    return chosen


def near_duplicate_mask(bank: MemoryBank, numbers: np.ndarray, cosine: float) -> np.ndarray:
    """Return a mask, bool [n], of rows such that no two kept rows have this cosine or more; the earlier of two is kept.

    Every row is compared with all kept rows, so the cost grows with the product of the numbers.
    """
    kept: list[torch.Tensor] = []
    keep = np.zeros(len(numbers), np.bool_)
    done = 0
    for block in track_progress(_vectors(bank, numbers), "comparing rows", -(-len(numbers) // BLOCK)):
        unit = torch.nn.functional.normalize(block)
        near = torch.zeros(len(unit), dtype=torch.bool)
        for earlier in kept:
            near |= (unit @ earlier.T >= cosine).any(1)
        among = torch.triu(unit @ unit.T >= cosine, diagonal=1)
        for row in (~near).nonzero().flatten().tolist():
            if not near[row]:  # an earlier row of the block may have marked it
                near |= among[row]
        kept.append(unit[~near])
        keep[done : done + len(unit)] = (~near).numpy()
        done += len(unit)
    return keep


def iter_row_blocks(rows: int) -> Iterator[tuple[int, int]]:
    """Yield [start, stop) of consecutive blocks of rows."""
    for start in range(0, rows, BLOCK):
        yield start, min(start + BLOCK, rows)


def _matching_rows(bank: MemoryBank, choice: RowSelection, start: int, stop: int) -> np.ndarray:
    """Return the numbers of the rows of a block that meet the conditions on provenance."""
    table = bank.provenance_rows(start, stop, ["split", "findings", "source"]).to_pylist()
    return np.array(
        [
            number
            for number, row in enumerate(table, start)
            if (choice.splits is None or row["split"] in choice.splits)
            and (choice.sources is None or row["source"] in choice.sources)
            and (choice.findings is None or set(choice.findings) & set(row["findings"] or ()))
        ],
        np.int64,
    )


def _vectors(bank: MemoryBank, numbers: np.ndarray) -> Iterator[torch.Tensor]:
    """Yield the numbered rows (ascending) as float32, in blocks of at most ``BLOCK`` rows."""
    for start in range(0, len(numbers), BLOCK):
        selected = numbers[start : start + BLOCK]
        low, high = int(selected[0]), int(selected[-1]) + 1
        parts = []
        for first in range(low, high, BLOCK):
            last = min(first + BLOCK, high)
            inside = selected[(selected >= first) & (selected < last)]
            if len(inside):
                parts.append(bank.dequantized(first, last)[torch.from_numpy(inside - first)])
        yield torch.cat(parts)


def _origins(bank: MemoryBank, start: int, stop: int) -> list[Provenance]:
    origins: list[Provenance] = bank.provenance_rows(start, stop).to_pylist()
    return origins


def _writer(bank: MemoryBank, folder: Path, dtype: torch.dtype, splits: list[str]) -> BankWriter:
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder} is not empty: give the new bank a folder of its own")
    return BankWriter(folder, bank.dim, dtype=dtype, allow_split=splits, encoder_info=bank.header["about"])
