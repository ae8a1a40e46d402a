"""Sections of reports as they are typed."""

import textwrap

import pytest

from amrg.data.text.headings import find_headings
from amrg.data.text.sections import (
    findings_section,
    join_sections,
    mark_impression,
    report_target_text,
    select_impression,
    select_sections,
    split_at_mark,
    split_sections,
    unknown_headings,
)
from tests.data.dataset_fixtures import REPORT


@pytest.mark.parametrize(
    ("report", "findings", "impression"),
    [
        (REPORT.format(findings="Clear\n lungs.", impression="Normal."), "Clear\n lungs.", "Normal."),
        ("FINDINGS/IMPRESSION: Clear.\n\nNOTIFICATION:  Called.", "Clear.", "Clear."),
        ("FINDINGS AND IMPRESSION: Clear.\nIMPRESSION: Normal.", "Clear.", "Normal."),
        ("FINDINGS:Clear.IMPRESSION:Normal.", "Clear.", "Normal."),
        ("FINDINGS: One.\nCOMPARISON: None.\nFINDINGS: Two.\nCONCLUSION: Three.", "One. Two.", "Three."),
        ("WET READ: Maybe.\nFINAL REPORT\nFINDINGS: Ratio 3:4, lobe: clear.", "Ratio 3:4, lobe: clear.", None),
        ("FINDINGS:\n\nIMPRESSION:\n", None, None),
        ("No headings at all.", None, None),
        ("PORTABLE CHEST FINDINGS: Tube in place.\nIMPRESSIONS: Good.", "Tube in place.", "Good."),
        ("IMPRESSION: Good.\n\nFINDINGS: Clear.", "Clear.", "Good."),
        ("FINDINGS: Clear.\nIMPRESSION: Good.\nEND OF IMPRESSION:\nDICTATED BY: X", "Clear.", "Good."),
        ("FINDINGS: Clear.\nCOMMUNICATION OF CRITICAL FINDINGS: Told.", "Clear.", None),
    ],
)  # fmt: skip
def test_sections_by_their_headings(report, findings, impression) -> None:
    found = split_sections(report)
    assert found.get("findings") == findings
    assert found.get("impression") == impression


@pytest.mark.parametrize(
    "report",
    [
        "Findings:\n  No effusion.\n\nImpression:\n  All well.",
        "findings: No effusion.\nimpression: All well.",
        "FINDINGS: No effusion. IMPRESSION: All well.",
        "INDICATION: Cough. TECHNIQUE: PA. Findings: No effusion. Impression: All well. Recommendation: None.",
        "FINAL REPORT EXAMINATION: CHEST INDICATION: Cough TECHNIQUE: PA FINDINGS: No effusion. IMPRESSION: All well.",
        "FINDINGS\nNo effusion.\n\nIMPRESSION\nAll well.",
        "Findings\nNo effusion.\nImpression\nAll well.",
        "FINDINGS No effusion.\nIMPRESSION All well.",
        "FINDINGS - No effusion.\nIMPRESSION - All well.",
        "technique: PA. findings: No effusion. impression: All well.",
        "<p><b>FINDINGS:</b> No effusion.<br><b>IMPRESSION:</b>&nbsp;All well.</p>",
        "**Findings:** No effusion.\n\n## Impression\nAll well.",
        "NDICATION: Cough.\nFINIDNGS: No effusion.\nIMPRESION: All well.\nRECCOMENDATION: None.",
        "Finding : No effusion.\nImpresssion : All well.",
        "\ufeffFINDINGS: No effusion.\fIMPRESSION: All well.",
        "FINDINGS:\r\nNo effusion.\r\n\r\nIMPRESSION:\r\nAll well.\r\n",
        "INDICATION: Cough.\rFINDINGS:\rNo effusion.\rIMPRESSION:\rAll well.",
        "\u00a0FINDINGS\u00a0:\u00a0No effusion.\n\u200bIMPRESSION\u200b: All well.",
        "\ufb01ndings: No effusion.\nImpression: All well.",
        "FINDINGS: No effusion.\nPage 1 of 2\n\fIMPRESSION: All well.",
    ],
)  # fmt: skip
def test_a_heading_in_any_form(report) -> None:
    assert split_sections(report) == {"findings": "No effusion.", "impression": "All well."}


@pytest.mark.parametrize(
    ("report", "findings", "impression"),
    [
        (" AP AND LATERAL CHEST:  No effusion.\n IMPRESSION: Well.", "No effusion.", "Well."),
        ("HISTORY: Pain.\n\nPORTABLE CHEST RADIOGRAPH:\nNo effusion.\n\nIMPRESSION: Well.", "No effusion.", "Well."),
        ("Chest, two views: No effusion.\nImpression: Well.", "No effusion.", "Well."),
        ("AP CHEST, 6:40 P.M., ___:\nNo effusion.\nIMPRESSION: Well.", "No effusion.", "Well."),
        ("HISTORY: Pain. CHEST, ONE VIEW: No effusion. IMPRESSION: Well.", "No effusion.", "Well."),
        ("HISTORY: Pain.\n\nCHEST, SINGLE VIEW.\n\nNo effusion.\n\nIMPRESSION: Well.", "No effusion.", "Well."),
        ("PORTABLE CHEST, LINE PLACEMENT: No effusion.\nIMPRESSION: Well.", "No effusion.", "Well."),
        ("WET READ: Fluid?\n\nCHEST, TWO VIEWS: No effusion.", "No effusion.", None),
        ("CHEST, TWO VIEWS:\n\nFINDINGS: No effusion.", "No effusion.", None),
        ("FINDINGS:\n\nSUPINE CHEST (TWO EXPOSURES):\nNo effusion.", "No effusion.", None),
        ("FINDINGS: Rotated.\nAP CHEST AT 07:15: Tube high.\nIMPRESSION: Well.", "Rotated. Tube high.", "Well."),
        ("IMPRESSION: Well.\n\nPA AND LATERAL CHEST: No effusion.", "No effusion.", "Well."),
        # without text it stays empty
        (" CHEST, TWO VIEWS:\n\n HISTORY: Pain.\n\n IMPRESSION: Well.", None, "Well."),
        ("TECHNIQUE:\nChest: Frontal and lateral views\n\nIMPRESSION: Well.", None, "Well."),
        ("PORTABLE CHEST FILM\nA film is submitted.\nComparison is made to ___.\n\nIMPRESSION: Well.", None, "Well."),
    ],
)  # fmt: skip
def test_the_name_of_a_view_opens_findings_where_no_heading_does(report, findings, impression) -> None:
    found = split_sections(report)
    assert found.get("findings") == findings
    assert found.get("impression") == impression


@pytest.mark.parametrize(
    "text",
    [
        "LUNGS: No edema.\nHEART: Large.\nPLEURA: Dry.\nBONES: Whole.",
        "Lungs: No edema.\nHeart: Large.\nLines/Tubes: None.",
        "MEDIASTINUM: Wide.\n\nLUNGS AND AIRWAYS: No edema.\n\nUPPER ABDOMEN: Normal.",
        "Low volumes.\nCARDIOMEDIASTINAL SILHOUETTE: Large.\nRIGHT IJ CATHETER TIP: In the SVC.",
        "CHEST TUBE: None.\nEFFUSION: Small.\nRLL: Opaque.",
        "Supine.\nPORTABLE AT 07:15 shows a tube.\nCARDIOTHORACIC RATIO 1:2 here.",
        "A NODULE OF 4 MM AT 10:30 in the left lung.",
    ],
)  # fmt: skip
def test_organs_times_and_ratios_stay_in_their_section(text) -> None:
    assert split_sections(f"FINDINGS:\n{text}\n\nIMPRESSION:\nWell.") == {"findings": text, "impression": "Well."}
    assert split_sections(f"IMPRESSION:\n{text}\n\nRECOMMENDATION: None.") == {"impression": text}


def test_names_of_organs_open_findings_where_no_heading_does() -> None:
    text = "LUNGS: No edema.\nHEART: Large."
    assert split_sections(f"HISTORY: Pain.\n\n{text}\n\nIMPRESSION: Well.") == {"findings": text, "impression": "Well."}
    assert split_sections("COMPARISON:\nCT ABDOMEN: ___.\n\nIMPRESSION: Well.") == {"impression": "Well."}


@pytest.mark.parametrize(
    "report",
    [
        "FINAL ADDENDUM\n IMPRESSION: Right side.\n{rule}\n FINAL REPORT\n FINDINGS: Fluid.\n IMPRESSION: Left side.",
        "*** ADDENDUM ***\nIMPRESSION: Right side.\n*** END OF ADDENDUM ***\nFINDINGS: Fluid.\nIMPRESSION: Left side.",
        "FINDINGS: Fluid.\nIMPRESSION: Left side.\n\nADDENDUM: Side.\nIMPRESSION: Right side.\nFINAL REPORT",
        "FINDINGS: Fluid.\nIMPRESSION: ?\nADDENDUM 1:\nIMPRESSION: Left side.\nADDENDUM 2:\nIMPRESSION: Right side.",
        "WET READ: None.\nIMPRESSION: None.\nFINAL REPORT\nFINDINGS: Fluid.\nIMPRESSION: Right side.",
    ],
)  # fmt: skip
def test_the_newest_text_of_a_section(report) -> None:
    found = split_sections(report.format(rule="_" * 40))
    assert found == {"findings": "Fluid.", "impression": "Right side."}


@pytest.mark.parametrize(
    ("report", "findings"),
    [
        ("FINAL REPORT\n REASON FOR EXAM: Pain.\n \n No effusion.\n \n Large heart.", "No effusion.\n\nLarge heart."),
        ("Chest film of today.\n\nNo effusion.", "No effusion."),
        ("HISTORY: Pain.\n\nComparison is made with a film of ___ at 7 a.m.\n\nNo effusion.", "No effusion."),
        ("HISTORY: Pain.\n\nNo effusion.\n\nWET READ: Fluid?\n\nCalled.", "No effusion."),
        ("COMPARISON FINDINGS: Effusion.\nHISTORY: Pain.", None),
        ("WET READ: Fluid?\n\nCalled.", None),
        ("HISTORY: Pain.\n\nIMPRES", None),
    ],
)  # fmt: skip
def test_the_last_paragraphs_are_findings_where_nothing_else_is(report, findings) -> None:
    assert split_sections(report).get("findings") == findings


def test_findings_of_an_earlier_film_are_left_out() -> None:
    report = "COMPARISON FINDINGS: Effusion.\nFINDINGS: None now.\nPRIOR FINDINGS: Edema."
    assert split_sections(report) == {"findings": "None now."}


def test_a_sentence_is_no_heading() -> None:
    wrapped = "Left effusion, and among the other\nfindings: a nodule, compared with the CT CHEST: stable."
    assert split_sections(f"FINDINGS: {wrapped}") == {"findings": wrapped}
    capitals = "THERE ARE TWO FINDINGS: A NODULE, A MASS. COMPARED TO THE\nPRIOR CHEST: NO CHANGE.\nHEART: LARGE"
    assert split_sections(f"FINDINGS:\n{capitals}\nIMPRESSION: STABLE") == {
        "findings": capitals, "impression": "STABLE",
    }  # fmt: skip


def test_a_section_wrapped_at_any_width_is_the_same() -> None:
    words = "The left lung is clear and the right one shows a small opacity at its base. " * 4
    for width in range(30, 90, 7):
        report = f"FINDINGS: {words}\n\nIMPRESSION: Opacity."
        wrapped = "\n\n".join(textwrap.fill(part, width) for part in report.split("\n\n"))
        assert split_sections(wrapped)["findings"].split() == words.split()


def test_headings_that_no_rule_names() -> None:
    report = "SCOUT: x\nFINDINGS: Clear.\nLUNGS: Clear.\n\nQUALITY: Good.\nIMPRESSION: Well.\nRatio 3:4"
    assert unknown_headings(report) == ["SCOUT", "QUALITY"]
    assert [heading.kind for heading in find_headings(report)] == [
        "unknown", "findings", "organ", "unknown", "impression",
    ]  # fmt: skip


def test_the_text_that_is_chosen() -> None:
    assert select_sections("heart is ___ normal", "1. Clear", "findings") == "Heart is normal."
    assert select_sections("heart is normal", "1. Clear", "impression") == "Clear."
    assert select_sections("heart is normal", "1. Clear", "both") == "Heart is normal. Clear."
    assert select_sections(None, "Clear", "both") == "Clear."
    assert select_sections(None, "Clear", "findings") == ""
    assert select_sections("Clear", "clear.", "both") == "Clear."


@pytest.mark.parametrize(
    ("findings", "impression", "text", "ending"),
    [
        ("heart is normal", "1. Clear", "Heart is normal. Clear.", "Clear."),
        ("heart is normal", None, "Heart is normal.", ""),
        ("Clear", "clear.", "Clear.", ""),  # one text that is both is not two
        (None, "Clear", "", ""),
    ],
)
def test_sections_that_are_kept_apart(findings: str | None, impression: str | None, text: str, ending: str) -> None:
    assert select_sections(findings, impression, "separate") == text
    assert select_impression(findings, impression, "separate") == ending
    assert select_impression(findings, impression, "both") == ""
    assert join_sections(findings_section(text, ending), ending) == text


def test_a_report_that_a_user_gives_is_read_whole() -> None:
    report = "FINDINGS: heart is normal\n\nIMPRESSION: Clear"
    assert report_target_text(report, "separate") == report_target_text(report, "both") == "Heart is normal. Clear."
    assert report_target_text(report, "findings") == "Heart is normal."
    assert report_target_text("IMPRESSION: Clear", "separate") == report_target_text("Clear", "separate") == "Clear."


def test_the_mark_divides_what_is_written() -> None:
    assert mark_impression("Heart is large.", "Cardiomegaly.") == "Heart is large. Impression: Cardiomegaly."
    assert mark_impression("Clear.", "") == "Clear."
    assert split_at_mark("Heart is large. Impression: Cardiomegaly.") == ("Heart is large.", "Cardiomegaly.")
    assert split_at_mark("Clear.") == ("Clear.", "")
    assert split_at_mark("Impression: A. Impression: B.") == ("", "A. B.")
