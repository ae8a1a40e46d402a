"""Reading ``reports.jsonl`` and pairing it with the studies it must answer."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from amrg.data.labels import FINDINGS, LABELS
from amrg.data.studies import Study
from amrg.errors import UserError

FILE = "reports.jsonl"


@dataclass(frozen=True)
class Association:
    """Of one memory, entry i of finding i's own association, mean over heads.

    Attributes:
        share: of the association, on rows of that finding.
        top_row: the heaviest row, −1 for none.
        side: of the weight on that finding's rows with a box, what lies on the patient's left (the image's right half);
            None where no such row has weight.
    """

    share: list[float]
    top_row: list[int]
    side: list[float | None]


@dataclass(frozen=True)
class Detail:
    """What a recalled sentence says of a finding beside that it is there.

    Attributes:
        finding, attribute, value: such as Pleural Effusion, side, left.
        probability: that it is so; None where nothing supported details.
    """

    finding: str
    attribute: str
    value: str
    probability: float | None


@dataclass(frozen=True)
class Sentence:
    """A sentence that was recalled from the report bank, and what it stands on.

    Attributes:
        text: of the sentence.
        labels: findings that it states, or No Finding.
        row: of the report bank.
        regions: rows of the visual bank that voted for it, heaviest first, ``[{"row": int, "weight": float}, …]``.
        box: number of the film in its study, then x0, y0, x1, y1 in cells of the encoder's fine grid; None where there
            is no region.
        probability: that the report states the findings, the least of them; None for No Finding.
        details: that it gives.
    """

    text: str
    labels: tuple[str, ...]
    row: int
    regions: list[dict[str, Any]] = field(default_factory=list)
    box: tuple[int, int, int, int, int] | None = None
    probability: float | None = None
    details: tuple[Detail, ...] = ()


@dataclass(frozen=True)
class GeneratedReport:
    """One generated report.

    Attributes:
        key: of its study.
        text: may be empty: it is scored, and gets what silence deserves.
        memory: for each bank the rows behind it, ``[{"row": int, "weight": float}, …]``.
        group, reference: patient, and the report that was to be written, where the line tells.
        recalled: rows of the report bank whose sentences it begins with, one of each.
        association: by bank, where the line tells.
        sentences: those that it begins with, and what they stand on, where the line tells.
    """

    key: str
    text: str
    memory: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    group: str = ""
    reference: str = ""
    recalled: list[int] = field(default_factory=list)
    association: dict[str, Association] = field(default_factory=dict)
    sentences: tuple[Sentence, ...] = ()


def read_reports(path: Path, studies: list[Study]) -> list[GeneratedReport]:
    """The generated reports in the order of ``studies``, each study exactly once.

    Args:
        path: ``reports.jsonl`` or the artefact that holds it.
        studies: every study of the split that was generated for.

    Raises:
        UserError: as ``parse_reports``, or the studies are not those of the split.
    """
    file = path / FILE if path.is_dir() else path
    found = parse_reports(file)
    wanted = {s.key for s in studies}
    missing, foreign = len(wanted - found.keys()), len(found.keys() - wanted)
    if missing or foreign:
        raise UserError(
            f"{file} lacks {missing} of {len(wanted)} studies and has {foreign} that are not in the split: "
            "generate from the same data with `amrg generate`"
        )
    return [found[s.key] for s in studies]


def parse_reports(file: Path) -> dict[str, GeneratedReport]:
    """Every line of a file of reports, by study key.

    Raises:
        UserError: the file is missing or malformed, or a study comes twice.
    """
    try:
        lines = file.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {file} ({type(error).__name__}): make it with `amrg generate`") from None
    found: dict[str, GeneratedReport] = {}
    first: dict[str, int] = {}
    for number, line in enumerate(lines[:-1] if not lines[-1] else lines, start=1):
        report = _parse(line, f"{file} line {number}")
        if report.key in found:
            raise UserError(f"{file} line {number} repeats the study of line {first[report.key]}: one line for each")
        found[report.key], first[report.key] = report, number
    return found


def _parse(line: str, where: str) -> GeneratedReport:
    try:
        record = json.loads(line)
        key, text, memory = record["key"], record["generated"], record.get("memory") or {}
        group, reference = record.get("group") or "", record.get("reference") or ""
        rows, recalled = [row for bank in memory.values() for row in bank], record.get("recalled") or []
        good = all(isinstance(value, str) for value in (key, text, group, reference))
        "".join((key, text, group, reference)).encode()  # half a surrogate pair can be read, and never written again
        good = good and all(isinstance(r["row"], int) and isinstance(r["weight"], int | float) for r in rows)
        good = good and all(isinstance(row, int) for row in recalled)
        association = {bank: _association(told) for bank, told in (record.get("association") or {}).items()}
        sentences = tuple(_sentence(told) for told in record.get("sentences") or [])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        good = False
    if not good:
        raise UserError(f"{where} is not a report: a JSON object with the texts `key` and `generated` is needed")
    return GeneratedReport(key, text, memory, group, reference, recalled, association, sentences)


def _association(told: dict[str, Any]) -> Association:
    """One memory's entry of a line.

    Raises:
        ValueError: a list has not one entry for each finding, or an entry is not a number.
    """
    share, top_row, side = told["share"], told["top_row"], told.get("side") or [None] * len(FINDINGS)
    good = all(len(values) == len(FINDINGS) for values in (share, top_row, side))
    good = good and all(isinstance(row, int) for row in top_row)
    if not good or not all(0 <= value <= 1 + 1e-6 for value in (*share, *(s for s in side if s is not None))):
        raise ValueError("one entry for each finding is needed")
    return Association(share, top_row, side)


def _sentence(told: dict[str, Any]) -> Sentence:
    """One of a line's ``sentences``. A box without area is None.

    Raises:
        ValueError, KeyError, TypeError: an entry is missing, or is not what ``Sentence`` says.
    """
    details = tuple(Detail(d["finding"], d["attribute"], d["value"], d["probability"]) for d in told["details"])
    text, labels, regions, box = told["text"], tuple(told["labels"]), told["regions"], told["box"]
    texts = [text, *labels, *(part for d in details for part in (d.finding, d.attribute, d.value))]
    shares = [told["probability"], *(d.probability for d in details), *(region["weight"] for region in regions)]
    numbers = [told["row"], *(region["row"] for region in regions), *(box or ())]
    good = all(isinstance(one, str) for one in texts) and bool(labels) and {*labels} <= {*LABELS}
    good = good and all(share is None or 0 <= share <= 1 + 1e-6 for share in shares)
    good = good and all(isinstance(one, int) and one >= 0 for one in numbers)
    good = good and all(region["weight"] is not None for region in regions)
    good = good and {d.finding for d in details} <= {*FINDINGS}
    "".join(texts).encode()
    if box is not None:
        _, x0, y0, x1, y1 = box
        good = good and x0 <= x1 and y0 <= y1
        box = tuple(box) if x0 < x1 and y0 < y1 else None
    if not good:
        raise ValueError("not a recalled sentence")
    return Sentence(text, labels, told["row"], regions, box, told["probability"], details)
