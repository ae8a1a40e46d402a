"""The report labeler: sentences with a known reading, and the experts' MeSH annotations of real reports."""

import sys
from collections import Counter

import pytest

from amrg.data.labels import FINDINGS, LABELS
from amrg.data.text.labeler import find_mentions, label_report, normalize_report
from benchmarks.labeler import VALUES, against_mesh, against_radlabels, rates

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
    ("No enlargement of the cardiac silhouette.", {"Cardiomegaly": N}),
    ("No significant enlargement of the right effusion.", {"Pleural Effusion": P}),
    ("Interval increase in heart size.", {"Cardiomegaly": P}),
    ("Heart size is upper limits of normal to mildly enlarged.", {"Cardiomegaly": P}),
    ("The heart is normal in size and the aorta is dilated.", {"Cardiomegaly": N}),
    ("The heart size is normal, the mediastinum is widened.", {"Cardiomegaly": N, "Enlarged Cardiomediastinum": P}),
    ("There is neither effusion nor pneumothorax.", {"Pleural Effusion": N, "Pneumothorax": N}),
    ("Neither pleural effusion nor pneumothorax is seen.", {"Pleural Effusion": N, "Pneumothorax": N}),
    ("Pleural effusion and pneumothorax are absent.", {"Pleural Effusion": N, "Pneumothorax": N}),
    (
        "Consolidation, effusion, and pneumothorax are not seen.",
        {"Consolidation": N, "Pleural Effusion": N, "Pneumothorax": N},
    ),
    (
        "No evidence of pneumonia, edema, effusion or pneumothorax.",
        {"Pneumonia": N, "Edema": N, "Pleural Effusion": N, "Pneumothorax": N},
    ),
    (
        "No pneumothorax, pleural effusion, or consolidation is identified.",
        {"Pneumothorax": N, "Pleural Effusion": N, "Consolidation": N},
    ),
    (
        "Lungs are clear without consolidation, effusion or edema.",
        {"Consolidation": N, "Pleural Effusion": N, "Edema": N, "Lung Opacity": N},
    ),
    ("Cannot exclude underlying pneumonia or small effusion.", {"Pneumonia": U, "Pleural Effusion": U}),
    ("A small effusion cannot be entirely excluded.", {"Pleural Effusion": U}),
    ("A small pneumothorax is difficult to exclude.", {"Pneumothorax": U}),
    ("Superimposed infection is not excluded.", {"Pneumonia": U}),
    ("Pneumonia should be considered in the appropriate clinical setting.", {"Pneumonia": U}),
    ("Opacity compatible with pneumonia in the appropriate clinical setting.", {"Pneumonia": U, "Lung Opacity": P}),
    ("In the appropriate clinical setting this could represent pneumonia.", {"Pneumonia": U}),
    ("In the right clinical context, findings are compatible with pneumonia.", {"Pneumonia": U}),
    ("Opacity likely represents atelectasis.", {"Lung Opacity": P, "Atelectasis": P}),
    ("Opacity most likely atelectasis, less likely pneumonia.", {"Atelectasis": P, "Pneumonia": U}),
    ("Pneumonia is less likely.", {"Pneumonia": U}),
    ("Pneumonia is unlikely.", {"Pneumonia": N}),
    ("This is unlikely to represent pneumonia.", {"Pneumonia": N}),
    ("Opacity, favor atelectasis over pneumonia.", {"Lung Opacity": P, "Atelectasis": U, "Pneumonia": U}),
    ("Findings are suspicious for metastasis.", {"Lung Lesion": U}),
    ("Bibasilar opacities, which may represent atelectasis.", {"Lung Opacity": P, "Atelectasis": U}),
    ("Opacity representing either atelectasis or pneumonia.", {"Lung Opacity": P, "Atelectasis": U, "Pneumonia": U}),
    ("No change in cardiomegaly or the left effusion.", {"Cardiomegaly": P, "Pleural Effusion": P}),
    ("Unchanged cardiomegaly without edema.", {"Cardiomegaly": P, "Edema": N}),
    ("No appreciable change in right pneumothorax.", {"Pneumothorax": P}),
    ("Without change in the bibasilar atelectasis.", {"Atelectasis": P}),
    ("The effusion has not changed.", {"Pleural Effusion": P}),
    ("The effusions are not significantly changed.", {"Pleural Effusion": P}),
    ("Compared to prior, no new consolidation.", {"Consolidation": N}),
    ("The left effusion has decreased and the pneumothorax has resolved.", {"Pleural Effusion": P, "Pneumothorax": N}),
    ("Interval resolution of the right pneumothorax.", {"Pneumothorax": N}),
    ("Interval clearing of edema with persistent effusions.", {"Edema": N, "Pleural Effusion": P}),
    ("Previously seen effusion is no longer visualized.", {"Pleural Effusion": N}),
    ("Resolving right lower lobe pneumonia.", {"Pneumonia": P}),
    ("History of pneumonia.", {"Pneumonia": None}),
    ("Status post removal of the left chest tube, no pneumothorax.", {"Support Devices": N, "Pneumothorax": N}),
    ("Interval placement of a right PICC line.", {"Support Devices": P}),
    ("The endotracheal tube has been removed.", {"Support Devices": N}),
    ("No pneumothorax after removal of the chest tube.", {"Pneumothorax": N}),
    (
        "No focal consolidation, no definite pleural effusion seen, dense nodule in the left lung.",
        {"Consolidation": N, "Pleural Effusion": N, "Lung Lesion": P},
    ),
    ("No acute infiltrate, left effusion is unchanged.", {"Lung Opacity": N, "Pleural Effusion": P}),
    ("No consolidation, though there is a small effusion.", {"Consolidation": N, "Pleural Effusion": P}),
    ("No pneumothorax is seen, and a small left effusion persists.", {"Pneumothorax": N, "Pleural Effusion": P}),
    ("Not only effusion but also pneumothorax is present.", {"Pleural Effusion": P, "Pneumothorax": P}),
    ("No pleural effusion other than a small left one.", {"Pleural Effusion": N}),
    ("There is no effusion apart from minimal atelectasis.", {"Pleural Effusion": N, "Atelectasis": P}),
    ("No pneumothorax with small effusion remaining.", {"Pneumothorax": N, "Pleural Effusion": P}),
    ("Pleural effusions are small without pneumothorax.", {"Pleural Effusion": P, "Pneumothorax": N}),
    ("Evaluate for pneumothorax.", {"Pneumothorax": U}),
    ("Rule out pneumonia.", {"Pneumonia": U}),
    ("No displaced rib fractures.", {"Fracture": N}),
    ("No acute fracture; old rib fractures on the left.", {"Fracture": P}),
    ("Bones are intact.", {"Fracture": N}),
    ("The pleural spaces are clear.", {"Pleural Effusion": N}),
    (
        "Free of focal consolidation, effusions or pneumothorax.",
        {"Consolidation": N, "Pleural Effusion": N, "Pneumothorax": N},
    ),
    ("Hydropneumothorax is not present.", {"Pneumothorax": N, "Pleural Effusion": N}),
    ("No suspicious pulmonary nodules or masses.", {"Lung Lesion": N}),
    ("Heart is top normal in size.", {"Cardiomegaly": N}),
    ("Mild-to-moderate cardiomegaly.", {"Cardiomegaly": P}),
    ("Question small left effusion.", {"Pleural Effusion": U}),
    ("Possible trace effusion, stable cardiomegaly.", {"Pleural Effusion": U, "Cardiomegaly": P}),
    ("Trace left effusion and probable atelectasis.", {"Pleural Effusion": P, "Atelectasis": P}),
    ("Low lung volumes may accentuate the heart size.", {"Cardiomegaly": None}),
    (
        "Opacity may be due to overlying soft tissue, and there is a small effusion.",
        {"Lung Opacity": P, "Pleural Effusion": P},
    ),
    ("There may be a small effusion, but no pneumothorax.", {"Pleural Effusion": U, "Pneumothorax": N}),
    ("Atelectasis rather than pneumonia.", {"Atelectasis": P, "Pneumonia": N}),
    ("Opacity thought to be atelectasis.", {"Atelectasis": P}),
    ("Not convincing for pneumonia.", {"Pneumonia": N}),
    ("Without definite consolidation.", {"Consolidation": N}),
    ("No large effusion.", {"Pleural Effusion": N}),
    ("Right paratracheal fullness.", {"Enlarged Cardiomediastinum": P}),
    ("Small amount of pleural air on the left.", {"Pneumothorax": P}),
    ("Nodular left lower lobe opacity.", {"Lung Lesion": P}),
    ("Irregular density in the left lower lung.", {"Lung Opacity": P}),
    ("No effusions and no CHF.", {"Pleural Effusion": N, "Edema": N}),
    ("Decreased now small right pneumothorax.", {"Pneumothorax": P}),
    ("No evidence for active or acute cardiopulmonary disease.", {"No Finding": P}),
    ("Chest tube in place with no residual pneumothorax.", {"Support Devices": P, "Pneumothorax": N}),
    ("The lungs are clear except for left basilar atelectasis.", {"Atelectasis": P}),
    (
        "There is no pneumothorax or effusion, and the heart is enlarged.",
        {"Pneumothorax": N, "Pleural Effusion": N, "Cardiomegaly": P},
    ),
    ("Pneumothorax not seen, effusion small.", {"Pneumothorax": N, "Pleural Effusion": P}),
    ("The presence of a small effusion cannot be ruled out.", {"Pleural Effusion": U}),
    ("There is a suggestion of a small pneumothorax.", {"Pneumothorax": U}),
    ("Findings concerning for developing pneumonia.", {"Pneumonia": U}),
    ("Doubtful small left effusion.", {"Pleural Effusion": U}),
    ("No CHF.", {"Edema": N}),
    ("Left base atelectasis/infiltrate.", {"Atelectasis": P, "Lung Opacity": P}),
    ("Pneumonia unlikely, small effusion.", {"Pneumonia": N, "Pleural Effusion": P}),
    ("Monitoring and support devices are unchanged.", {"Support Devices": P}),
    ("Left shoulder prosthesis.", {"Support Devices": None}),
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
    found = against_mesh(remainder=1)
    assert set(found) == set(FINDINGS)
    assert len({sum(counts.values()) for counts in found.values()}) == 1
    rows = {label: rates(counts) for label, counts in found.items()}
    assert rows["Cardiomegaly"]["f1"] >= 0.90
    assert rows["Pleural Effusion"]["f1"] >= 0.90
    covered = [r["f1"] for r in rows.values() if r["reports"] >= 15]  # 30 in both halves together
    assert len(covered) >= 9
    assert sum(covered) / len(covered) >= 0.90


@pytest.mark.skipif(sys.version_info >= (3, 13), reason="the radlabels wheel is for Python up to 3.12")
def test_agrees_with_another_program_where_its_reading_is_ours() -> None:
    found = against_radlabels()
    assert set(found) == set(FINDINGS)
    assert {sum(counts.values()) for counts in found.values()} == {400}
    for label in ("Cardiomegaly", "Consolidation", "Fracture", "Support Devices"):
        assert rates(found[label])["f1"] >= 0.9, label
    assert rates(found["Pneumothorax"], "negative")["f1"] >= 0.95
    assert all(rates(found[label], "blank")["f1"] > 0.84 for label in FINDINGS)


def test_rates_by_hand() -> None:
    counts = Counter({("positive", "positive"): 3, ("positive", "blank"): 1, ("blank", "positive"): 2})
    assert rates(counts) == {"reports": 4, "precision": 0.6, "recall": 0.75, "f1": pytest.approx(2 / 3)}
    assert rates(counts, "uncertain") == {"reports": 0, "precision": 0, "recall": 0, "f1": 0}
    assert set(VALUES) == {"positive", "uncertain", "negative", "blank"}


def test_mentions_say_where() -> None:
    text = normalize_report("Heart  size is normal.\nSmall left\npleural effusion; no pneumothorax.")
    found = {(m.label, m.value): text[m.start : m.end] for m in find_mentions(text)}
    assert found == {
        ("Cardiomegaly", N): "Heart size is normal",
        ("Pleural Effusion", P): "effusion",
        ("Pneumothorax", N): "pneumothorax",
    }
