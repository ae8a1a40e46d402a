"""Statements of a report: finding, presence, place, severity and change.

The labeler (``amrg/data/text/labeler.py``) finds the mentions. ``amrg/data/text/attachment.py`` attaches the details of
the same sentence to them. Sentences are independent of each other.
"""

import re
from dataclasses import dataclass, replace
from functools import lru_cache

from amrg.data.labels import NEGATIVE
from amrg.data.text import detail_patterns
from amrg.data.text.attachment import Anchor, attach_detail, blank_out_details, propagate_places
from amrg.data.text.cleaning import to_plain_characters
from amrg.data.text.detail_reader import read_sentence_details
from amrg.data.text.labeler import SENTENCE, label_sentence, rewrite_known_forms, without_denied_sides
from amrg.data.text.lines import unwrap_lines

#: Stored with every score; increase it whenever a rule changes the statements.
VERSION = "3"

#: The devices that a statement can name.
DEVICES: tuple[str, ...] = tuple(device for device, _ in detail_patterns.DEVICE_WORDS)


@dataclass(frozen=True)
class Statement:
    """One finding as one place of a text states it.

    Attributes:
        finding: one of ``FINDINGS``.
        presence: ``POSITIVE``, ``NEGATIVE`` or ``UNCERTAIN``.
        sides: subset of ``left`` and ``right``; both if bilateral, empty if no side is stated.
        zones: subset of ``upper``, ``middle`` and ``lower``; empty if no zone is stated.
        severity: ``mild``, ``moderate``, ``severe`` or empty; for a negative finding, the severity that is denied.
        device: one of ``DEVICES`` for Support Devices, or empty.
        size_cm: the largest stated dimension.
        change: ``new``, ``improved``, ``worse``, ``unchanged`` or empty.
        start, end: span of its sentence in the text, in characters.
    """

    finding: str
    presence: float
    sides: frozenset[str] = frozenset()
    zones: frozenset[str] = frozenset()
    severity: str = ""
    device: str = ""
    size_cm: float | None = None
    change: str = ""
    start: int = 0
    end: int = 0


def _compile(expression: str) -> re.Pattern[str]:
    return re.compile(rf"\b(?:{expression})\b")


_OTHER = re.compile(
    rf"\b(?:(?P<lung>{detail_patterns.LUNG_OTHERS})|(?P<bone>{detail_patterns.BONE_OTHERS})|(?P<other>{detail_patterns.OTHERS}))\b"
)
_DEVICE = [(device, _compile(e)) for device, e in detail_patterns.DEVICE_WORDS]
_DEVICE_PART = [(device, _compile(e)) for device, e in detail_patterns.DEVICE_PARTS]
#: Labels that share places if one interprets or accompanies another.
_SHARING = frozenset(
    {
        "Lung Opacity",
        "Consolidation",
        "Pneumonia",
        "Atelectasis",
        "Edema",
        "Pleural Effusion",
        "Pleural Other",
        "Pneumothorax",
        "Lung Lesion",
    }
)
_NO_ZONES = frozenset({"Cardiomegaly", "Enlarged Cardiomediastinum", "Fracture", "Support Devices"})


def find_statements(text: str) -> list[Statement]:
    """Return every statement of a text, in order; two places of a finding in one sentence give two statements."""
    found = []
    flat = rewrite_known_forms(unwrap_lines(text))
    for sentence in SENTENCE.finditer(flat):
        content = sentence[0].strip()
        if content:
            start = sentence.start() + len(sentence[0]) - len(sentence[0].lstrip())
            end = start + len(content)
            end += flat[end : end + 1] in (".", "?", "!")
            found += [
                replace(s, start=start, end=end) for s in _read(" ".join(to_plain_characters(content).lower().split()))
            ]
    return found


@lru_cache(maxsize=65536)
def _read(sentence: str) -> tuple[Statement, ...]:
    sentence = without_denied_sides(sentence)
    anchors = _anchors(sentence)
    if not any(anchor.labels for anchor in anchors):
        return ()
    found = read_sentence_details(sentence)
    for detail in found:
        attach_detail(detail, anchors, sentence)
    propagate_places(anchors, blank_out_details(sentence, found))
    return tuple(
        _merge([s for anchor in _devices_joined(anchors, sentence) for s in _anchor_statements(anchor, sentence)])
    )


def _anchors(sentence: str) -> list[Anchor]:
    spans: dict[tuple[int, int], Anchor] = {}
    for mention in label_sentence(sentence):
        group = "lung" if mention.label in _SHARING else "bone" if mention.label == "Fracture" else ""
        anchor = spans.setdefault((mention.start, mention.end), Anchor(mention.start, mention.end, group))
        anchor.labels.append((mention.label, mention.value))
    for other in _OTHER.finditer(sentence):
        if not any(start < other.end() and other.start() < end for start, end in spans):
            group = other.lastgroup if other.lastgroup in ("lung", "bone") else ""
            spans[other.span()] = Anchor(*other.span(), group or "")
    return sorted(spans.values(), key=lambda a: (a.start, a.end))


def _devices_joined(anchors: list[Anchor], sentence: str) -> list[Anchor]:
    """Return the anchors with labels; a part of a device ("… with its tip in the SVC") joins the device before it."""
    kept: list[Anchor] = []
    named: Anchor | None = None
    for anchor in anchors:
        if any(label == "Support Devices" for label, _ in anchor.labels):
            words = sentence[anchor.start : anchor.end]
            anchor.device = _named(words, sentence[named.end if named else 0 : anchor.start])
            part = not anchor.device and not (anchor.places and named and named.places)
            if named and part and named.labels == anchor.labels:
                named.places = named.places or anchor.places
                named.change = named.change or anchor.change
                continue
            anchor.device = anchor.device or next((d for d, pattern in _DEVICE_PART if pattern.search(words)), "")
            named = anchor
        if anchor.labels:
            kept.append(anchor)
    return kept


def _named(words: str, before: str) -> str:
    """Return the device named by the words of a mention, else by the three words before it."""
    near = re.split(r"[,:(]|\b(?:and|with|of|the|or|by)\b", before)[-1].split()[-3:]
    for text in (words, " ".join(near)):
        for device, pattern in _DEVICE:
            if pattern.search(text):
                return device
    return ""


def _anchor_statements(anchor: Anchor, sentence: str) -> list[Statement]:
    found = []
    for label, value in anchor.labels:
        sized = anchor.size if label not in _NO_ZONES else None
        for sides, zones, severity in _split(anchor, label, sentence):
            if not sides and value != NEGATIVE and sentence[anchor.start : anchor.end].endswith("effusions"):
                sides = detail_patterns.BOTH
            found.append(Statement(label, value, sides, zones, severity, anchor.device, sized, anchor.change))
    return found


def _split(anchor: Anchor, label: str, sentence: str) -> list[tuple[frozenset[str], frozenset[str], str]]:
    """Return (sides, zones, severity): several if each place has a side and the places differ in zone or severity."""
    if label == "Cardiomegaly":
        return [(detail_patterns.NONE, detail_patterns.NONE, anchor.severity)]
    zones: dict[frozenset[str], frozenset[str]] = {}
    severities: dict[frozenset[str], str] = {}
    for place in anchor.places:
        angle = label == "Pleural Effusion" and "phrenic" in sentence[place.start : place.end]
        own = detail_patterns.NONE if angle or label in _NO_ZONES else place.zones
        zones[place.sides] = zones.get(place.sides, detail_patterns.NONE) | own
        severities[place.sides] = place.word or severities.get(place.sides, "")
    graded = all(severities.values()) and len(set(severities.values())) > 1
    zoned = all(zones.values()) and len(set(zones.values())) > 1
    if all(zones) and (graded or zoned):
        return [(sides, zones[sides], severities[sides] if graded else anchor.severity) for sides in zones]
    return [(detail_patterns.NONE.union(*zones), detail_patterns.NONE.union(*zones.values()), anchor.severity)]


def _merge(found: list[Statement]) -> list[Statement]:
    """Merge statements of equal finding, presence, device and place, and drop a device without a side if one has it."""
    merged: dict[tuple[object, ...], Statement] = {}
    for s in found:
        if (
            s.device
            and not s.sides
            and any(o.device == s.device and o.sides and o.presence == s.presence for o in found)
        ):
            continue
        key = (s.finding, s.presence, s.device, s.sides, s.zones)
        first = merged.setdefault(key, s)
        merged[key] = replace(
            first,
            severity=first.severity or s.severity,
            size_cm=first.size_cm or s.size_cm,
            change=first.change or s.change,
        )
    return list(merged.values())
