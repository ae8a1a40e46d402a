"""Lines of a report of checks: passed or not, the result, a remedy, and beside them what exactly is wrong."""

import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from amrg.data.shards import hash_study_key
from amrg.errors import UserError

SAMPLE = 50  # films to decode
NAMED = 3


@dataclass(frozen=True)
class Found:
    """Something that is wrong.

    Attributes:
        key: of the study as ``prepare`` names it, or of what else it is, not hashed.
        exact: path, or identifiers, of what is wrong.
        reason: why; empty if the check says it.
    """

    key: str
    exact: str
    reason: str = ""


@dataclass(frozen=True)
class Check:
    """One line of the report.

    Attributes:
        what: name of the check.
        ok: whether it passed.
        result: result in words and numbers.
        remedy: advice to the user; empty if the check passed and there is nothing to be told of it.
        found: all that is wrong, with names of patients: for a file, never for the terminal.
    """

    what: str
    ok: bool
    result: str
    remedy: str = ""
    found: tuple[Found, ...] = ()


class Report:
    """Collect checks. A check that raises ``UserError`` counts as failed.

    Args:
        every: whether ``sample`` takes all items.
    """

    def __init__(self, every: bool) -> None:
        self.checks: list[Check] = []
        self.every = every

    def sample(self, items: Iterable[Any], size: int = SAMPLE) -> list[Any]:
        """Return some of the items, the same in every run; all if ``every``."""
        ordered = sorted(items)
        return ordered if self.every or len(ordered) <= size else random.Random(0).sample(ordered, size)

    def of_sample(self, number: int) -> str:
        """Return the number of items in words."""
        return f"all {number:,}" if self.every else f"a sample of {number:,}"

    @property
    def failed(self) -> bool:
        """Whether a check failed so far."""
        return not all(check.ok for check in self.checks)

    def attempt(self, what: str, action: Callable[[], Any], advice: str) -> Any:
        """Run the action and return its result; on failure add a failed check and return None."""
        try:
            result = action()
        except UserError as error:
            self.checks.append(Check(what, False, str(error), advice))
            return None
        self.checks.append(Check(what, True, f"{len(result):,} rows" if hasattr(result, "__len__") else "readable"))
        return result

    def count(self, what: str, number: int, total: int, means: str) -> None:
        """Add a passed check with a count and the consequence for the counted studies."""
        self.checks.append(Check(what, True, f"{number:,} of {total:,}" + (f" ({means})" if number else "")))

    def expect_none(
        self,
        what: str,
        wrong: Iterable[str] | Mapping[str, str],
        total: int,
        advice: str,
        tolerated: float | None = None,
    ) -> None:
        """Add a check that passes if ``wrong`` is empty; otherwise give the count and some hashed keys.

        Args:
            what: name of the check.
            wrong: keys of what is wrong, and what exactly it is if the key does not say.
            total: number of what was looked at.
            advice: remedy, or consequence.
            tolerated: share of ``total`` up to which the check still passes; None: the check fails.
        """
        exact = wrong if isinstance(wrong, Mapping) else {key: key for key in wrong}
        keys = sorted(exact)
        if not keys:
            self.checks.append(Check(what, True, f"none of {total:,}"))
            return
        named = ", ".join(hash_study_key(key) for key in keys[:NAMED])
        ok = tolerated is not None and len(keys) <= tolerated * total
        result = f"{len(keys):,} of {total:,} (hashed: {named})"
        self.checks.append(Check(what, ok, result, advice, tuple(Found(key, exact[key]) for key in keys)))
