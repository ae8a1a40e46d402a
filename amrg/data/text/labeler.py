"""A rule labeler: report text → the 14 labels, each positive, negative, uncertain or blank.

A mention of a finding is positive unless a cue applies to it. The scope of a cue ends with its clause and covers all
members of a list. The nearest cue before a mention wins, and a cue after the mention ("… cannot be excluded") wins over
one before it. A mention with its own predicate ("… is unchanged") does not belong to a list that was denied before it.
"History of …" gives a blank. In a report, positive wins over uncertain, and uncertain over negative, as in the CheXpert
labeler (Irvin et al., 2019, section 3.2).
"""

import re
from bisect import bisect_right
from functools import lru_cache
from typing import NamedTuple

from amrg.data.labels import BLANK, FINDINGS, LABELS, NEGATIVE, NO_FINDING, POSITIVE, UNCERTAIN
from amrg.data.text import labeler_patterns

#: Stored with every score; increase it whenever a phrase or rule changes the labels.
VERSION = "2"

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
)
_POST = re.compile(rf"\b(?:(?P<u>{labeler_patterns.POST_UNCERTAIN})|(?P<n>{labeler_patterns.POST_NEGATION}))\b")
_ASSERTION = _compile(labeler_patterns.POST_ASSERTION)
_BREAK = re.compile(labeler_patterns.TERMINATION)
_VERB = re.compile(r"\b(?:is|are|was|were|has|have|had|appears?|remains?|persists?)\b")
_LIST = re.compile(r"[\s,/]*(?:(?:and|or|nor|any|an?|the|acute|focal|pleural|lobar|left|right|large|small)\b[\s,/]*)*")


def label_report(text: str) -> dict[str, float | None]:
    """Return the 14 labels of a report, by name.

    "No Finding" is positive if the report is not empty and no finding other than a support device is positive or
    uncertain; otherwise it is blank, as in CheXpert. An empty text gets 14 blanks.
    """
    labels: dict[str, float | None] = dict.fromkeys(LABELS, BLANK)
    for mention in mentions(normalise(text)):
        if _STRENGTH[mention.value] > _STRENGTH[labels[mention.label]]:
            labels[mention.label] = mention.value
    abnormal = any(labels[f] in (POSITIVE, UNCERTAIN) for f in FINDINGS if f != "Support Devices")
    if re.search(r"\w", text) and not abnormal:
        labels[NO_FINDING] = POSITIVE
    return labels


def normalise(text: str) -> str:
    """Normalise a text to one space between words and one line per paragraph, as ``mentions`` expects."""
    return "\n".join(" ".join(paragraph.split()) for paragraph in re.split(r"\n\s*\n", text))


def mentions(text: str) -> list[Mention]:
    """Return every mention in a normalised text, sentence by sentence, with its position in the text."""
    found = []
    for sentence in SENTENCE.finditer(text.lower()):
        offset = sentence.start()
        found += [m._replace(start=m.start + offset, end=m.end + offset) for m in label_sentence(sentence[0])]
    return found


@lru_cache(maxsize=65536)
def label_sentence(sentence: str) -> tuple[Mention, ...]:
    """Return the mentions of one lower-case sentence; a label can occur more than once."""
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
        value = _value_after(match, text, post, breaks, later)
        if value is None:
            value = _value_before(match, text, pre, breaks)
        if value is not BLANK:
            found += [Mention(label, value, *match.span()) for label in labels]
    return tuple(found)


def _broken(breaks: list[int], start: int, end: int) -> bool:
    """Whether a clause ends between two positions of the sentence."""
    return bisect_right(breaks, end - 1) > bisect_right(breaks, start - 1)


def _value_before(mention: re.Match[str], text: str, cues: list[re.Match[str]], breaks: list[int]) -> float | None:
    """Return the value of a mention by the nearest cue before or inside it; blank if it is history."""
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
    mention: re.Match[str], text: str, cues: list[re.Match[str]], breaks: list[int], later: list[tuple[int, int]]
) -> float | None:
    """Return the value of a mention by a cue closely after it; None if there is none.

    Only other mentions (spans ``later``) and the joints of a list can contain a comma: "effusion, and pneumothorax are
    not seen".
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
