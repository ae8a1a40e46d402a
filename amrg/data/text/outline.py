"""Outlines: a list of the stated findings in front of a report, which the decoder generates first.

A finding can be worded in many ways, "the lungs are clear" in few. A search for the most probable text therefore
prefers the stereotype even if the finding is the more probable content. An outline gives every finding one wording and
one position, so that it decides the content, and the report follows it.
"""

from collections.abc import Sequence

from amrg.data.labels import FINDINGS, POSITIVE
from amrg.data.text.cleaning import split_sentences
from amrg.data.text.labeler import label_report

_REPORT = "Report:"


def prepend_outline(report: str, section: str | None = None) -> str:
    """Return ``cardiomegaly, edema. Report: …``; sentences that state a finding come first, in the outline's order.

    Args:
        report: the whole report, whose findings the outline names.
        section: section of it that stands behind the outline; None: all of it.
    """
    sentences = split_sentences(report if section is None else section)
    return format_outline(positive_findings(report), sorted(sentences, key=_outline_position))


def format_outline(findings: Sequence[str], first: Sequence[str]) -> str:
    """Join an outline of findings, in the order of ``FINDINGS``, and the first sentences of the report."""
    return f"{', '.join(findings).lower() or 'none'}. {_REPORT} {' '.join(first)}".strip()


def positive_findings(text: str) -> list[str]:
    """Return the positive findings of a text, in the order of ``FINDINGS``."""
    labels = label_report(text)
    return [finding for finding in FINDINGS if labels[finding] == POSITIVE]


def strip_outline(text: str) -> str:
    """Return the report without its outline; the full text if it has none."""
    outline, report = split_outline(text)
    return outline if report is None else report


def split_outline(text: str) -> tuple[str, str | None]:
    """Split a text into outline and report; the report is None if the text ends before it."""
    outline, mark, report = text.partition(_REPORT)
    return outline.strip(), report.strip() if mark else None


def _outline_position(sentence: str) -> int:
    return next((FINDINGS.index(finding) for finding in positive_findings(sentence)), len(FINDINGS))
