"""The probe finds a shortcut that is there and none that is not."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from amrg.evaluation.brightness_probe import brightness_probe, brightness_statistics


@pytest.fixture(scope="module")
def films() -> tuple[np.ndarray, np.ndarray]:
    """Films [400, 16, 16] and labels [400, 2]: the first label brightens the film, the second swaps its halves."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, (400, 2)).astype(float)
    images = rng.normal(100, 20, (400, 16, 16)) + 12 * labels[:, :1, None]
    images[:, :8] += 30 * np.where(labels[:, 1] == 1, 1, 0)[:, None, None]
    images[:, 8:] += 30 * np.where(labels[:, 1] == 0, 1, 0)[:, None, None]
    return images, labels


def test_shortcut_is_found_and_layout_ignored(films: tuple[np.ndarray, np.ndarray]) -> None:
    images, labels = films
    scores = brightness_probe(images[:250], labels[:250], images[250:], labels[250:], ("bright", "moved"))
    assert scores["bright"] > 0.95
    assert 0.35 < scores["moved"] < 0.65


def test_agrees_with_sklearn(films: tuple[np.ndarray, np.ndarray]) -> None:
    images, labels = films
    noisy = images + np.random.default_rng(1).normal(0, 15, (400, 1, 1))
    ours = brightness_probe(noisy[:250], labels[:250], noisy[250:], labels[250:], ("bright", "moved"), l2=1e-2)
    x = brightness_statistics(noisy)
    x = (x - x[:250].mean(0)) / (x[:250].std(0) + 1e-9)
    for index, name in enumerate(("bright", "moved")):
        model = LogisticRegression(C=1 / (2 * 1e-2 * 250), class_weight="balanced", max_iter=5000, tol=1e-8)
        model.fit(x[:250], labels[:250, index])
        theirs = roc_auc_score(labels[250:, index], model.decision_function(x[250:]))
        assert ours[name] == pytest.approx(theirs, abs=0.01)


def test_unknown_and_single_valued_labels_are_left_out(films: tuple[np.ndarray, np.ndarray]) -> None:
    images, labels = films
    changed = labels.copy()
    changed[:, 1] = 1.0
    changed[::7, 0] = -1.0
    changed[1::7, 0] = np.nan
    scores = brightness_probe(images[:250], changed[:250], images[250:], changed[250:], ("bright", "moved"))
    assert list(scores) == ["bright"]
    assert scores["bright"] > 0.95
