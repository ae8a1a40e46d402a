"""Banks from banks: merge, append, choose rows. All of it streams: a block of rows is held, whatever the size."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from amrg.banks.bank import MemoryBank
from amrg.banks.sampling import k_center, sample_rows
from amrg.banks.writer import BankWriter, check_compatible
from amrg.errors import UserError
from amrg.progress import track

BLOCK = 8192  # rows handled at a time

Sampling = Literal["proportional", "uniform", "stratified", "k-center"]


def merge(banks: Sequence[MemoryBank], folder: Path) -> MemoryBank:
    """All rows of several banks, one bank after the other. Rows and their provenance stay as they are, bit by bit.

    Appending to a bank is merging it with another into a new folder: a bank is never changed in place.

    Raises:
        UserError: they differ in width, dtype, or in what encoded them (vectors of two encoders cannot be compared).
    """
    check_compatible(banks)
    for bank in banks:
        if bank.header["about"] != banks[0].header["about"]:
            raise UserError(f"{bank.folder}: its vectors were made by another encoder than those of {banks[0].folder}")
    with _writer(banks[0], folder, banks[0].dtype, [split for bank in banks for split in bank.header["splits"]]) as out:
        for bank in banks:
            for start, stop in blocks(len(bank)):
                out.add_raw(bank.rows(start, stop), bank.scale(start, stop), _origins(bank, start, stop))
    return MemoryBank.open(folder)


@dataclass(frozen=True)
class RowSelection:
    """Which rows of a bank to keep; conditions are applied in this order.

    Attributes:
        splits, findings, sources: keep rows of these (a row with any of the findings); None keeps all.
        duplicate_cosine: drop a row whose cosine with an earlier kept one is at least this.
        rows: then sample so many.
        sampling: how (``amrg.banks.sampling``).
        seed: of the sampling.
    """

    splits: tuple[str, ...] | None = None
    findings: tuple[str, ...] | None = None
    sources: tuple[str, ...] | None = None
    duplicate_cosine: float | None = None
    rows: int | None = None
    sampling: Sampling = "proportional"
    seed: int = 0


def subset(bank: MemoryBank, choice: RowSelection, folder: Path, dtype: torch.dtype | None = None) -> MemoryBank:
    """The chosen rows of a bank, in their order, as a new one.

    ``dtype`` stores them in another one; int8 quantises.

    Raises:
        UserError: no row is left.
    """
    chosen = select_rows(bank, choice)
    if not len(chosen):
        raise UserError(f"{bank.folder}: no row of this bank meets the conditions")
    same = dtype is None or dtype == bank.dtype
    with _writer(bank, folder, bank.dtype if dtype is None else dtype, list(bank.header["splits"])) as out:
        for start, stop in blocks(len(bank)):
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


def select_rows(bank: MemoryBank, choice: RowSelection) -> np.ndarray:
    """Numbers of the chosen rows, ascending."""
    chosen = np.concatenate([_matching_rows(bank, choice, start, stop) for start, stop in blocks(len(bank))])
    if choice.duplicate_cosine is not None:
        chosen = chosen[near_duplicate_mask(bank, chosen, choice.duplicate_cosine)]
    if choice.rows is not None and choice.rows < len(chosen):
        if choice.sampling == "k-center":
            picked = k_center(lambda: _vectors(bank, chosen), len(chosen), choice.rows, choice.seed)
        else:
            findings = bank.provenance_rows(0, len(bank), ["findings"])["findings"].take(chosen).to_pylist()
            picked = sample_rows([names or [] for names in findings], choice.rows, choice.sampling, choice.seed)
        chosen = chosen[picked]
    return chosen


def near_duplicate_mask(bank: MemoryBank, numbers: np.ndarray, cosine: float) -> np.ndarray:
    """Which of some rows to keep so that no two have this cosine or more; of two, the earlier stays. bool [n].

    Compares every row with all kept ones: the cost grows with their product.
    """
    kept: list[torch.Tensor] = []
    keep = np.zeros(len(numbers), np.bool_)
    done = 0
    for block in track(_vectors(bank, numbers), "comparing rows", -(-len(numbers) // BLOCK)):
        unit = torch.nn.functional.normalize(block)
        near = torch.zeros(len(unit), dtype=torch.bool)
        for earlier in kept:
            near |= (unit @ earlier.T >= cosine).any(1)
        among = torch.triu(unit @ unit.T >= cosine, diagonal=1)
        for row in (~near).nonzero().flatten().tolist():
            if not near[row]:  # an earlier one of the block may have covered it meanwhile
                near |= among[row]
        kept.append(unit[~near])
        keep[done : done + len(unit)] = (~near).numpy()
        done += len(unit)
    return keep


def blocks(rows: int) -> Iterator[tuple[int, int]]:
    """[start, stop) of consecutive blocks of rows."""
    for start in range(0, rows, BLOCK):
        yield start, min(start + BLOCK, rows)


def _matching_rows(bank: MemoryBank, choice: RowSelection, start: int, stop: int) -> np.ndarray:
    """Numbers of the rows of a block that meet the conditions on provenance."""
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
    """Some rows (ascending numbers) as float32, block by block; blocks of at most ``BLOCK`` rows."""
    for start in range(0, len(numbers), BLOCK):
        some = numbers[start : start + BLOCK]
        low, high = int(some[0]), int(some[-1]) + 1
        parts = []
        for first in range(low, high, BLOCK):
            last = min(first + BLOCK, high)
            inside = some[(some >= first) & (some < last)]
            if len(inside):
                parts.append(bank.dequantized(first, last)[torch.from_numpy(inside - first)])
        yield torch.cat(parts)


def _origins(bank: MemoryBank, start: int, stop: int) -> list[dict[str, Any]]:
    return bank.provenance_rows(start, stop).to_pylist()


def _writer(bank: MemoryBank, folder: Path, dtype: torch.dtype, splits: list[str]) -> BankWriter:
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder} is not empty: give the new bank a folder of its own")
    return BankWriter(folder, bank.dim, dtype=dtype, allow_split=splits, encoder_info=bank.header["about"])
