import math
from itertools import product

import numpy as np
import pytest
import torch

from amrg.data.labels import FINDINGS, LABELS
from amrg.data.studies import Study
from amrg.training.augment import augment_films
from amrg.training.feature_cache import FeatureCache
from amrg.training.multilabel import (
    MAX_POSITIVE_WEIGHT,
    best_threshold,
    binary_auroc,
    binary_f1,
    choose_finding_thresholds,
    class_counts,
    class_score_table,
    mean_auroc_interval,
    mean_class_auroc,
    multilabel_loss,
    multilabel_targets,
    positive_weights,
)


def study(**values):
    labels = dict.fromkeys(LABELS) | {name.replace("_", " "): value for name, value in values.items()}
    return Study("key", "group", "train", "Report.", labels)


@pytest.mark.parametrize(("uncertain", "blank"), product(("ignore", "zeros", "ones"), repeat=2))
def test_policies(uncertain, blank):
    value = {"ignore": math.nan, "zeros": 0.0, "ones": 1.0}
    row = multilabel_targets([study(Edema=1.0, Fracture=0.0, Pneumonia=-1.0)], uncertain, blank)[0]
    expected = [value[blank]] * 14
    expected[LABELS.index("Edema")], expected[LABELS.index("Fracture")] = 1.0, 0.0
    expected[LABELS.index("Pneumonia")] = value[uncertain]
    np.testing.assert_array_equal(row.numpy(), np.array(expected, np.float32))


def test_loss_by_hand_and_ignored_labels_get_no_gradient():
    logits = torch.tensor([[0.3, -1.2], [2.0, 0.7]], requires_grad=True)
    truth = torch.tensor([[1.0, math.nan], [0.0, 1.0]])
    loss = multilabel_loss(logits, truth, torch.tensor([3.0, 2.0]))

    def sigmoid(x):
        return 1 / (1 + math.exp(-x))

    expected = (-3 * math.log(sigmoid(0.3)) - math.log(1 - sigmoid(2.0)) - 2 * math.log(sigmoid(0.7))) / 4
    assert float(loss) == pytest.approx(expected, rel=1e-6)
    loss.backward()
    assert logits.grad[0, 1] == 0
    assert logits.grad[0, 0] == pytest.approx(-3 * (1 - sigmoid(0.3)) / 4, rel=1e-5)


def test_loss_of_the_ranks_averages_to_the_global_loss():
    generator = torch.Generator().manual_seed(0)
    logits, truth = torch.randn(8, 14, generator=generator), (torch.rand(8, 14, generator=generator) > 0.5).float()
    truth[0, :9] = math.nan
    weight = positive_weights(*class_counts(truth))
    halves = [multilabel_loss(logits[i::2], truth[i::2], weight) for i in range(2)]
    torch.testing.assert_close(sum(halves) / 2, multilabel_loss(logits, truth, weight))


def test_positive_weights():
    truth = torch.zeros(100, 14)
    truth[:20, 0] = truth[:80, 1] = truth[:1, 2] = 1
    truth[50:, 0] = math.nan
    weights = positive_weights(*class_counts(truth))
    assert weights[:4].tolist() == [1.5, 1.0, MAX_POSITIVE_WEIGHT, 1.0]


def test_studies_count_in_the_classes_as_often_as_they_are_seen():
    """Of a hundred studies with 25 positives the first fifty, all negative, are seen half as often, or twice."""
    truth = torch.zeros(100, 14)
    truth[50:75, 0] = 1
    for weight, expected in ((0.5, 2.0), (1.0, 3.0), (2.0, 5.0)):
        counts = class_counts(truth, np.repeat([weight, 1.0], 50))
        assert (float(counts[0][0]), float(counts[1][0])) == (25, 25 + 50 * weight)
        assert float(positive_weights(*counts)[0]) == expected
    assert float(positive_weights(*class_counts(truth))[0]) == 3.0


@pytest.mark.parametrize("seed", range(5))
def test_auroc_counts_pairs(seed):
    generator = np.random.default_rng(seed)
    scores, positive = generator.integers(0, 6, 31) / 5, generator.random(31) < 0.3
    positive[:2] = True, False
    pairs = [(p > n) + (p == n) / 2 for p in scores[positive] for n in scores[~positive]]
    assert binary_auroc(scores, positive) == pytest.approx(np.mean(pairs))
    assert binary_auroc(scores, np.zeros(31, bool)) is None
    assert binary_auroc(scores, np.ones(31, bool)) is None


@pytest.mark.parametrize("seed", range(5))
def test_best_threshold_beats_every_other(seed):
    generator = np.random.default_rng(seed)
    scores, positive = generator.integers(0, 9, 40) / 8, generator.random(40) < 0.3
    positive[0] = True
    found = best_threshold(scores, positive)
    assert found in scores
    assert binary_f1(scores >= found, positive) == max(binary_f1(scores >= t, positive) for t in scores)
    assert best_threshold(scores, np.zeros(40, bool)) == 1.0


def test_f1_by_hand():
    predicted, positive = np.array([1, 1, 0, 0, 1], bool), np.array([1, 0, 1, 0, 1], bool)
    assert binary_f1(predicted, positive) == pytest.approx(2 / 3)
    assert binary_f1(~positive & False, positive & False) == 0.0


def test_table_leaves_out_unknown_targets():
    truth, scores = np.full((6, 14), np.nan), np.zeros((6, 14))
    truth[:4, 4], scores[:, 4] = [1, 1, 0, 0], [0.9, 0.4, 0.5, 0.1, 1.0, 0.0]
    thresholds = choose_finding_thresholds(scores, truth)
    table = class_score_table(scores, truth, thresholds)
    assert table["Edema"] == {"positives": 2, "negatives": 2, "auroc": 0.75, "f1": pytest.approx(0.8)}
    assert table["Fracture"] == {"positives": 0, "negatives": 0, "auroc": None, "f1": None}
    assert mean_class_auroc(table, LABELS, 2) == 0.75
    assert mean_class_auroc(table, LABELS, 3) is None


def test_augmentation_moves_but_never_mirrors():
    films = torch.zeros(16, 1, 64, 64)
    films[:, :, 28:36, 8:16] = 1.0  # a blob far on the left
    changed = augment_films(films.expand(-1, 3, -1, -1), torch.Generator().manual_seed(0))
    assert changed.shape == (16, 3, 64, 64)
    assert changed.min() >= 0
    assert changed.max() <= 1
    bright = changed[:, 0] - changed[:, 0].mean(dim=(1, 2), keepdim=True)
    column = (bright.clamp(min=0.2).sum(1) * torch.arange(64)).sum(1) / bright.clamp(min=0.2).sum(1).sum(1)
    assert (column < 32).all()
    assert len({round(float(c), 3) for c in column}) == 16
    assert torch.equal(changed, augment_films(films.expand(-1, 3, -1, -1), torch.Generator().manual_seed(0)))


def test_a_cache_that_was_interrupted_goes_on(tmp_path):
    rows = torch.randn(7, 2, 3, generator=torch.Generator().manual_seed(0)).bfloat16()

    def until(stop):
        yield rows[:3]
        if stop:
            raise KeyboardInterrupt
        yield rows[3:]

    with pytest.raises(KeyboardInterrupt):
        FeatureCache(tmp_path / "a" / "rows.bin", 7, (2, 3)).fill(until(True))
    again = FeatureCache(tmp_path / "a" / "rows.bin", 7, (2, 3))
    assert again.done == 3
    again.fill([rows[3:]])
    opened = FeatureCache(tmp_path / "a" / "rows.bin", 7, (2, 3))
    assert torch.equal(opened[:], rows)
    assert torch.equal(opened[torch.tensor([6, 0])], rows[[6, 0]])


def test_the_interval_of_a_classifier_that_guesses_includes_one_half_and_is_as_wide_as_theory_says() -> None:
    """Of 13 independent findings; one AUROC has the variance (P + Q + 1) / (12 P Q) under the null hypothesis."""
    generator = np.random.default_rng(0)
    scores, truth = generator.random((400, len(LABELS))), (generator.random((400, len(LABELS))) < 0.25).astype(float)
    low, high = mean_auroc_interval(scores, truth, FINDINGS, 10, seed=0)
    assert low < 0.5 < high
    counts = [(truth[:, k].sum(), 400 - truth[:, k].sum()) for k in range(len(FINDINGS))]
    deviation = sum((p + q + 1) / (12 * p * q) for p, q in counts) ** 0.5 / len(counts)
    assert high - low == pytest.approx(2 * 1.96 * deviation, rel=0.2)


def test_the_interval_of_a_perfect_classifier_is_one_and_unknown_targets_are_left_out() -> None:
    truth = np.tile(np.arange(60)[:, None] % 3 == 0, (1, len(LABELS))).astype(float)
    scores = truth.copy()
    truth[5], scores[5] = np.nan, 9.0  # a negative with the highest score, were it known
    assert mean_auroc_interval(scores, truth, FINDINGS, 10, seed=0) == (1.0, 1.0)
    assert mean_auroc_interval(scores, truth, FINDINGS, 21, seed=0) is None
