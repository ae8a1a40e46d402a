"""Reading of published tables by file name and column name, in any order of columns."""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as csv

from amrg.config import DataConfig
from amrg.data.labels import LABELS
from amrg.errors import UserError
from amrg.progress import echo

#: A check of one file or folder that a reader needs; it raises UserError if it is missing.
Need = Callable[[], object]


def data_root(config: DataConfig) -> Path:
    """Return ``data.path``. Raises UserError if it is not a folder."""
    if config.path is None or not Path(config.path).is_dir():
        raise UserError(
            f"data.path {config.path} is not a folder: the source {config.source} reads your copy from there"
        )
    return Path(config.path)


def refuse_views(config: DataConfig) -> None:
    """Raise UserError if ``data.views`` is set for a data set that does not give the view of a film."""
    if config.views:
        raise UserError(
            f"data.views {' '.join(config.views)}: {config.source} does not tell the view of a film here; leave it out"
        )


class Tally:
    """Count studies by missing content, for ``left_out`` of a source.

    Args:
        sections: the target sections, named in the texts.
    """

    def __init__(self, sections: str) -> None:
        self.no_split = "no split: left out"
        self.no_film = "no film of data.views: left out"
        self.nothing = f"neither {sections} text nor labels: left out"
        self.no_text = f"no {sections} text: stage 1 alone"
        self.no_labels = "no labels: blank in stage 1"
        self.counts: Counter[str] = Counter()

    def keeps(self, text: str, labels: Mapping[str, float | None]) -> bool:
        """Count missing text or labels of a study; return whether the study is usable."""
        labelled = any(value is not None for value in labels.values())
        lack = "" if text and labelled else self.no_labels if text else self.no_text if labelled else self.nothing
        self.counts.update([lack] if lack else [])
        return lack != self.nothing

    def report(self, total: int) -> None:
        """Print one line if anything was counted."""
        if self.counts:
            echo(f"of {total} studies: " + "; ".join(f"{count} with {lack}" for lack, count in self.counts.items()))


def find(root: Path, *names: str, why: str) -> Path:
    """Return the first of some files or folders that exists.

    Raises:
        UserError: none exists; the message contains ``why`` it is needed.
    """
    for name in names:
        if (root / name).exists():
            return root / name
    raise UserError(f"{root} has no {' or '.join(names)} ({why}): set data.path to the folder that holds it")


def read_csv(path: Path, columns: Sequence[str], *, multiline: bool = False) -> pa.Table:
    """Read some columns of a CSV (also ``.gz``) as text; empty cells are null.

    Raises:
        UserError: the file is unreadable, or a column is missing.
    """
    try:
        # Columns are selected by name: a copy may have more of them, and an unnamed index in front.
        table = csv.read_csv(
            path,
            parse_options=csv.ParseOptions(newlines_in_values=multiline),
            convert_options=csv.ConvertOptions(
                include_columns=list(columns), column_types=dict.fromkeys(columns, pa.string()), null_values=[""],
                strings_can_be_null=True,
            ),
        )  # fmt: skip
    except KeyError as error:
        raise UserError(f"{path} has no column {error.args[0].split(chr(39))[1]}: is it the published file?") from None
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{path} is not a readable table ({type(error).__name__}): fetch it again") from None
    return table


def labels_of(row: dict[str, Any]) -> tuple[dict[str, float | None], str]:
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
    if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
        return None
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.inf
