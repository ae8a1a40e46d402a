"""Published tables: found by name, read by column name, in whatever order the columns come."""

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

#: A check that one thing is where a reader will look for it; it raises UserError where that is not so.
Need = Callable[[], object]


def data_root(config: DataConfig) -> Path:
    """Raises UserError unless ``data.path`` is a folder."""
    if config.path is None or not Path(config.path).is_dir():
        raise UserError(
            f"data.path {config.path} is not a folder: the source {config.source} reads your copy from there"
        )
    return Path(config.path)


def refuse_views(config: DataConfig) -> None:
    """Raises UserError where films are to be chosen by a view that the data set does not tell."""
    if config.views:
        raise UserError(
            f"data.views {' '.join(config.views)}: {config.source} does not tell the view of a film here; leave it out"
        )


class Tally:
    """Counts studies by what they lack: ``left_out`` of a source.

    Args:
        sections: that are to be written, for the names.
    """

    def __init__(self, sections: str) -> None:
        self.no_split = "no split: left out"
        self.no_film = "no film of data.views: left out"
        self.nothing = f"neither {sections} text nor labels: left out"
        self.no_text = f"no {sections} text: stage 1 alone"
        self.no_labels = "no labels: blank in stage 1"
        self.counts: Counter[str] = Counter()

    def keeps(self, text: str, labels: Mapping[str, float | None]) -> bool:
        """Count what a study lacks of text and labels; whether it is of use all the same."""
        labelled = any(value is not None for value in labels.values())
        lack = "" if text and labelled else self.no_labels if text else self.no_text if labelled else self.nothing
        self.counts.update([lack] if lack else [])
        return lack != self.nothing

    def tell(self, total: int) -> None:
        """One line for the user, where something was counted."""
        if self.counts:
            echo(f"of {total} studies: " + "; ".join(f"{count} with {lack}" for lack, count in self.counts.items()))


def find(root: Path, *names: str, why: str) -> Path:
    """The first of some files or folders that is there.

    Raises:
        UserError: none is; says what it is for.
    """
    for name in names:
        if (root / name).exists():
            return root / name
    raise UserError(f"{root} has no {' or '.join(names)} ({why}): set data.path to the folder that holds it")


def read_csv(path: Path, columns: Sequence[str], *, multiline: bool = False) -> pa.Table:
    """Some columns of a CSV (``.gz`` too), all as text; empty cells are null.

    Raises:
        UserError: unreadable, or a column is missing.
    """
    try:
        # Columns are named only: a copy may have more of them, and an unnamed index in front.
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
    """The 14 labels of a row by name (``Pleural Effusion`` etc.), in our order, and what is wrong with them, or ``""``.

    A label is 1, 0, −1 or nothing; any other value is a fault of the study, and counts as nothing here.
    """
    labels = {label: _label(row.get(label)) for label in LABELS}
    wrong = [label for label, value in labels.items() if value is not None and value not in (1.0, 0.0, -1.0)]
    fault = "a label that is not 1, 0, -1 or empty" if wrong else ""
    return labels | dict.fromkeys(wrong), fault


def _label(value: Any) -> float | None:
    """A published value as a number; None where there is none, infinity where it is no number."""
    if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
        return None
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.inf
