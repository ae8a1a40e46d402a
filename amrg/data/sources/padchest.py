"""Reader of PadChest: one CSV with a row for each film, and PNG films of 16 bits.

Its reports are Spanish and stemmed, so no study has a text: stage 1 alone uses them. Labels are the radiological names
of the column ``Labels``, by ``NAMES``.
"""

import ast
import re
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

from amrg.config import DataConfig
from amrg.data.labels import FINDINGS, NO_FINDING
from amrg.data.sources.rows import Row, RowSource, find_film_file
from amrg.data.sources.tables import Need, check_data_root, find_first_existing, read_csv_columns

TABLES = ("PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv", "PADCHEST_chest_x_ray_images_labels_160K.csv")
COLUMNS = ("ImageID", "ImageDir", "StudyDate_DICOM", "StudyID", "PatientID", "Projection", "Labels")
#: Radiological names of PadChest, whole or in part, that are one of our findings.
NAMES = {
    "Enlarged Cardiomediastinum": r"mediastinal enlargement",
    "Cardiomegaly": r"cardiomegaly",
    "Lung Opacity": r"infiltrates|alveolar pattern|interstitial pattern|ground glass pattern|increased density|"
    r"miliary opacities",
    "Lung Lesion": r"nodules?|pulmonary mass|lung metastasis",  # a pseudonodule is none
    "Edema": r"pulmonary edema",
    "Consolidation": r"consolidation",
    "Pneumonia": r"pneumonia",
    "Atelectasis": r"atelectasis",
    "Pneumothorax": r"(?:hydro)?pneumothorax",
    "Pleural Effusion": r"pleural effusion|fissural effusion|hydropneumothorax",
    "Pleural Other": r"pleural thickening|pleural plaques",
    "Fracture": r"fracture",
    "Support Devices": r"device|pacemaker|dai|catheter|tube|stent|artificial .*heart valve",
}
_EXCLUDED, _REFERS = "exclude", "unchanged"
#: Names that tell nothing of the film.
_NO_STATEMENT = {"suboptimal study", _REFERS, ""}
_FOLDERS = ("images", ".", "image")


def open_source(config: DataConfig, seed: int) -> RowSource:
    """Open the reader of the data set in ``data.path``; there is no published split.

    Raises:
        UserError: the table or a column of it is missing.
    """
    root = check_data_root(config)
    return RowSource(_rows(_table(root)), config, seed, partial(_film, root), "padchest")


def required_files(config: DataConfig) -> list[Need]:
    """Return one check per file or folder that the reader needs in ``data.path``."""
    return [partial(_table, check_data_root(config))]


def published_counts(config: DataConfig) -> None:
    """Return None: the table has no split."""


def recognize_folder(root: Path) -> bool:
    """Return whether a folder holds the table."""
    return any((root / f"{name}{suffix}").exists() for name in TABLES for suffix in ("", ".gz"))


def labels_of_names(names: Iterable[str]) -> dict[str, float]:
    """Return the labels of a study from all its radiological names; empty if they tell nothing of the film.

    The names of a study are complete, so a finding without a name is absent, unless the study is ``unchanged``, which
    refers to the one before: then nothing is known of it.
    """
    recorded = {name.strip().lower() for name in names}
    stated = recorded - _NO_STATEMENT
    if _EXCLUDED in recorded or not stated:
        return {}
    labels = {f: float(any(re.search(rf"\b(?:{NAMES[f]})\b", name) for name in stated)) for f in FINDINGS}
    labels[NO_FINDING] = float(stated == {"normal"})
    return {label: value for label, value in labels.items() if value or _REFERS not in recorded}


def _table(root: Path) -> Path:
    return find_first_existing(
        root, *(f"{name}{suffix}" for name in TABLES for suffix in ("", ".gz")), why="the labels of PadChest"
    )


def _film(root: Path, name: str) -> Path:
    """Return the file of ``<ImageDir>/<ImageID>``: releases keep the numbered folders, or have all films in one."""
    numbered = find_film_file(root, _FOLDERS, name)
    return numbered if numbered.is_file() else find_film_file(root, _FOLDERS, Path(name).name)


def _rows(path: Path) -> Iterator[Row]:
    for row in read_csv_columns(path, COLUMNS, multiline=True).to_pylist():
        if not row["ImageID"] or row["Projection"] == "EXCLUDE":
            continue
        yield Row(
            row["StudyID"] or row["ImageID"],
            row["PatientID"] or row["StudyID"] or row["ImageID"],
            (f"{row['ImageDir'] or '.'}/{row['ImageID']}",),
            (row["Projection"] or "",),
            labels=labels_of_names(_names(row["Labels"])),
            time=row["StudyDate_DICOM"] or "",
        )


def _names(cell: str | None) -> list[str]:
    """Return the names of a cell, a list as Python writes it; none if it is no such list."""
    try:
        names = ast.literal_eval(cell or "[]")
    except (ValueError, SyntaxError):
        return []
    return [name for name in names if isinstance(name, str)] if isinstance(names, list) else []
