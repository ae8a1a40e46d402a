"""Headings of a report: where they stand, and the kind of text that follows.

The names and misspellings are those of mimic-code's ``section_parser``, made into rules. A heading stands at the start
of a line before a colon, alone in a line, or, if it is a well-known one, inside a line behind a sentence. Text in
capitals only is read by the strict rules: there a sentence looks like a heading.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

#: ``combined`` is findings and impression, ``view`` the name of a projection, ``organ`` a sub-heading of the findings
#: and ``mention`` one that names an organ among others, ``other`` what stands before the findings (indication,
#: technique …), ``closing`` what stands beside them (wet read, recommendations, signature …), ``part`` and
#: ``addendum`` the start of a report and of an addendum, ``unknown`` any other heading in capitals.
Kind = Literal[
    "findings", "impression", "combined", "view", "organ", "mention", "other", "closing", "part", "addendum", "unknown"
]  # fmt: skip


@dataclass(frozen=True)
class Heading:
    """A heading in a text: its span with the colon, its kind, and its words."""

    start: int
    end: int
    kind: Kind
    name: str


#: Words whose misspelt forms are recognised.
_SPELLED = (
    "FINDINGS", "IMPRESSION", "CONCLUSION", "COMPARISON", "INDICATION", "TECHNIQUE", "EXAMINATION", "RECOMMENDATION",
    "HISTORY",
)  # fmt: skip
_FORMS = {"FINDING": "FINDINGS", **{f"{word}S": word for word in _SPELLED if word != "FINDINGS"}}
_OPTIONAL_PLURAL = re.compile(r"\(S\)")
_MASKED = re.compile(r"\[\*\*.*?\*\*\]|_+|X{3,}|\d+|\b[AP]\.? ?M\b\.?|#")
#: Words of a sentence: with one of them it is no heading.
_SENTENCE = re.compile(
    r"\b(?:IS|ARE|WAS|WERE|HAS|HAVE|HAD|BE|BEEN|SHOWS?|THERE|THIS|NO|NOT|SEEN|NOTED|COMPARED|CONSISTENT|FOLLOWING)\b"
)

# Headings before the findings: the first pattern in any case, the second in capitals.
_BEFORE = (
    r"(?:CLINICAL |PATIENT |BRIEF |RELEVANT |PERTINENT |MEDICAL |PAST |PRESENT )*(?:HISTORY|INDICATION|INFORMATION)"
    r"|(?:HISTORY|INDICATION)(?: AND | )(?:HISTORY|INDICATION)|(?:CLINICAL |PROVISIONAL )?DIAGNOSIS"
    r"|REASONS? FOR (?:THE |THIS )?(?:EXAM|EXAMINATION|STUDY|REFERRAL|VISIT)|CLINICAL (?:QUESTION|DETAILS|DATA)"
    r"|(?:TYPE OF |REFERENCE |PROCEDURE )?(?:EXAM|EXAMS|EXAMINATION)(?: TYPE| DATE)?|STUDY(?: DATE| TYPE)?|PROCEDURE"
    r"|(?:EXAM |EXAMINATION |STUDY )?TECHNIQUE|COMPARISON(?: (?:EXAM|EXAMINATION|STUDY|STUDIES|FILMS?))?|PRIORS?"
    r"|(?:COMPARISON|PRIOR|PREVIOUS|EARLIER|OLD) FINDINGS"
)
_BEFORE_CAPITALS = r".*\b(?:HISTORY|INDICATION|TECHNIQUE|COMPARISON|REASON FOR|EXAMINATION DATE)\b.*|CLINICAL .*|DATE.*"
_CLOSING = (
    r"RECOMMENDATION|NOTIFICATION|WET ?READ(?: VERSION)?|PRELIMINARY (?:READ|REPORT)|PFI(?: REPORT)?|ADDEND(?:UM|A)"
    r"|(?:DICTATED|SIGNED|TRANSCRIBED|READ|REVIEWED|ELECTRONICALLY SIGNED|REPORTED|VERIFIED)(?: BY| AND .*)?"
    r"|CC|RADIOLOGIST"
    r"|(?:COMMUNICATION|NOTIFICATION|DISCUSSION) OF .*|END OF .*"
)
_CLOSING_CAPITALS = (
    r".*\b(?:WET ?READ|RECOMMENDATION|NOTIF\w+|COMMUNICAT\w+|DISCUSSED|SIGNED|DICTATED|TRANSCRIBED|ATTENDING|PHYSICIAN"
    r"|PROVIDER|RESIDENT|ACCESSION|CPT|ICD)\b.*"
)
#: Whole headings of the two sections besides those that name them; the first ones count as names of views do.
_FINDINGS = r"(?:RADIOGRAPHIC |IMAGING )?(?:OBSERVATIONS?|DESCRIPTION|RESULTS?|REPORT|NARRATIVE)"
_IMPRESSION = r"IMPR?|INTERPRETATION|OPINION|(?:FINAL |RADIOLOGICAL? )?(?:SUMMARY|ASSESSMENT|DIAGNOSES)"
_QUALIFIER = re.compile(
    r"RADIOGRAPHIC|RADIOLOGIC(?:AL)?|IMAGING|FINAL|ADDITIONAL|OTHER|INCIDENTAL|KEY|MAIN|PERTINENT|RELEVANT|REPORT|REVISED"
    r"|CORRECTED|REFERENCE|PLAN|RECOMMENDATION|FINDINGS|IMPRESSION|CONCLUSION|SUMMARY|INTERPRETATION|DIAGNOSIS|S"
)

_VIEW = re.compile(
    r"CHEST|CXR|THORAX|X|XRAYS?|RAYS?|RADIOGRAPHS?|RADIOGRAPHY|FILMS?|VIEWS?|IMAGES?|IMAGING|PROJECTIONS?|EXPOSURES?"
    r"|PORTABLE|BEDSIDE|PA|AP|LAT|LATERALS?|FRONTAL|ERECT|UPRIGHT|SUPINE|PRONE|SITTING|SEMI(?:ERECT|UPRIGHT|SUPINE)?"
    r"|RECUMBENT|DECUBITUS|OBLIQUES?|LORDOTIC|APICAL|RIBS?|EXAM|EXAMINATION|STUDY|SERIES|DIGITAL|STANDARD|ROUTINE"
    r"|LIMITED|DUAL|ENERGY|INSPIRATORY|EXPIRATORY|ONE|TWO|THREE|SINGLE|FOUR|ADDITIONAL|REPEAT|RIGHT|LEFT|POSTERO|ANTERO"
    r"|POSTEROANTERIOR|ANTEROPOSTERIOR|OF|THE|AND|WITH|AT|ON|IN|FROM|DATED|TIME|HOURS|HRS|A|M|P"
)
_VIEW_CORE = re.compile(r"\b(?:CHEST|CXR|THORAX|RADIOGRAPH\w*|FILMS?|VIEWS?|PA|AP|PORTABLE|FRONTAL|LATERAL|XRAYS?)\b")
_PROJECTION = re.compile(r"\b(?:PORTABLE|AP|PA|LAT|LATERAL|FRONTAL|VIEWS?|RADIOGRAPHS?|FILMS?|XRAYS?|RAYS?)\b")
_VIEW_CAPITALS = re.compile(
    r"\b(?:CHEST|PORTABLE|(?:PA|AP|LAT|LATERAL|FRONTAL) AND|(?:TWO|ONE|PA|AP|FRONTAL|LATERAL) VIEWS?"
    r"|FRONTAL (?:UPRIGHT|SEMI))"
)
_ORGAN = re.compile(
    r"LUNGS?|PULMONARY|PARENCHYM\w*|AIRSPACES?|AIRWAYS?|TRACHEA\w*|BRONCH\w*|LOBES?|LOBAR|HEART|CARDI\w+|MEDIASTIN\w*"
    r"|HIL(?:A|UM|AR|I)|AORT\w*|VASC\w*|VESSELS?|PLEUR\w*|BON(?:E|ES|Y)|OSSEOUS|SKELET\w*|MUSCULOSKELETAL|SPIN\w*|RIBS?"
    r"|CLAVICLES?|SHOULDERS?|(?:HEMI)?DIAPHRAGMS?|ABDOM\w*|STOMACH|BOWEL|SOFT|TISSUES?|WALL|NECK|THYROID|THORA\w+"
    r"|LINES?|TUBES?|CATHETERS?|DRAINS?|DEVICES?|HARDWARE|SUPPORT|MONITORING|PACEMAKER|PICC|PORT|IMPLANTS?|SURGICAL"
    r"|PNEUMOTHORA\w+|EFFUSIONS?|CONSOLIDATIONS?|OPACIT\w+|INFILTRATES?|EDEMA|NODUL\w+|MASS\w*|ATELECTAS\w+|PNEUMONIA"
    r"|FRACTURES?|SILHOUETTE|CONTOURS?|ANGLES?|COSTOPHRENIC|ZONES?|VOLUMES?|APIC\w+|BASES?|FISSURES?|LYMPH|NODES?|OTHER"
    r"|MISCELLANEOUS|INTERSTITI\w+|EXTRATHORACIC"
)
_ORGAN_LINK = re.compile(
    r"AND|OR|OF|THE|FOR|UPPER|LOWER|MIDDLE|RIGHT|LEFT|BILATERAL|CHEST|STRUCTURES?|SPACES?|SIZE|FIELDS?|CAVITY|SYSTEM"
    r"|TIP|NG|ET"
)

_NAME = r"[A-Za-z](?:[\w ,./&()'#+*\[\]-]|(?<=[\d_]):(?=[\d_])){1,90}?"
_START = r"[ \t]*[*#_>-]*[ \t]*"
#: A colon in a time or a ratio ends no heading.
_AT_START = re.compile(rf"{_START}(?P<name>{_NAME})[ \t]*[*_]*(?:(?<!\d):|:(?!\d))[*_]*")
_ALONE = re.compile(rf"{_START}(?P<name>{_NAME})[ \t]*[*_.-]*[ \t]*$")
_MAIN = r"(?:FINDINGS?(?: ?(?:/|AND|&) ?))?(?:FINDINGS?|IMPRESSIONS?|CONCLUSIONS?)"
_BEFORE_TEXT = re.compile(
    rf"{_START}(?:(?P<name>{_MAIN})(?:[ \t]*[.;=-]+[ \t]*|[ \t]+(?=[A-Z]?[a-z]|\d))"
    rf"|(?P<dashed>(?i:{_MAIN}))[ \t]+-+[ \t]+)"
)
_AFTER_SENTENCE = r"(?<=[.?!;\"')\]])[ \t]+"
_CAPITALS = r"(?P<name>[A-Z]{2,}(?:[ /&,()-]+[A-Z]+\b\)?){0,7})[ \t]*:(?!\d)"
_INSIDE_STRICT = (
    re.compile(_AFTER_SENTENCE + _CAPITALS),
    re.compile(_AFTER_SENTENCE + r"(?P<name>[A-Z][a-z]{2,}(?:(?: ?[/&] ?| )[A-Za-z]+){0,3})[ \t]*:(?!\d)"),
)
_INSIDE = (
    *_INSIDE_STRICT,
    re.compile(rf"(?<=\S)[ \t]+(?P<name>{_MAIN}|Findings|Impression)[ \t]*:"),
    re.compile(_AFTER_SENTENCE + r"(?P<name>findings|impression)[ \t]*:"),
    re.compile(rf"(?<=[a-z)\d][.;])(?P<name>{_MAIN})[ \t]*:"),
    re.compile(rf"(?<=[^A-Z\s])[ \t]+{_CAPITALS}"),
)
_PART = re.compile(
    rf"{_START}(?:FINAL REPORT|PRELIMINARY REPORT|END (?:OF )?ADDENDUM|[_=-]{{10,}})[ \t]*(?:\(.*\))?[*_]*[ \t]*$", re.I
)
_ADDENDUM = re.compile(
    rf"{_START}=*[ \t]*(?:FINAL |REPORT )?ADDENDUM\b(?: REPORT)?(?: ?(?:#|NO\.?)? ?\d+)?"
    r"(?: (?:BY|ON|TO|BEGINS)\b[^:\n]*)?[ \t*_=]*(?::|$|(?=[ \t]{2}))",
    re.I,
)


def find_headings(report: str) -> Iterator[Heading]:
    """Yield the headings of a report with plain line ends, in order.

    ``strict`` is whether the text is in capitals only, ``fresh`` whether the line before ended a sentence: else a line
    with a small first letter may be the rest of one.
    """
    letters = [letter for letter in report if letter.isalpha()]
    strict = sum(letter.islower() for letter in letters) < 0.1 * len(letters)
    fresh, start = True, 0
    for line in report.split("\n"):
        first = _at_start(line, fresh, strict)
        if first is not None:
            yield _moved(first, start)
        yield from (_moved(heading, start) for heading in _inside(line, first.end if first else 0, strict))
        fresh = not line.strip() or line.rstrip()[-1] in ".?!:_"
        start += len(line) + 1


def normalize_heading(heading: Heading) -> str:
    """Return the words of a heading in capitals, spelled right and in the singular."""
    return " ".join(map(_spelled, _words(heading.name.upper())))


def is_view_description(text: str) -> bool:
    """Whether a text only names projections, times and dates."""
    words = _words(text.upper())
    name = " ".join(words)
    return _VIEW_CORE.search(name) is not None and all(_VIEW.fullmatch(word) for word in words)


def _moved(heading: Heading, by: int) -> Heading:
    return Heading(heading.start + by, heading.end + by, heading.kind, heading.name)


def _at_start(line: str, fresh: bool, strict: bool) -> Heading | None:
    part = _PART.match(line)
    if part:
        return Heading(0, len(line), "part", line.strip())
    addendum = _ADDENDUM.match(line)
    if addendum:
        return Heading(0, addendum.end(), "addendum", addendum[0].strip())
    for pattern in (_AT_START, _BEFORE_TEXT, _ALONE):
        match = pattern.match(line)
        if match is None:
            continue
        name = match["name"] or match["dashed"]
        capitals = name == name.upper()
        kind = _kind(name.upper(), lenient=capitals and not strict and pattern is _AT_START)
        alone = pattern is _ALONE
        section = kind in ("findings", "impression", "combined")
        if kind is None or (alone and (kind == "organ" or not (capitals or section or (kind == "other" and fresh)))):
            continue
        if capitals or (fresh and kind != "organ") or name[0].isupper():
            return Heading(0, match.end(), kind, name)
    return None


def _inside(line: str, since: int, strict: bool) -> Iterator[Heading]:
    """Yield the well-known headings behind a sentence of the same line."""
    last = since
    matches = [match for pattern in (_INSIDE_STRICT if strict else _INSIDE) for match in pattern.finditer(line, since)]
    for match in sorted(matches, key=lambda match: (match.end(), match.start())):
        words = match["name"].split(" ")
        for dropped in range(len(words)):  # the last words of the sentence may be in capitals too
            name = " ".join(words[dropped:])
            kind = _kind(name.upper(), lenient=False)
            start = match.end("name") - len(name)
            known = kind in ("findings", "impression", "combined") or _is_well_known(name.upper(), kind)
            if kind and (known or (kind == "view" and re.search(r"[.?!;)\]]\s+$", line[:start]))):
                if start >= last:
                    yield Heading(start, match.end(), kind, name)
                    last = match.end()
                break


def _is_well_known(name: str, kind: Kind | None) -> bool:
    return kind in ("other", "closing") and any(
        _spelled(word) in _SPELLED or word in ("EXAM", "WET", "REASON") for word in _words(name)
    )


@lru_cache(maxsize=65536)
def _kind(name: str, lenient: bool) -> Kind | None:
    """Return the kind of a heading in capitals; ``lenient`` accepts what has the form of a heading only."""
    words = [_spelled(word) for word in _words(name)]
    plain = " ".join(words)
    if not words or len(words) > 12:
        return None
    if re.fullmatch(_BEFORE, plain):
        return "other"
    if re.fullmatch(_CLOSING, plain):
        return "closing"
    section = _section(words, plain, lenient)
    if section:
        return section
    if is_view_description(name):
        return "view"
    if lenient and re.fullmatch(_CLOSING_CAPITALS, plain):
        return "closing"
    if lenient and re.fullmatch(_BEFORE_CAPITALS, plain):
        return "other"
    organs = [word for word in words if _ORGAN.fullmatch(word)]
    if organs and all(_ORGAN.fullmatch(word) or _ORGAN_LINK.fullmatch(word) for word in words):
        return "organ"
    if not lenient or _SENTENCE.search(plain):
        return None
    view = _VIEW_CAPITALS.search(plain) is not None
    if organs and not (view and _PROJECTION.search(plain)):
        return "mention"
    return "view" if view else "unknown"


def _section(words: list[str], plain: str, lenient: bool) -> Kind | None:
    findings = "FINDINGS" in words
    impression = "IMPRESSION" in words or "CONCLUSION" in words or "INTERPRETATION" in words
    if findings or impression:
        qualified = [w for w in words if not (_QUALIFIER.fullmatch(w) or _VIEW.fullmatch(w))]
        if qualified and (not lenient or len(words) > 6 or _SENTENCE.search(plain) or "DISCUSSED" in words):
            return None
        return "combined" if findings and impression else "findings" if findings else "impression"
    return "view" if re.fullmatch(_FINDINGS, plain) else "impression" if re.fullmatch(_IMPRESSION, plain) else None


def _words(name: str) -> list[str]:
    return re.findall(r"[A-Z]+", _MASKED.sub(" ", _OPTIONAL_PLURAL.sub("", name)))


@lru_cache(maxsize=65536)
def _spelled(word: str) -> str:
    """Return the right form of a misspelt word of headings; other words unchanged."""
    if word in _FORMS or word in _SPELLED or len(word) < 6:
        return _FORMS.get(word, word)
    for right in _SPELLED:
        allowed = 2 if word[:2] == right[:2] and len(right) > 7 else 1
        if abs(len(word) - len(right)) <= allowed and _edits(word, right) <= allowed:
            return right
    return word


def _edits(one: str, other: str) -> int:
    """Number of letters to insert, drop, replace or exchange with the next that make one word the other."""
    before: list[int] = []
    last = list(range(len(other) + 1))
    for i, letter in enumerate(one, 1):
        row = [i]
        for j, wanted in enumerate(other, 1):
            cost = min(last[j] + 1, row[-1] + 1, last[j - 1] + (letter != wanted))
            if i > 1 and j > 1 and letter == other[j - 2] and one[i - 2] == wanted:
                cost = min(cost, before[j - 2] + 1)
            row.append(cost)
        before, last = last, row
    return last[-1]
