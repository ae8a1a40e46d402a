"""Confidence of stated findings: values by hand, and the control against draws."""

import numpy as np
import pytest

from amrg.evaluation.confidence import StatedFindings, selective_risks
from amrg.evaluation.reports import GeneratedReport, Sentence
from amrg.evaluation.statistics import bootstrap_counts

HEART, EFFUSION, EDEMA = "Cardiomegaly", "Pleural Effusion", "Edema"


def report(*sentences):
    """Of sentences given as {finding: probability}; {} is of normal anatomy."""
    return GeneratedReport(
        "", "", sentences=tuple(Sentence("", tuple(p) or ("No Finding",), 0, probabilities=p) for p in sentences)
    )


def stated(probability, right, study=None):
    study = range(len(right)) if study is None else study
    return StatedFindings(np.array(probability, float), np.array(right, bool), np.array(study, np.int64))


def summary(found, studies, samples=200):
    return found.summary(bootstrap_counts([f"p{i}" for i in range(studies)], samples, 0), 0)


def test_each_stated_finding_counts_once_and_sentences_of_normal_anatomy_do_not():
    """The effusion is stated twice: with the less probable heart, and alone."""
    reports = [report({HEART: 0.4, EFFUSION: 0.9}, {EFFUSION: 0.9}, {}), report(), report({EDEMA: 0.7})]
    references = ["Small effusion. Heart size is normal.", "Cardiomegaly.", "Possible edema."]
    found = StatedFindings.of(reports, references)
    assert found.probability_N.tolist() == [0.4, 0.9, 0.7]
    assert found.right_N.tolist() == [False, True, False]  # possible is not stated
    assert found.study_N.tolist() == [0, 0, 2]
    assert summary(StatedFindings.of([report()], ["Cardiomegaly."]), 1) is None


def test_expected_calibration_error_by_hand():
    """Bins 0.3–0.4: mean 0.35, half right; 0.8–0.9: 0.85, none right; 0.9–1: 0.95 and 1, both right."""
    found = summary(stated([0.32, 0.38, 0.85, 0.9, 1.0], [1, 0, 0, 1, 1]), 5)
    assert found["ece"]["value"] == pytest.approx((2 * abs(0.35 - 0.5) + 0.85 + 2 * abs(0.95 - 1.0)) / 5)
    assert [(one["from"], one["to"], one["findings"]) for one in found["bins"]] == [
        (0.3, 0.4, 2), (0.8, 0.9, 1), (0.9, 1.0, 2)
    ]  # fmt: skip
    assert [one["right"] for one in found["bins"]] == [0.5, 0.0, 1.0]
    assert [one["probability"] for one in found["bins"]] == pytest.approx([0.35, 0.85, 0.95])
    assert (found["findings"], found["right"]["value"], found["probability"]) == (5, 0.6, pytest.approx(0.69))


def test_risk_and_coverage_by_hand():
    """In order of probability right, wrong, right, wrong: 0/1, 1/2, 1/3, 2/4."""
    found = summary(stated([0.6, 0.9, 0.7, 0.8], [0, 1, 1, 0]), 4)
    assert found["aurc"]["value"] == pytest.approx((0 + 1 / 2 + 1 / 3 + 1 / 2) / 4)
    assert found["risk_coverage"] == [
        {"coverage": 0.25, "probability": 0.9, "wrong": 0.0},
        {"coverage": 0.5, "probability": 0.8, "wrong": 0.5},
        {"coverage": 0.75, "probability": 0.7, "wrong": pytest.approx(1 / 3)},
        {"coverage": 1.0, "probability": 0.6, "wrong": 0.5},
    ]


def test_findings_of_equal_probability_have_no_order():
    """The mean over the three orders of one wrong among three: 1/3 of each place."""
    assert selective_risks(np.array([0.5, 0.5, 0.9, 0.5]), np.array([0, 1, 0, 0])) == pytest.approx(
        [0, (1 / 3) / 2, (2 / 3) / 3, 1 / 4]
    )
    weighted = selective_risks(np.array([0.9, 0.5, 0.1]), np.array([0, 1, 1]), np.array([2, 0, 1]))
    assert weighted == pytest.approx([0, 0, 1 / 3])


def test_a_curve_of_many_findings_has_twenty_points():
    rng = np.random.default_rng(0)
    curve = summary(stated(rng.random(333), rng.random(333) < 0.5), 333)["risk_coverage"]
    assert [one["coverage"] for one in curve] == [np.ceil(333 * i / 20) / 333 for i in range(1, 21)]


def test_calibrated_probabilities_are_within_chance_and_others_are_not():
    """Also: what calibrated probabilities show by chance is what other draws from them show."""
    rng = np.random.default_rng(1)
    p = rng.uniform(0.3, 1.0, 300)
    good, bad = (summary(stated(p, rng.random(300) < q), 300) for q in (p, p**3))
    low, high = good["calibrated"]["interval"]
    assert low < good["ece"]["value"] < high
    assert bad["ece"]["value"] > high
    drawn = [summary(stated(p, rng.random(300) < p), 300, 2)["ece"]["value"] for _ in range(200)]
    assert good["calibrated"]["value"] == pytest.approx(np.mean(drawn), abs=0.005)


def test_intervals_are_by_study():
    """Two studies: of one all is right, of the other nothing; a resample has both, or one of them twice."""
    found = summary(stated([0.5] * 4, [1, 1, 0, 0], [0, 0, 1, 1]), 2)
    assert found["right"]["interval"] == [0.0, 1.0]
    assert found["ece"]["value"] == 0.0
    assert found["ece"]["interval"] == [0.0, 0.5]
    assert found["aurc"]["interval"] == [0.0, 1.0]


def test_a_resample_without_any_stated_finding_does_not_count():
    found = summary(stated([0.8], [1], [0]), 2)
    assert found["ece"]["interval"] == pytest.approx([0.2, 0.2])
    assert found["aurc"]["interval"] == [0.0, 0.0]
