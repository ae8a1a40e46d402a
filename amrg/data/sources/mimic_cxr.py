"""Reader of MIMIC-CXR-JPG with its reports as published by PhysioNet, or of R2Gen's selection (``annotation.json``)."""

import os
import re
import zipfile
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from amrg.config import DataConfig
from amrg.data.context import Context
from amrg.data.film_checks import is_lateral_view
from amrg.data.labels import LABELS
from amrg.data.prior import EarlierStudies, days_between
from amrg.data.sources import r2gen
from amrg.data.sources.r2gen import ANNOTATION, R2Gen
from amrg.data.sources.study_films import load_study_films
from amrg.data.sources.tables import (
    Need,
    Tally,
    check_data_root,
    decode_text,
    find_first_existing,
    is_system_file,
    join_label_rows,
    parse_moment,
    read_csv_columns,
)
from amrg.data.splits import assign_splits, hash_patient_group
from amrg.data.studies import Study, StudyImages
from amrg.data.text.labeler import label_report
from amrg.data.text.sections import context_sections, select_impression, select_sections, split_sections
from amrg.errors import UserError
from amrg.progress import track_progress

PUBLISHED_SPLITS = {"train": "train", "validate": "val", "test": "test"}
#: Views of films whose ``ViewPosition`` is empty, by the meaning of their code.
_CODED_VIEWS = {"posteroanterior": "PA", "anteroposterior": "AP", "lateral": "LATERAL", "leftlateral": "LATERAL"}
_FRONTAL = ("PA", "AP")  # in this order: the first film is the one searched for regions
_SUFFIXES = (".jpg", ".png", ".dcm")


def open_source(config: DataConfig, seed: int) -> "MimicCxr | R2Gen":
    """Open the reader of the data set in ``data.path``: that of R2Gen's selection if its annotation exists."""
    root = check_data_root(config)
    return R2Gen(config, seed, "mimic") if (root / ANNOTATION).exists() else MimicCxr(config, seed)


#: Columns of the metadata; a table without the second has no codes of views.
METADATA = ("subject_id", "study_id", "dicom_id", "ViewPosition", "StudyDate", "StudyTime")
CODE = "ViewCodeSequence_CodeMeaning"
#: Tables besides the labels: name and purpose.
_METADATA, _SPLIT = ("metadata", "views and order of studies"), ("split", "the published split")


def required_files(config: DataConfig) -> list[Need]:
    """Return one check per file or folder that the reader needs in ``data.path``."""
    root = check_data_root(config)
    if (root / ANNOTATION).exists():
        return r2gen.required_files(config)
    tables = [_METADATA, _SPLIT, *([] if config.labels == "rules" else [_label_table(config)])]
    return [
        *(partial(_table, root, *table) for table in tables),
        lambda: _archive(root) or _report_folder(root),
        partial(find_first_existing, root, "files", why="the films"),
    ]


def published_counts(config: DataConfig) -> dict[str, tuple[int, int]]:
    """Return the numbers of studies and films per published split, including those without text or labels."""
    root = check_data_root(config)
    if (root / ANNOTATION).exists():
        return r2gen.published_counts(config)
    films: dict[str, set[str]] = defaultdict(set)
    for study, dicom in _rows(_table(root, *_METADATA), ("study_id", "dicom_id")):
        films[study].add(dicom)
    named = dict(_rows(_table(root, *_SPLIT), ("study_id", "split")))
    found = {}
    for published, split in PUBLISHED_SPLITS.items():
        views = [len(dicoms) for study, dicoms in films.items() if named.get(study) == published]
        found[split] = (len(views), sum(views))
    return found


class MimicCxr:
    """Studies of MIMIC-CXR-JPG. Implements ``amrg.data.studies.Source``.

    Args:
        config: ``path`` holds ``files/``, the three ``mimic-cxr-2.0.0-*.csv.gz`` and the reports
            (``mimic-cxr-reports.zip``, or unpacked).
        seed: seed of the split and of the studies kept under a limit.

    Raises:
        UserError: a file or column is missing, or a split is empty.
    """

    def __init__(self, config: DataConfig, seed: int) -> None:
        self._root, self._config = check_data_root(config), config
        self._films: dict[str, list[Path]] = {}
        self._studies = assign_splits(self._read(), config, seed)
        self._films = {study.key: self._films[study.key] for study in self._studies}

    def studies(self) -> list[Study]:
        """Return all studies with their splits."""
        return list(self._studies)

    def films(self, study: Study) -> StudyImages:
        """Load all films of a study, frontal ones first."""
        return load_study_films(map(_existing_film, self._films[study.key]), self._config.image_size)

    def _read(self) -> list[Study]:
        tally = Tally(self._config.sections)
        films, splits = self._metadata(tally), self._splits()
        labels, report = self._labels(films), _reports(self._root, tally)
        studies: list[Study] = []
        earlier = EarlierStudies()
        wanted = {view.upper() for view in self._config.views}
        for (subject, study), views in track_progress(sorted(films.items(), key=_time), "reading reports"):
            split = splits.get(study, "" if self._config.splits == "official" else "train")
            chosen = [view for view in views if not wanted or view["view"] in wanted]
            if not (split and chosen):
                tally.counts[tally.no_film if split else tally.no_split] += 1
                continue
            try:
                raw = report(subject, study)
            except ValueError:
                tally.counts[tally.unreadable] += 1
                continue
            found = split_sections(raw) if raw else {}
            both = found.get("findings"), found.get("impression")
            text, ending = (select(*both, self._config.sections) for select in (select_sections, select_impression))
            found_labels, fault = labels.get(study, (dict.fromkeys(LABELS), ""))
            if self._config.labels == "rules":
                found_labels = label_report(text) if text else dict.fromkeys(LABELS)
            if not (fault or tally.keeps(text, found_labels, self._config.labels == "rules" or study in labels)):
                continue
            key = f"s{study}"
            folder = self._root / "files" / f"p{subject[:2]}" / f"p{subject}" / key
            ordered = sorted(chosen, key=lambda view: (_view_rank(view["view"]), view["dicom"]))
            self._films[key] = [folder / view["dicom"] for view in ordered]
            group = hash_patient_group(f"mimic {subject}")
            projections = tuple(view["view"] for view in ordered)
            context = Context.read(context_sections(raw) if raw else {}, found.values())
            time = min((view["date"], view["time"]) for view in views)
            prior, before = earlier.find(group, time) if time[0] >= 0 else ("", None)
            studies.append(
                Study(
                    key, group, split, text, found_labels, projections, prior, fault, context=context,
                    prior_days=days_between(before[0], time[0]) if before else None, impression=ending,
                )
            )  # fmt: skip
            if text and time[0] >= 0:
                earlier.add(group, time, key)
        self.left_out = dict(tally.counts)
        tally.refuse_nothing(len(studies), len(films), self._root)
        tally.report(len(films))
        return studies

    def _metadata(self, tally: Tally) -> dict[tuple[str, str], list[dict[str, Any]]]:
        """Map (subject, study) to its films with view, date and time; a film that is named twice is one."""
        path = _table(self._root, *_METADATA)
        films: dict[tuple[str, str], dict[str, dict[str, Any]]] = defaultdict(dict)
        for row in read_csv_columns(path, METADATA, optional=(CODE,)).to_pylist():
            study, dicom = (row["subject_id"] or "", row["study_id"] or ""), row["dicom_id"] or ""
            if not (all(study) and dicom):
                tally.counts[tally.no_id] += 1
                continue
            tally.counts.update([tally.film_twice] if dicom in films[study] else [])
            film = {"dicom": dicom, "view": view_of_film_row(row), "date": _clock(row["StudyDate"])}
            films[study].setdefault(dicom, film | {"time": _clock(row["StudyTime"])})
        return {study: list(found.values()) for study, found in films.items()}

    def _splits(self) -> dict[str, str]:
        """Map each study to its split; to an empty one if its films are in several."""
        path = _table(self._root, *_SPLIT)
        splits: dict[str, str] = {}
        for study, split in _rows(path, ("study_id", "split")):
            if split is None:
                continue
            if split not in PUBLISHED_SPLITS:
                raise UserError(f"{path}: split {split!r} is none of {', '.join(PUBLISHED_SPLITS)}")
            if splits.setdefault(study, PUBLISHED_SPLITS[split]) != PUBLISHED_SPLITS[split]:
                splits[study] = ""
        return splits

    def _labels(self, films: Iterable[tuple[str, str]]) -> dict[str, tuple[dict[str, float | None], str]]:
        """Map each study to the result of ``labels_of_row`` for its row."""
        if self._config.labels == "rules":
            return {}
        path = _table(self._root, *_label_table(self._config))
        rows = read_csv_columns(path, ("study_id", *LABELS)).to_pylist()
        return join_label_rows(((row.pop("study_id"), row) for row in rows), {study for _, study in films}, path)


def _label_table(config: DataConfig) -> tuple[str, str]:
    name = "negbio" if config.labels == "negbio" else "chexpert"
    return name, "labels of studies; data.labels rules does without"


def _table(root: Path, name: str, why: str) -> Path:
    return find_first_existing(root, f"mimic-cxr-2.0.0-{name}.csv.gz", f"mimic-cxr-2.0.0-{name}.csv", why=why)


def _rows(path: Path, columns: tuple[str, ...]) -> "zip[tuple[Any, ...]]":
    table = read_csv_columns(path, columns)
    return zip(*(table[name].to_pylist() for name in columns), strict=True)


def _time(entry: tuple[tuple[str, str], list[dict[str, Any]]]) -> tuple[str, float, float, str]:
    """Sort key of studies: patient, then (shifted) date and time of the first film."""
    (subject, study), views = entry
    return subject, *min((view["date"], view["time"]) for view in views), study


def _clock(cell: str | None) -> float:
    """Return a date or time as a number, whatever decimals and separators it was printed with; -1 without one."""
    found = parse_moment(cell)
    return -1.0 if found is None else found


def view_of_film_row(row: dict[str, str | None]) -> str:
    """Return the view of a row of the metadata in capitals: ``ViewPosition``, or what its code means; or empty."""
    return (row["ViewPosition"] or _CODED_VIEWS.get(re.sub("[^a-z]", "", (row[CODE] or "").lower()), "")).upper()


def _view_rank(view: str) -> int:
    """Rank views for the order of a study's films: frontal, other AP and PA ones, unknown, oblique, lateral."""
    if view in _FRONTAL:
        return _FRONTAL.index(view)
    if is_lateral_view(view):
        return 5
    return 2 if view.split(" ")[0] in _FRONTAL else 3 if not view else 4


def _existing_film(stem: Path) -> Path:
    path = film_file(stem)
    if path is None:
        raise FileNotFoundError("a film that the metadata name is not there")
    return path


def film_file(stem: Path) -> Path | None:
    """Return the file of a film in any format; None if it is missing."""
    return next((path for path in map(stem.with_suffix, _SUFFIXES) if path.exists()), None)


@dataclass(frozen=True)
class ReportFile:
    """A report on disk or in the archive.

    Attributes:
        path: its path.
        read: reads its bytes.
        differs: whether the archive has another report of the study with another text.
    """

    path: str
    read: Callable[[], bytes]
    differs: bool = False


def _reports(root: Path, tally: Tally) -> Callable[[str, str], str | None]:
    """Return a function that reads the report of (subject, study); it gives None for a missing report."""
    archive = _archive(root)
    if archive is not None:
        in_doubt = sum(file.differs for file in archive.values())
        tally.counts.update({tally.reports_differ: in_doubt} if in_doubt else {})
        return lambda _, study: decode_report_file(archive[f"s{study}"].read) if f"s{study}" in archive else None
    folder = _report_folder(root)

    def read(subject: str, study: str) -> str | None:
        path = folder / f"p{subject[:2]}" / f"p{subject}" / f"s{study}.txt"
        return decode_report_file(path.read_bytes) if os.path.lexists(path) else None  # Path.exists may raise

    return read


def decode_report_file(read: Callable[[], bytes]) -> str:
    """Read and decode a report.

    Raises:
        ValueError: it cannot be read, or is no text.
    """
    try:
        text = decode_text(read())
    except Exception as error:  # a damaged archive raises errors of any type: BadZipFile, zlib.error, EOFError, …
        raise ValueError(f"not readable ({type(error).__name__})") from None
    if "\0" in text:
        raise ValueError("no text")
    return text


def report_files_by_study(root: Path) -> dict[str, ReportFile]:
    """Return the report of each ``s<study>`` that has one. Walks an unpacked folder.

    Raises:
        UserError: there are no reports.
    """
    archive = _archive(root)
    if archive is not None:
        return archive
    return {path.stem: ReportFile(str(path), path.read_bytes) for path in _report_folder(root).glob("p*/p*/s*.txt")}


def _archive(root: Path) -> dict[str, ReportFile] | None:
    path = root / "mimic-cxr-reports.zip"
    if not path.exists():
        return None
    try:
        file = zipfile.ZipFile(path)
    except (OSError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is not a readable archive ({type(error).__name__}): fetch it again") from None
    # The root inside the archive differs between releases, so a report is found by its study.
    members: dict[str, list[zipfile.ZipInfo]] = defaultdict(list)
    for name, member in {member.filename: member for member in file.infolist()}.items():
        if name.endswith(".txt") and not is_system_file(name):
            members[Path(name).stem].append(member)
    return {
        key: ReportFile(same[0].filename, partial(file.read, same[0]), len({one.CRC for one in same}) > 1)
        for key, same in members.items()
    }


def _report_folder(root: Path) -> Path:
    return find_first_existing(
        root, "mimic-cxr-reports/files", "mimic-cxr-reports", "reports/files", "reports", "files",
        why="reports: mimic-cxr-reports.zip, or its folder",
    )  # fmt: skip
