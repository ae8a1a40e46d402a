"""A rule labeler: report text → the 14 labels, each positive, negative, uncertain or blank.

A mention of a finding is positive unless a cue governs it. A cue's scope runs to the end of its clause; the nearest cue
before a mention wins, and a cue after the mention ("… cannot be excluded") wins over one before it; through a list it
governs all members. A mention of which something is said ("… is unchanged") does not belong to a list that was denied
before it. "History of …" says nothing. Over a report, positive outweighs uncertain outweighs negative, as in the
CheXpert labeler (Irvin et al., 2019, section 3.2).
"""

import re
from bisect import bisect_right
from functools import lru_cache
from typing import NamedTuple

from amrg.data.labels import BLANK, FINDINGS, LABELS, NEGATIVE, NO_FINDING, POSITIVE, UNCERTAIN
from amrg.data.text import labeler_patterns

#: Stored with every score; raise it whenever a phrase or rule changes what comes out.
VERSION = "2"

_SENTENCE = re.compile(r"(?:[^;?!.\n]|\.(?=\d))+")
_STRENGTH = {POSITIVE: 3, UNCERTAIN: 2, NEGATIVE: 1, BLANK: 0}


class Mention(NamedTuple):
    """A label that a text asserts: positive, negative or uncertain, and the characters that say so."""

    label: str
    value: float
    start: int
    end: int


def _compile(expression: str) -> re.Pattern[str]:
    return re.compile(rf"\b(?:{expression})\b")


def _table(entries: tuple[tuple[tuple[str, ...], str], ...]) -> tuple[re.Pattern[str], list[tuple[str, ...]]]:
    """One alternation for all entries; group ``gI`` tells which entry matched."""
    return _compile("|".join(f"(?P<g{i}>{e})" for i, (_, e) in enumerate(entries))), [labels for labels, _ in entries]


_MENTION, _MENTION_LABELS = _table(labeler_patterns.MENTIONS)
_NORMAL = [(_compile(e), labels) for labels, e in labeler_patterns.NORMALS]
_PSEUDO = _compile(labeler_patterns.PSEUDO)
_PRE = re.compile(
    rf"\b(?:(?P<h>{labeler_patterns.PRE_HISTORY})|(?P<u>{labeler_patterns.PRE_UNCERTAIN})|(?P<n>{labeler_patterns.PRE_NEGATION}))\b"
)
_POST = re.compile(rf"\b(?:(?P<u>{labeler_patterns.POST_UNCERTAIN})|(?P<n>{labeler_patterns.POST_NEGATION}))\b")
_ASSERTION = _compile(labeler_patterns.POST_ASSERTION)
_BREAK = re.compile(labeler_patterns.TERMINATION)
_VERB = re.compile(r"\b(?:is|are|was|were|has|have|had|appears?|remains?|persists?)\b")
_LIST = re.compile(r"[\s,/]*(?:(?:and|or|nor|any|an?|the|acute|focal|pleural|lobar|left|right|large|small)\b[\s,/]*)*")


def label_report(text: str) -> dict[str, float | None]:
    """The 14 labels of a report, by name.

    "No Finding" is positive when the report says anything at all and no finding other than a support device is
    positive or uncertain; otherwise it is blank, as in CheXpert. An empty text gets 14 blanks.
    """
    labels: dict[str, float | None] = dict.fromkeys(LABELS, BLANK)
    for mention in mentions(normalise(text)):
        if _STRENGTH[mention.value] > _STRENGTH[labels[mention.label]]:
            labels[mention.label] = mention.value
    sick = any(labels[f] in (POSITIVE, UNCERTAIN) for f in FINDINGS if f != "Support Devices")
    if re.search(r"\w", text) and not sick:
        labels[NO_FINDING] = POSITIVE
    return labels


def normalise(text: str) -> str:
    """The text with one space between words and one line for each paragraph, as ``mentions`` reads it."""
    return "\n".join(" ".join(paragraph.split()) for paragraph in re.split(r"\n\s*\n", text))


def mentions(text: str) -> list[Mention]:
    """Every mention in a normalised text, sentence by sentence, with its place in the text."""
    found = []
    for sentence in _SENTENCE.finditer(text.lower()):
        offset = sentence.start()
        found += [m._replace(start=m.start + offset, end=m.end + offset) for m in label_sentence(sentence[0])]
    return found


@lru_cache(maxsize=65536)
def label_sentence(sentence: str) -> tuple[Mention, ...]:
    """What one lower-case sentence asserts (a label may come more than once)."""
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
        sentence,
    )
    breaks = [m.start() for m in _BREAK.finditer(text)]
    pre = list(_PRE.finditer(text))
    post = list(_POST.finditer(text))
    for match, labels in matches:
        later = [m.span() for m, _ in matches if m.start() >= match.end()]
        value = _after(match, text, post, breaks, later)
        if value is None:
            value = _before(match, text, pre, breaks)
        if value is not BLANK:
            found += [Mention(label, value, *match.span()) for label in labels]
    return tuple(found)


def _broken(breaks: list[int], start: int, end: int) -> bool:
    """Whether a clause ends between two places of the sentence."""
    return bisect_right(breaks, end - 1) > bisect_right(breaks, start - 1)


def _before(mention: re.Match[str], text: str, cues: list[re.Match[str]], breaks: list[int]) -> float | None:
    """What the nearest cue before (or inside) a mention makes of it; blank when it is history."""
    value, doubt = POSITIVE, None
    asserted = _ASSERTION.match(text[mention.end() :].lstrip())
    for cue in reversed(cues):
        if cue.start() >= mention.end():
            continue
        if _broken(breaks, cue.end(), mention.start()):
            break
        if cue["h"]:
            return BLANK
        between = text[cue.end() : mention.start() if doubt is None else doubt]
        if doubt is not None and "," in between:
            break  # "no effusion, possible pneumonia": the negation ended before the doubt
        if asserted and re.search(r",| and ", between):
            break
        if cue["n"]:
            return NEGATIVE  # also "no opacity to suggest pneumonia": the doubt itself is denied
        value, doubt = UNCERTAIN, cue.start()
        if "exclude" in cue[0] or "rule out" in cue[0]:
            break
    return value


def _after(
    mention: re.Match[str], text: str, cues: list[re.Match[str]], breaks: list[int], later: list[tuple[int, int]]
) -> float | None:
    """What a cue that follows the mention closely makes of it; None without one.

    Only other mentions (``later``, their places) and what joins a list may hold a comma: "effusion, and pneumothorax
    are not seen".
    """
    for cue in cues:
        if cue.start() < mention.end():
            continue
        gap = text[mention.end() : cue.start()]
        between = [(start - mention.end(), end - mention.end()) for start, end in later if start < cue.start()]
        if between:
            rest = "".join(" " if any(a <= i < b for a, b in between) else c for i, c in enumerate(gap))
            listed = _LIST.fullmatch(rest) is not None
        else:
            listed = len(gap) <= 60 and "," not in gap and not _VERB.search(gap)
        if listed:
            if _broken(breaks, mention.end(), cue.start()) or _PRE.search(gap):
                return None
            return NEGATIVE if cue["n"] else UNCERTAIN
    return None
