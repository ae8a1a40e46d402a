"""Reader of a plain table, CSV or Parquet, whose columns ``data.columns`` names: for data of one's own."""

import os
from collections.abc import Iterator
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from amrg.config import ColumnsConfig, DataConfig
from amrg.data.context import CONTEXT_FIELDS
from amrg.data.labels import LABELS
from amrg.data.sources.rows import Row, RowSource, find_film_file
from amrg.data.sources.tables import Need, check_data_root, read_csv_columns, read_csv_header
from amrg.errors import UserError

_SUFFIXES = (".csv", ".csv.gz", ".parquet")
#: Columns that name one column each.
_SINGLE = tuple(field.name for field in fields(ColumnsConfig) if field.name not in ("table", "labels"))
#: Common names of columns, for ``suggest_columns``.
_COMMON = {
    "images": (
        "images",
        "image",
        "image_path",
        "path_to_image",
        "imagepath",
        "path",
        "filename",
        "file",
        "dicom_path",
        "file_path",
        "filepath",
        "film",
        "films",
        "film_path",
    ),
    "report": ("report", "report_text", "text"),
    "findings": ("findings", "section_findings"),
    "impression": ("impression", "section_impression", "conclusion"),
    "patient": ("patient", "patient_id", "patientid", "subject_id", "mrn"),
    "study": ("study", "study_id", "studyid", "accession", "accession_number", "accessionnumber"),
    "split": ("split", "fold", "subset", "part", "set", "partition"),
    "view": ("view", "viewposition", "view_position", "projection"),
    "indication": ("indication", "history", "clinical_history", "reason_for_exam"),
    "technique": ("technique",),
    "comparison": ("comparison",),
    "age": ("age", "patient_age", "patientage"),
    "sex": ("sex", "gender", "patient_sex", "patientsex"),
    "study_time": ("study_time", "study_date", "studydate", "study_datetime", "date"),
}


def open_source(config: DataConfig, seed: int) -> RowSource:
    """Open the reader of the table in ``data.path``.

    A study without a split is left out where there is a column of splits; without such a column patients are split by
    the seed (``data.splits patient``). Labels come from the rule labeler if there are no columns of labels.

    Raises:
        UserError: the table or one of its columns is not there.
    """
    root, path = check_data_root(config), find_table_file(config)
    labels = _label_columns(config, path)
    rows = _rows(path, config.columns, labels, f"{os.path.abspath(root)}/")
    return RowSource(rows, config, seed, partial(find_film_file, root, (".",)), "table")


def required_files(config: DataConfig) -> list[Need]:
    """Return one check per file or folder that the reader needs in ``data.path``."""
    check_data_root(config)
    return [lambda: _label_columns(config, find_table_file(config))]


def published_counts(config: DataConfig) -> None:
    """Return None: only the reader groups the rows."""


def recognize_folder(root: Path) -> bool:
    """Return whether a folder holds one table and nothing says that it is another data set."""
    return len(_tables(root)) == 1


def suggest_columns(root: Path) -> ColumnsConfig:
    """Guess the columns of the only table in a folder by their names, as a proposal to the user."""
    names = read_column_names(_tables(root)[0])
    by_name = {name.lower(): name for name in reversed(names)}
    found = {field: next((by_name[c] for c in common if c in by_name), None) for field, common in _COMMON.items()}
    return ColumnsConfig(**found, labels="" if set(LABELS) & set(names) else None)


def read_column_names(path: Path) -> list[str]:
    """Return the names of a table's columns.

    Raises:
        UserError: the table cannot be read.
    """
    try:
        if path.suffix == ".parquet":
            return list(pq.read_schema(path).names)
        names = list(read_csv_header(path)[2])
    except (OSError, EOFError, ValueError) as error:  # Arrow's errors of content are ValueErrors
        raise UserError(f"{path} is not a readable table ({type(error).__name__})") from None
    if not names:
        raise UserError(f"{path} is empty: its first line should name the columns")
    return names


def _tables(root: Path) -> list[Path]:
    return sorted(path for path in root.iterdir() if path.name.endswith(_SUFFIXES) and not path.name.startswith("."))


def find_table_file(config: DataConfig) -> Path:
    """Return the table that is read.

    Raises:
        UserError: it is not there, or there are several.
    """
    root = check_data_root(config)
    if config.columns.table is not None:
        path = root / config.columns.table
        if not path.is_file():
            raise UserError(f"data.columns.table: {path} is not there; the path is relative to data.path")
        return path
    found = _tables(root)
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "none"
        raise UserError(
            f"{root} should hold one table ({' or '.join(_SUFFIXES)}), found {names}: set data.columns.table"
        )
    return found[0]


def _label_columns(config: DataConfig, path: Path) -> dict[str, str]:
    """Check all columns of the configuration; return the column of each label.

    Raises:
        UserError: a column is not in the table, a line for each; or the necessary ones are not named.
    """
    columns, names = config.columns, read_column_names(path)
    wanted = {f"data.columns.{name}": getattr(columns, name) for name in _SINGLE if getattr(columns, name)}
    labels: dict[str, str] = {}
    if isinstance(columns.labels, dict):
        unknown = [label for label in columns.labels if label not in LABELS]
        if unknown:
            raise UserError(f"data.columns.labels: no label {', '.join(unknown)}; labels are {', '.join(LABELS)}")
        labels = dict(columns.labels)
        wanted |= {f"data.columns.labels.{label}": name for label, name in labels.items()}
    elif columns.labels is not None:
        labels = {label: columns.labels + label for label in LABELS if columns.labels + label in names}
        if not labels:
            wanted["data.columns.labels"] = f"{columns.labels}{LABELS[0]}"
    there = f"{path.name} has the columns {', '.join(names)}"
    wrong = [f"{setting}: no column {name!r}; {there}" for setting, name in wanted.items() if name not in names]
    if columns.images is None:
        wrong.append(f"data.columns.images must name the column with the paths of films; {there}")
    if not (columns.report or columns.findings or columns.impression or columns.labels is not None):
        wrong.append(f"data.columns must name report, findings or impression, or labels; {there}")
    if wrong:
        raise UserError("\n".join(wrong))
    return labels


def _rows(path: Path, columns: ColumnsConfig, labels: dict[str, str], root: str) -> Iterator[Row]:
    single = {name: getattr(columns, name) for name in _SINGLE if getattr(columns, name)}
    wanted = list(dict.fromkeys([*single.values(), *labels.values()]))
    table = (
        pq.read_table(path, columns=wanted)
        if path.suffix == ".parquet"
        else read_csv_columns(path, wanted, multiline=True)
    )
    for number, record in enumerate(table.to_pylist(), 1):
        found = {name: record[column] for name, column in single.items()}
        films = tuple(name.replace("\\", "/").removeprefix(root) for name in _cells(found.pop("images")))
        views = _cells(found.pop("view", None))
        text = {name: _text(value) for name, value in found.items()}
        study = text.get("study") or f"row-{number}"
        yield Row(
            study,
            text.get("patient") or study,
            films,
            views if len(views) == len(films) else views * len(films) if len(views) == 1 else (),
            text.get("split", ""),
            text.get("report", ""),
            text.get("findings", ""),
            text.get("impression", ""),
            {label: _text(record[column]) for label, column in labels.items()} if labels else None,
            text.get("study_time", ""),
            {name: text[name] for name in CONTEXT_FIELDS if name in text},
        )


def _cells(value: Any) -> tuple[str, ...]:
    """Return the parts of a cell: a list of Parquet, or a text with ``;`` between them."""
    parts = value if isinstance(value, list) else str(value or "").split(";")
    return tuple(text for part in parts if (text := _text(part)))


def _text(value: Any) -> str:
    """Return a cell as text: missing values empty, numbers that pandas made fractions as they were (``17.0`` → 17)."""
    text = "" if value is None else str(value).strip()
    if text.lower() == "nan":
        return ""
    return text.removesuffix(".0") if text.removesuffix(".0").isdecimal() else text
