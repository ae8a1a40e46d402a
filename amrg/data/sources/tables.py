"""Reading of published tables and texts as copies of them are: by file name and column name, in any encoding."""

import codecs
import contextlib
import csv
import gzip
import importlib.util
import math
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv as arrow_csv

from amrg.config import INSTALL_DATA_WHEELS, DataConfig
from amrg.data.labels import LABELS
from amrg.errors import UserError
from amrg.progress import print_on_rank_0

#: A check of one file or folder that a reader needs; it raises UserError if it is missing.
Need = Callable[[], object]

#: What programs write in the cell of a missing value, in small letters.
MISSING = ("", "nan", "-nan", "na", "n/a", "#n/a", "<na>", "nat", "null", "none")
#: Files and folders that systems add to every folder; AppleDouble files (``._x``) begin with a dot.
_ADDED = ("__macosx", "thumbs.db", "desktop.ini")
#: Values of labels besides numbers.
_BOOLEANS = {"true": 1.0, "false": 0.0}
_DECIMAL_COMMA = re.compile(r"^(\s*-?\d+),(\d+\s*)$")
_TIME = r"(\d{1,2}):(\d\d)(?::(\d\d(?:\.\d+)?))?"
_DATE = re.compile(rf"(\d{{4}})[-/.](\d{{1,2}})[-/.](\d{{1,2}})(?:[ T]+{_TIME}(?:Z|[+-]\d\d:?\d\d)?)?")
_CLOCK = re.compile(_TIME)
_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def check_data_root(config: DataConfig) -> Path:
    """Return ``data.path``. Raises UserError if it is not a folder."""
    root = Path(config.path).expanduser() if config.path else None
    if root is None or not root.is_dir():
        raise UserError(
            f"data.path {config.path} is not a folder: the source {config.source} reads your copy from there"
        )
    return root


def refuse_views(config: DataConfig) -> None:
    """Raise UserError if ``data.views`` is set for a data set that does not give the view of a film."""
    if config.views:
        raise UserError(
            f"data.views {' '.join(config.views)}: {config.source} does not tell the view of a film here; leave it out"
        )


class Tally:
    """Count studies by missing or repeated content, for ``left_out`` of a source.

    Args:
        sections: the target sections, named in the texts.
    """

    def __init__(self, sections: str) -> None:
        self.no_id = "no patient, study or film named: left out"
        self.no_split = "no split: left out"
        self.no_film = "no film of data.views: left out"
        self.no_file = "no film: left out"
        self.no_time = "a time that is neither a number nor a date from the year on: no order"
        self.unreadable = "a report that cannot be read: left out"
        self.reports_differ = "two reports that differ: the first is used"
        self.study_twice = "a second entry: the first is used"
        self.film_twice = "rows of a film twice: counted once"
        self.nothing = f"neither {sections} text nor labels: left out"
        self.mute = f"no {sections} text: left out"
        self.no_text = f"no {sections} text: stage 1 alone"
        self.no_labels = "no labels: not used in stage 1"
        self.no_row = "no row in the table of labels: not used in stage 1"
        self.counts: Counter[str] = Counter()

    def keeps(self, text: str, labels: Mapping[str, float | None], has_row: bool = True) -> bool:
        """Count missing text or labels of a study; return whether the study is usable.

        Args:
            text: the target text.
            labels: the 14 labels.
            has_row: whether the table of labels has a row of the study, or none is read.
        """
        labelled = any(value is not None for value in labels.values())
        unlabelled = self.no_labels if has_row else self.no_row
        lack = "" if text and labelled else unlabelled if text else self.no_text if labelled else self.nothing
        self.counts.update([lack] if lack else [])
        return lack != self.nothing

    def report(self, total: int) -> None:
        """Print one line if anything was counted."""
        if self.counts:
            print_on_rank_0(f"of {total} studies: {self}")

    def refuse_nothing(self, kept: int, total: int, root: Path) -> None:
        """Raise UserError if no study of the data set in ``root`` is kept."""
        if not kept:
            why = f" ({self})" if self.counts else ""
            raise UserError(f"{root}: none of {total} studies can be used{why}: `amrg doctor` tells what is wrong")

    def __str__(self) -> str:
        return "; ".join(f"{count} with {lack}" for lack, count in self.counts.items())


def find_first_existing(root: Path, *names: str, why: str) -> Path:
    """Return the first of some files or folders that exists.

    Raises:
        UserError: none exists; the message contains ``why`` it is needed.
    """
    for name in names:
        if (root / name).exists():
            return root / name
    raise UserError(f"{root} has no {' or '.join(names)} ({why}): set data.path to the folder that holds it")


def find_wheel_file(package: str, version: str, name: str) -> Path:
    """Return the path of a data file in an installed package, without importing the package.

    Raises:
        UserError: the package or the file is missing.
    """
    spec = importlib.util.find_spec(package)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        path = Path(folder) / "data" / name
        if path.is_file():
            return path
    raise UserError(
        f"the embedded data set needs the wheel {package}=={version}, which is not installed: `{INSTALL_DATA_WHEELS}`"
    )


def is_system_file(name: str) -> bool:
    """Return whether a name or path is of a file that systems add: hidden, ``Thumbs.db``, or in ``__MACOSX``."""
    return any(part.lower() in _ADDED or (part[:1] == "." and part.strip(".")) for part in name.split("/"))


def walk_data_files(root: Path) -> Iterator[Path]:
    """Yield all files below a folder in the order of their paths, through links, without those that systems add."""
    visited: set[str] = set()
    for folder, folders, names in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in visited:  # a link to a folder above, or a second one to the same
            folders.clear()
            continue
        visited.add(real)
        folders[:] = sorted(name for name in folders if not is_system_file(name))
        yield from (Path(folder, name) for name in sorted(names) if not is_system_file(name))


def decode_text(data: bytes) -> str:
    """Decode a text: UTF-8 with or without BOM, UTF-16 with BOM, or else Windows-1252, which has Latin-1's letters."""
    if data.startswith(_UTF_16):
        return data.decode("utf-16", errors="replace")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("cp1252", errors="replace")


def stripped_text(value: object) -> str:
    """Return the stripped text of a value; empty if it is none, or one of ``MISSING``."""
    text = value.strip() if isinstance(value, str) else ""
    return "" if text.lower() in MISSING else text


def parse_number(value: str | None) -> float | None:
    """Return the number that a cell holds, with a decimal point or comma, or None."""
    try:
        found = float(_DECIMAL_COMMA.sub(r"\1.\2", value or ""))
    except ValueError:
        return None
    return found if math.isfinite(found) else None


def parse_moment(value: str | None) -> float | None:
    """Return a number that orders times: a number as it is, a date from the year on, or a time of day; or None.

    ``2020-01-31 12:00`` is 20200131.5 and ``08:05:56`` is 80556, so that both sort among the numbers of DICOM.
    """
    if found := _DATE.fullmatch((value or "").strip()):
        year, month, day, hours, minutes, seconds = (float(part or 0) for part in found.groups())
        return year * 1e4 + month * 100 + day + (hours * 3600 + minutes * 60 + seconds) / 86400
    if found := _CLOCK.fullmatch((value or "").strip()):
        hours, minutes, seconds = (float(part or 0) for part in found.groups())
        return hours * 1e4 + minutes * 100 + seconds
    return parse_number(value)


def read_csv_columns(
    path: Path, columns: Sequence[str], *, optional: Sequence[str] = (), multiline: bool = False
) -> pa.Table:
    """Read some columns of a CSV (also ``.gz``) as text without spaces around it.

    ``MISSING`` cells are null, rows of nothing else are left out. Identifiers (columns ``…id``) that were printed as
    floats are whole numbers again. A file that is not UTF-8 is decoded as ``decode_text`` does.

    Args:
        path: the file.
        columns: names of the columns.
        optional: further columns, null if the file does not have them.
        multiline: whether a cell may hold line breaks.

    Raises:
        UserError: the file is unreadable, or a column is missing.
    """
    try:
        encoding, delimiter, names = read_csv_header(path)
        lacking = [name for name in columns if name not in names]
        if lacking:
            raise UserError(f"{path} has no column {lacking[0]}: is it the published file?")
        wanted = [name for name in (*columns, *optional) if name in names]
        table = _read_columns(path, [names[name] for name in wanted], delimiter, multiline, encoding)
    except (OSError, EOFError, ValueError) as error:  # Arrow's errors of content are ValueErrors
        raise UserError(f"{path} is not a readable table ({type(error).__name__}): fetch it again") from None
    cells = {name: _cleaned(name, column) for name, column in zip(wanted, table.columns, strict=True)}
    nulls = pa.nulls(table.num_rows, pa.string())
    result = pa.table({name: cells.get(name, nulls) for name in (*columns, *optional)})
    filled = pc.is_valid(result.column(0))
    for column in result.columns[1:]:
        filled = pc.or_(filled, pc.is_valid(column))
    return result.filter(filled)


def read_csv_header(path: Path) -> tuple[str, str, dict[str, str]]:
    """Return the encoding of a CSV, as far as its start tells, its delimiter, and its columns by their stripped names.

    Raises:
        OSError, EOFError: the file cannot be read.
    """
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        start = file.read(1 << 16)
    utf_16 = start.startswith(_UTF_16)  # which may end within a character
    text = start.decode("utf-16", errors="ignore") if utf_16 else decode_text(re.split(b"[\r\n]", start, maxsplit=1)[0])
    header = re.split("[\r\n]", text, maxsplit=1)[0]
    delimiter = max(",;\t", key=header.count)
    names = {name.strip(): name for name in next(csv.reader([header], delimiter=delimiter), [])}
    return "utf-16" if utf_16 else "utf8", delimiter, names


def _read_columns(path: Path, names: list[str], delimiter: str, multiline: bool, encoding: str) -> pa.Table:
    odd: list[arrow_csv.InvalidRow] = []

    def judge(row: arrow_csv.InvalidRow) -> str:
        if not row.text.strip():
            return "skip"
        odd.append(row)
        return "error"

    def read(encoding: str, use_threads: bool = True) -> pa.Table:
        return arrow_csv.read_csv(
            path,
            read_options=arrow_csv.ReadOptions(encoding=encoding, use_threads=use_threads),
            parse_options=arrow_csv.ParseOptions(
                delimiter=delimiter, newlines_in_values=multiline,
                invalid_row_handler=judge,
            ),
            # Columns are selected by name: a copy may have more of them, and an unnamed index in front.
            convert_options=arrow_csv.ConvertOptions(
                include_columns=names, column_types=dict.fromkeys(names, pa.string())
            ),
        )  # fmt: skip

    try:
        return read(encoding)
    except pa.ArrowInvalid as error:
        if odd:
            _refuse_row(path, partial(read, encoding, use_threads=False), odd)
        if "UTF8" not in str(error):
            raise
    for other in ("cp1252", "latin-1"):  # the second knows every byte
        try:
            table = read(other)
        except (UnicodeDecodeError, pa.ArrowInvalid):
            continue
        print_on_rank_0(f"{path.name} is not UTF-8: read as {other}")
        return table
    raise ValueError("an unknown encoding")


def _refuse_row(path: Path, read: Callable[[], object], odd: list[arrow_csv.InvalidRow]) -> None:
    """Raise UserError for the first row with more or fewer cells than the header; one thread knows its number."""
    odd.clear()
    with contextlib.suppress(pa.ArrowInvalid):
        read()
    for row in odd[:1]:
        raise UserError(
            f"{path}: row {row.number} has {row.actual_columns} cells and the header {row.expected_columns}: a cell "
            "with the separator in it needs quotes, and a quote inside quotes is written twice"
        )


def _cleaned(name: str, column: pa.ChunkedArray) -> pa.ChunkedArray:
    column = pc.utf8_trim_whitespace(column)
    missing = pc.is_in(pc.utf8_lower(column), pa.array(MISSING))
    column = pc.if_else(missing, pa.scalar(None, pa.string()), column)
    return pc.replace_substring_regex(column, r"^(\d+)\.0*$", r"\1") if name.lower().endswith("id") else column


def join_label_rows(
    rows: Iterable[tuple[str, Mapping[str, Any]]], known: Set[str], path: Path
) -> dict[str, tuple[dict[str, float | None], str]]:
    """Map each name to the result of ``labels_of_row`` for its row; rows that contradict each other are an error of it.

    Args:
        rows: name of a study or film, and its row.
        known: names in the data set.
        path: the file, for messages.

    Raises:
        UserError: the rows are of none of them.
    """
    found: dict[str, tuple[dict[str, float | None], str]] = {}
    for name, row in rows:
        labels = labels_of_row(row)
        first = found.setdefault(name, labels)
        if first[0] != labels[0]:
            found[name] = dict.fromkeys(LABELS), "two rows of labels that differ"
    if known and not known & found.keys():
        raise UserError(f"{path} has labels of none of the {len(known)} studies: is it of another data set or release?")
    return found


def labels_of_row(row: Mapping[str, Any]) -> tuple[dict[str, float | None], str]:
    """Return the 14 labels of a row by name (``Pleural Effusion`` etc.), in the order of ``LABELS``, and an error text.

    A label is 1, 0, −1 or empty. Any other value becomes None and is an error of the study; without errors the text is
    empty.
    """
    labels = {label: _label(row.get(label)) for label in LABELS}
    wrong = [label for label, value in labels.items() if value is not None and value not in (1.0, 0.0, -1.0)]
    fault = "a label that is not 1, 0, -1 or empty" if wrong else ""
    return labels | dict.fromkeys(wrong), fault


def _label(value: Any) -> float | None:
    """Convert a published value to a number; an empty value to None, a text that is no number to infinity."""
    if value is None or (isinstance(value, str) and not stripped_text(value)):
        return None
    found = _BOOLEANS.get(str(value).strip().lower(), parse_number(str(value)))
    if found is None:
        return None if isinstance(value, float) and math.isnan(value) else math.inf
    return found
