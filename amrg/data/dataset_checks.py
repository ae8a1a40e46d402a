"""Checks of a user's copy of a data set: layout, tables, joins and a sample of films. Nothing is changed.

Each check gives one line: passed or not, the result, and a remedy. Faults of one kind are counted and identified by
hashed keys (those that ``prepare`` names), never by patient. What exactly is wrong is kept beside, for the person who
must mend it.
"""

import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from amrg.config import ColumnsConfig, DataConfig
from amrg.data.check_report import NAMED, Check, Found, Report
from amrg.data.image_io import load_film_file
from amrg.data.labels import LABELS
from amrg.data.sources import chexpert_plus, mimic_cxr, open_mixed_source, openi, r2gen, recognize_source, source_faults
from amrg.data.sources.table import suggest_columns
from amrg.data.sources.tables import labels_of_row, read_csv_columns, stripped_text
from amrg.data.text.sections import split_sections, unknown_headings
from amrg.errors import UserError
from amrg.progress import track_progress

REPORTS = 500  # to read of a sample
#: A heading of letters only, and no title of a person.
_TEMPLATE = re.compile(r"(?!.*\b(?:DR|MD|MR|MRS|MS|PATIENT|NAME)\b)[A-Z][A-Z ,./&()'-]*")
#: More studies without a row of labels than the published tables lack: their join went wrong.
MAX_UNLABELLED = 0.01


def check_dataset(root: Path, every: bool = False) -> tuple[str, list[Check]]:
    """Recognise the data set in a folder and check it; return its ``data.source`` and the checks.

    Args:
        root: the folder.
        every: whether to read all reports and films, not a sample.

    Raises:
        UserError: the folder does not exist, or holds no known data set.
    """
    if not root.is_dir():
        raise UserError(f"{root} is not a folder: give the one that holds the data set")
    report = Report(every)
    if (root / r2gen.ANNOTATION).exists():  # readers look for it first, too
        return _annotated(root, report), report.checks
    if any(root.glob("mimic-cxr-2.0.0-*")):
        _mimic(root, report)
        return "mimic_cxr", report.checks
    if (root / chexpert_plus.TABLE).exists():
        _chexpert(root, report)
        return "chexpert_plus", report.checks
    source = recognize_source(root)
    if source is not None:
        _openi(root, report) if source == "openi" else _read_through(root, report, source)
        return source, report.checks
    known = f"mimic-cxr-2.0.0-*.csv.gz, {chexpert_plus.TABLE}, {r2gen.ANNOTATION}, or another layout of docs/data.md"
    raise UserError(f"{root} holds no data set that is known: {known} expected")


def _read_through(root: Path, report: Report, source: str) -> None:
    """Check a data set by reading its studies, as ``prepare`` does, and their films."""
    columns = ColumnsConfig()
    if source == "table":
        columns = suggest_columns(root)
        named = ", ".join(f"{name}: {column}" for name, column in asdict(columns).items() if column is not None)
        report.checks.append(Check("columns, by their names", True, f"data.columns: {{{named}}}"))
    config = DataConfig(source=source, path=str(root), columns=columns)
    for fault in source_faults(config):
        report.checks.append(Check("files", False, fault, "see the layouts of docs/data.md"))
    reader = (
        None if report.failed else report.attempt("layout", lambda: open_mixed_source(config, 0), "see docs/data.md")
    )
    if reader is None:
        return
    studies = {study.key: study for study in reader.studies()}
    report.checks.append(Check("studies", bool(studies), f"{len(studies):,}", "" if studies else "see docs/data.md"))
    lacking = getattr(reader, "left_out", {})
    total = len(studies) + sum(count for lack, count in lacking.items() if lack.endswith("left out"))
    for lack, count in lacking.items():
        report.count(f"studies with {lack}", count, total, "")
    faulty = {key for key, study in studies.items() if study.load_error}
    report.expect_none("studies whose rows contradict each other", faulty, len(studies), "mend the table")
    chosen = report.sample(studies.keys() - faulty)
    wrong = []
    for key in track_progress(chosen, "reading films") if report.every else chosen:
        try:
            reader.films(studies[key])
        except (OSError, ValueError) as error:
            wrong.append(Found(key, str(getattr(error, "filename", None) or key), _reason(error)))
    _report_films(report, wrong, len(chosen))


def _mimic(root: Path, report: Report) -> None:
    get = "fetch it from PhysioNet's MIMIC-CXR-JPG 2.0.0 (or later) again"
    tables = {
        name: report.attempt(f"table {name}", partial(_mimic_table, root, name, columns), get)
        for name, columns in {
            "metadata": mimic_cxr.METADATA,
            "split": ("subject_id", "study_id", "dicom_id", "split"),
            "chexpert": ("subject_id", "study_id", *LABELS),
        }.items()
    }
    splits, labels = tables["split"] or [], tables["chexpert"] or []
    metadata = [row for row in tables["metadata"] or [] if all(row[name] for name in mimic_cxr.METADATA[:3])]
    texts = report.attempt(
        "reports", lambda: mimic_cxr.report_files_by_study(root), "put mimic-cxr-reports.zip beside the tables"
    )
    named = {f"s{row['study_id']}": f"p{row['subject_id']}/s{row['study_id']}" for row in (*splits, *metadata)}
    studies = {f"s{row['study_id']}" for row in metadata}

    def exact(keys: Iterable[str]) -> dict[str, str]:
        return {key: named.get(key, key) for key in keys}

    films = [f"p{row['subject_id']}/s{row['study_id']}/{row['dicom_id']}" for row in metadata]
    report.expect_none("rows of one film twice", _duplicates(films), len(films), "harmless: a film counts once", 1.0)
    if texts is not None:
        missing, more = studies - texts.keys(), texts.keys() - studies
        report.expect_none("studies without a report", exact(missing), len(studies), "fetch the reports again")
        report.expect_none(
            "reports without a film", {key: texts[key].path for key in more}, len(texts),
            "harmless: they are not used; or fetch the films",
        )  # fmt: skip
        differ = {key: file.path for key, file in texts.items() if file.differs}
        first = "the first of the archive is used: fetch it again"
        report.expect_none("reports twice, with other texts", differ, len(texts), first)
        chosen = report.sample(studies & texts.keys(), REPORTS)
        readable = _read_texts(report, {key: texts[key] for key in chosen})
        _name_sections(report, readable)
    keyed = [(f"s{row['study_id']}", row) for row in labels if row["study_id"]]
    labelled = {key for key, _ in keyed}
    report.expect_none(
        "labels without a study", exact(labelled - studies), len(labelled), "the tables are of different releases"
    )
    report.expect_none(
        "studies without labels", exact(studies - labelled), len(studies), "stage 1 does not use them", MAX_UNLABELLED
    )
    report.expect_none("values of labels", exact(_bad_labels(keyed)), len(labels), get)
    report.expect_none("labels twice, with other values", exact(_contradictions(keyed)), len(labels), get)
    without = studies - {f"s{row['study_id']}" for row in splits if row["split"]}
    report.expect_none("studies without a split", exact(without), len(studies), get)
    known = mimic_cxr.PUBLISHED_SPLITS
    unknown = {f"s{row['study_id']}" for row in splits if row["split"] not in known}
    report.expect_none("names of splits", exact(unknown), len(splits), get)
    _one_split(report, [(row["subject_id"] or "", row["split"] or "") for row in splits])
    unseen = {film for film, row in zip(films, metadata, strict=True) if not mimic_cxr.view_of_film_row(row)}
    behind = "they come behind frontal films, and data.views leaves them out"
    report.expect_none("films whose view is not told", unseen, len(films), behind, 1.0)
    stems = [
        (f"s{row['study_id']}", root / "files" / f"p{row['subject_id'][:2]}" / Path(film))
        for film, row in zip(films, metadata, strict=True)
    ]
    _decode(report, stems, lambda stem: mimic_cxr.film_file(stem) or stem.with_suffix(".jpg"))


def _mimic_table(root: Path, name: str, columns: tuple[str, ...]) -> list[dict[str, Any]]:
    paths = [root / f"mimic-cxr-2.0.0-{name}{suffix}" for suffix in (".csv.gz", ".csv")]
    path = next((path for path in paths if path.exists()), None)
    if path is None:
        raise UserError(f"{paths[0].name} is missing")
    return read_csv_columns(path, columns, optional=(mimic_cxr.CODE,)).to_pylist()


def _chexpert(root: Path, report: Report) -> None:
    get = "fetch it from CheXpert Plus again"
    path = root / chexpert_plus.TABLE
    table = (
        report.attempt("table", lambda: read_csv_columns(path, chexpert_plus.COLUMNS, multiline=True).to_pylist(), get)
        or []
    )
    outside = [
        row["path_to_image"] or "" for row in table if not chexpert_plus.is_film_path_inside(row["path_to_image"])
    ]
    report.expect_none("paths that are empty or leave the folder", outside, len(table), get)
    rows = [row for row in table if chexpert_plus.is_film_path_inside(row["path_to_image"])]
    names = [row["path_to_image"] for row in rows]
    report.expect_none("rows of one film twice", _duplicates(names), len(names), get)
    for section in ("findings", "impression"):
        lacking = sum(not row[f"section_{section}"] for row in rows)
        means = f"{lacking / max(len(rows), 1):.0%}; with labels: stage 1 alone"
        report.count(f"films without {section}", lacking, len(rows), means)
    empty = {row["path_to_image"] for row in rows if not (row["section_findings"] or row["section_impression"])}
    report.expect_none("films without findings and impression", empty, len(rows), "harmless: stage 1 alone has them")
    known = chexpert_plus.PUBLISHED_SPLITS
    report.expect_none("names of splits", {r["path_to_image"] for r in rows if r["split"] not in known}, len(rows), get)
    _one_split(report, [(chexpert_plus.patient_of_row(row), row["split"] or "") for row in rows])
    films = {chexpert_plus.film_path_stem(name): name for name in names}
    for name in chexpert_plus.LABEL_FILES.values():
        labels = report.attempt(f"labels {name}", partial(_label_lines, root, name), get)
        if labels is None:
            continue
        keyed = [(chexpert_plus.film_path_stem(row["path_to_image"]), row) for row in labels]
        report.expect_none(f"values of {name}", _bad_labels(keyed), len(labels), get)
        report.expect_none(f"two lines of {name} that differ", _contradictions(keyed), len(labels), get)
        found = {key for key, _ in keyed}
        report.expect_none(
            f"{name} without a film", found - films.keys(), len(labels), "the files are of different releases"
        )
        joined = {chexpert_plus.study_key_of_film(key) for key in found}
        studies = {chexpert_plus.study_key_of_film(key): str(Path(key).parent) for key in films}
        without = {study: folder for study, folder in studies.items() if study not in joined}
        report.expect_none(
            f"studies without {name}", without, len(studies), "stage 1 does not use them", MAX_UNLABELLED
        )
    pairs = [(chexpert_plus.study_key_of_film(name), root / name) for name in names]
    _decode(report, pairs, lambda path: chexpert_plus.film_file(root, str(path.relative_to(root))) or path)


def _label_lines(root: Path, name: str) -> list[dict[str, Any]]:
    path = next((path for path in (root / "chexbert_labels" / name, root / name) if path.exists()), None)
    if path is None:
        raise UserError(f"chexbert_labels/{name} is missing")
    return chexpert_plus.read_chexpert_labels(path)


def _annotated(root: Path, report: Report) -> str:
    """Check R2Gen's selection of a data set; return the source that reads it."""
    advice = "take R2Gen's annotation.json again"
    content = report.attempt("annotation", lambda: r2gen.read_annotation(root / r2gen.ANNOTATION), advice) or []
    mimic = any(isinstance(entry, dict) and "subject_id" in entry for _, entry in content)
    entries: list[tuple[str, str, list[str], str, str]] = []
    wrong = []
    for number, (split, entry) in enumerate(content):
        try:
            name, paths = str(entry["id"]), r2gen.film_paths_of_entry(entry)
            patient = r2gen.subject_of_entry(entry) if mimic else name.split("_")[0]
            entries.append((name, split, paths, patient, stripped_text(entry["report"])))
        except (KeyError, TypeError):
            wrong.append(f"entry {number}")
    report.expect_none("entries without id, report or films", wrong, len(content), advice)
    names = [name for name, *_ in entries]
    report.expect_none("names of studies twice", _duplicates(names), len(names), advice)
    report.expect_none("empty reports", {name for name, *_, text in entries if not text}, len(names), "left out")
    _one_split(report, [(patient, split) for _, split, _, patient, _ in entries])
    folder = report.attempt(
        "folder of films", lambda: r2gen.find_films_folder(root), "put the films beside the annotation"
    )
    if folder is not None:
        films = [(name, folder / path) for name, _, paths, *_ in entries for path in paths]
        missing = {str(path): str(path) for _, path in films if not os.path.exists(path)}  # Path.exists may raise

        report.expect_none("films that are not there", missing, len(films), "fetch the films")
        _decode(report, [(name, path) for name, path in films if str(path) not in missing])
    return "mimic_cxr" if mimic else "iu_xray"


def _openi(root: Path, report: Report) -> None:
    again = "fetch Open-i's reports again"
    paths = list(openi.iter_report_files(root))
    films = openi.film_files_by_name(root)
    unreadable, studies, mute, lost = {}, [], set(), {}
    without_section: Counter[str] = Counter()
    shown: list[tuple[str, Path]] = []
    for path in paths:
        try:
            content = openi.parse_report_xml(path)
        except ValueError:
            unreadable[path.stem] = str(path)
            continue
        key, sections = openi.study_of_report(content) or path.stem, openi.read_sections(content)
        studies.append(key)
        mute |= {key} if not (sections.get("FINDINGS") or sections.get("IMPRESSION")) else set()
        without_section.update(name for name in ("FINDINGS", "IMPRESSION") if not sections.get(name))
        for name in openi.film_names_of_report(content):
            if name in films:
                shown.append((key, films[name]))
            else:
                lost[name] = f"{name} of {path}"
    report.expect_none("reports that cannot be read", unreadable, len(paths), again)
    report.expect_none("names of studies twice", _duplicates(studies), len(studies), again)
    report.expect_none("reports without findings and impression", mute, len(studies), "left out", 1.0)
    for name in ("findings", "impression"):
        number = without_section[name.upper()]
        report.count(f"reports without {name}", number, len(studies), f"{number / max(len(studies), 1):.0%}")
    report.expect_none(
        "films that are not there", lost, len(lost) + len(shown), "fetch the films", 1.0 if shown else None
    )
    without = {*studies} - {key for key, _ in shown}
    report.expect_none("studies without a film", without, len(studies), "fetch the films")
    _decode(report, shown)


def _bad_labels(rows: Iterable[tuple[str, Mapping[str, Any]]]) -> set[str]:
    return {key for key, row in rows if labels_of_row(row)[1]}


def _contradictions(rows: Iterable[tuple[str, Mapping[str, Any]]]) -> set[str]:
    first: dict[str, Any] = {}
    return {key for key, row in rows if first.setdefault(key, labels_of_row(row)) != labels_of_row(row)}


def _one_split(report: Report, pairs: Iterable[tuple[str, str]]) -> None:
    splits: dict[str, set[str]] = defaultdict(set)
    for patient, split in pairs:
        if patient and split:
            splits[patient].add(split)
    in_several = {patient for patient, names in splits.items() if len(names) > 1}
    report.expect_none("patients in two splits", in_several, len(splits), "use data.splits patient: else reports leak")


def _read_texts(report: Report, reports: dict[str, mimic_cxr.ReportFile]) -> list[str]:
    """Check that reports can be read; return the texts of those that can."""
    texts, wrong = [], []
    for key, file in reports.items():
        try:
            text = mimic_cxr.decode_report_file(file.read)
        except ValueError as error:
            wrong.append(Found(key, file.path, str(error)))
            continue
        texts.append(text)
        wrong += [] if text.strip() else [Found(key, file.path, "empty")]
    result = f"{len(wrong)} of {report.of_sample(len(reports))}"
    advice = "fetch the reports again" if wrong else ""
    report.checks.append(Check("reports that cannot be read", not wrong, result, advice, tuple(wrong)))
    return texts


def _name_sections(report: Report, texts: list[str]) -> None:
    """Count the reports of a sample without each section, which ``data.sections`` would leave to stage 1 alone.

    The commonest headings in them that no rule names tell whether the text was there under another name.
    """
    found = [split_sections(text) for text in texts]
    for name in ("findings", "impression"):
        without = [text for text, sections in zip(texts, found, strict=True) if not sections.get(name)]
        means = f"{len(without) / max(len(texts), 1):.0%}; with labels: stage 1 alone" + _unknown(without)
        report.count(f"reports without {name}, of a sample", len(without), len(texts), means)


def _unknown(texts: list[str]) -> str:
    """Return the commonest headings of some reports that no rule names, but none that may tell a person or date."""
    headings = Counter(heading for text in texts for heading in {*unknown_headings(text)})
    named = [f"{heading} ({count})" for heading, count in headings.most_common() if _TEMPLATE.fullmatch(heading)]
    return f"; headings not recognized: {', '.join(named[:NAMED])}" if named else ""


def _decode(
    report: Report, films: Iterable[tuple[str, Path]], locate: Callable[[Path], Path] = lambda path: path
) -> None:
    """Check that films can be decoded.

    Args:
        report: receives the check.
        films: key of the study and path of each film.
        locate: maps a path to the file, which may have another suffix.
    """
    chosen, wrong = report.sample(films), []
    for key, path in track_progress(chosen, "reading films") if report.every else chosen:
        file = path
        try:
            file = locate(path)
            load_film_file(file, 64)
        except (OSError, ValueError) as error:
            wrong.append(Found(key, str(file), _reason(error)))
    _report_films(report, wrong, len(chosen))


def _reason(error: OSError | ValueError) -> str:
    """Return why a film cannot be read, without its path."""
    if isinstance(error, FileNotFoundError):
        return "not there"
    return str(error) if isinstance(error, ValueError) else type(error).__name__


def _report_films(report: Report, wrong: list[Found], sampled: int) -> None:
    """Add the check of films, which passes if none is wrong."""
    reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(Counter(one.reason for one in wrong).items()))
    advice = "fetch the films again; prepare leaves out at most data.max_corrupt_fraction" if wrong else ""
    result = reasons or ("" if report.every else "all of ") + f"{report.of_sample(sampled)} decoded"
    report.checks.append(Check("films", not wrong, result, advice, tuple(wrong)))


def _duplicates(names: Iterable[str]) -> set[str]:
    return {name for name, count in Counter(names).items() if count > 1}
