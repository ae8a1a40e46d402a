"""Relevance of the rows retrieved for a variant's reports, and copies of the reports they came from.

Relevance is defined in ``amrg.evaluation.relevance``. The reports of all seeds are one pool, as in the rest of a table.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from amrg.banks.bank import REPORTS, MemoryBank
from amrg.config import Config
from amrg.data.image_ops import letterbox_to_square
from amrg.data.labels import FINDINGS, POSITIVE
from amrg.data.stream import iter_split_samples, load_split_studies
from amrg.evaluation.comparison import ReportSet
from amrg.evaluation.relevance import FOLDERS, retrieval_relevance
from amrg.evaluation.statistics import bootstrap_counts
from amrg.experiments.sweep import VariantOutputs

Value = tuple[float, tuple[float, float]]

#: Shown score of a memory → its key in ``Relevance.summary``.
SHOWN = {"relevance": "with", "relevance, absent": "without", "true side": "side"}
#: Share of films whose heaviest row is the most frequent one; share of the bank's rows that belong to a finding.
ALIKE, BASE = "alike", "base rate"


def relevance_scores(config: Config, made: Sequence[VariantOutputs], runs: Sequence[ReportSet]) -> dict[str, Value]:
    """Return each memory's relevance over the pooled seeds, with intervals: ``visual relevance`` and so on.

    Args:
        config: reads ``generate.split``, ``vision.image_size``, ``evaluate.bootstrap_samples`` and ``seed``.
        made: outputs per seed.
        runs: reports per seed.

    Returns:
        scores by name, without scores that no study has and without memories that are off.
    """
    found = {}
    for bank, summary in _summaries(config, made[0], runs, config.evaluate.bootstrap_samples).items():
        for name, key in SHOWN.items():
            if summary["all"] and summary["all"][key]["value"] is not None:
                low, high = summary["all"][key]["interval"]
                found[f"{bank} {name}"] = summary["all"][key]["value"], (low, high)
    return found


def relevance_facts(config: Config, made: Sequence[VariantOutputs], runs: Sequence[ReportSet]) -> dict[str, float]:
    """Return ``visual alike``, ``visual base rate`` and so on: means over seeds, as trainings may prefer other rows."""
    seeds: dict[str, list[float]] = {}
    for one, run in zip(made, runs, strict=True):
        for bank, summary in _summaries(config, one, [run], 1).items():
            seeds.setdefault(f"{bank} {ALIKE}", []).append(summary["alike"]["value"])
            if summary["all"]:
                seeds.setdefault(f"{bank} {BASE}", []).append(summary["all"]["base"])
    return {name: float(np.mean(values)) for name, values in seeds.items()}


def _summaries(
    config: Config, made: VariantOutputs, runs: Sequence[ReportSet], samples: int
) -> dict[str, dict[str, Any]]:
    """Return ``Relevance.summary`` of each memory that is on, over the reports of some seeds of one variant."""
    # Only the sides of lesions are read, so that any size will do.
    size = config.vision.input_size or config.data.image_size
    present, absent, masks = _truth(made.path("data"), config.generate.split, size)
    reports = [report for run in runs for report in run.reports]
    summaries = retrieval_relevance(
        made.path("banks"),
        reports,
        np.array([present[report.key] for report in reports]),
        np.array([absent[report.key] for report in reports]),
        [masks[report.key] for report in reports],
        bootstrap_counts([report.group for report in reports], samples, config.seed),
    )
    return {bank: summaries[bank] for bank in FOLDERS if summaries[bank] is not None}  # type: ignore[misc]


@lru_cache(maxsize=4)
def _truth(
    data: Path, split: str, size: int
) -> tuple[Mapping[str, list[bool]], Mapping[str, list[bool]], Mapping[str, Mapping[str, np.ndarray]]]:
    """Return by study: findings that it has and has not by its own labels, bool [13], and true lesions.

    The lesions are of the model's input size. A finding that the data set has no label of is neither.
    """
    present, absent, masks = {}, {}, {}
    for sample in iter_split_samples(data, split):
        key, labels, unknown = sample.study.key, sample.study.labels, sample.study.unlabelled
        present[key] = [labels[finding] == POSITIVE for finding in FINDINGS]
        absent[key] = [labels[finding] != POSITIVE and finding not in unknown for finding in FINDINGS]
        masks[key] = {finding: letterbox_to_square(mask, size) for finding, mask in sample.masks.items()}
    return present, absent, masks


def copy_retrieved_reports(run: ReportSet, made: VariantOutputs, rows: int) -> tuple[ReportSet, int]:
    """Replace every report by the full report of a study whose row it retrieved from the report bank.

    A row may be a sentence; its provenance names the study.

    Args:
        run: reports of one seed.
        made: outputs of that seed.
        rows: number of heaviest rows whose most typical report is copied.

    Returns:
        the copies, and the number of reports without a copy (no retrieved row has its study in the data), whose text is
        empty.
    """
    copied = []
    lost = 0
    for report, texts in zip(run.reports, _behind(run, made, rows), strict=True):
        lost += not texts
        copied.append(replace(report, text=most_typical_text(texts)))
    return ReportSet(run.name, copied), lost


def _behind(run: ReportSet, made: VariantOutputs, rows: int) -> Iterator[list[str]]:
    """Yield for each report the full reports of the studies of its heaviest rows, each study once."""
    bank = MemoryBank.open(made.path("banks") / REPORTS)
    keys = bank.provenance["key"]
    known = {s.key: s.report for split in bank.header["splits"] for s in load_split_studies(made.path("data"), split)}
    for report in run.reports:
        heaviest = [row["row"] for row in report.memory.get("report", [])[:rows]]
        of = dict.fromkeys(keys.take(pa.array(heaviest, pa.int64())).to_pylist())
        yield [known[key] for key in of if key in known]


def most_typical_text(texts: Sequence[str]) -> str:
    """Return the text with the highest mean Jaccard index of words to all texts, the first of equals; "" if none."""
    words = [frozenset(text.lower().split()) for text in texts]
    shared = [sum(len(a & b) / max(len(a | b), 1) for b in words) for a in words]
    return texts[int(np.argmax(shared))] if texts else ""
