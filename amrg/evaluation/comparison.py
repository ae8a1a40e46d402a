"""Paired comparison of runs that wrote reports for the same studies.

The studies of one patient are one unit in both tests: a bootstrap draws patients with their reports of both runs, a
permutation swaps the two runs' reports of whole patients (Noreen, 1989: approximate randomisation).
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from amrg.artifacts import MANIFEST, open_artifact, open_input
from amrg.errors import UserError
from amrg.evaluation.clinical import ClinicalScores, binarize, label_matrix
from amrg.evaluation.details import DetailScores
from amrg.evaluation.language import LanguageScores, score_language
from amrg.evaluation.radeval_metrics import FILE as LEARNED
from amrg.evaluation.radeval_metrics import LearnedScores
from amrg.evaluation.reports import FILE, GeneratedReport, parse_reports
from amrg.evaluation.statistics import bootstrap_counts, interval

#: Studies × resamples held in memory at a time.
_CELLS = 20_000_000


@dataclass(frozen=True)
class ReportSet:
    """Reports of one run with what they answer, in the order of their keys.

    Attributes:
        learned: what metrics with learned weights found in them, where `amrg evaluate` could ask any.
    """

    name: str
    reports: list[GeneratedReport]
    learned: LearnedScores = field(default_factory=LearnedScores)

    @property
    def keys(self) -> list[str]:
        return [report.key for report in self.reports]


@dataclass(frozen=True)
class Difference:
    """One score of two runs.

    Attributes:
        baseline, candidate: the scores.
        interval: 95% bootstrap interval of ``other - first``.
        p: two-sided p of the permutation test; ``holm``: the same, corrected for all tests made together (Holm, 1979).
    """

    baseline: float
    candidate: float
    interval: tuple[float, float]
    p: float
    holm: float


def read_run(path: Path) -> ReportSet:
    """The reports behind a scores or a reports artefact, or of a JSONL file of ``key, group, reference, generated``.

    Raises:
        UserError: it is none of these, a line is malformed or without reference, or a study comes twice.
    """
    file = path
    if path.is_dir():
        found = open_artifact(path, _kind(path))
        file = (open_input(found, "reports") if found.kind == "scores" else found).path / FILE
    reports = sorted(parse_reports(file).values(), key=lambda report: report.key)
    if not reports:
        raise UserError(f"{file} holds no reports")
    if lacking := sum(not report.reference or not report.group for report in reports):
        raise UserError(f"{file}: {lacking} of {len(reports)} lines lack `reference` or `group`, which pairing needs")
    return ReportSet(run_name(path), reports, LearnedScores.read(path / LEARNED, [report.key for report in reports]))


def run_name(path: Path) -> str:
    """``demo/scores-1234567890``: the artefact and the folder of the run it lies in."""
    return f"{path.parent.name}/{path.name}"


def _kind(path: Path) -> str:
    try:
        kind = json.loads((path / MANIFEST).read_text())["kind"]
    except (OSError, ValueError, KeyError, TypeError):
        kind = None
    if kind not in ("scores", "reports"):
        raise UserError(f"{path} is neither a scores nor a reports artefact: give one, or a file of reports")
    return kind


def check_pairing(first: ReportSet, other: ReportSet) -> None:
    """Refuse runs that did not answer the same questions.

    Raises:
        UserError: their studies, patients or references differ, or the version that scored them.
    """
    mine, theirs = set(first.keys), set(other.keys)
    if mine != theirs:
        raise UserError(
            f"{first.name} has {len(mine)} studies and {other.name} has {len(theirs)}, {len(mine & theirs)} of them "
            "the same: only runs over the same studies are compared; generate both from the same data and split"
        )
    pairs = zip(first.reports, other.reports, strict=True)
    if changed := sum((a.reference, a.group) != (b.reference, b.group) for a, b in pairs):
        raise UserError(
            f"{first.name} and {other.name} have other references or patients for {changed} of {len(mine)} studies: "
            "generate both from the same data"
        )
    if first.learned and other.learned and first.learned.radeval != other.learned.radeval:
        raise UserError(
            f"{first.name} was scored by radeval {first.learned.radeval} and {other.name} by {other.learned.radeval}: "
            "evaluate one of them again, or compare their reports artefacts, which hold no learned scores"
        )


def compare(first: ReportSet, others: Sequence[ReportSet], samples: int, seed: int) -> dict[str, dict[str, Difference]]:
    """Every other run against the first, by run and score; a score that one of the two does not have is left out.

    Args:
        first: what the others are measured against.
        others: their names must differ.
        samples: resamples of the bootstrap and of the permutation test.
        seed: of both.

    Raises:
        UserError: the runs are not over the same studies.
    """
    for other in others:
        check_pairing(first, other)
    groups = [report.group for report in first.reports]
    base = _score(first)
    bootstrap = bootstrap_counts(groups, samples, seed)
    swaps = _permutation_signs(groups, samples, seed)
    rows = {}
    for other in others:
        rows[other.name] = _differences(base, _score(other), bootstrap, swaps)
    corrected = iter(holm([d.p for row in rows.values() for d in row.values()]))
    return {
        run: {name: Difference(d.baseline, d.candidate, d.interval, d.p, next(corrected)) for name, d in row.items()}
        for run, row in rows.items()
    }


def scores_of(run: ReportSet, samples: int, seed: int) -> dict[str, tuple[float, tuple[float, float]]]:
    """Every score of one run with its bootstrap interval, by the names that ``compare`` uses.

    Scores of details are not a number where no report offers a case.
    """
    scored = _score(run)
    whole = scored.scores(np.ones((1, len(run.reports))))
    drawn = scored.scores(bootstrap_counts([report.group for report in run.reports], samples, seed))
    return {name: (float(value[0]), interval(drawn[name])) for name, value in whole.items()}


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction, in the order given."""
    corrected, largest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(np.argsort(p_values, kind="stable")):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        corrected[i] = largest
    return corrected


@dataclass(frozen=True)
class _Scored:
    """All that the scores of one run, or of two stacked, are sums of."""

    language: LanguageScores
    clinical: Mapping[str, ClinicalScores]
    details: DetailScores
    learned: LearnedScores

    def scores(self, weights_BS: np.ndarray) -> dict[str, np.ndarray]:
        found = self.language.corpus(weights_BS)
        for policy, scores in self.clinical.items():
            for name, values in scores.averages(weights_BS).items():
                found[f"F1 {name.replace('_', '-')}{policy}"] = values[:, 2]
        return found | self.details.scores(weights_BS) | self.learned.scores(weights_BS)

    def stacked(self, other: "_Scored") -> "_Scored":
        """Both runs' studies behind one another, so that a weight picks from which run a study's report is taken."""
        clinical = {policy: scores.concat(other.clinical[policy]) for policy, scores in self.clinical.items()}
        return _Scored(
            self.language.concat(other.language),
            clinical,
            self.details.concat(other.details),
            self.learned.concat(other.learned),
        )


def _score(run: ReportSet) -> _Scored:
    references = [report.reference for report in run.reports]
    generated = [report.text for report in run.reports]
    truth, said = label_matrix(references), label_matrix(generated)
    language = score_language(dict(zip(run.keys, references, strict=True)), dict(zip(run.keys, generated, strict=True)))
    return _Scored(
        language,
        {
            "": ClinicalScores.from_labels(binarize(truth), binarize(said)),
            " (uncertain as present)": ClinicalScores.from_labels(
                binarize(truth, "present"), binarize(said, "present")
            ),
        },
        DetailScores.of(references, generated),
        run.learned,
    )


def _permutation_signs(groups: Sequence[str], samples: int, seed: int) -> np.ndarray:
    """Whether each permutation swaps each study's reports, bool [samples, S]; one patient's are swapped together."""
    names, index = np.unique(np.asarray(groups), return_inverse=True)
    return np.random.default_rng([seed, 1]).integers(2, size=(samples, len(names))).astype(bool)[:, index]


def _differences(first: _Scored, other: _Scored, bootstrap: np.ndarray, swaps: np.ndarray) -> dict[str, Difference]:
    """Of every score that both runs have: a detail that no report offers a case of has none, nor what was not asked."""
    count = bootstrap.shape[1]
    whole = np.ones((1, count))
    one, two = first.scores(whole), other.scores(whole)
    names = [name for name in one if name in two and np.isfinite([one[name][0], two[name][0]]).all()]
    pieces = np.array_split(np.arange(len(bootstrap)), max(1, bootstrap.size // _CELLS))
    resampled: dict[str, list[np.ndarray]] = {name: [] for name in names}
    permuted: dict[str, list[np.ndarray]] = {name: [] for name in names}
    both = first.stacked(other)
    for piece in pieces:
        drawn_one, drawn_two = first.scores(bootstrap[piece]), other.scores(bootstrap[piece])
        kept = np.hstack([~swaps[piece], swaps[piece]]).astype(np.float64)
        taken = np.hstack([swaps[piece], ~swaps[piece]]).astype(np.float64)
        mixed_one, mixed_two = both.scores(kept), both.scores(taken)
        for name in names:
            resampled[name].append(drawn_two[name] - drawn_one[name])
            permuted[name].append(mixed_two[name] - mixed_one[name])
    found = {}
    for name in names:
        difference = float(two[name][0] - one[name][0])
        # the tolerance keeps rounding from telling a permutation that swaps nothing from the runs as they are; one
        # that leaves a run without a case (not a number) counts against a difference
        extreme = ~(np.abs(np.concatenate(permuted[name])) < abs(difference) - 1e-12)
        p = (1 + int(extreme.sum())) / (1 + len(extreme))
        bounds = interval(np.concatenate(resampled[name]))
        found[name] = Difference(float(one[name][0]), float(two[name][0]), bounds, p, p)
    return found
