"""Anatomical sites that a sentence gives a finding, beside the sides and zones of its statements.

Every site is a regular expression over a lower-case sentence with single spaces, as in
``amrg/data/text/detail_patterns.py``. A site belongs to the mention that contains it, else to the nearest mention of
the same clause.
"""

import re
from collections.abc import Iterator
from functools import lru_cache

from amrg.data.labels import POSITIVE
from amrg.data.text import detail_patterns
from amrg.data.text.cleaning import to_plain_characters
from amrg.data.text.labeler import SENTENCE, label_sentence, rewrite_known_forms
from amrg.data.text.lines import unwrap_lines

#: Increase it whenever a rule changes the sites.
VERSION = "1"

_LOBE = r"(?: lobes?| lobar)"
#: Site → expression. Parts of one place may both match: a lobe is also a side and a zone of the statement.
SITE_PATTERNS: tuple[tuple[str, str], ...] = (
    ("right upper lobe", rf"right upper{_LOBE}|rul"),
    ("right middle lobe", rf"right mid(?:dle)?{_LOBE}|rml"),
    ("right lower lobe", rf"right lower{_LOBE}|rll"),
    ("left upper lobe", rf"left upper{_LOBE}|lul"),
    ("lingula", r"lingular?"),
    ("left lower lobe", rf"left lower{_LOBE}|lll"),
    ("hilum", r"(?:peri|infra|supra)?[ -]?hil(?:um|a|ar)"),
    ("pleura", r"pleura|pleural(?:ly)?|(?:bi)?apical cap|fissur\w+"),
    ("costophrenic angle", r"costo[ -]?phrenic"),
    ("heart", r"heart(?! failure)|cardiac|cardiomegaly|ventric\w+|atri(?:al|um)|pericardi\w+"),
    ("aorta", r"aort(?:a|ic)"),
    ("mediastinum", r"(?:cardio[ -]?)?mediastin\w+|paratracheal"),
    ("diaphragm", r"(?:hemi)?diaphragm\w*"),
    ("rib", r"ribs?"),
    ("clavicle", r"clavic\w+"),
    ("shoulder", r"shoulders?|humer\w+|scapul\w+|glenoid"),
    (
        "spine",
        r"spin(?:e|al)|vertebra\w*|thoracic (?:body|bodies|disc)|[tl]\d{1,2}|compression (?:fracture|deformit)\w*",
    ),
    ("sternum", r"stern(?:um|al)|median sternotomy"),
)
SITES: tuple[str, ...] = tuple(site for site, _ in SITE_PATTERNS)

_PATTERN = re.compile(
    rf"(?<!retro)(?<!retro[ -])\b(?:{'|'.join(f'(?P<s{i}>{e})' for i, (_, e) in enumerate(SITE_PATTERNS))})\b"
)
#: Other things that a site can belong to: "mediastinal calcification and a nodule".
_OTHER = re.compile(rf"\b(?:{detail_patterns.LUNG_OTHERS}|{detail_patterns.BONE_OTHERS}|{detail_patterns.OTHERS})\b")
_BREAK = re.compile(r"[,;:.]|\b(?:but|with|without|although|while|which|however)\b")


def finding_sites(text: str) -> dict[str, frozenset[str]]:
    """Return the sites of each positive finding of a text; a finding without any is left out."""
    found: dict[str, frozenset[str]] = {}
    for sentence in SENTENCE.finditer(rewrite_known_forms(unwrap_lines(text))):
        for finding, site in _read(" ".join(to_plain_characters(sentence[0]).lower().split())):
            found[finding] = found.get(finding, frozenset()) | {site}
    return found


@lru_cache(maxsize=65536)
def _read(sentence: str) -> tuple[tuple[str, str], ...]:
    return tuple(dict.fromkeys(_pairs(sentence)))


def _pairs(sentence: str) -> Iterator[tuple[str, str]]:
    """Yield each (positive finding, site) of a sentence."""
    mentions = label_sentence(sentence)
    if not mentions:
        return
    spans = [(m.start, m.end) for m in mentions]
    others = [m.span() for m in _OTHER.finditer(sentence) if not any(a < m.end() and m.start() < b for a, b in spans)]
    for match in _PATTERN.finditer(sentence):
        distances = [_distance(match, *span, sentence) for span in spans]
        nearest = min(*distances, *(_distance(match, *span, sentence) for span in others), _FAR - 1)
        for mention, distance in zip(mentions, distances, strict=True):
            if mention.value == POSITIVE and distance == nearest:
                yield mention.label, SITES[int((match.lastgroup or "s0")[1:])]


_FAR = 1000


def _distance(site: re.Match[str], start: int, end: int, sentence: str) -> int:
    """Return the characters between a site and a span; at least ``_FAR`` in different clauses."""
    if site.start() < end and start < site.end():
        return 0
    gap = sentence[site.end() : start] if site.end() <= start else sentence[end : site.start()]
    return len(gap) + _FAR * len(_BREAK.findall(gap))
