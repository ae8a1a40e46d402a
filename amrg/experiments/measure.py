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
import pyarrow as pa
from scipy import stats

from amrg.config import Config
from amrg.data.labels import FINDINGS, LABELS
from amrg.evaluation.clinical import ClinicalScores, label_matrix, stated
from amrg.evaluation.comparison import Difference, Run, compare, holm, read_run, scores_of
from amrg.evaluation.statistics import CONFIDENCE
from amrg.experiments.sweep import Made
from amrg.memory.bank import REPORTS, VISUAL, MemoryBank
from amrg.training.loop import CURVES

#: Judged, and tested: declared before any result is seen. The others are shown.
HEADLINE = "F1 micro-13"
SHOWN = (HEADLINE, "F1 macro-13", "F1 example-13", "BLEU-4", "ROUGE-L", "CIDEr")


@dataclass(frozen=True)
class Score:
    """A number with its 95% interval, where it has one."""

    value: float
    interval: tuple[float, float] | None = None


@dataclass(frozen=True)
class Row:
    """One variant.

    Attributes:
        name: of the variant; ``x``: its place on the axis, where it has one.
        scores: by name, of all seeds together.
        seeds: the headline score of each seed.
        difference: from the first row in the headline score; None for that row and where runs are not paired. Its
            ``holm`` is corrected for the rows of this table.
        over_seeds: the same by the seeds' own scores (``over_seeds``); None with a single seed, too.
        facts: other numbers, means over seeds.
    """

    name: str
    scores: dict[str, Score]
    x: float | None = None
    seeds: list[float] = field(default_factory=list)
    difference: Difference | None = None
    over_seeds: Difference | None = None
    facts: dict[str, float] = field(default_factory=dict)


def measure(config: Config, made: Sequence[Sequence[Made]], paired: bool, per_class: bool) -> list[Row]:
    """Rows of the variants, in their order; each is a list of what its seeds made.

    Args:
        config: ``evaluate.bootstrap`` and ``seed`` are read.
        made: of each variant.
        paired: whether all wrote reports for the same studies.
        per_class: F1 of each finding too.
    """
    samples, seed = config.evaluate.bootstrap, config.seed
    runs = [[_read(one) for one in seeds] for seeds in made]
    pools = [pool(seeds[0].variant.name, some) for seeds, some in zip(made, runs, strict=True)]
    rows = []
    facts = _training_facts(made, paired)
    for seeds, some, whole, told in zip(made, runs, pools, facts, strict=True):
        found = scores_of(whole, samples, seed)
        scores = {name: Score(*found[name]) for name in SHOWN}
        if per_class:
            scores |= {f"F1 {name}": Score(value) for name, value in class_f1(whole).items()}
        variant = seeds[0].variant
        each = [scores_of(run, 1, seed)[HEADLINE][0] for run in some]
        rows.append(Row(variant.name, scores, variant.x, each, facts=told))
    return with_differences(rows, pools, samples, seed) if paired else rows


def with_differences(rows: list[Row], pools: list[Run], samples: int, seed: int) -> list[Row]:
    """The rows with what the paired tests say of each against the first."""
    if len(rows) < 2:
        return rows
    found = compare(pools[0], pools[1:], samples, seed)
    patients = _corrected([found[run.name][HEADLINE] for run in pools[1:]])
    tested = [replace(row, difference=d) for row, d in zip(rows[1:], patients, strict=True)]
    if len(rows[0].seeds) > 1:
        seeds = _corrected([over_seeds(rows[0].seeds, row.seeds) for row in rows[1:]])
        tested = [replace(row, over_seeds=d) for row, d in zip(tested, seeds, strict=True)]
    return rows[:1] + tested


def over_seeds(first: Sequence[float], other: Sequence[float]) -> Difference:
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


def pool(name: str, runs: Sequence[Run]) -> Run:
    """The reports of several seeds as one run; studies of one patient stay one group whatever the seed."""
    reports = [replace(r, key=f"{seed}/{r.key}") for seed, run in enumerate(runs) for r in run.reports]
    return Run(name, reports)


def class_f1(run: Run) -> dict[str, float]:
    """F1 of each finding that some reference states."""
    truth = stated(label_matrix([report.reference for report in run.reports]))
    said = stated(label_matrix([report.text for report in run.reports]))
    table = ClinicalScores.of(truth, said).per_label()[0]
    return {name: float(table[k, 2]) for name in FINDINGS for k in [LABELS.index(name)] if truth[:, k].any()}


def most_typical(texts: Sequence[str]) -> str:
    """The text that shares most words with the others (mean Jaccard index); the first of equals; empty for none."""
    words = [frozenset(text.lower().split()) for text in texts]
    shared = [sum(len(a & b) / max(len(a | b), 1) for b in words) for a in words]
    return texts[int(np.argmax(shared))] if texts else ""


def _read(made: Made) -> Run:
    """The reports of one seed: the model's, or copies of the memory rows it retrieved."""
    run = read_run(made.path("reports"))
    if not made.variant.copied:
        return run
    table = MemoryBank.open(made.path("banks") / REPORTS).provenance
    copies = []
    for report in run.reports:
        rows = [row["row"] for row in report.memory.get("report", [])[: made.variant.copied]]
        texts = [text or "" for text in table["text"].take(pa.array(rows, pa.int64())).to_pylist()]
        copies.append(replace(report, text=most_typical(texts)))
    return Run(run.name, copies)


def _training_facts(made: Sequence[Sequence[Made]], paired: bool) -> list[dict[str, float]]:
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
        banks = seeds[0].path("banks")
        sizes = {f"{bank} rows": float(len(MemoryBank.open(banks / bank))) for bank in (VISUAL, REPORTS)}
        facts.append(means | sizes)
    return facts


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
