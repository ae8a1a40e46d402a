"""Checks of a user's copy of a data set: layout, tables, joins and a sample of films. Nothing is changed.

Each check gives one line: passed or not, the result, and a remedy. Faults of one kind are counted and identified by
hashed keys, never by patient.
"""

import json
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from amrg.config import ColumnsConfig, DataConfig
from amrg.data.image_io import load_film
from amrg.data.labels import LABELS
from amrg.data.shards import hash_key
from amrg.data.sources import chexpert_plus, mimic_cxr, open_part, recognize, source_faults
from amrg.data.sources.r2gen import ANNOTATION
from amrg.data.sources.table import suggest_columns
from amrg.data.sources.tables import labels_of, read_csv
from amrg.data.studies import SPLITS
from amrg.data.text.sections import split_sections
from amrg.errors import UserError

SAMPLE = 50  # films to decode, and reports to read
NAMED = 3


@dataclass(frozen=True)
class Check:
    """One line of the report.

    Attributes:
        what: name of the check.
        ok: whether it passed.
        result: result in words and numbers.
        remedy: advice to the user; empty if the check passed.
    """

    what: str
    ok: bool
    result: str
    remedy: str = ""


def check_dataset(root: Path) -> tuple[str, list[Check]]:
    """Recognise the data set in a folder and check it; return its ``data.source`` and the checks.

    Raises:
        UserError: the folder does not exist, or holds no known data set.
    """
    if not root.is_dir():
        raise UserError(f"{root} is not a folder: give the one that holds the data set")
    if any(root.glob("mimic-cxr-2.0.0-*")):
        return "mimic_cxr", _mimic(root)
    if (root / chexpert_plus.TABLE).exists():
        return "chexpert_plus", _chexpert(root)
    if (root / ANNOTATION).exists():
        return "iu_xray", _annotated(root)
    source = recognize(root)
    if source is not None:
        return source, _read_through(root, source)
    known = f"mimic-cxr-2.0.0-*.csv.gz, {chexpert_plus.TABLE}, {ANNOTATION}, or another layout of docs/data.md"
    raise UserError(f"{root} holds no data set that is known: {known} expected")


class _Report:
    """Collect checks. A check that raises ``UserError`` counts as failed."""

    def __init__(self) -> None:
        self.checks: list[Check] = []

    @property
    def failed(self) -> bool:
        """Whether a check failed so far."""
        return not all(check.ok for check in self.checks)

    def attempt(self, what: str, action: Callable[[], Any], advice: str) -> Any:
        """Run the action and return its result; on failure add a failed check and return None."""
        try:
            result = action()
        except UserError as error:
            self.checks.append(Check(what, False, str(error), advice))
            return None
        self.checks.append(Check(what, True, f"{len(result):,} rows" if hasattr(result, "__len__") else "readable"))
        return result

    def count(self, what: str, number: int, total: int, means: str) -> None:
        """Add a passed check with a count and the consequence for the counted studies."""
        self.checks.append(Check(what, True, f"{number:,} of {total:,}" + (f" ({means})" if number else "")))

    def expect_none(self, what: str, wrong: Iterable[str], total: int, advice: str) -> None:
        """Add a check that passes if ``wrong`` is empty; otherwise give the count and some hashed keys."""
        keys = sorted(wrong)
        if not keys:
            self.checks.append(Check(what, True, f"none of {total:,}"))
            return
        named = ", ".join(hash_key(key) for key in keys[:NAMED])
        self.checks.append(Check(what, False, f"{len(keys):,} of {total:,} (hashed: {named})", advice))


def _read_through(root: Path, source: str) -> list[Check]:
    """Check a data set by reading its studies, as ``prepare`` does, and a sample of their films."""
    report = _Report()
    columns = ColumnsConfig()
    if source == "table":
        columns = suggest_columns(root)
        named = ", ".join(f"{name}: {column}" for name, column in asdict(columns).items() if column is not None)
        report.checks.append(Check("columns, by their names", True, f"data.columns: {{{named}}}"))
    config = DataConfig(source=source, path=str(root), columns=columns)
    for fault in source_faults(config):
        report.checks.append(Check("files", False, fault, "see the layouts of docs/data.md"))
    reader = None if report.failed else report.attempt("layout", lambda: open_part(config, 0), "see docs/data.md")
    if reader is None:
        return report.checks
    studies = reader.studies()
    report.checks.append(Check("studies", bool(studies), f"{len(studies):,}", "" if studies else "see docs/data.md"))
    lacking = getattr(reader, "left_out", {})
    total = len(studies) + sum(count for lack, count in lacking.items() if lack.endswith("left out"))
    for lack, count in lacking.items():
        report.count(f"studies with {lack}", count, total, "")
    faulty = {study.key for study in studies if study.load_error}
    report.expect_none("studies whose rows contradict each other", faulty, len(studies), "mend the table")
    reasons: Counter[str] = Counter()
    sample = _seeded_sample(study.key for study in studies if not study.load_error)
    for study in studies:
        if study.key in sample:
            try:
                reader.films(study)
            except (OSError, ValueError) as error:
                reasons[_reason(error)] += 1
    _films(report, reasons, len(sample))
    return report.checks


def _mimic(root: Path) -> list[Check]:
    report = _Report()
    get = "fetch it from PhysioNet's MIMIC-CXR-JPG 2.0.0 (or later) again"
    tables = {
        name: report.attempt(f"table {name}", partial(_mimic_table, root, name, columns), get)
        for name, columns in {
            "metadata": ("subject_id", "study_id", "dicom_id", "ViewPosition", "StudyDate", "StudyTime"),
            "split": ("subject_id", "study_id", "dicom_id", "split"),
            "chexpert": ("subject_id", "study_id", *LABELS),
        }.items()
    }
    metadata, splits, labels = tables["metadata"] or [], tables["split"] or [], tables["chexpert"] or []
    texts = report.attempt("reports", lambda: _mimic_reports(root), "put mimic-cxr-reports.zip beside the tables")
    studies = {row["study_id"] for row in metadata}
    if texts is not None:
        report.expect_none("studies without a report", studies - texts.keys(), len(studies), "fetch the reports again")
        more = texts.keys() - studies
        report.expect_none(
            "reports without a film", more, len(texts), "harmless: they are not used; or fetch the films"
        )
        _read_texts(report, [texts[key] for key in _seeded_sample(studies & texts.keys())])
        _name_sections(report, [texts[key] for key in _seeded_sample(studies & texts.keys())])
    labelled = {row["study_id"] for row in labels}
    report.expect_none(
        "labels without a study", labelled - studies, len(labelled), "the tables are of different releases"
    )
    report.count("studies without labels", len(studies - labelled), len(studies), "blank in stage 1")
    report.expect_none("values of labels", _bad_labels(labels, "study_id"), len(labels), get)
    report.expect_none("studies without a split", studies - {r["study_id"] for r in splits}, len(studies), get)
    known = mimic_cxr.PUBLISHED_SPLITS
    report.expect_none("names of splits", {r["study_id"] for r in splits if r["split"] not in known}, len(splits), get)
    _one_split(report, [(row["subject_id"], row["split"]) for row in splits])
    films = [
        root / "files" / f"p{row['subject_id'][:2]}" / f"p{row['subject_id']}" / f"s{row['study_id']}" / row["dicom_id"]
        for row in metadata
    ]
    _decode(report, [mimic_cxr.film_file(stem) or stem.with_suffix(".jpg") for stem in _seeded_sample(films)])
    return report.checks


def _mimic_table(root: Path, name: str, columns: tuple[str, ...]) -> list[dict[str, Any]]:
    paths = [root / f"mimic-cxr-2.0.0-{name}{suffix}" for suffix in (".csv.gz", ".csv")]
    path = next((path for path in paths if path.exists()), None)
    if path is None:
        raise UserError(f"{paths[0].name} is missing")
    return read_csv(path, columns).to_pylist()


def _mimic_reports(root: Path) -> dict[str, Callable[[], bytes]]:
    """Map each study to a function that reads its report."""
    return {key.removeprefix("s"): read for key, read in mimic_cxr.report_files(root).items()}


def _chexpert(root: Path) -> list[Check]:
    report = _Report()
    get = "fetch it from CheXpert Plus again"
    path = root / chexpert_plus.TABLE
    table = report.attempt(
        "table", lambda: read_csv(path, chexpert_plus.COLUMNS, multiline=True).to_pylist(), get
    )  # fmt: skip
    rows = table or []
    names = [row["path_to_image"] or "" for row in rows]
    report.expect_none("rows of one film twice", _duplicates(names), len(names), get)
    empty = {row["path_to_image"] for row in rows if not (row["section_findings"] or row["section_impression"])}
    report.expect_none("films without findings and impression", empty, len(rows), "harmless: stage 1 alone has them")
    known = chexpert_plus.PUBLISHED_SPLITS
    report.expect_none("names of splits", {r["path_to_image"] for r in rows if r["split"] not in known}, len(rows), get)
    _one_split(report, [(row["deid_patient_id"] or "", row["split"] or "") for row in rows])
    for name in chexpert_plus.LABEL_FILES.values():
        labels = report.attempt(f"labels {name}", partial(_lines, root / "chexbert_labels" / name), get)
        if labels is not None:
            report.expect_none(f"values of {name}", _bad_labels(labels, "path_to_image"), len(labels), get)
            unknown = {row["path_to_image"] for row in labels} - set(names)
            report.expect_none(f"{name} without a film", unknown, len(labels), "the files are of different releases")
    sample = _seeded_sample([name for name in names if name])
    _decode(report, [chexpert_plus.film_file(root, name) or root / name for name in sample])
    return report.checks


def _annotated(root: Path) -> list[Check]:
    report = _Report()
    advice = "take R2Gen's annotation.json again"
    content = report.attempt("annotation", lambda: _annotation(root / ANNOTATION), advice) or []
    names = [entry["id"] for entry in content]
    report.expect_none("names of studies twice", _duplicates(names), len(names), advice)
    report.expect_none("empty reports", {e["id"] for e in content if not e["report"].strip()}, len(names), "left out")
    _one_split(report, [(entry["id"].split("_")[0], entry["split"]) for entry in content])
    images = root / "images"
    paths = [images / path for entry in content for path in entry["image_path"]]
    report.expect_none(
        "films that are not there", {str(p) for p in paths if not p.exists()}, len(paths), "fetch the films"
    )
    _decode(report, [path for path in _seeded_sample(paths) if path.exists()])
    return report.checks


def _annotation(path: Path) -> list[dict[str, Any]]:
    try:
        content = json.loads(path.read_text())
        return [
            {"id": str(e["id"]), "report": str(e["report"]), "image_path": list(e["image_path"]), "split": split}
            for split in SPLITS
            for e in content[split]
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path.name} is no R2Gen annotation ({type(error).__name__})") from None


def _lines(path: Path) -> list[dict[str, Any]]:
    try:
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        return [row for row in rows if row["path_to_image"] is not None]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path.name} is no file of JSON lines with path_to_image ({type(error).__name__})") from None


def _bad_labels(rows: list[dict[str, Any]], key: str) -> set[str]:
    return {str(row[key]) for row in rows if labels_of(row)[1]}


def _one_split(report: _Report, pairs: Iterable[tuple[str, str]]) -> None:
    splits: dict[str, set[str]] = defaultdict(set)
    for patient, split in pairs:
        splits[patient].add(split)
    in_several = {patient for patient, names in splits.items() if len(names) > 1}
    report.expect_none("patients in two splits", in_several, len(splits), "use data.splits patient: else reports leak")


def _read_texts(report: _Report, reads: list[Callable[[], bytes]]) -> None:
    wrong = 0
    for read in reads:
        try:
            wrong += not read().decode().strip()
        except (UnicodeDecodeError, OSError):
            wrong += 1
    what, found = "reports that cannot be read", f"{wrong} of a sample of {len(reads)}"
    report.checks.append(Check(what, not wrong, found, "fetch the reports again" if wrong else ""))


def _name_sections(report: _Report, reads: list[Callable[[], bytes]]) -> None:
    """Count the reports of a sample without each section, which ``data.sections`` would leave to stage 1 alone."""
    found = [split_sections(read().decode(errors="replace")) for read in reads]
    for name in ("findings", "impression"):
        without = sum(not sections.get(name) for sections in found)
        report.count(f"reports without {name}, of a sample", without, len(found), "with labels: stage 1 alone")


def _decode(report: _Report, paths: list[Path]) -> None:
    reasons: Counter[str] = Counter()
    for path in paths:
        try:
            load_film(path, 64)
        except (OSError, ValueError) as error:
            reasons[_reason(error)] += 1
    _films(report, reasons, len(paths))


def _reason(error: OSError | ValueError) -> str:
    """Return why a film cannot be read, without its path."""
    if isinstance(error, FileNotFoundError):
        return "not there"
    return str(error) if isinstance(error, ValueError) else type(error).__name__


def _films(report: _Report, reasons: Counter[str], sampled: int) -> None:
    wrong = ", ".join(f"{count} {reason}" for reason, count in sorted(reasons.items()))
    advice = "fetch the films again; prepare leaves out at most data.max_corrupt_fraction" if wrong else ""
    report.checks.append(Check("films", not wrong, wrong or f"all of a sample of {sampled} decoded", advice))


def _duplicates(names: list[str]) -> set[str]:
    return {name for name, count in Counter(names).items() if count > 1}


def _seeded_sample(items: Iterable[Any]) -> list[Any]:
    ordered = sorted(items)
    return ordered if len(ordered) <= SAMPLE else random.Random(0).sample(ordered, SAMPLE)
