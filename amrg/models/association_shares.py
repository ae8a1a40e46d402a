"""Shares of each finding's association by the labels of rows, recorded per report for ``amrg.evaluation.relevance``.

Shape legend: B studies, Q = 14 queries, F = 13 findings, J retrieved rows, N rows of the bank.
"""

from pathlib import Path
from typing import Any, Self

import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from amrg.banks.bank import REPORTS, VISUAL, MemoryBank
from amrg.data.labels import FINDINGS
from amrg.models.report_generator import ReportGenerator
from amrg.models.vision_output import MEMORIES


class RowLabels:
    """Findings of the rows of a bank, and the half of the film of each region.

    Args:
        bank: visual or report bank.
        grid: cells per side of the grid of the boxes.
    """

    def __init__(self, bank: MemoryBank, grid: int) -> None:
        # Columns, because a million rows as Python objects would take a gigabyte per rank.
        origins = bank.provenance_rows(0, len(bank), ["findings", "box"]).combine_chunks()
        findings, box = (origins[name].chunk(0) for name in ("findings", "box"))
        self._of_FN = torch.zeros(len(FINDINGS), len(bank), dtype=torch.bool)
        names, row_L = pc.list_flatten(findings), _tensor(pc.list_parent_indices(findings))
        for number, finding in enumerate(FINDINGS):
            self._of_FN[number, row_L[_tensor(pc.equal(names, finding))]] = True
        self._boxed_N = _tensor(pc.is_valid(box))
        # The patient's left is the right half of the image.
        left = pc.greater(pc.add(pc.list_element(box, 0), pc.list_element(box, 2)), grid)
        self._left_N = _tensor(pc.fill_null(left, False))

    @classmethod
    def open(cls, model: ReportGenerator, banks: Path) -> dict[str, Self]:
        """Read the labels of the memories that a generator uses, by ``MEMORIES``, from a banks artefact."""
        folders, grid = dict(zip(MEMORIES, (VISUAL, REPORTS), strict=True)), model.stage1.encoder.grid
        return {name: cls(MemoryBank.open(banks / folders[name]), grid) for name in model.memories}

    def share(self, weights_BQJ: Tensor, rows_BQJ: Tensor) -> Tensor:
        """Weight of each finding's association on rows of that finding, [B, F] on the CPU."""
        rows_BFJ, weights_BFJ = (x[:, : len(FINDINGS)].cpu() for x in (rows_BQJ, weights_BQJ))
        own_BFJ = self._of_FN[torch.arange(len(FINDINGS))[:, None], rows_BFJ] & (rows_BFJ >= 0)
        return (weights_BFJ.float() * own_BFJ).sum(-1)

    def record(self, weights_QJ: Tensor, rows_QJ: Tensor) -> dict[str, list[Any]]:
        """Summarize each finding's association.

        Returns:
            Lists of length F. ``share``: weight on rows of that finding; ``top_row``: heaviest row, −1 for none;
            ``side``: share of the patient's left in the weight on rows of the finding with a box, None without such a
            row.
        """
        share: list[float] = []
        top_row: list[int] = []
        side: list[float | None] = []
        for k in range(len(FINDINGS)):
            rows_J, weights_J = rows_QJ[k].cpu(), weights_QJ[k].cpu().float()
            weights_J = torch.where(rows_J >= 0, weights_J, 0.0)
            own_J = weights_J * self._of_FN[k][rows_J]
            boxed = float((own_J * self._boxed_N[rows_J]).sum())
            share.append(min(1.0, round(float(own_J.sum()), 6)))  # weights sum to 1 up to rounding
            top_row.append(int(rows_J[weights_J.argmax()]) if weights_J.any() else -1)
            left = float((own_J * self._left_N[rows_J]).sum())
            side.append(min(1.0, round(left / boxed, 6)) if boxed > 0 else None)
        return {"share": share, "top_row": top_row, "side": side}


def _tensor(values: pa.Array) -> Tensor:
    return torch.from_numpy(values.to_numpy(zero_copy_only=False).copy())


def heaviest_rows(weights_QJ: Tensor, rows_QJ: Tensor, count: int) -> list[dict[str, Any]]:
    """Rows with the largest mean weight over some queries, as ``{"row", "weight"}``, heaviest first."""
    if not len(rows_QJ):
        return []
    rows, place = rows_QJ.cpu().unique(return_inverse=True)
    weight = torch.zeros(len(rows), dtype=torch.float64)
    weight.index_add_(0, place.flatten(), weights_QJ.cpu().double().flatten() / len(rows_QJ))
    weight[rows < 0] = 0.0
    order = weight.argsort(descending=True, stable=True)[:count].tolist()
    return [{"row": int(rows[i]), "weight": round(float(weight[i]), 6)} for i in order if weight[i] > 0]
