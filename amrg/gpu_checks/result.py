"""What a stage of the checks found."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class StageResult:
    """One stage.

    Attributes:
        summary: one line.
        rows: one record per case, for the JSON file.
        failures: one line per case that does not hold; empty if all is well.
    """

    summary: str
    rows: list[dict[str, Any]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
