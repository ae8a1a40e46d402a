"""Plan, then write: a report behind an outline that names the findings it states.

A finding can be worded in many ways, "the lungs are clear" in few: a decoder that searches for the likeliest text
prefers the stereotype even where the finding is the likelier content. An outline gives every finding one wording and
one place, so that what is decided there is content; the report then only has to follow its own outline.
"""

from collections.abc import Sequence

from amrg.data.labels import FINDINGS, POSITIVE
from amrg.data.text.cleaning import sentences
from amrg.data.text.labeler import label_report

_REPORT = "Report:"


def add_outline(report: str) -> str:
    """``cardiomegaly, edema. Report: …``, the sentences that state a finding in front, in the order of the outline."""
    return format_outline(positive_findings(report), sorted(sentences(report), key=_place))


def format_outline(findings: Sequence[str], first: Sequence[str]) -> str:
    """An outline of findings, in the order of ``FINDINGS``, and the sentences that are written so far."""
    return f"{', '.join(findings).lower() or 'none'}. {_REPORT} {' '.join(first)}".strip()


def positive_findings(text: str) -> list[str]:
    """The findings that a text states, in the order of ``FINDINGS``."""
    labels = label_report(text)
    return [finding for finding in FINDINGS if labels[finding] == POSITIVE]


def strip_outline(text: str) -> str:
    """The report behind an outline; the whole text where there is none."""
    outline, report = split_outline(text)
    return outline if report is None else report


def split_outline(text: str) -> tuple[str, str | None]:
    """The outline and the report behind it; None for a report that has not begun."""
    outline, mark, report = text.partition(_REPORT)
    return outline.strip(), report.strip() if mark else None


def _place(sentence: str) -> int:
    return next((FINDINGS.index(finding) for finding in positive_findings(sentence)), len(FINDINGS))
