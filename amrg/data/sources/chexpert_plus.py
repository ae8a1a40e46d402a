"""Reader of CheXpert Plus: one CSV with reports by section, CheXbert labels as JSON lines, PNG, JPEG or DICOM films."""

import json
import re
from functools import partial
from pathlib import Path

import numpy as np

from amrg.config import DataConfig
from amrg.data.image_io import load_film
from amrg.data.labels import LABELS
from amrg.data.sources.tables import Need, Tally, data_root, find, labels_of, read_csv
from amrg.data.splits import assign_splits, hash_patient
from amrg.data.studies import Study, StudyImages
from amrg.data.text.labeler import label_report
from amrg.data.text.sections import select_sections
from amrg.errors import UserError

TABLE = "df_chexpert_plus_240401.csv"
PUBLISHED_SPLITS = {"train": "train", "valid": "val", "val": "val", "test": "test"}
COLUMNS = (
    "path_to_image", "frontal_lateral", "ap_pa", "deid_patient_id", "patient_report_date_order", "section_findings",
    "section_impression", "split",
)  # fmt: skip
LABEL_FILES = {"findings": "findings_fixed.json", "impression": "impression_fixed.json", "both": "report_fixed.json"}
_IMAGE_FOLDERS = ("PNG", "PNG/PNG", "PNGs", "DICOM", ".")
_SUFFIXES = (".png", ".jpg", ".dcm")  # the table says .jpg, the PNG release has .png


def open_source(config: DataConfig, seed: int) -> "ChexpertPlus":
    """Open the reader of the data set in ``data.path``."""
    return ChexpertPlus(config, seed)


def counted(config: DataConfig) -> None:
    """Return None: only ``ChexpertPlus`` reads the full table."""


def needs(config: DataConfig) -> list[Need]:
    """Return one check per file or folder that the reader needs in ``data.path``."""
    root = data_root(config)
    labels = [] if config.labels == "rules" else [partial(_label_file, root, config)]
    films = partial(find, root, *_IMAGE_FOLDERS[:-1], *("train", "valid"), why="the films")
    return [partial(_table, root), *labels, films]


def _table(root: Path) -> Path:
    return find(root, TABLE, why="reports of CheXpert Plus")


def _label_file(root: Path, config: DataConfig) -> Path:
    name = LABEL_FILES[config.sections]
    return find(root, f"chexbert_labels/{name}", name, why="labels; data.labels rules does without")


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
        self._root, self._config = data_root(config), config
        self._films: dict[str, list[str]] = {}
        self._studies = assign_splits(self._read(), config, seed)

    def studies(self) -> list[Study]:
        """Return all studies with their splits."""
        return list(self._studies)

    def films(self, study: Study) -> StudyImages:
        """Load all films of a study, frontal ones first."""
        return StudyImages([self._film(path) for path in self._films[study.key]])

    def _film(self, name: str) -> np.ndarray:
        path = film_file(self._root, name)
        if path is None:
            raise FileNotFoundError("a film that the table names is not there")
        return load_film(path, self._config.image_size)

    def _read(self) -> list[Study]:
        path = _table(self._root)
        table = read_csv(path, COLUMNS, multiline=True)
        rows = sorted(
            table.to_pylist(),
            key=lambda r: (
                r["deid_patient_id"] or "",
                float(r["patient_report_date_order"] or 0),
                r["path_to_image"],
            ),
        )
        labels = self._labels()
        order, tally = {"Frontal": 0}, Tally(self._config.sections)
        for row in sorted(rows, key=lambda r: order.get(r["frontal_lateral"], 1)):
            name = row["path_to_image"] or ""
            if not name or ".." in Path(name).parts or Path(name).is_absolute():
                raise UserError(f"{path}: a path_to_image is empty or leaves the folder")
            if not self._config.views or _view(row) in self._config.views:
                self._films.setdefault(_key(name), []).append(name)
        studies: list[Study] = []
        last: dict[str, str] = {}
        texts = self._texts(rows)
        for key, (row, text) in texts.items():
            if key not in self._films:
                tally.counts[tally.no_film] += 1
                continue
            given, fault = labels.get(row["path_to_image"], (dict.fromkeys(LABELS), ""))
            if self._config.labels == "rules":
                given = label_report(text) if text else dict.fromkeys(LABELS)
            if not (fault or tally.keeps(text, given)):
                continue
            if row["split"] not in PUBLISHED_SPLITS:
                raise UserError(f"{path}: split {row['split']!r} is none of {', '.join(PUBLISHED_SPLITS)}")
            group = hash_patient(f"chexpert {row['deid_patient_id']}")
            studies.append(
                Study(
                    key, group, PUBLISHED_SPLITS[row["split"]], text, given, (row["ap_pa"] or "",), last.get(group, ""),
                    fault,
                )
            )  # fmt: skip
            if text:
                last[group] = key
        self.left_out = dict(tally.counts)
        tally.report(len(texts))
        return studies

    def _texts(self, rows: list[dict[str, str]]) -> dict[str, tuple[dict[str, str], str]]:
        """Map each study to (its first row with the text, or its first row; the text)."""
        texts: dict[str, tuple[dict[str, str], str]] = {}
        for row in rows:
            text = select_sections(row["section_findings"], row["section_impression"], self._config.sections)
            key = _key(row["path_to_image"])
            if key not in texts or (text and not texts[key][1]):
                texts[key] = row, text
        return texts

    def _labels(self) -> dict[str, tuple[dict[str, float | None], str]]:
        """Map each film to the result of ``labels_of`` for its line."""
        if self._config.labels == "rules":
            return {}
        path = _label_file(self._root, self._config)
        labels = {}
        with path.open() as file:
            for number, line in enumerate(file, 1):
                try:
                    row = json.loads(line)
                    labels[row["path_to_image"]] = labels_of(row)
                except (ValueError, KeyError, TypeError):
                    raise UserError(f"{path}, line {number}: no JSON object with path_to_image and labels") from None
        return labels


def _view(row: dict[str, str]) -> str:
    return row["ap_pa"] or (row["frontal_lateral"] or "").upper()


def _key(path: str) -> str:
    """Study key of a film: ``train/patient00001/study1/view1_frontal.jpg`` → ``train-patient00001-study1``."""
    return re.sub(r"[^\w-]", "-", str(Path(path).parent), flags=re.ASCII)


def film_file(root: Path, name: str) -> Path | None:
    """Return the file of a film of the table, in any of the releases; None if it is missing."""
    candidates = ((root / folder / name).with_suffix(suffix) for folder in _IMAGE_FOLDERS for suffix in _SUFFIXES)
    return next((path for path in candidates if path.exists()), None)
