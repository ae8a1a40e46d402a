"""Sections of reports as they are typed."""

import pytest

from amrg.data.text.sections import select_sections, split_sections
from tests.data.dataset_fixtures import REPORT


@pytest.mark.parametrize(
    ("report", "findings", "impression"),
    [
        (REPORT.format(findings="Clear\n lungs.", impression="Normal."), "Clear\n lungs.", "Normal."),
        ("FINDINGS AND IMPRESSION:\nClear.", "Clear.", None),
        ("FINDINGS/IMPRESSION: Clear.\n\nNOTIFICATION:  Called.", "Clear.", None),
        ("CHEST, PA AND LATERAL:\nOld text.\nIMPRESSION: Normal.", None, "Normal."),
        ("FINDINGS: One.\nCOMPARISON: None.\nFINDINGS: Two.\nCONCLUSION: Three.", "One. Two.", "Three."),
        ("WET READ: Maybe.\nFINAL REPORT\nFINDINGS: Ratio 3:4, lobe: clear.", "Ratio 3:4, lobe: clear.", None),
        ("FINDINGS:\n\nIMPRESSION:\n", None, None),
        ("No headings at all.", None, None),
        ("PORTABLE CHEST FINDINGS: Tube in place.\nIMPRESSIONS: Good.", "Tube in place.", "Good."),
    ],
)  # fmt: skip
def test_sections_by_their_headings(report, findings, impression) -> None:
    found = split_sections(report)
    assert found.get("findings") == findings
    assert found.get("impression") == impression


def test_the_text_that_is_chosen() -> None:
    assert select_sections("heart is ___ normal", "1. Clear", "findings") == "Heart is normal."
    assert select_sections("heart is normal", "1. Clear", "impression") == "Clear."
    assert select_sections("heart is normal", "1. Clear", "both") == "Heart is normal. Clear."
    assert select_sections(None, "Clear", "both") == "Clear."
    assert select_sections(None, "Clear", "findings") == ""
