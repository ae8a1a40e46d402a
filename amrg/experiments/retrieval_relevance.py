"""What the memories retrieved for the reports of a variant: how relevant it is, and whole reports that it came from.

Relevance is that of ``amrg.evaluation.relevance``; the reports of all seeds are one pool, as everywhere in a table.
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
from amrg.data.image_ops import letterbox
from amrg.data.labels import FINDINGS, POSITIVE
from amrg.data.stream import iter_samples, load_studies
from amrg.evaluation.comparison import ReportSet
from amrg.evaluation.relevance import FOLDERS, relevance
from amrg.evaluation.statistics import bootstrap_counts
from amrg.experiments.sweep import VariantOutputs

Value = tuple[float, tuple[float, float]]

#: Of each memory, what is shown → its name in a summary of ``amrg.evaluation.relevance``.
SHOWN = {"relevance": "with", "relevance, absent": "without", "true side": "side"}
#: Share of the films whose heaviest row is the most frequent one, and share of the bank's rows that are of a finding.
ALIKE, BASE = "alike", "base rate"


def relevance_scores(config: Config, made: Sequence[VariantOutputs], runs: Sequence[ReportSet]) -> dict[str, Value]:
    """Relevance of each memory with its intervals, all seeds together: ``visual relevance`` and so on.

    Args:
        config: ``generate.split``, ``vision.image_size``, ``evaluate.bootstrap_samples`` and ``seed`` are read.
        made: of each seed; ``runs``: their reports.

    Returns:
        by name; what no study tells, and a memory that is off, is left out.
    """
    found = {}
    for bank, told in _summaries(config, made[0], runs, config.evaluate.bootstrap_samples).items():
        for name, key in SHOWN.items():
            if told["all"] and told["all"][key]["value"] is not None:
                low, high = told["all"][key]["interval"]
                found[f"{bank} {name}"] = told["all"][key]["value"], (low, high)
    return found


def relevance_facts(config: Config, made: Sequence[VariantOutputs], runs: Sequence[ReportSet]) -> dict[str, float]:
    """``visual alike``, ``visual base rate`` and so on: means over seeds, as each training may prefer another row."""
    seeds: dict[str, list[float]] = {}
    for one, run in zip(made, runs, strict=True):
        for bank, told in _summaries(config, one, [run], 1).items():
            seeds.setdefault(f"{bank} {ALIKE}", []).append(told["alike"]["value"])
            if told["all"]:
                seeds.setdefault(f"{bank} {BASE}", []).append(told["all"]["base"])
    return {name: float(np.mean(values)) for name, values in seeds.items()}


def _summaries(
    config: Config, made: VariantOutputs, runs: Sequence[ReportSet], samples: int
) -> dict[str, dict[str, Any]]:
    """``Relevance.summary`` of each memory that is on, over the reports of some seeds of one variant."""
    present, masks = _truth(made.path("data"), config.generate.split, config.vision.image_size)
    reports = [report for run in runs for report in run.reports]
    told = relevance(
        made.path("banks"),
        reports,
        np.array([present[report.key] for report in reports]),
        [masks[report.key] for report in reports],
        bootstrap_counts([report.group for report in reports], samples, config.seed),
    )
    return {bank: told[bank] for bank in FOLDERS if told[bank] is not None}  # type: ignore[misc]


@lru_cache(maxsize=4)
def _truth(
    data: Path, split: str, size: int
) -> tuple[Mapping[str, list[bool]], Mapping[str, Mapping[str, np.ndarray]]]:
    """By study: which of the 13 findings it has by its own labels, and its true lesions as the model sees them."""
    present, masks = {}, {}
    for sample in iter_samples(data, split):
        key, labels = sample.study.key, sample.study.labels
        present[key] = [labels[finding] == POSITIVE for finding in FINDINGS]
        masks[key] = {finding: letterbox(mask, size) for finding, mask in sample.masks.items()}
    return present, masks


def copies(run: ReportSet, made: VariantOutputs, rows: int) -> tuple[ReportSet, int]:
    """Every report replaced by a whole report: of the study that the heaviest row of the report bank belongs to.

    A row may be a sentence; its provenance names the study.

    Args:
        run: reports of one seed.
        made: by that seed.
        rows: of so many heaviest rows the most typical report is taken.

    Returns:
        the copies, and how many could not be had: no row was retrieved, or none whose study is in the data. Their text
        is empty.
    """
    copied = []
    lost = 0
    for report, texts in zip(run.reports, _behind(run, made, rows), strict=True):
        lost += not texts
        copied.append(replace(report, text=most_typical(texts)))
    return ReportSet(run.name, copied), lost


def _behind(run: ReportSet, made: VariantOutputs, rows: int) -> Iterator[list[str]]:
    """For each report the whole reports of the studies that its heaviest rows belong to, each study once."""
    bank = MemoryBank.open(made.path("banks") / REPORTS)
    keys = bank.provenance["key"]
    known = {s.key: s.report for split in bank.header["splits"] for s in load_studies(made.path("data"), split)}
    for report in run.reports:
        heaviest = [row["row"] for row in report.memory.get("report", [])[:rows]]
        of = dict.fromkeys(keys.take(pa.array(heaviest, pa.int64())).to_pylist())
        yield [known[key] for key in of if key in known]


def most_typical(texts: Sequence[str]) -> str:
    """The text that shares most words with the others (mean Jaccard index); the first of equals; empty for none."""
    words = [frozenset(text.lower().split()) for text in texts]
    shared = [sum(len(a & b) / max(len(a | b), 1) for b in words) for a in words]
    return texts[int(np.argmax(shared))] if texts else ""
