"""Read ``reports.jsonl`` and match it with the studies of its split."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from amrg.data.labels import FINDINGS, LABELS
from amrg.data.studies import Study
from amrg.errors import UserError

FILE = "reports.jsonl"
#: Sections of a report that is written in parts (``decoder.separate_sections``).
SECTIONS = ("findings", "impression")


@dataclass(frozen=True)
class Association:
    """Association of one memory: entry i belongs to finding i's own association, mean over heads.

    Attributes:
        share: share of the association on rows of that finding.
        top_row: heaviest row, −1 for none.
        side: share on the patient's left (the image's right half) of the weight on that finding's rows with a box; None
            if no such row has weight.
    """

    share: list[float]
    top_row: list[int]
    side: list[float | None]


@dataclass(frozen=True)
class Detail:
    """One detail of a finding in a recalled sentence.

    Attributes:
        finding, attribute, value: such as Pleural Effusion, side, left.
        probability: probability of the detail; None without a support for details.
    """

    finding: str
    attribute: str
    value: str
    probability: float | None


@dataclass(frozen=True)
class Sentence:
    """A sentence recalled from the report bank, and its support.

    Attributes:
        text: text of the sentence.
        labels: findings that it states, or No Finding.
        row: row in the report bank.
        regions: rows of the visual bank that voted for it, heaviest first, ``[{"row": int, "weight": float}, …]``.
        box: number of the film in its study, then x0, y0, x1, y1 in cells of the encoder's fine grid; None without a
            region.
        probabilities: probability of each of its findings in the report; empty for No Finding.
        details: details that it states.
    """

    text: str
    labels: tuple[str, ...]
    row: int
    regions: list[dict[str, Any]] = field(default_factory=list)
    box: tuple[int, int, int, int, int] | None = None
    probabilities: dict[str, float] = field(default_factory=dict)
    details: tuple[Detail, ...] = ()


@dataclass(frozen=True)
class Unsure:
    """Findings that a report leaves out because they are not probable enough.

    Attributes:
        text: the sentence that would have stated them, or the name of the finding.
        labels: the findings.
        probability: their lowest probability.
    """

    text: str
    labels: tuple[str, ...]
    probability: float


@dataclass(frozen=True)
class GeneratedReport:
    """One generated report.

    Attributes:
        key: key of its study.
        text: generated text; an empty text is scored as well.
        memory: retrieved rows by bank, ``[{"row": int, "weight": float}, …]``.
        group, reference: patient and reference report; empty if the line lacks them.
        recalled: report-bank rows of the sentences it begins with, one row each.
        association: associations by bank, if the line has them.
        sentences: recalled sentences it begins with, if the line has them.
        unlike_training: whether the films are unlike the training films; None if the line does not say so.
        unsure: findings that it leaves out, if the line has them.
        prior: whether the decoder was given an earlier study.
        graph: edges of the knowledge graph that it states, as texts, if the line has them.
        implausible: combinations that train reports practically never state, as texts.
        sections, reference_sections: ``findings`` and ``impression`` of both texts, if the line has them.
    """

    key: str
    text: str
    memory: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    group: str = ""
    reference: str = ""
    recalled: list[int] = field(default_factory=list)
    association: dict[str, Association] = field(default_factory=dict)
    sentences: tuple[Sentence, ...] = ()
    unlike_training: bool | None = None
    unsure: tuple[Unsure, ...] = ()
    prior: bool = False
    graph: tuple[str, ...] = ()
    implausible: tuple[str, ...] = ()
    sections: dict[str, str] = field(default_factory=dict)
    reference_sections: dict[str, str] = field(default_factory=dict)


def read_generated_reports(path: Path, studies: list[Study]) -> list[GeneratedReport]:
    """Read the generated reports in the order of ``studies``, each study exactly once.

    Args:
        path: ``reports.jsonl`` or the artefact that holds it.
        studies: all studies of the split.

    Raises:
        UserError: as in ``parse_reports``, or the studies differ from those of the split.
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
    """Parse every line of a file of reports, without empty ones at its end; returns them by study key.

    Raises:
        UserError: the file is missing or malformed, or a study is repeated.
    """
    try:
        lines = file.read_text(encoding="utf-8-sig").rstrip().split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {file} ({type(error).__name__}): make it with `amrg generate`") from None
    found: dict[str, GeneratedReport] = {}
    first: dict[str, int] = {}
    for number, line in enumerate(lines if lines[0] else [], start=1):
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
        "".join((key, text, group, reference)).encode()  # half a surrogate pair can be read but not written
        good = good and all(isinstance(r["row"], int) and isinstance(r["weight"], int | float) for r in rows)
        good = good and all(isinstance(row, int) for row in recalled)
        association = {bank: _association(entry) for bank, entry in (record.get("association") or {}).items()}
        sentences = tuple(_sentence(entry) for entry in record.get("sentences") or [])
        unlike = record.get("unlike_training")
        good = good and unlike in (None, True, False)
        unsure = tuple(_unsure(entry) for entry in record.get("unsure") or [])
        prior = record.get("prior", False)
        good = good and isinstance(prior, bool)
        graph, implausible = (tuple(map(_edge, record.get(name) or [])) for name in ("graph", "implausible"))
        sections, true = (_sections(record.get(name) or {}) for name in ("sections", "reference_sections"))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        good = False
    if not good:
        raise UserError(f"{where} is not a report: a JSON object with the texts `key` and `generated` is needed")
    return GeneratedReport(
        key, text, memory, group, reference, recalled, association, sentences, unlike, unsure, prior, graph,
        implausible, sections, true,
    )  # fmt: skip


def _sections(entry: dict[str, str]) -> dict[str, str]:
    """Parse the sections of a line's text, ``{}`` if it has none.

    Raises:
        ValueError, KeyError, TypeError: they are not a text each for findings and impression.
    """
    if not entry:
        return {}
    found = {name: entry[name] for name in SECTIONS}
    "".join(found.values()).encode()
    return found


def _association(entry: dict[str, Any]) -> Association:
    """Parse one memory's entry of a line.

    Raises:
        ValueError: a list does not have one number per finding.
    """
    share, top_row, side = entry["share"], entry["top_row"], entry.get("side") or [None] * len(FINDINGS)
    good = all(len(values) == len(FINDINGS) for values in (share, top_row, side))
    good = good and all(isinstance(row, int) for row in top_row)
    if not good or not all(0 <= value <= 1 + 1e-6 for value in (*share, *(s for s in side if s is not None))):
        raise ValueError("one entry for each finding is needed")
    return Association(share, top_row, side)


def _sentence(entry: dict[str, Any]) -> Sentence:
    """Parse one of a line's ``sentences``. A box without area becomes None.

    Raises:
        ValueError, KeyError, TypeError: an entry is missing or does not fit ``Sentence``.
    """
    details = tuple(Detail(d["finding"], d["attribute"], d["value"], d["probability"]) for d in entry["details"])
    text, labels, regions, box = entry["text"], tuple(entry["labels"]), entry["regions"], entry["box"]
    texts = [text, *labels, *(part for d in details for part in (d.finding, d.attribute, d.value))]
    probabilities = {finding: float(share) for finding, share in entry["probabilities"].items()}
    shares = [*probabilities.values(), *(d.probability for d in details), *(region["weight"] for region in regions)]
    numbers = [entry["row"], *(region["row"] for region in regions), *(box or ())]
    good = all(isinstance(one, str) for one in texts) and bool(labels) and {*labels} <= {*LABELS}
    good = good and all(share is None or 0 <= share <= 1 + 1e-6 for share in shares)
    good = good and all(isinstance(one, int) and one >= 0 for one in numbers)
    good = good and all(region["weight"] is not None for region in regions)
    good = good and {d.finding for d in details} <= {*FINDINGS} and probabilities.keys() <= {*labels} & {*FINDINGS}
    "".join(texts).encode()
    if box is not None:
        _, x0, y0, x1, y1 = box
        good = good and x0 <= x1 and y0 <= y1
        box = tuple(box) if x0 < x1 and y0 < y1 else None
    if not good:
        raise ValueError("not a recalled sentence")
    return Sentence(text, labels, entry["row"], regions, box, probabilities, details)


def _unsure(entry: dict[str, Any]) -> Unsure:
    """Parse one of a line's ``unsure``.

    Raises:
        ValueError, KeyError, TypeError: an entry is missing or does not fit ``Unsure``.
    """
    text, labels, probability = entry["text"], tuple(entry["labels"]), entry["probability"]
    text.encode()
    if not labels or not {*labels} <= {*FINDINGS} or not 0 <= probability <= 1 + 1e-6:
        raise ValueError("not a finding that was left out")
    return Unsure(text, labels, probability)


def _edge(entry: dict[str, Any]) -> str:
    """Describe an edge of the knowledge graph in one of a line's ``graph`` or ``implausible``.

    Raises:
        ValueError, KeyError, TypeError: an entry is missing or no number.
    """
    names = [entry[name] for name in ("head", "relation", "tail")]
    " ".join(names).encode()
    if "weight" in entry:
        source = f"curated, weight {float(entry['weight']):g}"
    else:
        source = f"{int(entry['count'])} train studies, {float(entry['expected']):.1f} by chance"
    left_out = "; left out" if entry.get("left_out") else ""
    return f"{names[0]} {names[1].replace('_', ' ')} {names[2]} ({source}{left_out})"
