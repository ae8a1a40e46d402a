"""Reader of ReXGradient-160K: a JSON of studies for each split, with reports by section and the views of PNG films."""

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from amrg.config import DataConfig
from amrg.data.sources.rows import Row, RowSource, find_film_file
from amrg.data.sources.tables import Need, check_data_root, find_first_existing
from amrg.errors import UserError

SPLITS = ("train", "valid", "test")
_CONTEXT = {
    "indication": "Indication", "technique": "Technique", "comparison": "Comparison", "age": "PatientAge",
    "sex": "PatientSex",
}  # fmt: skip
_FOLDERS = ("deid_png", ".")


def open_source(config: DataConfig, seed: int) -> RowSource:
    """Open the reader of the data set in ``data.path``; labels come from the rule labeler.

    Raises:
        UserError: a file is missing or not as published.
    """
    root = check_data_root(config)
    return RowSource(_rows(root), config, seed, partial(find_film_file, root, _FOLDERS), "rexgradient")


def required_files(config: DataConfig) -> list[Need]:
    """Return one check per file or folder that the reader needs in ``data.path``."""
    root = check_data_root(config)
    return [
        *(partial(_studies, root, split) for split in SPLITS),
        partial(find_first_existing, root, "deid_png", why="the films"),
    ]


def published_counts(config: DataConfig) -> None:
    """Return None: only the reader opens the large files."""


def recognize_folder(root: Path) -> bool:
    """Return whether a folder holds the studies of a split."""
    return any((root / place / _name(split)).exists() for place in ("metadata", ".") for split in SPLITS)


def _name(split: str) -> str:
    return f"{split}_metadata_view_position.json"


def _studies(root: Path, split: str) -> Path:
    return find_first_existing(root, f"metadata/{_name(split)}", _name(split), why=f"the studies of {split}")


def _rows(root: Path) -> Iterator[Row]:
    for split in SPLITS:
        path = _studies(root, split)
        try:
            entries = list(json.loads(path.read_text()).values())
            yield from [_row(entry, split) for entry in entries]
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{path} is not as published ({type(error).__name__}): studies with StudyInstanceUid, PatientID and "
                "ImagePath expected"
            ) from None


def _row(entry: dict[str, Any], split: str) -> Row:
    films = tuple(str(path).removeprefix("../").removeprefix("deid_png/") for path in entry["ImagePath"])
    views = tuple(_text(view) for view in entry.get("ImageViewPosition") or ())
    return Row(
        str(entry["StudyInstanceUid"]),
        str(entry["PatientID"]),
        films,
        views,
        split,
        findings=_text(entry.get("Findings")),
        impression=_text(entry.get("Impression")),
        time=_text(entry.get("StudyDate")),
        context={name: _text(entry.get(published)) for name, published in _CONTEXT.items()},
    )


def _text(value: Any) -> str:
    """Return a value as text; missing ones, which the files also spell ``None``, are empty."""
    text = "" if value is None else str(value).strip()
    return "" if text.lower() in ("none", "nan") else text
