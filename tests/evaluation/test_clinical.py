"""Clinical scores against scikit-learn, statistics against their definitions."""

import numpy as np
import pytest
from sklearn.metrics import precision_recall_fscore_support

from amrg.data.labels import FINDINGS, LABELS
from amrg.evaluation.clinical import CHEXPERT_5, ClinicalScores, binarize_labels, label_matrix_of_texts
from amrg.evaluation.statistics import bootstrap_counts, contingency_table, percentile_interval


@pytest.fixture
def matrices() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    truth, said = rng.random((37, 14)) < 0.3, rng.random((37, 14)) < 0.3
    truth[:, 3] = False  # a finding that no reference states
    truth[0] = said[0] = False
    return truth, said


def test_averages_equal_scikit_learn(matrices: tuple[np.ndarray, np.ndarray]) -> None:
    truth, said = matrices
    scores = ClinicalScores.from_labels(truth, said)
    columns = [LABELS.index(f) for f in FINDINGS]
    expected = precision_recall_fscore_support(truth[:, columns], said[:, columns], average="micro")[:3]
    assert scores.micro(FINDINGS)[0] == pytest.approx(expected)
    expected = precision_recall_fscore_support(truth, said, average=None, zero_division=0)[:3]
    assert scores.per_label()[0] == pytest.approx(np.stack(expected, 1))
    five = [LABELS.index(f) for f in CHEXPERT_5]
    assert scores.macro(CHEXPERT_5)[0] == pytest.approx(scores.per_label()[0, five].mean(0))
    present = [i for i in columns if truth[:, i].any()]
    assert len(present) == 12
    assert scores.macro(FINDINGS)[0] == pytest.approx(scores.per_label()[0, present].mean(0))


def test_example_based(matrices: tuple[np.ndarray, np.ndarray]) -> None:
    truth, said = matrices
    p, r, f, _ = precision_recall_fscore_support(truth, said, average="samples", zero_division=0)
    both_silent = (~truth & ~said).all(1).mean()  # scikit-learn gives 0 there, agreement on nothing is 1 here
    assert ClinicalScores.from_labels(truth, said).example_based(LABELS)[0] == pytest.approx(
        np.array([p, r, f]) + both_silent
    )


def test_weights_repeat_studies(matrices: tuple[np.ndarray, np.ndarray]) -> None:
    truth, said = matrices
    times = np.random.default_rng(1).integers(1, 4, len(truth))
    repeated = ClinicalScores.from_labels(np.repeat(truth, times, 0), np.repeat(said, times, 0))
    scores = ClinicalScores.from_labels(truth, said)
    assert set(scores.averages()) == {f"{k}_{n}" for k in ("micro", "macro", "example") for n in (13, 14, 5)}
    for name, values in scores.averages(times[None]).items():
        assert values == pytest.approx(repeated.averages()[name]), name
    assert scores.per_label(times[None]) == pytest.approx(repeated.per_label())


def test_policies_for_blank_and_uncertain() -> None:
    matrix = label_matrix_of_texts(["Small effusion. Possible pneumonia. No pneumothorax.", ""])
    effusion, pneumonia, pneumothorax = (LABELS.index(n) for n in ("Pleural Effusion", "Pneumonia", "Pneumothorax"))
    assert binarize_labels(matrix)[0].nonzero()[0].tolist() == [effusion]
    assert set(binarize_labels(matrix, "present")[0].nonzero()[0]) == {effusion, pneumonia}
    assert matrix[0, pneumothorax] == 0
    assert np.isnan(matrix[1]).all()
    assert not binarize_labels(matrix)[1].any()
    assert label_matrix_of_texts([]).shape == (0, 14)


def test_resample_keeps_patients_together() -> None:
    groups = ["a", "b", "a", "c"]
    weights = bootstrap_counts(groups, 200, seed=3)
    assert weights.shape == (200, 4)
    assert (weights[:, 0] == weights[:, 2]).all()
    assert (weights[:, [0, 1, 3]].sum(1) == 3).all()
    assert (weights == bootstrap_counts(groups, 200, seed=3)).all()


def test_interval_of_a_mean_matches_its_standard_error() -> None:
    values = np.random.default_rng(0).normal(size=400)
    weights = bootstrap_counts([str(i) for i in range(400)], 4000, seed=0)
    low, high = percentile_interval(weights @ values / 400)
    assert high - low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.05)
    assert np.isnan(percentile_interval(np.array([np.nan]))).all()


def test_two_by_two() -> None:
    present = np.array([True] * 10 + [False] * 20)
    mentioned = np.array([True] * 8 + [False] * 2 + [True] * 1 + [False] * 19)
    table = contingency_table(present, mentioned)
    assert table["odds_ratio"] == pytest.approx(8.5 * 19.5 / (2.5 * 1.5))
    assert table["interval"][0] < table["odds_ratio"] < table["interval"][1]
    assert table["p"] < 0.001


@pytest.mark.parametrize("cells", [(0, 3, 2, 4), (3, 0, 2, 4), (3, 2, 0, 4), (3, 2, 4, 0), (0, 5, 0, 4), (0, 0, 0, 4)])
def test_a_table_with_an_empty_cell_has_no_odds_ratio(cells: tuple[int, int, int, int]) -> None:
    """Without the halves it would be 0, infinite or 0/0. Fisher's test is exact all the same."""
    a, b, c, d = cells
    present = np.array([True] * (a + b) + [False] * (c + d))
    mentioned = np.array([True] * a + [False] * b + [True] * c + [False] * d)
    table = contingency_table(present, mentioned)
    assert (table["odds_ratio"], table["interval"]) == (None, None)
    assert 0 < table["p"] <= 1
