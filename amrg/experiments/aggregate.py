"""Rows of an experiment's table: scores of the variants with intervals, and paired differences from the first row.

The reports of all seeds of a variant are one pool. A patient's studies under every seed are one unit of the bootstrap
and of the permutation test, which therefore generalize to other patients, given the seeds. A paired t-test of the
seeds' own scores generalizes to other seeds, given the patients. A difference significant in both tests holds for
either population (Berger, 1982).
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from amrg.banks.bank import REPORTS, VISUAL, MemoryBank
from amrg.config import Config
from amrg.data.labels import FINDINGS, LABELS
from amrg.evaluation.clinical import ClinicalScores, binarize_labels, label_matrix_of_texts
from amrg.evaluation.comparison import (
    Difference,
    ReportSet,
    bootstrap_run_scores,
    compare_with_first,
    holm_correction,
    read_run_reports,
)
from amrg.evaluation.statistics import CONFIDENCE
from amrg.experiments.registry import DETAILED, HEADLINE, Experiment
from amrg.experiments.retrieval_relevance import copy_retrieved_reports, relevance_facts, relevance_scores
from amrg.experiments.sweep import VariantOutputs
from amrg.training.loop import CURVES

REPORTED_METRICS = (HEADLINE, "F1 macro-13", "F1 example-13", "BLEU-4", "ROUGE-L", "CIDEr")
#: Additional columns of grounded experiments.
DETAILS = (DETAILED, "side exact", "side opposite", "zone exact", "device kind", "unsupported details")
#: Differences of several seeds that are nearer to each other are the same.
NO_SPREAD = 1e-12
#: Diagnostic: number of reports without a copy.
LOST = "copies not to be had"


@dataclass(frozen=True)
class Score:
    """A number with its 95% interval, if it has one."""

    value: float
    interval: tuple[float, float] | None = None


@dataclass(frozen=True)
class Judged:
    """Tests of one judged score of a variant.

    Attributes:
        seeds: score of each seed.
        difference: difference from the first row; None for that row and for unpaired runs. Its ``holm`` is corrected
            for the rows and judged scores of this table.
        over_seeds: the same by the seeds' own scores (``paired_t_test``); None also for a single seed.
    """

    seeds: list[float] = field(default_factory=list)
    difference: Difference | None = None
    over_seeds: Difference | None = None


@dataclass(frozen=True)
class Row:
    """One variant.

    Attributes:
        name: name of the variant.
        scores: scores of the pooled seeds by name; scores without any case are left out.
        x: position on the axis, if it has one.
        tests: tests of the judged scores, by name.
        diagnostics: other numbers, means over seeds.
    """

    name: str
    scores: dict[str, Score]
    x: float | None = None
    tests: dict[str, Judged] = field(default_factory=dict)
    diagnostics: dict[str, float] = field(default_factory=dict)

    def tested(self, score: str = HEADLINE) -> Judged:
        """Return the tests of a judged score, empty if there are none."""
        return self.tests.get(score, Judged())


def score_variants(config: Config, made: Sequence[Sequence[VariantOutputs]], experiment: Experiment) -> list[Row]:
    """Score the variants; returns their rows in the given order.

    Args:
        config: reads ``evaluate.bootstrap_samples``, ``generate.split``, ``vision.image_size`` and ``seed``.
        made: outputs per variant and seed.
        experiment: defines the judged and shown scores.
    """
    samples, seed = config.evaluate.bootstrap_samples, config.seed
    rows, pools = [], []
    for seeds, facts in zip(made, _training_facts(made, experiment.paired), strict=True):
        read = [_read(one) for one in seeds]
        runs, variant = [run for run, _ in read], seeds[0].variant
        pool = pool_seed_reports(variant.name, runs)
        scores = _scores(pool, experiment, samples, seed)
        if lost := sum(count for _, count in read):
            facts = facts | {LOST: float(lost)}
        if experiment.grounded:
            scores |= {name: Score(*one) for name, one in relevance_scores(config, seeds, runs).items()}
            facts = facts | relevance_facts(config, seeds, runs)
        if experiment.classifier:
            facts = facts | classifier_facts(config, seeds)
        each = [bootstrap_run_scores(run, 1, seed) for run in runs]
        tests = {name: Judged([of_seed[name][0] for of_seed in each]) for name in experiment.judged}
        rows.append(Row(variant.name, scores, variant.x, tests, facts))
        pools.append(pool)
    return with_differences(rows, pools, samples, seed) if experiment.paired else rows


def _scores(run: ReportSet, experiment: Experiment, samples: int, seed: int) -> dict[str, Score]:
    """Return the scores of a variant's reports that the table shows."""
    found = bootstrap_run_scores(run, samples, seed)
    details = DETAILS if experiment.grounded else ()
    names = dict.fromkeys((*REPORTED_METRICS, *experiment.judged, *experiment.shown, *details))
    scores = {name: Score(*found[name]) for name in names if np.isfinite(found[name][0])}
    if experiment.per_class:
        scores |= {f"F1 {name}": Score(value) for name, value in f1_by_finding(run).items()}
    return scores


def with_differences(rows: list[Row], pools: list[ReportSet], samples: int, seed: int) -> list[Row]:
    """Add paired tests of every row against the first, for every judged score."""
    if len(rows) < 2:
        return rows
    first, others, names = rows[0], rows[1:], list(rows[0].tests)
    found = compare_with_first(pools[0], pools[1:], samples, seed)
    patients = iter(_corrected([found[run.name][name] for run in pools[1:] for name in names]))
    many = all(len(test.seeds) > 1 for test in first.tests.values())
    pairs = [(first.tests[name].seeds, row.tests[name].seeds) for row in others for name in names if many]
    seeds = iter(_corrected([paired_t_test(*pair) for pair in pairs]))
    return [
        first,
        *(
            replace(
                row,
                tests={name: Judged(row.tests[name].seeds, next(patients), next(seeds, None)) for name in names},
            )
            for row in others
        ),
    ]


def paired_t_test(first: Sequence[float], other: Sequence[float]) -> Difference:
    """Return means over seeds with the paired t-test of their differences. Seed i orders the batches alike in both.

    With n seeds it has n − 1 degrees of freedom and assumes normally distributed differences, which so few seeds cannot
    verify. A sign test could never reach significance: its smallest p with three seeds is 0.25. If every seed has the
    same difference, what differs was decided before the seed had an effect, and p is 1: there is one training of it.

    Args:
        first, other: score of each seed; at least two.
    """
    means = float(np.mean(first)), float(np.mean(other))
    differences = np.subtract(other, first)
    if np.ptp(differences) < NO_SPREAD:
        return Difference(*means, (float(differences.mean()),) * 2, 1.0, 1.0)
    found = stats.ttest_rel(other, first)
    bounds = found.confidence_interval(CONFIDENCE)
    return Difference(*means, (float(bounds.low), float(bounds.high)), float(found.pvalue), float(found.pvalue))


def _corrected(differences: Sequence[Difference]) -> list[Difference]:
    """Correct p for the rows of one table."""
    return [replace(d, holm=p) for d, p in zip(differences, holm_correction([d.p for d in differences]), strict=True)]


def pool_seed_reports(name: str, runs: Sequence[ReportSet]) -> ReportSet:
    """Pool the reports of several seeds as one run. Studies of one patient stay one group across seeds."""
    reports = [replace(r, key=f"{seed}/{r.key}") for seed, run in enumerate(runs) for r in run.reports]
    return ReportSet(name, reports)


def f1_by_finding(run: ReportSet) -> dict[str, float]:
    """Return F1 of each finding that some reference states."""
    truth = binarize_labels(label_matrix_of_texts([report.reference for report in run.reports]))
    predicted = binarize_labels(label_matrix_of_texts([report.text for report in run.reports]))
    table = ClinicalScores.from_labels(truth, predicted).per_label()[0]
    return {name: float(table[k, 2]) for name in FINDINGS for k in [LABELS.index(name)] if truth[:, k].any()}


def _read(made: VariantOutputs) -> tuple[ReportSet, int]:
    """Read the reports of one seed, or copies of retrieved reports; returns also the number of missing copies."""
    run = read_run_reports(made.path("reports"))
    return copy_retrieved_reports(run, made, made.variant.copy_top_k) if made.variant.copy_top_k else (run, 0)


def _training_facts(made: Sequence[Sequence[VariantOutputs]], paired: bool) -> list[dict[str, float]]:
    """Return per variant: bank rows, memory perplexities, validation loss, and epochs to a common loss if paired."""
    curves = [[_curve(one.path("stage2")) for one in seeds] for seeds in made]
    # the largest of the minima is a loss that every training reached
    target = max(min(row["val_loss"] for row in curve) for seeds in curves for curve in seeds)
    facts = []
    for seeds, of_seeds in zip(made, curves, strict=True):
        best = [_of_best(curve) for curve in of_seeds]
        if paired:
            for one, curve in zip(best, of_seeds, strict=True):
                one["epochs to common loss"] = epochs_to_loss(curve, target)
        names = dict.fromkeys(name for one in best for name in one)
        means = {name: float(np.mean([one[name] for one in best if name in one])) for name in names}
        facts.append(means | _sizes(seeds[0].path("banks")))
    return facts


def classifier_facts(config: Config, made: Sequence[VariantOutputs]) -> dict[str, float]:
    """Return the mean AUROC of stage 1 on the split of the reports, mean over seeds; empty if no finding has enough."""
    scores = [json.loads((one.path("stage1") / "scores.json").read_text()) for one in made]
    found = [one[config.generate.split]["mean_auroc"] for one in scores]
    return {} if None in found else {"classifier AUROC": float(np.mean(found))}


def _sizes(banks: Path) -> dict[str, float]:
    """Count the rows of both banks and the distinct texts of the report bank."""
    visual, reports = (MemoryBank.open(banks / bank) for bank in (VISUAL, REPORTS))
    texts = len(set(reports.provenance_rows(0, len(reports), ["text"])["text"].to_pylist()))
    counts = {f"{VISUAL} rows": len(visual), f"{REPORTS} rows": len(reports), "distinct texts": texts}
    return {name: float(count) for name, count in counts.items()}


def epochs_to_loss(curve: Sequence[dict[str, Any]], target: float) -> float:
    """Return epochs until the validation loss first reached ``target``, interpolated linearly; NaN if never."""
    before: dict[str, Any] | None = None
    for row in curve:
        if row["val_loss"] <= target:
            if before is None:
                return float(row["epoch"])
            fell = before["val_loss"] - row["val_loss"]
            return float(before["epoch"] + (row["epoch"] - before["epoch"]) * (before["val_loss"] - target) / fell)
        before = row
    return float("nan")


def _of_best(curve: Sequence[dict[str, Any]]) -> dict[str, float]:
    best = min(curve, key=lambda row: row["val_loss"])
    names = {"val_loss": "validation loss", "visual_perplexity": "visual perplexity",
             "report_perplexity": "report perplexity"}  # fmt: skip
    return {shown: float(best[name]) for name, shown in names.items() if name in best}


def _curve(stage2: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (stage2 / CURVES).read_text().splitlines()]
