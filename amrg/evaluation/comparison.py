"""Paired comparison of runs that wrote reports for the same studies.

The studies of one patient are one unit in both tests. The bootstrap draws patients with their reports of both runs. The
permutation test swaps the two runs' reports patient by patient (approximate randomization; Noreen, 1989).
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from amrg.artifacts import MANIFEST, open_artifact, open_artifact_input
from amrg.errors import UserError
from amrg.evaluation.clinical import ClinicalScores, binarize_labels, label_matrix_of_texts
from amrg.evaluation.details import DetailScores
from amrg.evaluation.language import LanguageScores, score_language
from amrg.evaluation.radeval_metrics import FILE as LEARNED
from amrg.evaluation.radeval_metrics import LearnedScores
from amrg.evaluation.reports import FILE, GeneratedReport, parse_reports
from amrg.evaluation.statistics import bootstrap_counts, percentile_interval
from amrg.evaluation.temporal import TemporalScores

#: Maximal studies × resamples in memory.
_CELLS = 20_000_000


@dataclass(frozen=True)
class ReportSet:
    """Generated reports of one run with their references, in the order of their keys.

    Attributes:
        learned: scores by metrics with learned weights, if `amrg evaluate` could run any.
    """

    name: str
    reports: list[GeneratedReport]
    learned: LearnedScores = field(default_factory=LearnedScores)

    @property
    def keys(self) -> list[str]:
        """Keys of the studies, in the order of the reports."""
        return [report.key for report in self.reports]


@dataclass(frozen=True)
class Difference:
    """One score of two runs.

    Attributes:
        baseline, candidate: score of either run.
        interval: 95% bootstrap interval of ``candidate - baseline``.
        p: two-sided p of the permutation test.
        holm: p corrected for all tests of one comparison (Holm, 1979).
    """

    baseline: float
    candidate: float
    interval: tuple[float, float]
    p: float
    holm: float


def read_run_reports(path: Path) -> ReportSet:
    """Read the reports of a scores or reports artefact, or a JSONL file of ``key, group, reference, generated``.

    Raises:
        UserError: the path is none of these, a line is malformed or lacks its reference, or a study is repeated.
    """
    file = path
    if path.is_dir():
        found = open_artifact(path, _kind(path))
        file = (open_artifact_input(found, "reports") if found.kind == "scores" else found).path / FILE
    reports = sorted(parse_reports(file).values(), key=lambda report: report.key)
    if not reports:
        raise UserError(f"{file} holds no reports")
    if lacking := sum(not report.reference or not report.group for report in reports):
        raise UserError(f"{file}: {lacking} of {len(reports)} lines lack `reference` or `group`, which pairing needs")
    return ReportSet(
        run_display_name(path), reports, LearnedScores.read(path / LEARNED, [report.key for report in reports])
    )


def run_display_name(path: Path) -> str:
    """Return run and artefact folder, such as ``demo/scores-1234567890``."""
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
    """Refuse runs that are not comparable.

    Raises:
        UserError: studies, patients, references or the radeval versions differ.
    """
    one, two = set(first.keys), set(other.keys)
    if one != two:
        raise UserError(
            f"{first.name} has {len(one)} studies and {other.name} has {len(two)}, {len(one & two)} of them "
            "the same: only runs over the same studies are compared; generate both from the same data and split"
        )
    pairs = zip(first.reports, other.reports, strict=True)
    if changed := sum((a.reference, a.group) != (b.reference, b.group) for a, b in pairs):
        raise UserError(
            f"{first.name} and {other.name} have other references or patients for {changed} of {len(one)} studies: "
            "generate both from the same data"
        )
    if first.learned and other.learned and first.learned.radeval != other.learned.radeval:
        raise UserError(
            f"{first.name} was scored by radeval {first.learned.radeval} and {other.name} by {other.learned.radeval}: "
            "evaluate one of them again, or compare their reports artefacts, which hold no learned scores"
        )


def compare_with_first(
    first: ReportSet, others: Sequence[ReportSet], samples: int, seed: int
) -> dict[str, dict[str, Difference]]:
    """Compare every other run with the first; returns differences by run and score, for scores that both runs have.

    Args:
        first: the baseline.
        others: candidates with distinct names.
        samples: resamples of the bootstrap and of the permutation test.
        seed: seed of both.

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
    corrected = iter(holm_correction([d.p for row in rows.values() for d in row.values()]))
    return {
        run: {name: Difference(d.baseline, d.candidate, d.interval, d.p, next(corrected)) for name, d in row.items()}
        for run, row in rows.items()
    }


def bootstrap_run_scores(run: ReportSet, samples: int, seed: int) -> dict[str, tuple[float, tuple[float, float]]]:
    """Return every score of one run with its bootstrap interval, by the names of ``compare_with_first``.

    A detail score is NaN if no report has a case of it.
    """
    scored = _score(run)
    observed = scored.scores(np.ones((1, len(run.reports))))
    drawn = scored.scores(bootstrap_counts([report.group for report in run.reports], samples, seed))
    return {name: (float(value[0]), percentile_interval(drawn[name])) for name, value in observed.items()}


def holm_correction(p_values: Sequence[float]) -> list[float]:
    """Return p-values corrected by Holm's step-down procedure, in the given order."""
    corrected, largest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(np.argsort(p_values, kind="stable")):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        corrected[i] = largest
    return corrected


@dataclass(frozen=True)
class _Scored:
    """Per-study terms of all scores of one run, or of two stacked runs."""

    language: LanguageScores
    clinical: Mapping[str, ClinicalScores]
    details: DetailScores
    temporal: TemporalScores
    learned: LearnedScores

    def scores(self, weights_BS: np.ndarray) -> dict[str, np.ndarray]:
        found = self.language.corpus(weights_BS)
        for policy, scores in self.clinical.items():
            for name, values in scores.averages(weights_BS).items():
                found[f"F1 {name.replace('_', '-')}{policy}"] = values[:, 2]
        return (
            found | self.details.scores(weights_BS) | self.temporal.scores(weights_BS) | self.learned.scores(weights_BS)
        )

    def stacked(self, other: "_Scored") -> "_Scored":
        """Concatenate the studies of both runs; weights then choose the run of each study's report."""
        clinical = {policy: scores.concat(other.clinical[policy]) for policy, scores in self.clinical.items()}
        return _Scored(
            self.language.concat(other.language),
            clinical,
            self.details.concat(other.details),
            self.temporal.concat(other.temporal),
            self.learned.concat(other.learned),
        )


def _score(run: ReportSet) -> _Scored:
    references = [report.reference for report in run.reports]
    generated = [report.text for report in run.reports]
    truth, predicted = label_matrix_of_texts(references), label_matrix_of_texts(generated)
    language = score_language(dict(zip(run.keys, references, strict=True)), dict(zip(run.keys, generated, strict=True)))
    return _Scored(
        language,
        {
            "": ClinicalScores.from_labels(binarize_labels(truth), binarize_labels(predicted)),
            " (uncertain as present)": ClinicalScores.from_labels(
                binarize_labels(truth, "present"), binarize_labels(predicted, "present")
            ),
        },
        DetailScores.of(references, generated),
        TemporalScores.of(references, generated, [report.prior for report in run.reports]),
        run.learned,
    )


def _permutation_signs(groups: Sequence[str], samples: int, seed: int) -> np.ndarray:
    """Draw whether each permutation swaps a study's reports, bool [samples, S]; one value per patient."""
    names, index = np.unique(np.asarray(groups), return_inverse=True)
    return np.random.default_rng([seed, 1]).integers(2, size=(samples, len(names))).astype(bool)[:, index]


def _differences(first: _Scored, other: _Scored, bootstrap: np.ndarray, swaps: np.ndarray) -> dict[str, Difference]:
    """Test every score that both runs have. Details without any case and unavailable metrics are left out."""
    count = bootstrap.shape[1]
    once = np.ones((1, count))
    one, two = first.scores(once), other.scores(once)
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
        # The tolerance absorbs rounding: a permutation that swaps nothing must equal the observed difference. NaN (a
        # run without any case) counts as extreme, that is, against a difference.
        extreme = ~(np.abs(np.concatenate(permuted[name])) < abs(difference) - 1e-12)
        p = (1 + int(extreme.sum())) / (1 + len(extreme))
        bounds = percentile_interval(np.concatenate(resampled[name]))
        found[name] = Difference(float(one[name][0]), float(two[name][0]), bounds, p, p)
    return found
