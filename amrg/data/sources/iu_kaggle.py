"""Reader of Kaggle's copy of IU X-ray (raddar/chest-xrays-indiana-university): two CSV and PNG films."""

import os
from functools import partial
from pathlib import Path

from amrg.config import DataConfig
from amrg.data.sources.rows import Row, RowSource
from amrg.data.sources.tables import Need, check_data_root, find_first_existing, read_csv_columns
from amrg.progress import print_on_rank_0

REPORTS, PROJECTIONS = "indiana_reports.csv", "indiana_projections.csv"
_CONTEXT = ("indication", "comparison")
_FOLDERS = ("images/images_normalized", "images_normalized", "images")


def open_source(config: DataConfig, seed: int) -> RowSource:
    """Open the reader of the data set in ``data.path``.

    There is no published split, and every study counts as one patient, as in ``openi``. Labels come from the rule
    labeler. Films that are not there are counted; a study without any is left out.

    Raises:
        UserError: a table, a column or the folder of films is missing.
    """
    root = check_data_root(config)
    folder = _films(root)
    there = set(os.listdir(folder))
    films: dict[str, list[tuple[str, str]]] = {}
    missing = 0
    for row in read_csv_columns(_table(root, PROJECTIONS), ("uid", "filename", "projection")).to_pylist():
        missing += row["filename"] not in there
        if row["filename"] in there:
            films.setdefault(row["uid"], []).append((row["filename"], row["projection"] or ""))
    if missing:
        print_on_rank_0(f"{missing} films of {PROJECTIONS} are not in {folder.name}")
    reports = read_csv_columns(
        _table(root, REPORTS), ("uid", "findings", "impression"), optional=_CONTEXT, multiline=True
    ).to_pylist()
    rows = (
        Row(
            f"CXR{row['uid']}",
            f"CXR{row['uid']}",
            tuple(name for name, _ in films.get(row["uid"], ())),
            tuple(view for _, view in films.get(row["uid"], ())),
            findings=row["findings"] or "",
            impression=row["impression"] or "",
            context={name: row[name] or "" for name in _CONTEXT},
        )
        for row in reports
    )
    return RowSource(rows, config, seed, folder.joinpath, "iu")


def required_files(config: DataConfig) -> list[Need]:
    """Return one check per file or folder that the reader needs in ``data.path``."""
    root = check_data_root(config)
    return [*(partial(_table, root, name) for name in (REPORTS, PROJECTIONS)), partial(_films, root)]


def published_counts(config: DataConfig) -> None:
    """Return None: the tables have no split."""


def recognize_folder(root: Path) -> bool:
    """Return whether a folder holds one of the two tables."""
    return any((root / name).exists() for name in (REPORTS, PROJECTIONS))


def _table(root: Path, name: str) -> Path:
    return find_first_existing(root, name, why="Kaggle's raddar/chest-xrays-indiana-university")


def _films(root: Path) -> Path:
    return find_first_existing(root, *_FOLDERS, why="the films of Kaggle's raddar/chest-xrays-indiana-university")
