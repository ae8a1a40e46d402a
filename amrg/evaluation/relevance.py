"""Relevance of the retrieved rows to the film, from each finding's own association.

Per report and bank, ``generate`` writes for each of the 13 findings' own associations (means over heads): the share on
rows of that finding, the heaviest row, and the share on the patient's left of the weight on that finding's rows with a
box. A relevant memory puts more weight on rows of a finding if the film has it than if not, more than their share of
the bank, and retrieves different rows for different films.

Shape legend: S studies, K the 13 findings, B resamples.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from amrg.banks.bank import REPORTS, VISUAL, MemoryBank
from amrg.data.labels import FINDINGS
from amrg.evaluation.lesion_place import lesion_sides_of_mask
from amrg.evaluation.reports import Association, GeneratedReport
from amrg.evaluation.statistics import percentile_interval

#: Banks by their names in generated reports.
FOLDERS = {"visual": VISUAL, "report": REPORTS}


@dataclass(frozen=True)
class Relevance:
    """Associations of one memory, and the findings of the studies.

    Attributes:
        share_SK: share of finding k's association on rows of finding k.
        top_SK: heaviest row of that association, −1 for none.
        side_SK: share on the true side of the lesion of the weight on that finding's rows with a box; NaN if the
            lesion is unknown or on both sides, or no such row has weight.
        present_SK: bool, positive findings by the studies' own labels.
        absent_SK: bool, findings that they do not have; not those that their data set has no label of.
        base_K: share of the bank's rows that belong to finding k.
        first_S: heaviest row over all associations of a study, −1 for none.
    """

    share_SK: np.ndarray
    top_SK: np.ndarray
    side_SK: np.ndarray
    present_SK: np.ndarray
    absent_SK: np.ndarray
    base_K: np.ndarray
    first_S: np.ndarray

    def summary(self, weights_BS: np.ndarray) -> dict[str, Any]:
        """Return values with their bootstrap intervals, for JSON.

        Returns:
            ``all`` and, under ``findings``, each finding that some study has: number of ``studies``, mean share
            ``with`` it, ``without`` it and ``base``; ``rows``, the number of distinct heaviest rows; ``side``, the
            mean share on the true side of one-sided lesions, and ``sided``, their number. ``all`` counts a study once
            per finding that it has, and its ``without`` and ``base`` use the same weights. ``alike``: share of the
            studies whose heaviest row is the most frequent one. ``leading``: number of distinct heaviest rows.
        """
        have = [k for k in range(len(FINDINGS)) if self.present_SK[:, k].any()]
        return {
            "all": self._means(have, weights_BS) if have else None,
            "findings": {FINDINGS[k]: self._means([k], weights_BS) for k in have},
            "alike": self._alike(weights_BS),
            "leading": len(set(self.first_S[self.first_S >= 0].tolist())),
        }

    def _means(self, columns: list[int], weights_BS: np.ndarray) -> dict[str, Any]:
        present, absent, share, side = (
            x[:, columns] for x in (self.present_SK, self.absent_SK, self.share_SK, self.side_SK)
        )
        have = present & np.isfinite(side)
        top = self.top_SK[:, columns][present]
        once = np.ones((1, len(present)))

        def without(weights: np.ndarray) -> np.ndarray:
            """Average over the findings, weighted by the number of studies that have them."""
            mean_share = _quotient(weights @ (absent * share), weights @ absent)
            times = np.where(np.isfinite(mean_share), weights @ present, 0)
            return _quotient((times * np.nan_to_num(mean_share)).sum(1), times.sum(1))

        def mean(values: np.ndarray, among: np.ndarray, weights: np.ndarray) -> np.ndarray:
            return _quotient(weights @ np.where(among, values, 0).sum(1), weights @ among.sum(1))

        return {
            "studies": int(present.sum()),
            "with": _with_interval(mean(share, present, once), mean(share, present, weights_BS)),
            "without": _with_interval(without(once), without(weights_BS)),
            "base": float((self.base_K[columns] * present.sum(0)).sum() / present.sum()),
            "rows": len(set(top[top >= 0].tolist())),
            "side": _with_interval(mean(side, have, once), mean(side, have, weights_BS)),
            "sided": int(have.sum()),
        }

    def _alike(self, weights_BS: np.ndarray) -> dict[str, Any]:
        counts = Counter(self.first_S[self.first_S >= 0].tolist())
        led = self.first_S == (counts.most_common(1)[0][0] if counts else -2)
        return _with_interval(led.mean(keepdims=True), weights_BS @ led / weights_BS.sum(1))


def retrieval_relevance(
    banks: Path,
    reports: Sequence[GeneratedReport],
    present_SK: np.ndarray,
    absent_SK: np.ndarray,
    masks: Sequence[Mapping[str, np.ndarray]],
    weights_BS: np.ndarray,
) -> dict[str, dict[str, Any] | None]:
    """Return ``Relevance.summary`` per memory; None if the reports lack associations.

    Args:
        banks: a banks artefact.
        reports: one per study.
        present_SK: bool, positive findings by the studies' own labels.
        absent_SK: as in ``Relevance``.
        masks: true lesions per study by finding, bool [H, W].
        weights_BS: count of each study in each resample.
    """
    found: dict[str, dict[str, Any] | None] = {}
    for bank, folder in FOLDERS.items():
        associations = [report.association[bank] for report in reports if bank in report.association]
        if len(associations) < len(reports):
            found[bank] = None
            continue
        first = [max(r.memory.get(bank, []), key=lambda row: row["weight"], default={"row": -1}) for r in reports]
        measured = Relevance(
            share_SK=np.array([one.share for one in associations], dtype=np.float64),
            top_SK=np.array([one.top_row for one in associations], dtype=np.int64),
            side_SK=_on_true_side(associations, masks),
            present_SK=present_SK,
            absent_SK=absent_SK,
            base_K=association_base_rates(MemoryBank.open(banks / folder)),
            first_S=np.array([row["row"] for row in first], dtype=np.int64),
        )
        found[bank] = measured.summary(weights_BS)
    return found


def association_base_rates(bank: MemoryBank) -> np.ndarray:
    """Return the share of a bank's rows that belong to each of the 13 findings, float64 [K]."""
    counts: Counter[str] = Counter()
    for first, chunk in bank.chunks():
        for row in bank.provenance_rows(first, first + chunk["rows"], ["findings"])["findings"].to_pylist():
            counts.update(set(row or ()))
    return np.array([counts[finding] / max(len(bank), 1) for finding in FINDINGS])


def _on_true_side(associations: Sequence[Association], masks: Sequence[Mapping[str, np.ndarray]]) -> np.ndarray:
    """Convert shares on the patient's left to shares on the lesion's side, float64 [S, K]."""
    found = np.full((len(associations), len(FINDINGS)), np.nan)
    for i, (association, lesions) in enumerate(zip(associations, masks, strict=True)):
        for k, finding in enumerate(FINDINGS):
            left = association.side[k]
            sides = lesion_sides_of_mask(lesions[finding]) if finding in lesions else frozenset()
            if left is not None and len(sides) == 1:
                found[i, k] = left if "left" in sides else 1 - left
    return found


def _with_interval(value_1: np.ndarray, values_B: np.ndarray) -> dict[str, Any]:
    """Return ``value`` and ``interval`` for JSON; None if no study has a value."""
    if not np.isfinite(value_1[0]):
        return {"value": None, "interval": None}
    return {"value": float(value_1[0]), "interval": list(percentile_interval(values_B))}


def _quotient(part: np.ndarray, total: np.ndarray) -> np.ndarray:
    """Divide; NaN where the total is 0."""
    return np.where(total > 0, part / np.where(total > 0, total, 1), np.nan)
