"""Reader of PadChest-GR: grounded reports as a JSON of English sentences, a table with the split, and PNG films."""

import csv
import io
import json
import zipfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from amrg.config import DataConfig
from amrg.data.sources.padchest import labels_of_names
from amrg.data.sources.rows import Row, RowSource, find_film_file
from amrg.data.sources.tables import Need, check_data_root, find_first_existing
from amrg.errors import UserError

REPORTS, MASTER = "grounded_reports_20240819.json", "master_table.csv"
_FOLDERS = ("Padchest_GR_files/PadChest_GR", "Padchest_GR_files", "PadChest_GR", "images_grounding", "images", ".")


def open_source(config: DataConfig, seed: int) -> RowSource:
    """Open the reader of the data set in ``data.path``.

    The findings of a study are its English sentences, in their order; there is no impression. Labels come from the
    radiological names of the sentences, as in ``padchest``. Patients are those of ``padchest``. Boxes are not read.

    Raises:
        UserError: a file is missing or not as published.
    """
    root = check_data_root(config)
    return RowSource(_rows(root), config, seed, partial(find_film_file, root, _FOLDERS), "padchest")


def required_files(config: DataConfig) -> list[Need]:
    """Return one check per file or folder that the reader needs in ``data.path``."""
    root = check_data_root(config)
    return [partial(_reports, root), partial(_master, root)]


def published_counts(config: DataConfig) -> None:
    """Return None: only the reader opens the files."""


def recognize_folder(root: Path) -> bool:
    """Return whether a folder holds the grounded reports."""
    return (root / REPORTS).exists()


def _reports(root: Path) -> Path:
    return find_first_existing(root, REPORTS, why="the sentences of PadChest-GR")


def _master(root: Path) -> Path:
    return find_first_existing(root, MASTER, f"{MASTER}.zip", why="patients and splits of PadChest-GR")


def _rows(root: Path) -> Iterator[Row]:
    path, master = _reports(root), _master(root)
    try:
        master_rows = {row["StudyID"]: row for row in csv.DictReader(io.StringIO(_text(master)))}
        rows = [_row(entry, master_rows.get(str(entry["StudyID"]))) for entry in json.loads(path.read_text())]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        raise UserError(
            f"{path.name} or {master.name} is not as published ({type(error).__name__}): StudyID, ImageID, findings "
            "with sentence_en; StudyID, PatientID, split"
        ) from None
    yield from rows


def _row(entry: dict[str, Any], master: dict[str, str] | None) -> Row:
    study, findings = str(entry["StudyID"]), entry["findings"]
    names = [name for finding in findings if finding.get("abnormal") for name in finding.get("labels") or ()]
    return Row(
        study,
        master["PatientID"] if master else study,
        (str(entry["ImageID"]),),
        split=master["split"] if master else "",
        findings=" ".join(_sentence(finding.get("sentence_en") or "") for finding in findings),
        labels=labels_of_names(names or ["normal"]),
    )


def _sentence(text: str) -> str:
    text = text.strip()
    return text if not text or text[-1] in ".?!" else f"{text}."


def _text(path: Path) -> str:
    if path.suffix != ".zip":
        return path.read_text(encoding="utf-8-sig")
    with zipfile.ZipFile(path) as archive:
        name = next(name for name in archive.namelist() if Path(name).name == MASTER)
        return archive.read(name).decode("utf-8-sig")
