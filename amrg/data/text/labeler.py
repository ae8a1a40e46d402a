"""A rule labeler: report text → the 14 labels, each positive, negative, uncertain or blank.

A mention of a finding is positive unless a cue applies to it. The scope of a cue ends with its clause and covers all
members of a list. The nearest cue before a mention wins, and a cue after the mention ("… cannot be excluded") wins over
one before it. A mention with its own predicate ("… is unchanged") does not belong to a list that was denied before it.
"History of …" gives a blank. In a report, positive wins over uncertain, and uncertain over negative, as in the CheXpert
labeler (Irvin et al., 2019, section 3.2).
"""

import re
from bisect import bisect_right
from functools import lru_cache, partial
from itertools import pairwise
from typing import NamedTuple

from amrg.data.labels import BLANK, FINDINGS, LABELS, NEGATIVE, NO_FINDING, POSITIVE, UNCERTAIN
from amrg.data.text import labeler_patterns
from amrg.data.text.cleaning import to_plain_characters
from amrg.data.text.lines import unwrap_lines

#: Stored with every score; increase it whenever a phrase or rule changes the labels.
VERSION = "4"

SENTENCE = re.compile(r"(?:[^;?!.\n]|\.(?=\d))+")
_STRENGTH = {POSITIVE: 3, UNCERTAIN: 2, NEGATIVE: 1, BLANK: 0}


class Mention(NamedTuple):
    """A label in a text: positive, negative or uncertain, with the span of characters of its mention."""

    label: str
    value: float
    start: int
    end: int


def _compile(expression: str) -> re.Pattern[str]:
    return re.compile(rf"\b(?:{expression})\b")


def _table(entries: tuple[tuple[tuple[str, ...], str], ...]) -> tuple[re.Pattern[str], list[tuple[str, ...]]]:
    """Compile one alternation of all entries; group ``gI`` is the entry that matched."""
    return _compile("|".join(f"(?P<g{i}>{e})" for i, (_, e) in enumerate(entries))), [labels for labels, _ in entries]


_MENTION, _MENTION_LABELS = _table(labeler_patterns.MENTIONS)
_NORMAL = [(_compile(e), labels) for labels, e in labeler_patterns.NORMALS]
_PSEUDO = _compile(labeler_patterns.PSEUDO)
_PRE = re.compile(
    rf"\b(?:(?P<h>{labeler_patterns.PRE_HISTORY})|(?P<u>{labeler_patterns.PRE_UNCERTAIN})|(?P<n>{labeler_patterns.PRE_NEGATION}))\b"
    rf"|(?<!\w){labeler_patterns.QUESTION}"
)
_POST = re.compile(rf"\b(?:(?P<u>{labeler_patterns.POST_UNCERTAIN})|(?P<n>{labeler_patterns.POST_NEGATION}))\b")
_TEMPLATE = re.compile(
    rf"\s*(?:[:=(]|\s-+)\s*(?:(?P<u>{labeler_patterns.TEMPLATE_UNCERTAIN})|(?P<n>{labeler_patterns.TEMPLATE_NEGATION}))"
    r"(?=\W*$|\s*[,;)|/]|(?: [\w/]+){1,3}\s*[:=])"
)
#: The comma before the next heading of a template: "effusion: small, pneumothorax: none".
_NEXT = re.compile(r"[:=][^:=]*?(?P<comma>,)(?=[\w/ ]{1,40}[:=])")
_INSTEAD, _CLOSED = re.compile(labeler_patterns.INSTEAD), re.compile(labeler_patterns.CLOSED)
#: Between a finding and what a template says of it.
_JOINT = re.compile(r"\s*(?:[:=]|\s-+)\s*")
_IF_ANY = re.compile(rf"(?:{labeler_patterns.IF_ANY})\b")
_IF_ANY_IN_FRONT = re.compile(labeler_patterns.IF_ANY_IN_FRONT)
_ONE = _compile(labeler_patterns.ONE)
_ONE_PRESENT = re.compile(rf"\s*(?:{labeler_patterns.ONE_PRESENT})\b")
_THERE = re.compile(r"\bthere (?:is|are|remains?)(?: now| still| likely| also)? $")
_NEITHER = _compile(labeler_patterns.NEITHER_CHANGED)
_DENIED_SIDES = [_compile(e) for e in labeler_patterns.DENIED_SIDE]
_SIDE_OF_PLACE = re.compile(labeler_patterns.SIDE_OF_PLACE)
_MASKED, _MASKED_END = re.compile(labeler_patterns.MASKED_START), re.compile(labeler_patterns.MASKED_END)
_PURPOSE, _UNDONE = re.compile(labeler_patterns.PURPOSE), re.compile(labeler_patterns.UNDONE)
_DEVICE_PART = re.compile(labeler_patterns.DEVICE_PART)
_ELIDED = re.compile(rf"(?:{labeler_patterns.ELIDED})\b")
_ASSERTION = _compile(labeler_patterns.POST_ASSERTION)
_BREAK = re.compile(labeler_patterns.TERMINATION)
_AND = re.compile(labeler_patterns.TERMINATION_OF_NEGATION)
_VERB = re.compile(r"\b(?:is|are|was|were|has|have|had|appears?|remains?|persists?)\b")
_LIST = re.compile(r"[\s,/]*(?:(?:and|or|nor|any|an?|the|acute|focal|pleural|lobar|left|right|large|small)\b[\s,/]*)*")


def label_report(text: str) -> dict[str, float | None]:
    """Return the 14 labels of a report, by name.

    "No Finding" is positive if the report is not empty and no finding other than a support device is positive or
    uncertain; otherwise it is blank, as in CheXpert. An empty text gets 14 blanks.
    """
    labels: dict[str, float | None] = dict.fromkeys(LABELS, BLANK)
    for mention in find_mentions(normalize_report(text)):
        if _STRENGTH[mention.value] > _STRENGTH[labels[mention.label]]:
            labels[mention.label] = mention.value
    abnormal = any(labels[f] in (POSITIVE, UNCERTAIN) for f in FINDINGS if f != "Support Devices")
    if re.search(r"\w", text) and not abnormal:
        labels[NO_FINDING] = POSITIVE
    return labels


#: Forms that mean the same as another that the patterns know: the expression, and what its first character becomes. The
#: others become spaces.
_FORMS = (
    (re.compile(r"(?<=[a-z])\(s\)", re.I), "s"),  # effusion(s)
    (re.compile(rf"\?\s*(?={labeler_patterns.ANSWER})", re.I), ":"),  # Effusion? None.
    (re.compile(r"(?<![\w)])\?+(?=[ \t]*[a-z])", re.I), labeler_patterns.QUESTION),  # opacity, ? pneumonia
    (re.compile(r"\bvs\.(?=\s)", re.I), "vs"),
)
#: An item of a list such as "1) no effusion 2) small pneumothorax", and the first two of one.
_ITEM = re.compile(r"(?<!\S)\(?(?:\d{1,2}|[a-h])\)\s+(?=[a-z])", re.I)
_LIST_OF_ITEMS = re.compile(r"(?<!\S)\(?[1a]\)\s.*\s\(?[2b]\)\s", re.I | re.S)


def rewrite_known_forms(text: str) -> str:
    """Return the text in forms that the patterns know: ``Effusion? None.`` → ``Effusion: None.``.

    Its length stays, so that positions in the result are positions in the text.
    """
    for form, first in (*_FORMS, *([(_ITEM, "\n")] if _LIST_OF_ITEMS.search(text) else [])):
        text = form.sub(partial(_padded, first), text)
    return text


def _padded(first: str, found: re.Match[str]) -> str:
    return first.ljust(len(found[0]))


def normalize_report(text: str) -> str:
    """Normalise a text for ``find_mentions``: one space between words, one line per statement or paragraph."""
    lines = (" ".join(line.split()) for line in unwrap_lines(to_plain_characters(text)).split("\n"))
    return "\n".join(line for line in lines if line)


def find_mentions(text: str) -> list[Mention]:
    """Return every mention in a normalised text, sentence by sentence, with its position in the text."""
    found = []
    for sentence in SENTENCE.finditer(rewrite_known_forms(text.lower())):
        offset = sentence.start()
        found += [m._replace(start=m.start + offset, end=m.end + offset) for m in label_sentence(sentence[0])]
    return found


@lru_cache(maxsize=65536)
def label_sentence(sentence: str) -> tuple[Mention, ...]:
    """Return the mentions of one lower-case sentence; a label can occur more than once."""
    sentence = without_denied_sides(sentence)
    found: list[Mention] = []
    for pattern, labels in _NORMAL:
        if normal := pattern.search(sentence):
            found += [Mention(label, NEGATIVE, *normal.span()) for label in labels]
    matches = [(m, _MENTION_LABELS[int((m.lastgroup or "g0")[1:])]) for m in _MENTION.finditer(sentence)]
    matches = [(m, labels) for m, labels in matches if labels]
    if not matches:
        return tuple(found)
    starts = [m.start() for m, _ in matches]
    text = _PSEUDO.sub(
        # "no enlargement of the heart" denies a finding, "no enlargement of the effusion" does not
        lambda m: m[0] if any(m.start() <= s < m.end() for s in starts) else " " * len(m[0]),
        _blanked(_NEITHER, sentence, "abcde"),
    )
    pre = list(_PRE.finditer(text))
    templates = list(_TEMPLATE.finditer(text))
    listing = {m.end() for m in pre}  # "negative for: effusion, pneumothorax"
    breaks = [m.start() for m in _BREAK.finditer(text) if m[0] != ":" or m.start() not in listing]
    commas = [found for pattern in (_NEXT, _INSTEAD, _CLOSED) for found in pattern.finditer(text)]
    breaks = sorted(breaks + [m.end() for m in templates] + [m.start("comma") for m in commas])
    post = sorted([*_POST.finditer(text), *templates], key=re.Match.start)
    fresh = [m.start() for m in _AND.finditer(text)]
    masked = _masked(text, [m for m, _ in matches])
    for match, labels in matches:
        if _heads(match, labels, matches, text):
            continue
        later = [m.span() for m, _ in matches if m.start() >= match.end()]
        value = _value_after(match, text, post, sorted(breaks + fresh), later, "Support Devices" in labels)
        if value is None:
            value = BLANK if match in masked else _value_before(match, text, pre, breaks, fresh)
        if value is not BLANK:
            found += [Mention(label, value, *match.span()) for label in labels]
    return tuple(found + _ones(text, matches))


def without_denied_sides(sentence: str) -> str:
    """Blank the denied side of a finding that is stated for the other: "small right and no left effusion"."""
    for pattern in _DENIED_SIDES:
        for match in pattern.finditer(sentence):
            if match["s"] != match["t"] and not _SIDE_OF_PLACE.search(sentence[: match.start()]):
                sentence = _spaced(sentence, match.span("no"))
    return sentence


def _spaced(text: str, span: tuple[int, int]) -> str:
    return text[: span[0]] + " " * (span[1] - span[0]) + text[span[1] :]


def _blanked(pattern: re.Pattern[str], text: str, groups: str) -> str:
    """Blank the named groups of every match."""
    for match in pattern.finditer(text):
        for group in groups:
            text = _spaced(text, match.span(group))
    return text


def _masked(text: str, found: list[re.Match[str]]) -> list[re.Match[str]]:
    """Return the mentions that a mask at the start of the sentence may deny, as "no" would."""
    end = 0
    denied: list[re.Match[str]] = []
    for mention in found:
        if not (_LIST if denied else _MASKED).fullmatch(text[end : mention.start()]):
            break
        denied.append(mention)
        end = mention.end()
    joined = any(" or " in text[a.end() : b.start()] for a, b in pairwise(denied))
    return denied if joined or _MASKED_END.fullmatch(text[end:]) else []


def _heads(
    mention: re.Match[str], labels: tuple[str, ...], found: list[tuple[re.Match[str], tuple[str, ...]]], text: str
) -> bool:
    """Whether a mention is only the heading of a statement of the same label: "effusion: no effusion"."""
    joint = _JOINT.match(text, mention.end())
    return joint is not None and any(m.start() >= joint.end() and of == labels for m, of in found)


def _ones(text: str, found: list[tuple[re.Match[str], tuple[str, ...]]]) -> list[Mention]:
    """Return the statements by "one": "no pneumothorax, although a small one could be missed"."""
    ones = []
    for one in _ONE.finditer(text):
        doubted = _POST.match(text, one.end() + 1)
        present = _ONE_PRESENT.match(text, one.end()) or _THERE.search(text[: one.start()])
        value = UNCERTAIN if doubted and doubted["u"] else POSITIVE if present else None
        before = [labels for m, labels in found if m.end() <= one.start()]
        if before and value is not None:
            ones += [Mention(label, value, *one.span()) for label in before[-1]]
    return ones


def _broken(breaks: list[int], start: int, end: int) -> bool:
    """Whether a clause ends between two positions of the sentence."""
    return bisect_right(breaks, end - 1) > bisect_right(breaks, start - 1)


def _value_before(
    mention: re.Match[str], text: str, cues: list[re.Match[str]], breaks: list[int], fresh: list[int]
) -> float | None:
    """Return the value of a mention by the nearest cue before or inside it; blank if it is history.

    ``fresh`` are the positions where a negation ends, but not a doubt.
    """
    if _ELIDED.match(text, mention.end()):
        return POSITIVE
    value, doubt = POSITIVE, None
    asserted = _ASSERTION.match(text[mention.end() :].lstrip())
    for cue in reversed(cues):
        if cue.start() >= mention.end():
            continue
        if _broken(breaks, cue.end(), mention.start()):
            break
        if cue["n"] and _broken(fresh, cue.end(), mention.start()):
            break
        if cue["h"]:
            return BLANK
        between = text[cue.end() : mention.start() if doubt is None else doubt]
        if doubt is not None and "," in between:
            break  # "no effusion, possible pneumonia": the negation ends before the uncertainty
        if asserted and re.search(r",| and ", between):
            break
        if cue["n"]:
            return NEGATIVE  # also "no opacity to suggest pneumonia", where the uncertainty is denied
        value, doubt = UNCERTAIN, cue.start()
        if "exclude" in cue[0] or "rule out" in cue[0]:
            break
    return value


def _value_after(
    mention: re.Match[str],
    text: str,
    cues: list[re.Match[str]],
    breaks: list[int],
    later: list[tuple[int, int]],
    device: bool,
) -> float | None:
    """Return the value of a mention by a cue closely after it; None if there is none.

    Only other mentions (spans ``later``) and the joints of a list can contain a comma: "effusion, and pneumothorax are
    not seen". A device whose tip is not seen is there.
    """
    if _doubted(mention, text, breaks, later):
        return UNCERTAIN
    for cue in cues:
        if cue.start() < mention.end():
            continue
        gap = re.sub(rf"{_JOINT.pattern}$", "", text[mention.end() : cue.start()])
        between = [(start - mention.end(), end - mention.end()) for start, end in later if start < cue.start()]
        if between:
            rest = "".join(" " if any(a <= i < b for a, b in between) else c for i, c in enumerate(gap))
            listed = _LIST.fullmatch(rest) is not None
        else:
            listed = len(gap) <= 60 and "," not in gap and not _VERB.search(gap)
        if listed:
            if _broken(breaks, mention.end(), mention.end() + len(gap)) or _PRE.search(gap):
                return None
            if cue["n"]:
                part = device and _DEVICE_PART.search(text[: cue.start()])
                remains = part or _PURPOSE.search(text[: mention.start()]) or _UNDONE.match(text, cue.end())
                return POSITIVE if remains else NEGATIVE
            return UNCERTAIN
    return None


def _doubted(mention: re.Match[str], text: str, breaks: list[int], later: list[tuple[int, int]]) -> bool:
    """Whether "if any" is before the mention, or follows it or a list with "or" that it belongs to."""
    if _IF_ANY_IN_FRONT.fullmatch(text, 0, mention.start()):
        return True
    doubt = _IF_ANY.search(text, mention.end())
    if doubt is None or _broken(breaks, mention.end(), doubt.start()):
        return False
    gap = text[mention.end() : doubt.start()]
    return "," not in gap and (" or " in gap or not any(start < doubt.start() for start, _ in later))
