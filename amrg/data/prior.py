"""The earlier study of a patient: which study it is, what is read of it, and the time between."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date
from typing import Any, Literal

from amrg.data.studies import Study

#: How a finding can differ from that of an earlier study (``amrg.data.text.statements.Statement.change``).
CHANGES = ("new", "worse", "unchanged", "improved")


@dataclass(frozen=True)
class Prior:
    """What is known of an earlier study.

    Attributes:
        key: its key; empty for one that a user gives.
        report: its report; empty if it has none.
        days: days between the two studies; None if only their order is known.
    """

    key: str = ""
    report: str = ""
    days: int | None = None


def choose_priors(studies: Iterable[Study], which: Literal["last", "first"]) -> dict[str, Prior]:
    """Choose an earlier study for each study that has one; returns them by the key of the later study.

    A prior is among the given studies and of the same patient and split, so that no study of another split is read.

    Args:
        studies: the studies of one split, also those without a text.
        which: the study just before, or the first of all those that lead to it.
    """
    by_key = {study.key: study for study in studies}
    found: dict[str, Prior] = {}
    for study in by_key.values():
        chain = [study]
        while (earlier := by_key.get(chain[-1].prior)) is not None and earlier.key not in {one.key for one in chain}:
            if (earlier.group, earlier.split) != (study.group, study.split) or (which == "last" and len(chain) > 1):
                break
            chain.append(earlier)
        if len(chain) == 1:
            continue
        days = [later.prior_days for later in chain[:-1]]
        known = [one for one in days if one is not None]
        report = chain[-2].prior_report or chain[-1].report
        found[study.key] = Prior(chain[-1].key, report, sum(known) if len(known) == len(days) else None)
    return found


class EarlierStudies:
    """Finds the last study of a patient that is strictly earlier, while studies are read in the order of their times.

    Of studies at the same time none is earlier than the other.
    """

    def __init__(self) -> None:
        # By patient: the last study, and the last one at a time before that one's.
        self._last: dict[str, tuple[Any, str]] = {}
        self._before: dict[str, tuple[Any, str]] = {}

    def find(self, patient: str, time: Any) -> tuple[str, Any]:
        """Return key and time of the study before a time; an empty key and None if there is none."""
        last = self._last.get(patient)
        if last is not None and last[0] >= time:
            last = self._before.get(patient)
        return ("", None) if last is None else (last[1], last[0])

    def add(self, patient: str, time: Any, key: str) -> None:
        """Add a study, at a time that is not before those added."""
        last = self._last.get(patient)
        if last is not None and last[0] < time:
            self._before[patient] = last
        self._last[patient] = time, key


def days_between(earlier: float | None, later: float) -> int | None:
    """Return the days between two times of ``amrg.data.sources.tables.parse_moment``; None if one is no date."""
    days = [_day(one) for one in (earlier, later)]
    return None if days[0] is None or days[1] is None else days[1] - days[0]


def _day(moment: float | None) -> int | None:
    if moment is None or not 1e7 <= moment < 1e8:  # eight digits
        return None
    try:
        return date(int(moment) // 10000, int(moment) // 100 % 100, int(moment) % 100).toordinal()
    except ValueError:
        return None
