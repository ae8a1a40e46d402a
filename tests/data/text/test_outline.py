"""The outline before a report."""

from amrg.data.text.outline import outlined, without_outline


def test_findings_lead_and_the_rest_keeps_its_order() -> None:
    report = "Heart size is normal. No pneumothorax. There is a small left effusion. Pacemaker in place. Edema."
    assert outlined(report) == (
        "edema, pleural effusion, support devices. Report: "
        "Edema. There is a small left effusion. Pacemaker in place. Heart size is normal. No pneumothorax."
    )


def test_a_normal_report_has_none() -> None:
    assert outlined("Lungs are clear. No effusion.") == "none. Report: Lungs are clear. No effusion."
    assert outlined("") == "none. Report:"


def test_the_outline_is_cut_off_where_there_is_one() -> None:
    assert without_outline("edema. Report: Edema. Clear.") == "Edema. Clear."
    assert without_outline(" Edema. Clear. ") == "Edema. Clear."
    assert without_outline(outlined("Lungs are clear.")) == "Lungs are clear."
