"""Splitting of a report into sections by its headings.

A heading is the first words of a line in capitals, ended by a colon (``FINDINGS:``, ``FINDINGS AND IMPRESSION:``,
``CHEST, PA AND LATERAL:``). A section ends at the next heading. The first of ``RULES`` that matches names a heading.
"""

import re
from typing import Literal

from amrg.data.text.cleaning import clean

Sections = Literal["findings", "impression", "both"]

#: Increase it when the rules change the text.
VERSION = 1

_HEADING = re.compile(r"^[ \t]*([A-Z][A-Z0-9 ,./&()\-]{1,70}?)[ \t]*:", re.MULTILINE)

#: (canonical name, pattern of the heading)
RULES: tuple[tuple[str, re.Pattern[str]], ...] = (
    ("findings", re.compile(r"(?:.*\b)?FINDINGS?\b.*")),
    ("impression", re.compile(r"(?:.*\b)?(?:IMPRESSIONS?|CONCLUSIONS?|INTERPRETATION)\b.*")),
)


def split_sections(report: str) -> dict[str, str]:
    """Return ``findings`` and ``impression`` of a report, unchanged; repeated sections are joined, missing ones absent.

    A combined section (``FINDINGS AND IMPRESSION:``) counts as findings. Other sections (indication, technique, wet
    read, addendum …) end a section and are left out.
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
    """Return the cleaned target text; empty if the study lacks it.

    ``both`` joins the available sections, findings first.
    """
    parts = {"findings": [findings], "impression": [impression], "both": [findings, impression]}[sections]
    return " ".join(text for text in (clean(part) for part in parts if part) if text)
