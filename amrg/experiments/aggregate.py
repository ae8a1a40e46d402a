"""From what the variants made to rows of a table: scores with intervals, and paired differences from the first row.

The reports of all seeds of a variant are one pool; a patient's studies under every seed are one unit of the bootstrap
and of the permutation test. So these speak for other patients, given the seeds. A paired t-test of the seeds' own
scores speaks for other seeds, given the patients. A difference that both show holds for either (Berger, 1982).
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
from amrg.evaluation.clinical import ClinicalScores, binarize, label_matrix
from amrg.evaluation.comparison import Difference, ReportSet, compare, holm, read_run, scores_of
from amrg.evaluation.statistics import CONFIDENCE
from amrg.experiments.registry import DETAILED, HEADLINE, Experiment
from amrg.experiments.retrieval_relevance import copies, relevance_facts, relevance_scores
from amrg.experiments.sweep import VariantOutputs
from amrg.training.loop import CURVES

REPORTED_METRICS = (HEADLINE, "F1 macro-13", "F1 example-13", "BLEU-4", "ROUGE-L", "CIDEr")
#: Shown as well where the question is what memory gives to the words.
DETAILS = (DETAILED, "side exact", "side opposite", "zone exact", "device kind", "unsupported details")
#: Copies of whole reports that could not be had.
LOST = "copies not to be had"


@dataclass(frozen=True)
class Score:
    """A number with its 95% interval, where it has one."""

    value: float
    interval: tuple[float, float] | None = None


@dataclass(frozen=True)
class Judged:
    """What is known of one judged score of a variant.

    Attributes:
        seeds: the score of each seed.
        difference: from the first row; None for that row and where runs are not paired. Its ``holm`` is corrected for
            the rows and judged scores of this table.
        over_seeds: the same by the seeds' own scores (``paired_t_test``); None with a single seed, too.
    """

    seeds: list[float] = field(default_factory=list)
    difference: Difference | None = None
    over_seeds: Difference | None = None


@dataclass(frozen=True)
class Row:
    """One variant.

    Attributes:
        name: of the variant; ``x``: its place on the axis, where it has one.
        scores: by name, of all seeds together; what no report offers a case of is left out.
        tests: of the judged scores, by name.
        diagnostics: other numbers, means over seeds.
    """

    name: str
    scores: dict[str, Score]
    x: float | None = None
    tests: dict[str, Judged] = field(default_factory=dict)
    diagnostics: dict[str, float] = field(default_factory=dict)

    def tested(self, score: str = HEADLINE) -> Judged:
        """What is known of a judged score."""
        return self.tests.get(score, Judged())


def score_variants(config: Config, made: Sequence[Sequence[VariantOutputs]], experiment: Experiment) -> list[Row]:
    """Rows of the variants, in their order; each is a list of what its seeds made.

    Args:
        config: ``evaluate.bootstrap_samples``, ``generate.split``, ``vision.image_size`` and ``seed`` are read.
        made: of each variant.
        experiment: what is asked of them.
    """
    samples, seed = config.evaluate.bootstrap_samples, config.seed
    rows, pools = [], []
    for seeds, facts in zip(made, _training_facts(made, experiment.paired), strict=True):
        read = [_read(one) for one in seeds]
        runs, variant = [run for run, _ in read], seeds[0].variant
        whole = pool_seeds(variant.name, runs)
        scores = _scores(whole, experiment, samples, seed)
        if lost := sum(count for _, count in read):
            facts = facts | {LOST: float(lost)}
        if experiment.grounded:
            scores |= {name: Score(*one) for name, one in relevance_scores(config, seeds, runs).items()}
            facts = facts | relevance_facts(config, seeds, runs)
        each = [scores_of(run, 1, seed) for run in runs]
        tests = {name: Judged([of_seed[name][0] for of_seed in each]) for name in experiment.judged}
        rows.append(Row(variant.name, scores, variant.x, tests, facts))
        pools.append(whole)
    return with_differences(rows, pools, samples, seed) if experiment.paired else rows


def _scores(run: ReportSet, experiment: Experiment, samples: int, seed: int) -> dict[str, Score]:
    """Those that a table shows of the reports of a variant."""
    found = scores_of(run, samples, seed)
    names = dict.fromkeys((*REPORTED_METRICS, *experiment.judged, *(DETAILS if experiment.grounded else ())))
    scores = {name: Score(*found[name]) for name in names if np.isfinite(found[name][0])}
    if experiment.per_class:
        scores |= {f"F1 {name}": Score(value) for name, value in class_f1(run).items()}
    return scores


def with_differences(rows: list[Row], pools: list[ReportSet], samples: int, seed: int) -> list[Row]:
    """The rows with what the paired tests say of each against the first, in every judged score."""
    if len(rows) < 2:
        return rows
    first, others, names = rows[0], rows[1:], list(rows[0].tests)
    found = compare(pools[0], pools[1:], samples, seed)
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
    """Means over seeds, and the paired t-test of their differences: seed i of both has the same batches in its order.

    With n seeds it has n − 1 degrees of freedom and takes the differences to be normally distributed, which so few
    cannot tell. A test without that could never show anything: with three seeds the least p of a sign test is 0.25.

    Args:
        first, other: the score of each seed; at least two.
    """
    means = float(np.mean(first)), float(np.mean(other))
    if tuple(first) == tuple(other):
        return Difference(*means, (0.0, 0.0), 1.0, 1.0)
    found = stats.ttest_rel(other, first)
    bounds = found.confidence_interval(CONFIDENCE)
    return Difference(*means, (float(bounds.low), float(bounds.high)), float(found.pvalue), float(found.pvalue))


def _corrected(differences: Sequence[Difference]) -> list[Difference]:
    """The same with p corrected for the rows of one table alone."""
    return [replace(d, holm=p) for d, p in zip(differences, holm([d.p for d in differences]), strict=True)]


def pool_seeds(name: str, runs: Sequence[ReportSet]) -> ReportSet:
    """The reports of several seeds as one run; studies of one patient stay one group whatever the seed."""
    reports = [replace(r, key=f"{seed}/{r.key}") for seed, run in enumerate(runs) for r in run.reports]
    return ReportSet(name, reports)


def class_f1(run: ReportSet) -> dict[str, float]:
    """F1 of each finding that some reference states."""
    truth = binarize(label_matrix([report.reference for report in run.reports]))
    said = binarize(label_matrix([report.text for report in run.reports]))
    table = ClinicalScores.from_labels(truth, said).per_label()[0]
    return {name: float(table[k, 2]) for name in FINDINGS for k in [LABELS.index(name)] if truth[:, k].any()}


def _read(made: VariantOutputs) -> tuple[ReportSet, int]:
    """The reports of one seed: the model's, or copies of those it retrieved; and how many copies could not be had."""
    run = read_run(made.path("reports"))
    return copies(run, made, made.variant.copy_top_k) if made.variant.copy_top_k else (run, 0)


def _training_facts(made: Sequence[Sequence[VariantOutputs]], paired: bool) -> list[dict[str, float]]:
    """Per variant: rows of the banks, perplexity of the memories, validation loss and how soon it fell."""
    curves = [[_curve(one.path("stage2")) for one in seeds] for seeds in made]
    # the highest of the lowest: a loss that every training reached
    target = max(min(row["val_loss"] for row in curve) for seeds in curves for curve in seeds)
    facts = []
    for seeds, of_seeds in zip(made, curves, strict=True):
        told = [_of_best(curve) for curve in of_seeds]
        if paired:
            for one, curve in zip(told, of_seeds, strict=True):
                one["epochs to common loss"] = epochs_to(curve, target)
        names = dict.fromkeys(name for one in told for name in one)
        means = {name: float(np.mean([one[name] for one in told if name in one])) for name in names}
        facts.append(means | _sizes(seeds[0].path("banks")))
    return facts


def _sizes(banks: Path) -> dict[str, float]:
    """Rows of both banks, and how many different texts the rows of the report bank have."""
    visual, reports = (MemoryBank.open(banks / bank) for bank in (VISUAL, REPORTS))
    texts = len(set(reports.provenance_rows(0, len(reports), ["text"])["text"].to_pylist()))
    counts = {f"{VISUAL} rows": len(visual), f"{REPORTS} rows": len(reports), "distinct texts": texts}
    return {name: float(count) for name, count in counts.items()}


def epochs_to(curve: Sequence[dict[str, Any]], target: float) -> float:
    """Epochs until the validation loss was first at most ``target``, a straight line between epochs; NaN if never."""
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
