"""The report labeler: sentences with a known reading, and the experts' MeSH annotations of real reports."""

import pytest

from amrg.data.labeler import label_report, mentions, normalise
from amrg.data.labels import FINDINGS, LABELS
from amrg.evaluation.labeler_check import check

P, N, U = 1.0, 0.0, -1.0

SENTENCES = [
    (
        "No focal consolidation, pneumothorax, or pleural effusion.",
        {"Consolidation": N, "Pneumothorax": N, "Pleural Effusion": N},
    ),
    ("There is no effusion or pneumothorax.", {"Pleural Effusion": N, "Pneumothorax": N}),
    ("Small left pleural effusion without pneumothorax.", {"Pleural Effusion": P, "Pneumothorax": N}),
    ("Pneumonia cannot be excluded.", {"Pneumonia": U}),
    ("Cannot exclude pneumonia.", {"Pneumonia": U}),
    (
        "Left basilar opacity may represent atelectasis or pneumonia.",
        {"Lung Opacity": P, "Atelectasis": U, "Pneumonia": U},
    ),
    ("Right base opacity, atelectasis versus infiltrate.", {"Atelectasis": U}),
    ("No change in the right pleural effusion.", {"Pleural Effusion": P}),
    ("There has been no significant interval change in cardiomegaly.", {"Cardiomegaly": P}),
    ("No focal airspace opacity to suggest a pneumonia.", {"Lung Opacity": N, "Pneumonia": N}),
    ("No pneumothorax, stable cardiomegaly.", {"Pneumothorax": N, "Cardiomegaly": P}),
    ("No pneumothorax but there is a small effusion.", {"Pneumothorax": N, "Pleural Effusion": P}),
    ("No effusion, possible pneumonia.", {"Pleural Effusion": N, "Pneumonia": U}),
    ("The effusion has resolved.", {"Pleural Effusion": N}),
    ("Pleural effusion is not seen.", {"Pleural Effusion": N}),
    ("Compared to the prior study the effusion is smaller.", {"Pleural Effusion": P}),
    ("Heart size is normal.", {"Cardiomegaly": N}),
    ("The heart is not enlarged.", {"Cardiomegaly": N}),
    ("The heart size is mildly enlarged.", {"Cardiomegaly": P}),
    ("Borderline enlarged heart.", {"Cardiomegaly": P}),
    (
        "The heart size and mediastinal contours are within normal limits.",
        {"Cardiomegaly": N, "Enlarged Cardiomediastinum": N},
    ),
    ("Widened mediastinum.", {"Enlarged Cardiomediastinum": P}),
    ("No pericardial effusion.", {"Pleural Effusion": None}),
    ("Right hydropneumothorax.", {"Pneumothorax": P, "Pleural Effusion": P}),
    ("Nearly resolved right effusion.", {"Pleural Effusion": P}),
    ("Sensitivity to detect a pneumothorax is diminished.", {"Pneumothorax": U}),
    ("Removal of the left chest tube.", {"Support Devices": N}),
    ("Left PICC line tip in the SVC.", {"Support Devices": P}),
    ("Sequela of prior granulomatous infection.", {"Pneumonia": None}),
    ("Calcified granuloma in the right upper lobe.", {"Lung Lesion": P}),
    ("Old healed rib fractures.", {"Fracture": P}),
    ("Biapical pleural thickening.", {"Pleural Other": P}),
    ("Mild pulmonary vascular congestion.", {"Edema": P}),
]


@pytest.mark.parametrize(("text", "expected"), SENTENCES)
def test_sentence(text: str, expected: dict[str, float | None]) -> None:
    labels = label_report(text)
    assert {k: labels[k] for k in expected} == expected


def test_labels_come_in_order_and_unmentioned_is_blank() -> None:
    labels = label_report("Small effusion.")
    assert tuple(labels) == LABELS
    assert [k for k, v in labels.items() if v is not None] == ["Pleural Effusion"]


def test_positive_outweighs_uncertain_outweighs_negative() -> None:
    assert label_report("No effusion. Possible effusion.")["Pleural Effusion"] == U
    assert label_report("Possible effusion. No effusion. Small effusion.")["Pleural Effusion"] == P


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("The lungs are clear. No effusion.", P),
        ("Pacemaker in place. Lungs are clear.", P),  # a device is no disease
        ("Possible pneumonia.", None),
        ("Cardiomegaly.", None),
        ("", None),
        (" \n . ", None),
    ],
)
def test_no_finding(text: str, value: float | None) -> None:
    assert label_report(text)["No Finding"] == value


def test_spacing_case_and_decimals_do_not_matter() -> None:
    assert label_report("NO  FOCAL\nCONSOLIDATION") == label_report("no focal consolidation.")
    assert label_report("A 1.4 cm nodule.")["Lung Lesion"] == P


def test_agrees_with_experts_on_real_reports() -> None:
    """Reports of odd number: no phrase was tuned on them."""
    rows = check(remainder=1)
    assert set(rows) == set(FINDINGS)
    assert rows["Cardiomegaly"]["f1"] >= 0.90
    assert rows["Pleural Effusion"]["f1"] >= 0.90
    covered = [r["f1"] for r in rows.values() if r["positives"] >= 15]  # 30 in both halves together
    assert len(covered) >= 9
    assert sum(covered) / len(covered) >= 0.85


def test_mentions_say_where() -> None:
    text = normalise("Heart  size is normal.\nSmall left\npleural effusion; no pneumothorax.")
    found = {(m.label, m.value): text[m.start : m.end] for m in mentions(text)}
    assert found == {
        ("Cardiomegaly", N): "Heart size is normal",
        ("Pleural Effusion", P): "effusion",
        ("Pneumothorax", N): "pneumothorax",
    }
