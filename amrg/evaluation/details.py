"""Details of findings: are the side, zone, severity and device in a report right, wrong or unsupported?

The details of a finding come from all sentences of a text that state it as present (``amrg.data.text.statements``).
Two texts agree in a detail if their sets are equal. An empty set contradicts nothing.

Shape legend: S studies, K the 13 findings, B resamples.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any

import numpy as np

from amrg.data.labels import FINDINGS, LABELS, NEGATIVE, POSITIVE
from amrg.data.text.statements import Statement, find_statements
from amrg.evaluation.clinical import ClinicalScores, binarize_labels, label_matrix_of_texts
from amrg.evaluation.lesion_place import lesion_sides_of_mask, lesion_zones_of_mask
from amrg.evaluation.statistics import percentile_interval

#: Compared attributes of ``Details``.
COMPARED = ("sides", "zones", "severities", "devices")

#: Numerator and denominator of each score, as names of counts.
RATIOS = {
    "side stated": ("sides both", "sides asked"),
    "side exact": ("sides exact", "sides both"),
    "side opposite": ("sides apart", "sides both"),
    "zone stated": ("zones both", "zones asked"),
    "zone exact": ("zones exact", "zones both"),
    "zone overlap": ("zones overlap", "zones both"),
    "severity exact": ("severities exact", "severities both"),
    "device kind": ("devices exact", "devices both"),
    "unsupported details": ("unsupported", "details"),
    "film side exact": ("film sides exact", "film sides said"),
    "film side opposite": ("film sides apart", "film sides said"),
    "film zone exact": ("film zones exact", "film zones said"),
    "film zone opposite": ("film zones apart", "film zones said"),
}

#: Words that restrict a denial to places not named before: "the lungs are otherwise clear".
_REST = re.compile(r"\b(?:otherwise|remaining|remainder|elsewhere|rest|other|additional|new)\b", re.IGNORECASE)

CONTRADICTING = "contradicting reports"
MICRO, MACRO = "F1 micro-13 with details", "F1 macro-13 with details"


@dataclass(frozen=True)
class Details:
    """Details of one finding in a text; an empty set if the text states none.

    Attributes:
        sides, zones, severities, devices, changes: as in ``Statement``.
        sizes: sizes in millimeters.
    """

    sides: frozenset[str]
    zones: frozenset[str]
    severities: frozenset[str]
    devices: frozenset[str]
    sizes: frozenset[int]
    changes: frozenset[str]

    def values(self) -> set[tuple[str, str | int]]:
        """Return every single detail with the name of its attribute."""
        return {(f.name, value) for f in fields(self) for value in getattr(self, f.name)}


def _united(stated: Sequence[Statement]) -> Details:
    return Details(
        sides=frozenset(side for s in stated for side in s.sides),
        zones=frozenset(zone for s in stated for zone in s.zones),
        severities=frozenset(s.severity for s in stated if s.severity),
        devices=frozenset(s.device for s in stated if s.device),
        sizes=frozenset(round(10 * s.size_cm) for s in stated if s.size_cm is not None),
        changes=frozenset(s.change for s in stated if s.change),
    )


@lru_cache(maxsize=65536)
def finding_details_of(text: str) -> Mapping[str, Details]:
    """Return the details of each finding that a text states as present, in the order of ``FINDINGS``."""
    present = [s for s in find_statements(text) if s.presence == POSITIVE]
    found = {f: [s for s in present if s.finding == f] for f in FINDINGS}
    return {finding: _united(some) for finding, some in found.items() if some}


@lru_cache(maxsize=65536)
def self_contradictions(text: str) -> frozenset[str]:
    """Return findings that a text states in one sentence and denies in another, unless the places differ."""
    found = find_statements(text)
    present = [s for s in found if s.presence == POSITIVE]
    denied = [s for s in found if s.presence == NEGATIVE and not _REST.search(text, s.start, s.end)]
    return frozenset(
        one.finding
        for one in present
        for other in denied
        if one.finding == other.finding
        and (one.start, one.end) != (other.start, other.end)
        and not _elsewhere(one.sides, other.sides)
        and not _elsewhere(one.zones, other.zones)
    )


def detail_conflicts(reference: str, generated: str) -> frozenset[str]:
    """Return findings that both texts state with sides, or device kinds, that are given in both and differ."""
    expected, predicted = finding_details_of(reference), finding_details_of(generated)
    return frozenset(
        f
        for f in expected.keys() & predicted.keys()
        if _unequal(expected[f].sides, predicted[f].sides) or _unequal(expected[f].devices, predicted[f].devices)
    )


def _unequal(one: frozenset[str], other: frozenset[str]) -> bool:
    return bool(one and other) and one != other


def _elsewhere(one: frozenset[str], other: frozenset[str]) -> bool:
    return bool(one and other) and not one & other


@dataclass(frozen=True)
class DetailScores:
    """Counts per study and finding, which determine the scores of any resample.

    Attributes:
        counts: int64 [S, K] by name. For findings that both texts state: whether the reference has the detail
            (``asked``), both have it (``both``), the sets are equal (``exact``), overlap (``overlap``) or are disjoint
            (``apart``). For all findings: details in the generated text (``details``), and those that the reference
            does not state of the finding (``unsupported``). ``film …``: generated details against the lesion's mask,
            for stated findings that have a mask.
        contradicting: bool [S], whether the generated report contradicts itself.
        clinical: clinical scores where a hit with conflicting side or device kind is a false positive and a false
            negative.
    """

    counts: Mapping[str, np.ndarray]
    contradicting: np.ndarray
    clinical: ClinicalScores

    @classmethod
    def of(
        cls,
        references: Sequence[str],
        generated: Sequence[str],
        masks: Sequence[Mapping[str, np.ndarray]] | None = None,
    ) -> "DetailScores":
        """Compare both texts of each study, and its true lesions by finding (bool [H, W]) if they are known."""
        names = dict.fromkeys(name for pair in RATIOS.values() for name in pair)
        counts = {name: np.zeros((len(references), len(FINDINGS)), dtype=np.int64) for name in names}
        conflicting = np.zeros((len(references), len(LABELS)), dtype=bool)
        for i, (reference, text) in enumerate(zip(references, generated, strict=True)):
            _count(counts, i, finding_details_of(reference), finding_details_of(text))
            if masks is not None:
                _count_film(counts, i, finding_details_of(text), masks[i])
            for finding in detail_conflicts(reference, text):
                conflicting[i, LABELS.index(finding)] = True
        plain = ClinicalScores.from_labels(
            binarize_labels(label_matrix_of_texts(references)), binarize_labels(label_matrix_of_texts(generated))
        )
        conflicting &= plain.tp
        clinical = ClinicalScores(plain.tp & ~conflicting, plain.fp | conflicting, plain.fn | conflicting)
        return cls(counts, np.array([bool(self_contradictions(text)) for text in generated]), clinical)

    def scores(self, weights_BS: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """Return the scores by name, [B] each; NaN where the resample has no case."""
        weights = np.ones((1, len(self.contradicting))) if weights_BS is None else weights_BS
        summed = {name: weights @ count.sum(1) for name, count in self.counts.items()}
        return {
            MICRO: self.clinical.micro(FINDINGS, weights)[:, 2],
            MACRO: self.clinical.macro(FINDINGS, weights)[:, 2],
            **{name: _quotient(summed[part], summed[total]) for name, (part, total) in RATIOS.items()},
            CONTRADICTING: weights @ self.contradicting / weights.sum(1),
        }

    def summary(self, weights_BS: np.ndarray) -> dict[str, dict[str, Any]]:
        """Return ``value``, bootstrap ``interval`` and ``cases`` (the denominator) per score; None without any case."""
        resampled, observed = self.scores(weights_BS), self.scores()
        found: dict[str, dict[str, Any]] = {}
        for name, value in observed.items():
            known = bool(np.isfinite(value[0]))
            found[name] = {
                "value": float(value[0]) if known else None,
                "interval": list(percentile_interval(resampled[name])) if known else None,
                "cases": int(self.counts[RATIOS[name][1]].sum()) if name in RATIOS else len(self.contradicting),
            }
        return found

    def per_finding(self) -> dict[str, dict[str, int]]:
        """Return the counts per finding, for findings with any count above 0."""
        table = {f: {n: int(c[:, k].sum()) for n, c in self.counts.items()} for k, f in enumerate(FINDINGS)}
        return {finding: counts for finding, counts in table.items() if any(counts.values())}

    def concat(self, other: "DetailScores") -> "DetailScores":
        """Concatenate the studies of both."""
        return DetailScores(
            {name: np.concatenate([count, other.counts[name]]) for name, count in self.counts.items()},
            np.concatenate([self.contradicting, other.contradicting]),
            self.clinical.concat(other.clinical),
        )


def _count(
    counts: dict[str, np.ndarray], study: int, expected: Mapping[str, Details], predicted: Mapping[str, Details]
) -> None:
    for finding, details in predicted.items():
        k = FINDINGS.index(finding)
        known = expected[finding].values() if finding in expected else set()
        counts["details"][study, k] = len(details.values())
        counts["unsupported"][study, k] = len(details.values() - known)
        if finding not in expected:
            continue
        for attribute in COMPARED:
            wanted, given = getattr(expected[finding], attribute), getattr(details, attribute)
            found = {
                "asked": bool(wanted),
                "both": bool(wanted and given),
                "exact": bool(wanted) and wanted == given,
                "overlap": bool(wanted & given),
                "apart": _elsewhere(wanted, given),
            }
            for name, value in found.items():
                if f"{attribute} {name}" in counts:
                    counts[f"{attribute} {name}"][study, k] = value


def _count_film(
    counts: dict[str, np.ndarray], study: int, predicted: Mapping[str, Details], masks: Mapping[str, np.ndarray]
) -> None:
    """Count stated sides and zones against the masks. Zones overlap, so every stated zone must contain the lesion."""
    for finding, details in predicted.items():
        if finding not in masks or not masks[finding].any():
            continue
        k = FINDINGS.index(finding)
        sides, zones = lesion_sides_of_mask(masks[finding]), lesion_zones_of_mask(masks[finding])
        if details.sides and sides:
            counts["film sides said"][study, k] = 1
            counts["film sides exact"][study, k] = details.sides == sides
            counts["film sides apart"][study, k] = not details.sides & sides
        if details.zones and zones:
            counts["film zones said"][study, k] = 1
            counts["film zones exact"][study, k] = details.zones <= zones
            counts["film zones apart"][study, k] = not details.zones & zones


def _quotient(part_B: np.ndarray, total_B: np.ndarray) -> np.ndarray:
    """Divide; NaN where the total is 0."""
    return np.where(total_B > 0, part_B / np.where(total_B > 0, total_B, 1), np.nan)
