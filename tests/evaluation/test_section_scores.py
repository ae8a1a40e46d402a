"""Sections are scored apart, on the studies whose reference has them."""

import pytest

from amrg.data.labels import LABELS
from amrg.data.studies import Study
from amrg.evaluation.reports import GeneratedReport
from amrg.evaluation.section_scores import section_scores

BLANK = dict.fromkeys(LABELS)
CLEAR, LARGE, HEART = "Lungs are clear.", "Heart is enlarged.", "Cardiomegaly."


def study(number: int, split: str, findings: str, impression: str = "") -> Study:
    text = f"{findings} {impression}".strip()
    return Study(f"{split}{number}", f"{split}{number}", split, text, BLANK, impression=impression)


STUDIES = [study(0, "test", CLEAR), study(1, "test", LARGE, HEART), study(2, "test", LARGE, CLEAR)]
TRAIN = [study(0, "train", LARGE, HEART), study(1, "train", CLEAR)]


def written(number: int, findings: str, impression: str) -> GeneratedReport:
    sections = {"findings": findings, "impression": impression}
    return GeneratedReport(f"test{number}", f"{findings} {impression}".strip(), sections=sections)


def test_a_section_is_scored_where_the_reference_has_it() -> None:
    reports = [written(0, CLEAR, HEART), written(1, CLEAR, HEART), written(2, LARGE, "")]
    found = section_scores(STUDIES, reports, TRAIN, TRAIN, [1, 0, 0], 10, 0, None)
    assert {name: (one["studies"], one["written"]) for name, one in found.items()} == {
        "findings": (3, 3),
        "impression": (2, 1),
        "both": (2, 1),
    }
    of = {name: one["systems"]["model"]["clinical"]["micro_13"]["f1"] for name, one in found.items()}
    # Findings: one of two enlarged hearts, nothing invented; impression: the one heart; both: both hearts.
    assert of["findings"] == pytest.approx(2 / 3)
    assert of["impression"] == 1.0
    assert of["both"] == 1.0
    impression = found["impression"]["systems"]
    assert impression["model"]["language"]["BLEU-1"]["value"] == pytest.approx(2.718281828 ** (1 - 4 / 1), rel=1e-2)
    # The neighbour of both is the first train study, which is also the only one with an impression.
    for name in ("nearest neighbour", "best constant"):
        assert impression[name]["clinical"]["micro_13"]["f1"] == pytest.approx(2 / 3)


def test_reports_of_one_text_have_no_sections() -> None:
    reports = [GeneratedReport(s.key, s.report) for s in STUDIES]
    assert section_scores(STUDIES, reports, TRAIN, TRAIN, [0, 0, 0], 10, 0, None) == {}


def test_a_section_that_no_reference_has_is_not_scored() -> None:
    found = section_scores(STUDIES[:1], [written(0, CLEAR, "")], TRAIN, TRAIN, [0], 10, 0, None)
    assert found["impression"] == {"studies": 0, "patients": 0, "written": 0, "systems": {}}
    assert found["findings"]["studies"] == 1
