"""Reader of VinDr-CXR: labels of films by radiologists, and DICOM films. There are no reports: stage 1 alone."""

from collections import defaultdict
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from amrg.config import DataConfig
from amrg.data.sources.rows import Row, RowSource, find_film_file
from amrg.data.sources.tables import Need, check_data_root, find_first_existing, read_csv_columns

SPLITS = ("train", "test")
#: Our label: columns of the label tables. The data set has no others of ours.
COLUMNS = {
    "Cardiomegaly": ("Cardiomegaly",),
    "Lung Opacity": ("Lung Opacity", "Infiltration"),
    "Lung Lesion": ("Nodule/Mass", "Lung tumor"),
    "Edema": ("Edema",),
    "Consolidation": ("Consolidation",),
    "Pneumonia": ("Pneumonia",),
    "Atelectasis": ("Atelectasis",),
    "Pneumothorax": ("Pneumothorax",),
    "Pleural Effusion": ("Pleural effusion",),
    "Pleural Other": ("Pleural thickening",),
    "Fracture": ("Rib fracture", "Clavicle fracture"),
    "No Finding": ("No finding",),
}


def open_source(config: DataConfig, seed: int) -> RowSource:
    """Open the reader of the data set in ``data.path``.

    A film of the train part is read by three radiologists: a label is positive if two or more give it, uncertain if one
    does. Every film is a PA film and counts as one patient, since patients are not told. The published split has no
    validation part.

    Raises:
        UserError: a table, a column or a folder of films is missing.
    """
    root = check_data_root(config)
    rows = (row for split in SPLITS for row in _rows(root, split))
    return RowSource(rows, config, seed, partial(find_film_file, root, (".",)), "vindr")


def required_files(config: DataConfig) -> list[Need]:
    """Return one check per file or folder that the reader needs in ``data.path``."""
    root = check_data_root(config)
    films = [partial(find_first_existing, root, split, why=f"the films of {split}") for split in SPLITS]
    return [*(partial(_table, root, split) for split in SPLITS), *films]


def published_counts(config: DataConfig) -> None:
    """Return None: the tables have a row for each reader."""


def recognize_folder(root: Path) -> bool:
    """Return whether a folder holds a table of labels of films."""
    return any(
        (root / place / f"image_labels_{split}.csv").exists() for place in ("annotations", ".") for split in SPLITS
    )


def _table(root: Path, split: str) -> Path:
    name = f"image_labels_{split}.csv"
    return find_first_existing(root, f"annotations/{name}", name, why="labels of VinDr-CXR")


def _rows(root: Path, split: str) -> Iterator[Row]:
    names = [name for columns in COLUMNS.values() for name in columns]
    readings: dict[str, list[dict[str, str | None]]] = defaultdict(list)
    for row in read_csv_columns(_table(root, split), ("image_id", *names)).to_pylist():
        readings[row["image_id"] or ""].append(row)
    for film, rows in readings.items():
        labels = {}
        for label, columns in COLUMNS.items():
            votes = sum(any(float(row[name] or 0) for name in columns) for row in rows)
            labels[label] = 1.0 if 2 * votes > len(rows) else -1.0 if votes else 0.0
        yield Row(film, film, (f"{split}/{film}",), ("PA",), split, labels=labels)
