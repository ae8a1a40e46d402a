"""The sections of a report by their headings, as radiology departments type them.

A heading is a line's first words in capitals, closed by a colon (``FINDINGS:``, ``FINDINGS AND IMPRESSION:``,
``CHEST, PA AND LATERAL:``). A section reaches to the next heading. Headings are told apart by ``RULES``, in order.
"""

import re
from typing import Literal

from amrg.data.text.cleaning import clean

Sections = Literal["findings", "impression", "both"]

#: Raise it when the rules give another text than before.
VERSION = 1

_HEADING = re.compile(r"^[ \t]*([A-Z][A-Z0-9 ,./&()\-]{1,70}?)[ \t]*:", re.MULTILINE)

#: (canonical name, what a heading must match)
RULES: tuple[tuple[str, re.Pattern[str]], ...] = (
    ("findings", re.compile(r"(?:.*\b)?FINDINGS?\b.*")),
    ("impression", re.compile(r"(?:.*\b)?(?:IMPRESSIONS?|CONCLUSIONS?|INTERPRETATION)\b.*")),
)


def split_sections(report: str) -> dict[str, str]:
    """``findings`` and ``impression`` of a report, as written; a section typed twice is joined, a missing one absent.

    A joint section (``FINDINGS AND IMPRESSION:``) is findings. Other sections (indication, technique, wet read,
    addendum …) end a section and are left out.
    """
    found: dict[str, list[str]] = {}
    headings = list(_HEADING.finditer(report))
    for heading, following in zip(headings, [*headings[1:], None], strict=False):
        name = next((name for name, rule in RULES if rule.fullmatch(heading[1])), None)
        if name:
            end = following.start() if following else len(report)
            found.setdefault(name, []).append(report[heading.end() : end].strip())
    return {name: " ".join(part for part in parts if part) for name, parts in found.items() if any(parts)}


def select_sections(findings: str | None, impression: str | None, sections: Sections) -> str:
    """The cleaned text that a model is to write; empty where the study lacks it.

    ``both`` is what there is of both, findings first.
    """
    parts = {"findings": [findings], "impression": [impression], "both": [findings, impression]}[sections]
    return " ".join(text for text in (clean(part) for part in parts if part) if text)
