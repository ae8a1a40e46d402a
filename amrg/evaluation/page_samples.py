"""Choice of the studies on the page, and their content."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from amrg.banks.bank import REPORTS, VISUAL, MemoryBank
from amrg.data.image_ops import letterbox_to_square
from amrg.data.labels import FINDINGS, LABELS
from amrg.data.stream import SampleLookup
from amrg.data.studies import Study
from amrg.data.text.sections import mark_impression
from amrg.evaluation.classifier_outputs import TestOutputs, TrainOutputs
from amrg.evaluation.highlight import FindingErrors, highlight_findings
from amrg.evaluation.reports import GeneratedReport, Sentence
from amrg.evaluation.retrieval_lift import MeanRetrieval
from amrg.pages.result_page import SampleStudy
from amrg.pages.retrieved_rows import MemoryRow, RecalledSentence

CONTACT_FILMS = 24

#: Banks by their names in generated reports, and the maximal number of rows shown.
_BANKS = {"visual": (VISUAL, 5), "report": (REPORTS, 3)}
Films = dict[str, list[np.ndarray]]  # by study key
_MAPS = 3  # maximal activation maps per study
_FINDINGS = 3  # maximal findings named as unusual in what a study retrieved, ...
_UNUSUAL = 1.05  # ... and their least lift, which is shown as ×1.1


def choose_page_studies(studies: Sequence[Study], count: int) -> list[int]:
    """Choose ``count`` studies: each finding and "no finding" in turn takes its next study in index order.

    The choice depends on labels alone, never on generated reports.
    """
    queues = [[i for i, s in enumerate(studies) if f in s.positive_findings] for f in FINDINGS]
    queues.append([i for i, s in enumerate(studies) if not s.positive_findings])
    chosen: dict[int, None] = {}
    while len(chosen) < min(count, len(studies)):
        for queue in queues:
            fresh = [i for i in queue if i not in chosen]
            if fresh and len(chosen) < count:
                chosen[fresh[0]] = None
    return sorted(chosen)


def choose_extreme_studies(
    references: Sequence[str], reports: Sequence[GeneratedReport], count: int
) -> tuple[list[int], list[int]]:
    """Choose the worst and the best ``count`` studies by their reports, at most half of all each.

    The worst have the most findings missed, added or with another side or device; of equal ones those with the fewest
    right. The best have the fewest errors; of equal ones those with the most findings right. Ties keep their order, and
    no study is both.
    """
    errors = [FindingErrors.of(text, report.text) for text, report in zip(references, reports, strict=True)]
    count = min(count, len(errors) // 2)
    worst = sorted(range(len(errors)), key=lambda i: (-errors[i].count, len(errors[i].found)))[:count]
    best = sorted(set(range(len(errors))) - {*worst}, key=lambda i: (errors[i].count, -len(errors[i].found), i))
    return worst, best[:count]


class RetrievedRows:
    """Bank rows that reports retrieved, with their provenance.

    Args:
        folder: a banks artefact.
        reports: all reports of the split, for the means of what they retrieved.
        shown: those of them whose rows are shown.
    """

    def __init__(self, folder: Path, reports: Sequence[GeneratedReport], shown: Sequence[GeneratedReport]) -> None:
        self._means = MeanRetrieval.of(reports)
        self._rows: dict[str, dict[int, dict[str, Any]]] = {}
        for bank, (name, _) in _BANKS.items():
            table = MemoryBank.open(folder / name).provenance
            numbers = sorted({row for report in shown for row in _shown(report, bank)})
            kept = [row for row in numbers if 0 <= row < table.num_rows]
            self._rows[bank] = dict(zip(kept, table.take(pa.array(kept, pa.int64())).to_pylist(), strict=True))

    @property
    def films(self) -> set[str]:
        """Keys of the studies whose films show the regions."""
        return {row["key"] for row in self._rows["visual"].values() if row["box"] is not None}

    def rows_of(self, report: GeneratedReport, films: Films, grid: int) -> dict[str, list[MemoryRow]]:
        """Return the rows per bank that weigh the most above their mean over the split.

        Args:
            report: report of the study.
            films: films by study key.
            grid: cells per side of the grid of the boxes.
        """
        found: dict[str, list[MemoryRow]] = {}
        for bank, (_, count) in _BANKS.items():
            lifts = self._means.row_lifts(bank, report.memory.get(bank, []))[:count]
            entries = [
                {"row": one.row, "weight": one.weight, "lift": one.lift, "studies": one.studies} for one in lifts
            ]
            if rows := self._found(bank, entries, films, grid):
                found[bank] = rows
        return found

    def unusual_findings(self, report: GeneratedReport) -> dict[str, list[tuple[str, float, float]]]:
        """Return, per bank, findings with more on their rows than on the mean study: name, share and lift."""
        lifts = {bank: self._means.finding_lifts(bank, report) for bank in self._rows}
        return {
            bank: [(one.finding, one.share, one.lift) for one in some if one.lift >= _UNUSUAL][:_FINDINGS]
            for bank, some in lifts.items()
            if some
        }

    def sentences(self, report: GeneratedReport, films: Films, grid: int) -> list[RecalledSentence]:
        """Return the recalled sentences with the bank rows that support them."""
        return [
            RecalledSentence(
                text=sentence.text,
                labels=sentence.labels,
                row=sentence.row,
                filed=self._rows["report"].get(sentence.row, {}).get("findings") or [],
                regions=self._found("visual", sentence.regions, films, grid),
                box=sentence.box,
                probabilities=sentence.probabilities,
                details=[(d.finding, d.attribute, d.value, d.probability) for d in sentence.details],
            )
            for sentence in report.sentences
        ]

    def _found(self, bank: str, entries: Sequence[dict[str, Any]], films: Films, grid: int) -> list[MemoryRow]:
        return [
            MemoryRow(
                weight=entry["weight"],
                source=row["source"],
                findings=row["findings"] or [],
                text=row["text"],
                film=_film(row, films),
                box=tuple(row["box"]) if row["box"] is not None else None,
                grid=grid,
                number=entry["row"],
                lift=entry.get("lift"),
                studies=entry.get("studies", 0.0),
            )
            for entry in entries
            if (row := self._rows[bank].get(entry["row"]))
        ]


def sample_studies(
    test: TestOutputs,
    train: TrainOutputs,
    reports: Sequence[GeneratedReport],
    chosen: Sequence[int],
    banks: RetrievedRows,
    data: Path,
) -> list[SampleStudy]:
    """Collect the page's content for the chosen studies; reads further films with boxes of sentences from ``data``.

    Raises:
        UserError: a study with further films is damaged.
    """
    samples = []
    for i in chosen:
        study, report = test.studies[i], reports[i]
        probabilities = dict(zip(LABELS, map(float, test.probabilities_SK[i]), strict=True))
        found = study.positive_findings
        shown = sorted(found, key=lambda f: (f not in test.masks[i], FINDINGS.index(f)))[:_MAPS]
        reference, generated = highlight_findings(
            mark_impression(**study.sections) if report.sections else study.report,
            mark_impression(**report.sections) if report.sections else report.text,
        )
        samples.append(
            SampleStudy(
                key=study.key,
                film=test.films[i],
                findings=found,
                probabilities={f: probabilities[f] for f in FINDINGS},
                maps={f: test.maps_SKhw[i, LABELS.index(f)] for f in shown},
                masks={f: m for f, m in test.masks[i].items() if f in shown},
                reference=reference,
                generated=generated,
                verdict=FindingErrors.of(study.report, report.text).verdict,
                memory=banks.rows_of(report, train.thumbnail_keys, test.grid),
                unusual=banks.unusual_findings(report),
                sentences=banks.sentences(report, train.thumbnail_keys, test.grid),
                unsure=[(one.text, one.probability) for one in report.unsure],
                graph=report.graph,
                implausible=report.implausible,
                views=_views(report.sentences, test.films[i], study, data),
                grid=test.grid,
            )
        )
    return samples


def read_training_curves(folders: dict[str, Path]) -> dict[str, list[dict[str, Any]]]:
    """Read the rows of each stage's ``curves.jsonl``."""
    return {
        stage: [json.loads(line) for line in (folder / "curves.jsonl").read_text().splitlines()]
        for stage, folder in folders.items()
    }


def _views(sentences: Sequence[Sentence], first: np.ndarray, study: Study, data: Path) -> dict[int, np.ndarray]:
    """Load the films on which sentences have a box, by number."""
    wanted = {sentence.box[0] for sentence in sentences if sentence.box is not None}
    if not wanted - {0}:
        return {0: first}
    films = SampleLookup(data, study.split)[study.key].views
    return {view: letterbox_to_square(films[view], len(first)) for view in sorted(wanted) if view < len(films)}


def _film(row: dict[str, Any], films: Films) -> Any:
    """Return the film a region was mined from, or None if the bank has held-out rows or comes from other data."""
    if row["box"] is None or row["view"] >= len(films.get(row["key"], [])):
        return None
    return films[row["key"]][row["view"]]


def _shown(report: GeneratedReport, bank: str) -> list[int]:
    """Return the numbers of all rows of a bank that the page may show for a report."""
    retrieved = [entry["row"] for entry in report.memory.get(bank, [])]
    if bank == "report":
        return retrieved + [sentence.row for sentence in report.sentences]
    return retrieved + [region["row"] for sentence in report.sentences for region in sentence.regions]
