"""A rule labeler: report text → the 14 labels, each positive, negative, uncertain or blank.

A mention of a finding is positive unless a cue governs it. A cue's scope runs to the end of its clause; the nearest cue
before a mention wins, and a cue after the mention ("… cannot be excluded") wins over one before it. Over a report,
positive outweighs uncertain outweighs negative, as in the CheXpert labeler (Irvin et al., 2019, section 3.2).
"""

import re
from bisect import bisect_right
from functools import lru_cache

from amrg.data.labels import BLANK, FINDINGS, LABELS, NEGATIVE, NO_FINDING, POSITIVE, UNCERTAIN
from amrg.evaluation import phrases

#: Stored with every score; raise it whenever a phrase or rule changes what comes out.
VERSION = "1"

_SENTENCE = re.compile(r"[;?!]|\.(?!\d)|\n\s*\n")
_SPACE = re.compile(r"\s+")
_STRENGTH = {POSITIVE: 3, UNCERTAIN: 2, NEGATIVE: 1, BLANK: 0}


def _compile(expression: str) -> re.Pattern[str]:
    return re.compile(rf"\b(?:{expression})\b")


def _table(entries: tuple[tuple[tuple[str, ...], str], ...]) -> tuple[re.Pattern[str], list[tuple[str, ...]]]:
    """One alternation for all entries; group ``gI`` tells which entry matched."""
    return _compile("|".join(f"(?P<g{i}>{e})" for i, (_, e) in enumerate(entries))), [labels for labels, _ in entries]


_MENTION, _MENTION_LABELS = _table(phrases.MENTIONS)
_NORMAL = [(_compile(e), labels) for labels, e in phrases.NORMALS]
_PSEUDO = _compile(phrases.PSEUDO)
_PRE = re.compile(rf"\b(?:(?P<u>{phrases.PRE_UNCERTAIN})|(?P<n>{phrases.PRE_NEGATION}))\b")
_POST = re.compile(rf"\b(?:(?P<u>{phrases.POST_UNCERTAIN})|(?P<n>{phrases.POST_NEGATION}))\b")
_BREAK = re.compile(phrases.BREAKS)


def label_report(text: str) -> dict[str, float | None]:
    """The 14 labels of a report, by name.

    "No Finding" is positive when the report says anything at all and no finding other than a support device is
    positive or uncertain; otherwise it is blank, as in CheXpert. An empty text gets 14 blanks.
    """
    labels: dict[str, float | None] = dict.fromkeys(LABELS, BLANK)
    empty = True
    for sentence in _SENTENCE.split(text.lower()):
        sentence = _SPACE.sub(" ", sentence).strip()
        if not sentence:
            continue
        empty = False
        for label, value in label_sentence(sentence):
            if _STRENGTH[value] > _STRENGTH[labels[label]]:
                labels[label] = value
    sick = any(labels[f] in (POSITIVE, UNCERTAIN) for f in FINDINGS if f != "Support Devices")
    if not empty and not sick:
        labels[NO_FINDING] = POSITIVE
    return labels


@lru_cache(maxsize=65536)
def label_sentence(sentence: str) -> tuple[tuple[str, float], ...]:
    """The labels one lower-case sentence asserts, in reading order (a label may come more than once)."""
    found: list[tuple[str, float]] = []
    mentions = [(m, _MENTION_LABELS[int((m.lastgroup or "g0")[1:])]) for m in _MENTION.finditer(sentence)]
    mentions = [(m, labels) for m, labels in mentions if labels]
    for pattern, labels in _NORMAL:
        if pattern.search(sentence):
            found += [(label, NEGATIVE) for label in labels]
    if not mentions:
        return tuple(found)
    text = _PSEUDO.sub(lambda m: " " * len(m[0]), sentence)
    breaks = [m.start() for m in _BREAK.finditer(text)]
    pre = list(_PRE.finditer(text))
    post = list(_POST.finditer(text))
    for mention, labels in mentions:
        value = _after(mention, text, post, breaks)
        if value is None:
            value = _before(mention, text, pre, breaks)
        found += [(label, value) for label in labels]
    return tuple(found)


def _broken(breaks: list[int], start: int, end: int) -> bool:
    """Whether a clause ends between two places of the sentence."""
    return bisect_right(breaks, end - 1) > bisect_right(breaks, start - 1)


def _before(mention: re.Match[str], text: str, cues: list[re.Match[str]], breaks: list[int]) -> float:
    """What the nearest cue before (or inside) a mention makes of it."""
    value, doubt = POSITIVE, None
    for cue in reversed(cues):
        if cue.start() >= mention.end():
            continue
        if _broken(breaks, cue.end(), mention.start()):
            break
        if doubt is not None and "," in text[cue.end() : doubt]:
            break  # "no effusion, possible pneumonia": the negation ended before the doubt
        if cue["n"]:
            return NEGATIVE  # also "no opacity to suggest pneumonia": the doubt itself is denied
        value, doubt = UNCERTAIN, cue.start()
        if "exclude" in cue[0] or "rule out" in cue[0]:
            break
    return value


def _after(mention: re.Match[str], text: str, cues: list[re.Match[str]], breaks: list[int]) -> float | None:
    """What a cue that follows the mention closely makes of it; None without one."""
    for cue in cues:
        gap = text[mention.end() : cue.start()]
        if cue.start() >= mention.end() and len(gap) <= 40 and "," not in gap:
            if _broken(breaks, mention.end(), cue.start()) or _PRE.search(gap):
                return None
            return NEGATIVE if cue["n"] else UNCERTAIN
    return None
