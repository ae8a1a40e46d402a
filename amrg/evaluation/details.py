"""Details of findings: is what a report says of side, zone, severity and device right, wrong, or supported by nothing?

The details of a finding are those of all sentences of a text that state it as present (``amrg.data.text.statements``).
Two texts agree in a detail when their sets are equal. What one of them leaves open contradicts nothing.

Shape legend: S studies, K the 13 findings, B resamples.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any

import numpy as np

from amrg.data.labels import FINDINGS, LABELS, NEGATIVE, POSITIVE
from amrg.data.text.statements import Statement, statements
from amrg.evaluation.clinical import ClinicalScores, binarize, label_matrix
from amrg.evaluation.lesion_place import lesion_sides, lesion_zones
from amrg.evaluation.statistics import interval

#: Details that two texts are compared in.
COMPARED = ("sides", "zones", "severities", "devices")

#: Score → the counts that it is the quotient of.
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

#: Words of a sentence that denies a finding of all places but those named before: "the lungs are otherwise clear".
_REST = re.compile(r"\b(?:otherwise|remaining|remainder|elsewhere|rest|other|additional|new)\b", re.IGNORECASE)

CONTRADICTING = "contradicting reports"
MICRO, MACRO = "F1 micro-13 with details", "F1 macro-13 with details"


@dataclass(frozen=True)
class Details:
    """What a text says of one finding; an empty set: nothing.

    Attributes:
        sides, zones, severities, devices, changes: as in ``Statement``.
        sizes: in tenths of a centimeter.
    """

    sides: frozenset[str]
    zones: frozenset[str]
    severities: frozenset[str]
    devices: frozenset[str]
    sizes: frozenset[int]
    changes: frozenset[str]

    def values(self) -> set[tuple[str, str | int]]:
        """Every single detail, with the name of its attribute."""
        return {(f.name, value) for f in fields(self) for value in getattr(self, f.name)}


def _united(said: Sequence[Statement]) -> Details:
    return Details(
        sides=frozenset(side for s in said for side in s.sides),
        zones=frozenset(zone for s in said for zone in s.zones),
        severities=frozenset(s.severity for s in said if s.severity),
        devices=frozenset(s.device for s in said if s.device),
        sizes=frozenset(round(10 * s.size_cm) for s in said if s.size_cm is not None),
        changes=frozenset(s.change for s in said if s.change),
    )


@lru_cache(maxsize=65536)
def details_of(text: str) -> Mapping[str, Details]:
    """The details of each finding that a text states as present, in the order of ``FINDINGS``."""
    said = [s for s in statements(text) if s.presence == POSITIVE]
    found = {f: [s for s in said if s.finding == f] for f in FINDINGS}
    return {finding: _united(some) for finding, some in found.items() if some}


@lru_cache(maxsize=65536)
def contradicted(text: str) -> frozenset[str]:
    """Findings that a text states in one sentence and denies in another, unless it speaks of different places."""
    said = statements(text)
    present = [s for s in said if s.presence == POSITIVE]
    denied = [s for s in said if s.presence == NEGATIVE and not _REST.search(text, s.start, s.end)]
    return frozenset(
        one.finding
        for one in present
        for other in denied
        if one.finding == other.finding
        and (one.start, one.end) != (other.start, other.end)
        and not _elsewhere(one.sides, other.sides)
        and not _elsewhere(one.zones, other.zones)
    )


def conflicts(reference: str, generated: str) -> frozenset[str]:
    """Findings that both texts state, with unequal sides or device kinds where both say sides or kinds."""
    asked, said = details_of(reference), details_of(generated)
    return frozenset(
        f
        for f in asked.keys() & said.keys()
        if _unequal(asked[f].sides, said[f].sides) or _unequal(asked[f].devices, said[f].devices)
    )


def _unequal(one: frozenset[str], other: frozenset[str]) -> bool:
    return bool(one and other) and one != other


def _elsewhere(one: frozenset[str], other: frozenset[str]) -> bool:
    return bool(one and other) and not one & other


@dataclass(frozen=True)
class DetailScores:
    """Counts of every study and finding, from which the scores of any resample follow.

    Attributes:
        counts: int64 [S, K] by name: of findings that both texts state, how many have a detail in the reference
            (``asked``), in both (``both``), the same in both (``exact``), some in common (``overlap``), none in common
            (``apart``); of all findings, the single details that the generated text states (``details``) and those
            among them that the reference does not state of that finding (``unsupported``); ``film …``: the same
            against the lesion's mask, of findings that the generated text states and that have one.
        contradicting: bool [S], whether the generated report contradicts itself.
        clinical: hits whose side or device kind conflicts are one false positive and one false negative each.
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
        """From both texts of each study and, where they are known, its true lesions by finding (bool [H, W])."""
        names = dict.fromkeys(name for pair in RATIOS.values() for name in pair)
        counts = {name: np.zeros((len(references), len(FINDINGS)), dtype=np.int64) for name in names}
        conflicting = np.zeros((len(references), len(LABELS)), dtype=bool)
        for i, (reference, text) in enumerate(zip(references, generated, strict=True)):
            _count(counts, i, details_of(reference), details_of(text))
            if masks is not None:
                _count_film(counts, i, details_of(text), masks[i])
            for finding in conflicts(reference, text):
                conflicting[i, LABELS.index(finding)] = True
        plain = ClinicalScores.from_labels(binarize(label_matrix(references)), binarize(label_matrix(generated)))
        conflicting &= plain.tp
        clinical = ClinicalScores(plain.tp & ~conflicting, plain.fp | conflicting, plain.fn | conflicting)
        return cls(counts, np.array([bool(contradicted(text)) for text in generated]), clinical)

    def scores(self, weights_BS: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """Scores by name, [B] each; not a number where no finding of the resample offers a case."""
        weights = np.ones((1, len(self.contradicting))) if weights_BS is None else weights_BS
        summed = {name: weights @ count.sum(1) for name, count in self.counts.items()}
        return {
            MICRO: self.clinical.micro(FINDINGS, weights)[:, 2],
            MACRO: self.clinical.macro(FINDINGS, weights)[:, 2],
            **{name: _quotient(summed[part], summed[whole]) for name, (part, whole) in RATIOS.items()},
            CONTRADICTING: weights @ self.contradicting / weights.sum(1),
        }

    def summary(self, weights_BS: np.ndarray) -> dict[str, dict[str, Any]]:
        """Of each score ``value``, its bootstrap ``interval`` and ``cases``, what it is a share of; None: no case."""
        resampled, whole = self.scores(weights_BS), self.scores()
        found: dict[str, dict[str, Any]] = {}
        for name, value in whole.items():
            known = bool(np.isfinite(value[0]))
            found[name] = {
                "value": float(value[0]) if known else None,
                "interval": list(interval(resampled[name])) if known else None,
                "cases": int(self.counts[RATIOS[name][1]].sum()) if name in RATIOS else len(self.contradicting),
            }
        return found

    def per_finding(self) -> dict[str, dict[str, int]]:
        """The counts of each finding that has any."""
        table = {f: {n: int(c[:, k].sum()) for n, c in self.counts.items()} for k, f in enumerate(FINDINGS)}
        return {finding: counts for finding, counts in table.items() if any(counts.values())}

    def concat(self, other: "DetailScores") -> "DetailScores":
        """The studies of both behind one another."""
        return DetailScores(
            {name: np.concatenate([count, other.counts[name]]) for name, count in self.counts.items()},
            np.concatenate([self.contradicting, other.contradicting]),
            self.clinical.concat(other.clinical),
        )


def _count(
    counts: dict[str, np.ndarray], study: int, asked: Mapping[str, Details], said: Mapping[str, Details]
) -> None:
    for finding, details in said.items():
        k = FINDINGS.index(finding)
        known = asked[finding].values() if finding in asked else set()
        counts["details"][study, k] = len(details.values())
        counts["unsupported"][study, k] = len(details.values() - known)
        if finding not in asked:
            continue
        for attribute in COMPARED:
            wanted, given = getattr(asked[finding], attribute), getattr(details, attribute)
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
    counts: dict[str, np.ndarray], study: int, said: Mapping[str, Details], masks: Mapping[str, np.ndarray]
) -> None:
    """A stated zone is exact when the lesion may be said to lie in it: on a film, zones overlap."""
    for finding, details in said.items():
        if finding not in masks or not masks[finding].any():
            continue
        k = FINDINGS.index(finding)
        sides, zones = lesion_sides(masks[finding]), lesion_zones(masks[finding])
        if details.sides and sides:
            counts["film sides said"][study, k] = 1
            counts["film sides exact"][study, k] = details.sides == sides
            counts["film sides apart"][study, k] = not details.sides & sides
        if details.zones and zones:
            counts["film zones said"][study, k] = 1
            counts["film zones exact"][study, k] = details.zones <= zones
            counts["film zones apart"][study, k] = not details.zones & zones


def _quotient(part_B: np.ndarray, whole_B: np.ndarray) -> np.ndarray:
    """Not a number where the whole is 0."""
    return np.where(whole_B > 0, part_B / np.where(whole_B > 0, whole_B, 1), np.nan)
