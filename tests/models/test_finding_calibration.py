"""Calibration against scikit-learn's logistic regression, and the threshold against a search."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score

from amrg.data.labels import FINDINGS
from amrg.errors import UserError
from amrg.models.finding_calibration import FILE, Certainty, calibration_features
from tests.models.vision_outputs import sight_of

F = len(FINDINGS)


def features_from(logits: np.ndarray, peaks: np.ndarray) -> np.ndarray:
    """Features [N, F, 3]: ln p, −ln (1 − p) and the log peak."""
    return np.stack([-np.log1p(np.exp(-logits)), np.log1p(np.exp(logits)), peaks], axis=-1)


def studies(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Features [N, F, 3] and what is stated [N, F]: each finding has weights of its own."""
    rng = np.random.default_rng(seed)
    features = features_from(rng.normal(0, 3, (count, F)), rng.normal(-1, 1, (count, F)))
    weight, bias = rng.uniform(0.3, 2, (F, 3)), rng.normal(-1, 1, F)
    truth = rng.random((count, F)) < 1 / (1 + np.exp(-((features * weight).sum(-1) + bias)))
    return features, truth


def fit(features: np.ndarray, truth: np.ndarray) -> Certainty:
    return Certainty.fit(torch.from_numpy(features), torch.from_numpy(truth))


def probabilities(certainty: Certainty, features: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-((features * np.array(certainty.weight)).sum(-1) + np.array(certainty.bias))))


def test_calibration_is_logistic_regression() -> None:
    """Of so many studies that the prior does not count."""
    features, truth = studies(30_000)
    found = fit(features, truth)
    for k in range(F):
        expected = LogisticRegression(C=1e9, tol=1e-8).fit(features[:, k], truth[:, k])
        assert found.weight[k] == pytest.approx(expected.coef_[0], abs=1e-2)
        assert found.bias[k] == pytest.approx(expected.intercept_[0], abs=2e-2)


def test_of_few_studies_it_is_the_most_probable_one_under_the_prior() -> None:
    """The prior: stage 1's probability as it is, each number within 1 of that. The gradient of the posterior is 0.

    Where a weight is at its bound, the posterior falls from there.
    """
    features, truth = studies(12, seed=3)
    found = fit(features, truth)
    weight, bias = np.array(found.weight), np.array(found.bias)
    missing = probabilities(found, features) - truth
    slope = (missing[..., None] * features).sum(0) + weight - np.array([1.0, 1.0, 0.0])
    bound = (weight == 0) & np.array([True, True, False])
    assert np.abs(slope[~bound]).max() < 1e-3
    assert (slope[bound] > -1e-3).all()
    assert np.abs(missing.sum(0) + bias).max() < 1e-3


def test_a_surer_stage_1_never_makes_a_finding_less_probable() -> None:
    """Not even where it is wrong: of reports that state what it denies, the best it can do is to be ignored."""
    logits = np.repeat(np.linspace(-4, 4, 200)[:, None], F, axis=1)
    found = fit(features_from(logits, np.zeros_like(logits)), logits < 0)
    assert np.array(found.weight)[:, :2] == pytest.approx(0.0, abs=1e-9)


def test_without_studies_to_tell_otherwise_stage_1_is_believed() -> None:
    found = fit(np.zeros((1, F, 3)), np.ones((1, F), bool))
    assert np.array(found.weight) == pytest.approx(np.array([[1.0, 1.0, 0.0]] * F))


@pytest.mark.parametrize("seed", range(8))
def test_the_threshold_is_the_best_of_all(seed: int) -> None:
    """Of few studies, and with features that occur twice."""
    rng = np.random.default_rng(seed)
    features = features_from(rng.integers(-3, 4, (7, F)).astype(float), rng.integers(0, 2, (7, F)).astype(float))
    truth = rng.random((7, F)) < 0.2
    found = fit(features, truth)
    p = probabilities(found, features)
    best = max(f1_score(truth.ravel(), (p >= t).ravel()) for t in np.unique(p))
    assert f1_score(truth.ravel(), (p >= found.threshold).ravel()) == pytest.approx(best)
    assert 0 < found.threshold < 1
    assert np.abs(p - found.threshold).min() > 1e-9  # halfway between two, not at one: rounding decides nothing


def test_where_nothing_is_stated_nothing_is_named() -> None:
    features, _ = studies(9)
    found = fit(features, np.zeros((9, F), bool))
    assert found.threshold > 1


def test_where_all_is_stated_all_is_named() -> None:
    features, _ = studies(9)
    found = fit(features, np.ones((9, F), bool))
    assert (probabilities(found, features) >= found.threshold).all()


def test_probabilities_of_a_sight_by_hand() -> None:
    sight = sight_of({"Edema": 2.0}, {"Fracture": -1.0}, peak=0.5)
    weight = tuple((0.5 + 0.1 * k, 0.3 * k, 0.2 * k) for k in range(F))
    certainty = Certainty(weight, tuple(0.1 * k for k in range(F)), 0.5)
    found = certainty.probabilities(sight)
    assert found.shape == (2, F)
    for study, finding, logit in ((0, "Edema", 2.0), (1, "Fracture", -1.0), (1, "Edema", -9.0)):
        k = FINDINGS.index(finding)
        p = 1 / (1 + math.exp(-logit))
        z = (0.5 + 0.1 * k) * math.log(p) - 0.3 * k * math.log(1 - p) + 0.2 * k * math.log(0.5) + 0.1 * k
        assert float(found[study, k]) == pytest.approx(1 / (1 + math.exp(-z)))


def test_a_film_that_shows_nothing_has_a_finite_peak() -> None:
    features = calibration_features(sight_of({}, peak=0.0))
    assert features.isfinite().all()
    assert features.dtype == torch.float64
    assert torch.equal(features[..., 2], calibration_features(sight_of({}, peak=1e-4))[..., 2])
    assert (features[..., 2] < calibration_features(sight_of({}, peak=0.01))[..., 2]).all()


def test_saved_and_loaded(tmp_path: Path) -> None:
    found = Certainty(tuple((k / 7, k / 5, -k / 3) for k in range(F)), (0.1,) * F, 0.34)
    found.save(tmp_path / "new")
    assert Certainty.load(tmp_path / "new") == found


def test_weights_of_the_logit_from_an_older_version_give_the_same_probabilities(tmp_path: Path) -> None:
    Certainty(((0.7, 0.4),) * F, (0.1,) * F, 0.34).save(tmp_path)
    found = Certainty.load(tmp_path).probabilities(sight_of({"Edema": 2.0}, peak=0.5))
    expected = 1 / (1 + math.exp(-(0.7 * 2.0 + 0.4 * math.log(0.5) + 0.1)))
    assert float(found[0, FINDINGS.index("Edema")]) == pytest.approx(expected)


@pytest.mark.parametrize("content", [None, "{", '{"weight": [[1, 2]], "bias": [0], "threshold": 0.5}', "[]"])
def test_what_is_missing_or_damaged_is_one_clear_line(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / FILE).write_text(content)
    with pytest.raises(UserError, match="run `amrg stage2` again") as caught:
        Certainty.load(tmp_path)
    assert "\n" not in str(caught.value)


def test_weights_of_another_number_of_features_are_refused(tmp_path: Path) -> None:
    Certainty(((1.0, 2.0, 3.0, 4.0),) * F, (0.0,) * F, 0.5).save(tmp_path)
    with pytest.raises(UserError, match="run `amrg stage2` again"):
        Certainty.load(tmp_path)
