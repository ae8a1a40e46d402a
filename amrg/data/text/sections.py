"""Splitting of a report into sections by its headings (``amrg/data/text/headings.py``)."""

import re
from functools import lru_cache
from typing import Literal

from amrg.data.text.cleaning import clean_report_text, split_sentences, strip_markup, to_plain_characters
from amrg.data.text.headings import Heading, find_headings, is_view_description, normalize_heading

Sections = Literal["findings", "impression", "both", "separate"]

#: Increase it when the rules change the text.
VERSION = 2

#: Between findings and impression in what a decoder learns and writes (``decoder.separate_sections``).
IMPRESSION_MARK = "Impression:"

#: Sentences before the findings proper that repeat the technique or the comparison.
_PREFACE = re.compile(
    r"comparisons?\b.*|.*\b(?:is|are|was|were) (?:submitted|obtained|acquired|provided|performed|reviewed)\b.*",
    re.I | re.S,
)
#: Fields of ``amrg.data.context`` by their headings (``normalize_heading``); the findings of an earlier film are none.
_CONTEXT = {
    "technique": re.compile(r"(?:EXAM |EXAMINATION |STUDY )?TECHNIQUE"),
    "comparison": re.compile(r"(?:COMPARISON|PRIORS?)(?: (?:EXAM|EXAMINATION|STUDY|STUDIES|FILMS?))?"),
    "indication": re.compile(r"(?!.*FINDINGS).*(?:HISTORY|INDICATION|INFORMATION|REASONS? FOR|CLINICAL (?:Q|D)).*"),
}
_PAGE = re.compile(r"(?mi)^[ \t-]*page \d+(?: of \d+)?[ \t-]*$\n?")


class _Part:
    """The texts of one report, or of one addendum, by the kind of section."""

    def __init__(self, addendum: bool) -> None:
        self.addendum = addendum
        self.texts: dict[str, list[str]] = {}
        self.last = ""  # text of the last section before the findings, or of all without any heading
        self.context: dict[str, str] = {}  # first paragraph of each section of ``_CONTEXT``

    def get(self, name: str) -> str:
        """Return a section; empty if it is missing."""
        own, both, view = (" ".join(self.texts.get(kind, ())) for kind in (name, "combined", "view"))
        if name == "impression":
            return own or both
        if own and both and self.texts.get("impression"):
            return f"{own} {both}"
        return own or both or _without_preface(view)


def split_sections(report: str) -> dict[str, str]:
    """Return ``findings`` and ``impression`` of a report; missing ones are absent.

    The text is that of the report but for markup and characters that only print differently (``to_plain_characters``).

    - A combined section (``FINDINGS AND IMPRESSION:``) is both; beside an impression of its own it is findings.
    - Repeated sections are joined. The sections of an addendum replace those of the report.
    - Names of organs inside a section stay in its text; names of views are dropped. Without findings both begin them.
    - Without any of these the paragraphs after the first one of the last section are the findings (mimic-code's
      ``last_paragraph``).
    - Other sections (indication, technique, wet read, findings of an earlier film …) are left out.
    """
    parts = _parts(report)
    found = {name: _newest(parts, name) for name in ("findings", "impression")}
    if not any(found.values()):
        ordered = sorted(parts, key=lambda part: part.addendum)
        found["findings"] = next((text for part in ordered[::-1] if (text := _last_paragraphs(part.last))), "")
    return {name: text for name, text in found.items() if text}


def context_sections(report: str) -> dict[str, str]:
    """Return ``indication``, ``technique`` and ``comparison`` of a report; missing ones are absent.

    Of each only the first paragraph: what follows may be findings without a heading (``split_sections``). Addenda have
    none; of several parts the last one counts.
    """
    found: dict[str, str] = {}
    for part in _parts(report):
        found |= {} if part.addendum else part.context
    return found


def unknown_headings(report: str) -> list[str]:
    """Return the headings of a report that no rule names."""
    return [
        heading.name
        for heading in find_headings(to_plain_characters(strip_markup(report)))
        if heading.kind == "unknown"
    ]


def select_sections(findings: str | None, impression: str | None, sections: Sections) -> str:
    """Return the cleaned target text; empty if the study lacks it.

    ``both`` joins the available sections, findings first; a text that is both is not repeated. ``separate`` does so for
    reports with findings; ``select_impression`` tells where the impression begins.
    """
    if sections == "separate":
        text, ending = clean_report_text(findings or ""), select_impression(findings, impression, sections)
        return join_sections(text, ending)
    parts = {"findings": [findings], "impression": [impression], "both": [findings, impression]}[sections]
    return " ".join(dict.fromkeys(text for text in (clean_report_text(part) for part in parts if part) if text))


def report_target_text(report: str, sections: Sections) -> str:
    """Return the cleaned target text of a report with or without headings; ``separate`` reads one as ``both`` does."""
    parts, joined = split_sections(report), "both" if sections == "separate" else sections
    return (
        select_sections(parts.get("findings"), parts.get("impression"), joined) if parts else clean_report_text(report)
    )


def select_impression(findings: str | None, impression: str | None, sections: Sections) -> str:
    """Return the cleaned impression with which the target text ends.

    It is empty unless the sections are ``separate``, the report has findings, and the impression is another text.
    """
    if sections != "separate":
        return ""
    text, ending = clean_report_text(findings or ""), clean_report_text(impression or "")
    return ending if text and text != ending else ""


def findings_section(report: str, impression: str) -> str:
    """Return a report without the impression with which it ends."""
    return report.removesuffix(impression).rstrip() if impression else report


def join_sections(findings: str, impression: str) -> str:
    """Return the text of a report of two sections, of which one may be empty."""
    return " ".join(text for text in (findings, impression) if text)


def mark_impression(findings: str, impression: str) -> str:
    """Return both sections as the decoder writes them, with ``IMPRESSION_MARK`` between; no mark without impression."""
    return f"{findings} {IMPRESSION_MARK} {impression}" if impression else findings


def split_at_mark(text: str) -> tuple[str, str]:
    """Return findings and impression of what the decoder has written; no mark: all of it is findings."""
    findings, _, impression = text.partition(IMPRESSION_MARK)
    return findings.strip(), " ".join(impression.replace(IMPRESSION_MARK, " ").split())


@lru_cache(maxsize=1)  # a report is asked for its sections and for its context
def _parts(text: str) -> list[_Part]:
    """Collect the sections of a report by part; a rule or ``FINAL REPORT`` ends an addendum."""
    report = _PAGE.sub("", to_plain_characters(strip_markup(text)))
    part, parts = _Part(False), []
    state, start, field = "other", 0, ""
    stop: int | None = None  # a heading inside the section, behind which nothing is context
    for heading in (*find_headings(report), Heading(len(report), len(report), "part", "")):
        before = report[start : heading.start].strip()
        after_gap = re.search(r"\n\s*\n\s*$", report[start : heading.start]) is not None
        after = _next_state(heading, state, before, after_gap, part)
        if after is None:
            stop = heading.start if stop is None else stop
            continue
        if state in ("findings", "impression", "combined", "view"):
            part.texts.setdefault(state, []).extend([before] if before else [])
        elif state == "other" and before:
            part.last = report[start : heading.start]
            if field and (text := _first_paragraph(report[start:stop] if stop else before)):
                part.context[field] = f"{part.context.get(field, '')} {text}".strip()
        if heading.kind in ("part", "addendum"):
            parts.append(part)
            part = _Part(heading.kind == "addendum")
        state, field, stop = after, _context_field(heading) if after == "other" else "", None
        start = heading.start if heading.kind == "organ" else heading.end
    return parts


def _next_state(heading: Heading, state: str, before: str, after_gap: bool, part: _Part) -> str | None:
    """Return the kind of section that a heading begins; None if it belongs to the text of the open section.

    Args:
        heading: the heading.
        state: kind of the open section.
        before: text of the open section so far.
        after_gap: whether an empty line is before the heading.
        part: sections so far.
    """
    target = state in ("findings", "impression", "combined", "view")
    if heading.kind in ("part", "addendum"):
        return "other" if heading.kind == "part" else "closing"
    if heading.kind in ("organ", "mention"):
        return None if target or state == "closing" or heading.kind == "mention" else "view"
    if heading.kind == "view":
        if state == "closing" and not after_gap:
            return None
        return "view" if not target or (state == "impression" and (before or part.texts.get(state))) else state
    if heading.kind == "unknown":
        return None if target and (not after_gap or not before or _has_organs(before)) else "other"
    return heading.kind


def _context_field(heading: Heading) -> str:
    """Return the field of the context that a heading names; empty if it names none."""
    name = normalize_heading(heading)
    return next((field for field, pattern in _CONTEXT.items() if pattern.fullmatch(name)), "")


def _first_paragraph(section: str) -> str:
    return re.split(r"\n[ \t]*\n", section.strip(), maxsplit=1)[0]


def _has_organs(text: str) -> bool:
    return any(heading.kind in ("organ", "mention") for heading in find_headings(text))


def _newest(parts: list[_Part], name: str) -> str:
    """Return a section of the newest part: addenda stand before the report, the newest first, or behind it."""
    reports = [number for number, part in enumerate(parts) if not part.addendum and part.get(name)]
    addenda = [number for number, part in enumerate(parts) if part.addendum and part.get(name)]
    if addenda:
        return parts[addenda[0] if reports and reports[-1] > addenda[-1] else addenda[-1]].get(name)
    return parts[reports[-1]].get(name) if reports else ""


def _last_paragraphs(section: str) -> str:
    """Return the paragraphs after the first one, without names of views."""
    paragraphs = re.split(r"\n[ \t]*(?:\n[ \t]*)+", section.strip())[1:]
    return _without_preface("\n\n".join(part for part in paragraphs if not is_view_description(part)).strip())


def _without_preface(text: str) -> str:
    """Drop first sentences that repeat technique or comparison; empty if only views are named or a word is left."""
    for sentence in split_sentences(text):
        if not _PREFACE.fullmatch(sentence):
            break
        text = text.replace(sentence, "", 1).strip()
    return "" if is_view_description(text) or re.fullmatch("[A-Z]+", text) else text
