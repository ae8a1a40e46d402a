"""Reader of MIMIC-CXR-JPG with its reports as published by PhysioNet, or of R2Gen's selection (``annotation.json``)."""

import zipfile
from collections import Counter, defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from amrg.config import DataConfig
from amrg.data.image_io import load_film
from amrg.data.labels import LABELS
from amrg.data.sources import r2gen
from amrg.data.sources.r2gen import ANNOTATION, R2Gen
from amrg.data.sources.tables import Need, Tally, data_root, find, labels_of, read_csv
from amrg.data.splits import assign_splits, hash_patient
from amrg.data.studies import Study, StudyImages
from amrg.data.text.labeler import label_report
from amrg.data.text.sections import select_sections, split_sections
from amrg.errors import UserError
from amrg.progress import track

PUBLISHED_SPLITS = {"train": "train", "validate": "val", "test": "test"}
_FRONTAL = {"PA": 0, "AP": 1}  # the first film is the one searched for regions
_SUFFIXES = (".jpg", ".png", ".dcm")


def open_source(config: DataConfig, seed: int) -> "MimicCxr | R2Gen":
    """Open the reader of the data set in ``data.path``: that of R2Gen's selection if its annotation exists."""
    root = data_root(config)
    return R2Gen(config, seed, "mimic") if (root / ANNOTATION).exists() else MimicCxr(config, seed)


#: Tables besides the labels: name and purpose.
_METADATA, _SPLIT = ("metadata", "views and order of studies"), ("split", "the published split")


def needs(config: DataConfig) -> list[Need]:
    """Return one check per file or folder that the reader needs in ``data.path``."""
    root = data_root(config)
    if (root / ANNOTATION).exists():
        return r2gen.needs(config)
    tables = [_METADATA, _SPLIT, *([] if config.labels == "rules" else [_label_table(config)])]
    return [
        *(partial(_table, root, *table) for table in tables),
        lambda: _archive(root) or _report_folder(root),
        partial(find, root, "files", why="the films"),
    ]


def counted(config: DataConfig) -> dict[str, tuple[int, int]]:
    """Return the numbers of studies and films per published split, including those without text or labels."""
    root = data_root(config)
    if (root / ANNOTATION).exists():
        return r2gen.counted(config)
    films = Counter(read_csv(_table(root, *_METADATA), ("study_id",))["study_id"].to_pylist())
    named = dict(_rows(_table(root, *_SPLIT), ("study_id", "split")))
    found = {}
    for published, split in PUBLISHED_SPLITS.items():
        views = [count for number, count in films.items() if named.get(number) == published]
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
        self._root, self._config = data_root(config), config
        self._films: dict[str, list[Path]] = {}
        self._studies = assign_splits(self._read(), config, seed)
        self._films = {study.key: self._films[study.key] for study in self._studies}

    def studies(self) -> list[Study]:
        """Return all studies with their splits."""
        return list(self._studies)

    def films(self, study: Study) -> StudyImages:
        """Load all films of a study, frontal ones first."""
        return StudyImages([self._film(path) for path in self._films[study.key]])

    def _film(self, stem: Path) -> np.ndarray:
        path = film_file(stem)
        if path is None:
            raise FileNotFoundError("a film that the metadata name is not there")
        return load_film(path, self._config.image_size)

    def _read(self) -> list[Study]:
        films, splits = self._metadata(), self._splits()
        labels, report = self._labels(), _reports(self._root)
        studies, tally = [], Tally(self._config.sections)
        last: dict[str, str] = {}
        wanted = self._config.views
        for (subject, number), views in track(sorted(films.items(), key=_time), "reading reports"):
            raw = report(subject, number)
            found = split_sections(raw) if raw else {}
            text = select_sections(found.get("findings"), found.get("impression"), self._config.sections)
            split = splits.get(number)
            found_labels, fault = labels.get(number, (dict.fromkeys(LABELS), ""))
            if self._config.labels == "rules":
                found_labels = label_report(text) if text else dict.fromkeys(LABELS)
            chosen = [view for view in views if not wanted or view["view"] in wanted]
            if split is None or not chosen:
                tally.counts[tally.no_split if split is None else tally.no_film] += 1
                continue
            if not (fault or tally.keeps(text, found_labels)):
                continue
            key = f"s{number}"
            folder = self._root / "files" / f"p{subject[:2]}" / f"p{subject}" / key
            ordered = sorted(chosen, key=lambda view: (_FRONTAL.get(view["view"], 2), view["dicom"]))
            self._films[key] = [folder / view["dicom"] for view in ordered]
            group = hash_patient(f"mimic {subject}")
            projections = tuple(view["view"] for view in ordered)
            studies.append(Study(key, group, split, text, found_labels, projections, last.get(group, ""), fault))
            if text:
                last[group] = key
        self.left_out = dict(tally.counts)
        tally.report(len(films))
        return studies

    def _metadata(self) -> dict[tuple[str, str], list[dict[str, str]]]:
        """Map (subject, study) to its films with view, date and time."""
        path = _table(self._root, *_METADATA)
        columns = ("subject_id", "study_id", "dicom_id", "ViewPosition", "StudyDate", "StudyTime")
        films: dict[tuple[str, str], list[dict[str, str]]] = defaultdict(list)
        for subject, number, dicom, view, date, time in _rows(path, columns):
            films[subject, number].append(
                {"dicom": dicom, "view": view or "", "date": date or "", "time": (time or "").zfill(10)}
            )
        return films

    def _splits(self) -> dict[str, str]:
        path = _table(self._root, *_SPLIT)
        splits = {}
        for number, split in _rows(path, ("study_id", "split")):
            if split not in PUBLISHED_SPLITS:
                raise UserError(f"{path}: split {split!r} is none of {', '.join(PUBLISHED_SPLITS)}")
            splits[number] = PUBLISHED_SPLITS[split]
        return splits

    def _labels(self) -> dict[str, tuple[dict[str, float | None], str]]:
        """Map each study to the result of ``labels_of`` for its row."""
        if self._config.labels == "rules":
            return {}
        path = _table(self._root, *_label_table(self._config))
        columns = ("study_id", *LABELS)
        return {row[0]: labels_of(dict(zip(LABELS, row[1:], strict=True))) for row in _rows(path, columns)}


def _label_table(config: DataConfig) -> tuple[str, str]:
    name = "negbio" if config.labels == "negbio" else "chexpert"
    return name, "labels of studies; data.labels rules does without"


def _table(root: Path, name: str, why: str) -> Path:
    return find(root, f"mimic-cxr-2.0.0-{name}.csv.gz", f"mimic-cxr-2.0.0-{name}.csv", why=why)


def _rows(path: Path, columns: tuple[str, ...]) -> "zip[tuple[Any, ...]]":
    table = read_csv(path, columns)
    return zip(*(table[name].to_pylist() for name in columns), strict=True)


def _time(entry: tuple[tuple[str, str], list[dict[str, str]]]) -> tuple[str, str, str, str]:
    """Sort key of studies: patient, then (shifted) date and time."""
    (subject, number), views = entry
    return subject, views[0]["date"], views[0]["time"], number


def film_file(stem: Path) -> Path | None:
    """Return the file of a film in any format; None if it is missing."""
    return next((path for path in map(stem.with_suffix, _SUFFIXES) if path.exists()), None)


def _reports(root: Path) -> Callable[[str, str], str | None]:
    """Return a function that reads the report of (subject, study); it gives None for a missing report."""
    archive = _archive(root)
    if archive is not None:
        return lambda _, number: _text(archive[f"s{number}"]()) if f"s{number}" in archive else None
    folder = _report_folder(root)

    def read(subject: str, number: str) -> str | None:
        path = folder / f"p{subject[:2]}" / f"p{subject}" / f"s{number}.txt"
        return _text(path.read_bytes()) if path.exists() else None

    return read


def report_files(root: Path) -> dict[str, Callable[[], bytes]]:
    """Map ``s<study>`` to a function that reads its report, for every existing report. Walks an unpacked folder.

    Raises:
        UserError: there are no reports.
    """
    archive = _archive(root)
    if archive is not None:
        return archive
    return {path.stem: path.read_bytes for path in _report_folder(root).glob("p*/p*/s*.txt")}


def _archive(root: Path) -> dict[str, Callable[[], bytes]] | None:
    path = root / "mimic-cxr-reports.zip"
    if not path.exists():
        return None
    try:
        file = zipfile.ZipFile(path)
    except (OSError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is not a readable archive ({type(error).__name__}): fetch it again") from None
    # The root inside the archive differs between releases, so a report is found by its study.
    return {Path(name).stem: partial(file.read, name) for name in file.namelist() if name.endswith(".txt")}


def _report_folder(root: Path) -> Path:
    return find(
        root, "mimic-cxr-reports/files", "mimic-cxr-reports", "reports/files", "reports", "files",
        why="reports: mimic-cxr-reports.zip, or its folder",
    )  # fmt: skip


def _text(data: bytes) -> str | None:
    """Decode a report; None if it is not UTF-8."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return None
