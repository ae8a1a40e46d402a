"""Reader of the details of a sentence: places, severities, changes and sizes, independent of their finding."""

import re
from typing import NamedTuple

from amrg.data.text import detail_patterns


class Detail(NamedTuple):
    """A word or phrase that describes a finding."""

    kind: str  # "place", "severity", "change" or "size"
    start: int
    end: int
    sides: frozenset[str] = frozenset()
    zones: frozenset[str] = frozenset()
    word: str = ""  # the severity or change; for a place, the severity directly before it
    size: float | None = None


def _compile(expression: str) -> re.Pattern[str]:
    return re.compile(rf"\b(?:{expression})\b")


_PLACE = re.compile("|".join(rf"\b(?P<p{i}>{e})\b" for i, (_, _, e) in enumerate(detail_patterns.PLACES)))
_PLURAL = _compile(detail_patterns.PLURALS)
_NO_PLACE = _compile(detail_patterns.NO_PLACES)
_SEVERITY = re.compile("|".join(rf"\b(?P<{name}>{e})\b" for name, e in detail_patterns.SEVERITIES))
_NO_SEVERITY = _compile(detail_patterns.NO_SEVERITIES)
_CHANGE = re.compile("|".join(rf"\b(?P<{name}>{e})\b" for name, e in detail_patterns.CHANGES))
_NO_CHANGE = re.compile(detail_patterns.NO_CHANGES)
_SIZE = re.compile(detail_patterns.SIZE)
_ADJOINING = re.compile(
    r"[\s,/-]*(?:(?:lungs?|lobes?|lobar|pulmonary|the|of|in|at|medial|lateral|posterior|anterior|peripheral|central"
    r"|inner|outer|pleural|chest|hemithora\w+|fields?|zones?|side)[\s,/-]*)*"
)
_AND = re.compile(r"[\s,]*(?:lungs?|lobes?|zones?|fields?)?[\s,]*(?:and|or|to|/)(?: the)?(?: lungs?| lobes?)?\s*")
#: Words between a severity and its place: "small on the left".
_GRADING = re.compile(r" (?:(?:on|at|in) (?:the )?)?")


def _blank(pattern: re.Pattern[str], text: str) -> str:
    return pattern.sub(lambda m: "\0" * len(m[0]), text)


def read_sentence_details(sentence: str) -> list[Detail]:
    """Return every detail of a lower-case sentence, in order; adjacent words of place are one detail."""
    found = []
    for match in _SEVERITY.finditer(_blank(_NO_SEVERITY, sentence)):
        found.append(Detail("severity", *match.span(), word=match.lastgroup or ""))
    graded = list(found)
    for place in _places(_blank(_NO_PLACE, sentence)):
        near = [d.word for d in graded if _GRADING.fullmatch(sentence[d.end : max(d.end, place.start)])]
        found.append(place._replace(word=near[0] if near else ""))
    spans = [(d.start, d.end) for d in found]  # "right worse than left" is a place
    for match in _CHANGE.finditer(_blank(_NO_CHANGE, sentence)):
        if any(start <= match.start() < end for start, end in spans):
            continue
        found.append(Detail("change", *match.span(), word=match.lastgroup or ""))
    for match in _SIZE.finditer(sentence):
        largest = max(float(match[g]) for g in "abc" if match[g])
        millimeters = match["unit"].startswith(("mm", "milli"))
        found.append(Detail("size", *match.span(), size=round(largest / (10 if millimeters else 1), 3)))
    return sorted(found, key=lambda d: (d.start, d.end))


def _places(sentence: str) -> list[Detail]:
    """Return the places of a sentence; adjacent words of place ("right middle and lower lobes") are one place."""
    groups: list[Detail] = []
    for match in _PLACE.finditer(sentence):
        sides, zones, _ = detail_patterns.PLACES[int((match.lastgroup or "p0")[1:])]
        if groups and _continues(groups[-1], sides, zones, sentence, match.start()):
            last = groups[-1]
            groups[-1] = last._replace(end=match.end(), sides=last.sides | sides, zones=last.zones | zones)
        else:
            groups.append(Detail("place", *match.span(), sides=sides, zones=zones))
    return [_sided(group, sentence) for group in groups]


def _continues(last: Detail, sides: frozenset[str], zones: frozenset[str], sentence: str, start: int) -> bool:
    """Whether a word of place at ``start`` continues the place before it."""
    gap = sentence[last.end : start]
    if _ADJOINING.fullmatch(gap):
        return not (sides and last.sides and sides != last.sides)
    if not _AND.fullmatch(gap):
        return False
    if sides:
        return not last.zones and not sentence[: last.start].endswith("on the ")
    return bool(zones) or not last.zones


def _sided(place: Detail, sentence: str) -> Detail:
    """Add an implied side: only the right lung has a middle lobe, and plurals such as "bases" imply both sides."""
    if place.sides:
        return place
    if re.match(r"middle lobe\b", sentence[place.start :]):
        return place._replace(sides=detail_patterns.RIGHT)
    if _PLURAL.match(sentence, place.start) or _PLURAL.search(sentence[place.start : place.end]):
        return place._replace(sides=detail_patterns.BOTH)
    return place
