"""The outline before a report."""

from amrg.data.text.outline import prepend_outline, strip_outline


def test_findings_lead_and_the_rest_keeps_its_order() -> None:
    report = "Heart size is normal. No pneumothorax. There is a small left effusion. Pacemaker in place. Edema."
    assert prepend_outline(report) == (
        "edema, pleural effusion, support devices. Report: "
        "Edema. There is a small left effusion. Pacemaker in place. Heart size is normal. No pneumothorax."
    )


def test_a_normal_report_has_none() -> None:
    assert prepend_outline("Lungs are clear. No effusion.") == "none. Report: Lungs are clear. No effusion."
    assert prepend_outline("") == "none. Report:"


def test_the_outline_is_cut_off_where_there_is_one() -> None:
    assert strip_outline("edema. Report: Edema. Clear.") == "Edema. Clear."
    assert strip_outline(" Edema. Clear. ") == "Edema. Clear."
    assert strip_outline(prepend_outline("Lungs are clear.")) == "Lungs are clear."
