"""Reader of CheXpert Plus: one CSV with reports by section, CheXbert labels as JSON lines, PNG, JPEG or DICOM films."""

import json
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from amrg.config import DataConfig
from amrg.data.context import Context
from amrg.data.labels import LABELS
from amrg.data.prior import EarlierStudies
from amrg.data.sources.study_films import load_study_films
from amrg.data.sources.tables import (
    Need,
    Tally,
    check_data_root,
    decode_text,
    find_first_existing,
    join_label_rows,
    parse_number,
    read_csv_columns,
    stripped_text,
)
from amrg.data.splits import assign_splits, hash_patient_group
from amrg.data.studies import Study, StudyImages
from amrg.data.text.labeler import label_report
from amrg.data.text.sections import select_impression, select_sections
from amrg.errors import UserError

TABLE = "df_chexpert_plus_240401.csv"
PUBLISHED_SPLITS = {"train": "train", "valid": "val", "val": "val", "test": "test"}
COLUMNS = (
    "path_to_image", "frontal_lateral", "ap_pa", "deid_patient_id", "patient_report_date_order", "section_findings",
    "section_impression", "split",
)  # fmt: skip
#: Columns of the context by its field, in the order in which they are taken; not every copy has them.
CONTEXT = {
    "indication": ("section_clinical_history", "section_history"), "technique": ("section_technique",),
    "comparison": ("section_comparison",), "age": ("age",), "sex": ("sex",),
}  # fmt: skip
LABEL_FILES = {"findings": "findings_fixed.json", "impression": "impression_fixed.json", "both": "report_fixed.json",
               "separate": "report_fixed.json"}  # fmt: skip
_CONTEXT_COLUMNS = tuple(column for columns in CONTEXT.values() for column in columns)
_SIDES = ("FRONTAL", "", "LATERAL")  # in the order of a study's films
_IMAGE_FOLDERS = ("PNG", "PNG/PNG", "PNGs", "DICOM", ".")
_SUFFIXES = (".png", ".jpg", ".dcm")  # the table says .jpg, the PNG release has .png


def open_source(config: DataConfig, seed: int) -> "ChexpertPlus":
    """Open the reader of the data set in ``data.path``."""
    return ChexpertPlus(config, seed)


def published_counts(config: DataConfig) -> None:
    """Return None: only ``ChexpertPlus`` reads the full table."""


def required_files(config: DataConfig) -> list[Need]:
    """Return one check per file or folder that the reader needs in ``data.path``."""
    root = check_data_root(config)
    labels = [] if config.labels == "rules" else [partial(_label_file, root, config)]
    films = partial(find_first_existing, root, *_IMAGE_FOLDERS[:-1], *("train", "valid"), why="the films")
    return [partial(_table, root), *labels, films]


def _table(root: Path) -> Path:
    return find_first_existing(root, TABLE, why="reports of CheXpert Plus")


def _label_file(root: Path, config: DataConfig) -> Path:
    name = LABEL_FILES[config.sections]
    return find_first_existing(root, f"chexbert_labels/{name}", name, why="labels; data.labels rules does without")


class ChexpertPlus:
    """Studies of CheXpert Plus. Implements ``amrg.data.studies.Source``.

    The published split has no test part: use ``data.splits patient``.

    Args:
        config: ``path`` holds the table, ``chexbert_labels/`` (unless ``labels`` is ``rules``) and a folder of films.
        seed: seed of the split and of the studies kept under a limit.

    Raises:
        UserError: a file or column is missing, or a split is empty.
    """

    def __init__(self, config: DataConfig, seed: int) -> None:
        self._root, self._config = check_data_root(config), config
        self._films: dict[str, list[str]] = {}
        self._studies = assign_splits(self._read(), config, seed)

    def studies(self) -> list[Study]:
        """Return all studies with their splits."""
        return list(self._studies)

    def films(self, study: Study) -> StudyImages:
        """Load all films of a study, frontal ones first."""
        return load_study_films(map(self._film, self._films[study.key]), self._config.image_size)

    def _film(self, name: str) -> Path:
        path = film_file(self._root, name)
        if path is None:
            raise FileNotFoundError("a film that the table names is not there")
        return path

    def _read(self) -> list[Study]:
        path, tally = _table(self._root), Tally(self._config.sections)
        rows = self._rows(read_csv_columns(path, COLUMNS, optional=_CONTEXT_COLUMNS, multiline=True).to_pylist(), tally)
        labels = self._labels({film_path_stem(row["path_to_image"]) for row in rows})
        wanted = {view.upper() for view in self._config.views}
        views: dict[str, list[str]] = {}
        for row in sorted(rows, key=lambda row: _SIDES.index(_side(row))):
            if not wanted or _view(row) in wanted:
                key = study_key_of_film(row["path_to_image"])
                self._films.setdefault(key, []).append(row["path_to_image"])
                views.setdefault(key, []).append(_view(row))
        studies: list[Study] = []
        earlier = EarlierStudies()
        texts = self._texts(rows)
        for key, (row, text) in texts.items():
            split = PUBLISHED_SPLITS.get(row["split"] or "", "" if self._config.splits == "official" else "train")
            if not (split and key in self._films):
                tally.counts[tally.no_film if split else tally.no_split] += 1
                continue
            name = film_path_stem(row["path_to_image"])
            given, fault = labels.get(name, (dict.fromkeys(LABELS), ""))
            if self._config.labels == "rules":
                given = label_report(text) if text else dict.fromkeys(LABELS)
            if not (fault or tally.keeps(text, given, self._config.labels == "rules" or name in labels)):
                continue
            group, place = (
                hash_patient_group(f"chexpert {patient_of_row(row)}"),
                parse_number(row["patient_report_date_order"]),
            )
            prior = "" if place is None else earlier.find(group, place)[0]
            studies.append(
                Study(
                    key, group, split, text, given, tuple(views[key]), prior, fault, context=_context(row),
                    impression=select_impression(
                        row["section_findings"], row["section_impression"], self._config.sections
                    ),
                )
            )  # fmt: skip
            if text and place is not None:
                earlier.add(group, place, key)
        self.left_out = dict(tally.counts)
        tally.refuse_nothing(len(studies), len(texts), self._root)
        tally.report(len(texts))
        return studies

    def _rows(self, rows: list[dict[str, Any]], tally: Tally) -> list[dict[str, Any]]:
        """Return one row for each film, in order of patient and time; count those left out."""
        films: dict[str, dict[str, Any]] = {}
        for row in rows:
            if not is_film_path_inside(row["path_to_image"]):
                tally.counts[tally.no_id] += 1
                continue
            name = film_path_stem(row["path_to_image"])
            tally.counts.update([tally.film_twice] if name in films else [])
            films.setdefault(name, row)
        return sorted(
            films.values(),
            key=lambda r: (patient_of_row(r), parse_number(r["patient_report_date_order"]) or 0.0, r["path_to_image"]),
        )

    def _texts(self, rows: list[dict[str, str]]) -> dict[str, tuple[dict[str, str], str]]:
        """Map each study to (its first row with the text, or its first row; the text)."""
        texts: dict[str, tuple[dict[str, str], str]] = {}
        for row in rows:
            text = select_sections(row["section_findings"], row["section_impression"], self._config.sections)
            key = study_key_of_film(row["path_to_image"])
            if key not in texts or (text and not texts[key][1]):
                texts[key] = row, text
        return texts

    def _labels(self, films: set[str]) -> dict[str, tuple[dict[str, float | None], str]]:
        """Map each film (``film_path_stem``) to the result of ``labels_of_row`` for its line."""
        if self._config.labels == "rules":
            return {}
        path = _label_file(self._root, self._config)
        return join_label_rows(
            ((film_path_stem(row["path_to_image"]), row) for row in read_chexpert_labels(path)), films, path
        )


def read_chexpert_labels(path: Path) -> list[dict[str, Any]]:
    """Read JSON lines of labels with the text ``path_to_image``; empty lines are left out.

    Raises:
        UserError: the file is unreadable, or a line is something else.
    """
    rows = []
    try:
        lines = decode_text(path.read_bytes()).split("\n")
    except OSError as error:
        raise UserError(f"{path} is not readable ({type(error).__name__})") from None
    for place, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            good = bool(stripped_text(row["path_to_image"]))
        except (ValueError, KeyError, TypeError):
            good = False
        if not good:
            raise UserError(f"{path}, line {place}: no JSON object with path_to_image and labels")
        rows.append(row)
    return rows


def is_film_path_inside(name: str | None) -> bool:
    """Return whether a cell holds a path of a film in the data set's folder."""
    return bool(name) and not (".." in Path(name or "").parts or Path(name or "").is_absolute())


def film_path_stem(path: str) -> str:
    """Return a film's path without its suffix, which differs between the table, the labels and the films."""
    return re.sub(r"\.\w+$", "", str(PurePosixPath(path.strip().replace("\\", "/"))))


def patient_of_row(row: Mapping[str, str | None]) -> str:
    """Return the patient of a row: as it says, or else as the path of its film does."""
    return row["deid_patient_id"] or str(Path(row["path_to_image"] or "").parent.parent)


def _context(row: Mapping[str, str | None]) -> Context:
    texts = {name: next((row[one] for one in columns if row[one]), None) for name, columns in CONTEXT.items()}
    return Context.read(texts, (row["section_findings"], row["section_impression"]))


def _side(row: dict[str, str]) -> str:
    """Return FRONTAL, LATERAL or an empty text: as the row says, or else as the name of its film does."""
    text = (row["frontal_lateral"] or Path(row["path_to_image"]).stem).upper()
    return next((side for side in _SIDES if side and side in text), "")


def _view(row: dict[str, str]) -> str:
    return (row["ap_pa"] or _side(row)).upper()


def study_key_of_film(path: str) -> str:
    """Study key of a film: ``train/patient00001/study1/view1_frontal.jpg`` → ``train-patient00001-study1``."""
    return re.sub(r"[^\w-]", "-", str(Path(path).parent), flags=re.ASCII)


def film_file(root: Path, name: str) -> Path | None:
    """Return the file of a film of the table, in any of the releases; None if it is missing."""
    candidates = ((root / folder / name).with_suffix(suffix) for folder in _IMAGE_FOLDERS for suffix in _SUFFIXES)
    return next((path for path in candidates if path.exists()), None)
