"""Attachment of details to the findings of a sentence.

A modifier is attached to the finding after it ("small left effusion"), a phrase of place or a predicate to the one
before it ("… in the right lower lobe", "… is unchanged"). A cost over the words between decides. Findings in a list or
an interpretation ("left base opacity, may be atelectasis or pneumonia") share their place.
"""

import re
from dataclasses import dataclass, field
from itertools import pairwise

from amrg.data.labels import NEGATIVE
from amrg.data.text import detail_patterns, labeler_patterns
from amrg.data.text.detail_reader import Detail


@dataclass
class Anchor:
    """A target of details: one or more mentions of the same characters, or a finding without a label."""

    start: int
    end: int
    group: str  # "lung" or "bone", whose members share places with each other, or ""
    labels: list[tuple[str, float]] = field(default_factory=list)
    places: list[Detail] = field(default_factory=list)
    severity: str = ""
    change: str = ""
    size: float | None = None
    trailing: bool = False  # one of its places follows it
    changed_after: bool = False  # its change follows it
    device: str = ""


_BREAK = re.compile(labeler_patterns.TERMINATION)
_PREPOSITION = re.compile(r"\b(?:in|at|of|within|on|over|overlying|involving|along|near|for|to|from|through|with|by)\b")
#: A preposition followed by modifiers only.
_LEADING = re.compile(
    r"\b(?:in|at|of|within|on|over|overlying|involving|along|near|to|from|through\w*|about|obscuring|projecting)"
    r"(?: (?!with\b|and\b)[\w-]+){0,5}\s*$"
)
_VERB = re.compile(r"\b(?:is|are|was|were|has|have|had|appears?|remains?|shows?|demonstrates?|may|seen|noted)\b")
_COPULA = re.compile(
    r"[\s,]*(?:is|are|was|were|has|have|had|been|appears?|remains?|which|that|also|now|not|relatively|grossly"
    r"|overall|again|seen|noted|measures|measuring|approximately|about|\w+ly)"
    r"(?: (?:been|be|now|also|to be|to have|up to|approximately|about|relatively|grossly|\w+ly))*\s*"
)
_NOUN = re.compile(
    r"(?:lungs?|lobes?|bases?|apex|apices|lingula|hemithora\w+|chest|zones?|fields?|sides?|hilum|hila|midlungs?|thorax"
    r"|angles?|sulc\w+|regions?|ribs?|bilaterally|[lr][uml]l)\b"
)
_REGIONS = r"(?:lungs?|lobes?|lung zones?|zones?|fields?|hemithorax|chest|side|region|area|portion)"
_LIST = re.compile(
    r"[\s,/]*(?:(?:and|or|and/or|any|an?|the|focal|pleural|acute|associated|adjacent|patchy|subsegmental)\b[\s,/]*)*"
)
_JOIN = re.compile(r"\b(?:and|or|with)\b|/")
_SAYING = (
    r"versus|vs|may|might|could|likely|probabl[ey]|possibl[ey]|represents?|representing|reflects?|reflecting|consistent"
    r"|compatible|concerning|suspicious|suggest\w*|secondary|due|favou?r\w*|related|associated|xxxx|corresponding"
    r"|combination|worrisome|question\w*|mostly|either"
)
_MEANING = re.compile(
    rf"[\s,:/()-]*(?:(?:{_SAYING}|and|or|and/or|with|most|which|that|is|are|be|to|from|for|of|an?|the|some|adjacent"
    r"|underlying|superimposed|developing|focal|early|this|these|has|have|been|asymmetric|as|well|component|acute|subsegmental|passive|linear"
    r"|compressive|discoid|platelike|pleural|calcified|old|seen|noted|present|in|within|at|over|part|region|lungs?"
    r"|lobes?|zones?|fields?|lateral|medial|posterior|anterior|loculated|patchy|streaky|foci|focus|areas?|small|probably"
    r"|whose|features|primarily|prominent|along|wall|chest|aspect|projecting|overlying|multiple|ribs?|previous|prior|healed|pulmonary|chronic|angles?|sulc\w+|recess\w*|internal|jugular|ij|subclavian|central|venous|greater|worse|than|more|airspace)\b[\s,:/()-]*)*"
)
_SAYS = re.compile(rf"\b(?:{_SAYING})\b")
_PLEURAL = frozenset({"Pleural Effusion", "Pneumothorax"})
#: Labels whose mentions can contain words of change: "increased vascularity".
_BY_SIZE = frozenset({"Cardiomegaly", "Enlarged Cardiomediastinum", "Edema"})


def blank_out_details(text: str, found: list[Detail]) -> str:
    """Replace the details by as many spaces."""
    for detail in found:
        text = text[: detail.start] + " " * (detail.end - detail.start) + text[detail.end :]
    return text


def attach_detail(detail: Detail, anchors: list[Anchor], sentence: str) -> None:
    """Attach a detail to the anchor that contains it, else to the neighbor of lower cost."""
    inside = [a for a in anchors if a.start < detail.end and detail.start < a.end]
    if inside:
        _give(detail, min(inside, key=lambda a: a.end - a.start), sentence)
        return
    before = max((a for a in anchors if a.end <= detail.start), key=lambda a: a.end, default=None)
    after = min((a for a in anchors if a.start >= detail.end), key=lambda a: (a.start, a.end), default=None)
    if before and (not after or _cost_before(detail, before, after, sentence) < _cost_after(detail, after, sentence)):
        _give(detail, before, sentence)
    elif after:
        _give(detail, after, sentence)


def _distance(gap: str) -> float:
    return len(gap.split()) * 0.5 + 3 * gap.count(",") + 10 * bool(_BREAK.search(gap + " "))


def _cost_after(detail: Detail, anchor: Anchor, sentence: str) -> float:
    """Cost of attaching a detail to the anchor after it."""
    gap = re.sub(r" but (?=[\w -]*$)", " ", sentence[detail.end : anchor.start])
    cost = _distance(gap)
    gap = re.sub(rf"^[\s-]*{_REGIONS}\b", "", gap)
    if detail.kind != "place":
        gap = re.sub(r"^ (?:\w+ )?(?:in|of)\b(?: (?:the )?(?:size|extent|amount|degree) of)?", "", gap)
    verbs = len(_VERB.findall(gap)) + len(_SAYS.findall(gap))
    return cost + 4 * len(_PREPOSITION.findall(gap)) + 5 * verbs + bool(re.search(r"\band\b", gap))


def _cost_before(detail: Detail, anchor: Anchor, after: Anchor | None, sentence: str) -> float:
    """Cost of attaching a detail to the anchor before it."""
    gap = sentence[anchor.end : detail.start]
    cost = _distance(gap)
    if _COPULA.fullmatch(gap):
        return cost * 0.5
    if detail.kind == "place" and _LEADING.search(gap):
        return cost
    if detail.kind == "place" and re.fullmatch(r",? (?:\w+ )?", gap) and _ends_in_noun(detail, after, sentence):
        return cost * 0.5
    return cost + 6


def _ends_in_noun(place: Detail, after: Anchor | None, sentence: str) -> bool:
    """Whether a place ends in a noun ("left lower lobe,") and modifies no word after it."""
    words = re.compile(rf"(?:[\s-]*{_REGIONS}\b)*").match(sentence, place.end)
    end = words.end() if words else place.end
    if not any(match.end() == end - place.start for match in _NOUN.finditer(sentence[place.start : end])):
        return False
    return after is None or bool(
        re.search(rf"[,(]|{_VERB.pattern}|{_PREPOSITION.pattern}", sentence[end : after.start])
    )


def _give(detail: Detail, anchor: Anchor, sentence: str) -> None:
    trailing = detail.start >= anchor.end
    within = anchor.start <= detail.start and detail.end <= anchor.end
    by_size = within and any(label in _BY_SIZE for label, _ in anchor.labels)
    word = sentence[detail.start : detail.end]
    if detail.kind == "place":
        anchor.places.append(detail)
        anchor.trailing |= trailing
    elif detail.kind == "severity":
        if not (by_size and word == "large"):
            order = ["", *(name for name, _ in detail_patterns.SEVERITIES)]
            anchor.severity = max(anchor.severity, detail.word, key=order.index)
    elif detail.kind == "change":
        interval = sentence[: detail.start].endswith("interval ") or sentence[detail.end :].startswith(" in size")
        if anchor.change in ("", "unchanged") and (not by_size or interval or word not in ("increased", "larger")):
            anchor.change = detail.word
            anchor.changed_after = trailing
    else:
        anchor.size = max(anchor.size or 0.0, detail.size or 0.0)


def _link(first: Anchor, second: Anchor, text: str) -> str:
    """Return the link of two anchors: "list", "meaning" (one interprets or accompanies the other), or "" for none."""
    gap = text[first.end : second.start]
    if second.start < first.end or not _MEANING.fullmatch(gap):
        return ""
    if gap.strip() in ("", "/") or ":" in gap or _SAYS.search(gap) or first.group == "bone" == second.group:
        return "meaning"
    return "list" if _LIST.fullmatch(gap) or _JOIN.search(gap) else ""


def propagate_places(anchors: list[Anchor], text: str) -> None:
    """Propagate places through lists and interpretations, first backward from the last anchor, then forward.

    ``text`` is the sentence with the details blanked.
    """
    pairs = [(a, b, link) for a, b in pairwise(anchors) if (link := _link(a, b, text))]
    for first, second, link in reversed(pairs):
        if second.changed_after and link == "list" and not first.change:
            first.change, first.changed_after = second.change, True
        listed = (
            link == "list" and first.group and second.group and "with" not in text[first.end : second.start].split()
        )
        if second.trailing and not first.places and (listed or (link == "meaning" and _alike(first, second, link))):
            first.places, first.trailing = second.places, True
    for first, second, link in pairs:
        denied = any(value == NEGATIVE for _, value in first.labels + second.labels)
        joined = link == "meaning" or (not first.trailing and _JOIN.search(text[first.end : second.start]))
        if joined and not denied and _alike(first, second, link) and not second.places:
            # pleural fluid or air next to an opacity shares its side, but not its lobe
            pleural = link == "list" and any(label in _PLEURAL for label, _ in second.labels)
            second.places = [p._replace(zones=detail_patterns.NONE) if pleural else p for p in first.places]
            if text[first.end : second.start].strip() == "/":
                second.severity = second.severity or first.severity


def _alike(first: Anchor, second: Anchor, link: str) -> bool:
    congested = any(label == "Edema" for label, _ in first.labels + second.labels)
    same = first.group == second.group or not first.labels  # "hilar lymph nodes/granulomas"
    return bool(second.group) and same and (link == "meaning" or (bool(first.group) and not congested))
