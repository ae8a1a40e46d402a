"""Reading ``reports.jsonl`` and pairing it with the studies it must answer."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from amrg.data.studies import Study
from amrg.errors import UserError

FILE = "reports.jsonl"


@dataclass(frozen=True)
class Generated:
    """One generated report and the memory rows behind it: for each bank, ``[{"row": int, "weight": float}, …]``."""

    key: str
    text: str
    memory: dict[str, list[dict[str, Any]]] = field(default_factory=dict)


def read_reports(path: Path, studies: list[Study]) -> list[Generated]:
    """The generated reports in the order of ``studies``, each study exactly once.

    Args:
        path: ``reports.jsonl`` or the artefact that holds it.
        studies: every study of the split that was generated for.

    Raises:
        UserError: the file is missing or malformed, a study comes twice, or the studies are not those of the split.
    """
    file = path / FILE if path.is_dir() else path
    try:
        lines = file.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {file} ({type(error).__name__}): make it with `amrg generate`") from None
    found: dict[str, Generated] = {}
    first: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        report = _parse(line, f"{file} line {number}")
        if report.key in found:
            raise UserError(f"{file} line {number} repeats the study of line {first[report.key]}: one line for each")
        found[report.key], first[report.key] = report, number
    wanted = {s.key for s in studies}
    missing, foreign = len(wanted - found.keys()), len(found.keys() - wanted)
    if missing or foreign:
        raise UserError(
            f"{file} lacks {missing} of {len(wanted)} studies and has {foreign} that are not in the split: "
            "generate from the same data with `amrg generate`"
        )
    return [found[s.key] for s in studies]


def _parse(line: str, where: str) -> Generated:
    try:
        record = json.loads(line)
        key, text, memory = record["key"], record["generated"], record.get("memory") or {}
        rows = [row for bank in memory.values() for row in bank]
        good = isinstance(key, str) and isinstance(text, str)
        good = good and all(isinstance(r["row"], int) and isinstance(r["weight"], int | float) for r in rows)
    except (ValueError, KeyError, TypeError, AttributeError):
        good = False
    if not good:
        raise UserError(f"{where} is not a report: a JSON object with the texts `key` and `generated` is needed")
    return Generated(key, text, memory)
