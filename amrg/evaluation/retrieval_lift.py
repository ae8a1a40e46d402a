"""How unusual for a study the rows and findings are that it retrieved: their lift over the mean of the split.

The lift is a weight divided by its mean over all studies of the split, the study itself included. A row that every film
retrieves has a lift near 1, however heavy it is. ``generate`` records only the heaviest rows of a study; elsewhere a
row's weight counts as 0, so its mean is a lower bound, and its lift an upper one. The shares of findings are recorded
for every study, so their lifts are exact.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from amrg.data.labels import FINDINGS
from amrg.evaluation.reports import GeneratedReport


@dataclass(frozen=True)
class RowLift:
    """A retrieved row beside the mean of the split.

    Attributes:
        row: number in its bank.
        weight: share of the association of the study, in [0, 1].
        mean: mean weight over the studies of the split.
        studies: share of the studies that have it among their heaviest rows.
    """

    row: int
    weight: float
    mean: float
    studies: float

    @property
    def lift(self) -> float:
        """Weight over its mean."""
        return self.weight / self.mean if self.mean else 1.0


@dataclass(frozen=True)
class FindingLift:
    """Share of a finding's association that lies on rows of that finding, beside the mean of the split."""

    finding: str
    share: float
    mean: float

    @property
    def lift(self) -> float:
        """Share over its mean."""
        return self.share / self.mean if self.mean else 1.0


@dataclass(frozen=True)
class MeanRetrieval:
    """Mean retrieval over the reports of a split.

    Attributes:
        rows: by bank and row, the mean weight and the share of the studies that have it among their heaviest rows.
        shares: by bank, the mean share of each finding's association on its rows, float64 [13].
    """

    rows: dict[str, dict[int, tuple[float, float]]]
    shares: dict[str, np.ndarray]

    @classmethod
    def of(cls, reports: Sequence[GeneratedReport]) -> Self:
        """Average over all reports of a split."""
        found: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
        shares: dict[str, list[list[float]]] = defaultdict(list)
        for report in reports:
            for bank, entries in report.memory.items():
                for entry in entries:
                    found[bank][entry["row"]].append(entry["weight"])
            for bank, association in report.association.items():
                shares[bank].append(association.share)
        count = len(reports)
        rows = {
            bank: {row: (sum(weights) / count, len(weights) / count) for row, weights in by_row.items()}
            for bank, by_row in found.items()
        }
        return cls(rows, {bank: np.mean(some, axis=0) for bank, some in shares.items()})

    def row_lifts(self, bank: str, entries: Sequence[dict[str, Any]]) -> list[RowLift]:
        """Return the lifts of retrieved rows, those with the most weight above their mean first."""
        known = self.rows.get(bank, {})
        lifts = [RowLift(one["row"], one["weight"], *known.get(one["row"], (0.0, 0.0))) for one in entries]
        return sorted(lifts, key=lambda one: round(one.mean - one.weight, 9))  # equal ones keep their order

    def finding_lifts(self, bank: str, report: GeneratedReport) -> list[FindingLift]:
        """Return the lifts of the findings, the share the most above its mean first; none without an association."""
        if bank not in report.association or bank not in self.shares:
            return []
        shares, means = report.association[bank].share, self.shares[bank].tolist()
        lifts = [FindingLift(*one) for one in zip(FINDINGS, shares, means, strict=True)]
        return sorted(lifts, key=lambda one: one.mean - one.share)
