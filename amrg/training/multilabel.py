"""Multi-label targets, their loss, and what a classifier's scores are worth.

Shape legend: B batch (or N studies), K = 14 labels.
"""

import math
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from amrg.data.labels import BLANK, LABELS, UNCERTAIN
from amrg.data.studies import Study

Policy = Literal["ignore", "zeros", "ones"]
_POLICY_VALUE: dict[Policy, float] = {"ignore": float("nan"), "zeros": 0.0, "ones": 1.0}

#: The most that a positive of a rare class weighs against a negative.
MAX_POSITIVE_WEIGHT = 8.0
#: Resamples of an interval.
BOOTSTRAP_SAMPLES = 500


def multilabel_targets(studies: list[Study], uncertain: Policy, blank: Policy) -> Tensor:
    """Labels → float [N, K]: 1, 0, or NaN where the label is to be ignored.

    Args:
        studies: their labels are 1, 0, -1 (uncertain) or None (not mentioned); ``unlabelled`` ones are ignored, and all
            14 of a study without any label, of which nothing is known.
        uncertain, blank: what these two count as.
    """
    special = {UNCERTAIN: _POLICY_VALUE[uncertain], BLANK: _POLICY_VALUE[blank]}
    rows = []
    for study in studies:
        unknown = study.unlabelled if any(v is not BLANK for v in study.labels.values()) else LABELS
        values = ((name, study.labels[name]) for name in LABELS)
        rows.append([math.nan if name in unknown else special.get(value, value) for name, value in values])
    return torch.tensor(rows, dtype=torch.float32).reshape(len(studies), len(LABELS))


def class_counts(targets_NK: Tensor, weights_N: np.ndarray | None = None) -> tuple[Tensor, Tensor]:
    """Count the positives and the negatives of each class, each [K]; a study counts by its weight, if it has one."""
    weights_N1 = torch.ones(len(targets_NK), 1) if weights_N is None else torch.from_numpy(weights_N).float()[:, None]
    return (weights_N1 * (targets_NK == 1)).sum(0), (weights_N1 * (targets_NK == 0)).sum(0)


def positive_weights(positive_K: Tensor, negative_K: Tensor) -> Tensor:
    """[K]: negatives per positive of a class, from 1 to ``MAX_POSITIVE_WEIGHT``; 1 for a class without positives.

    Args:
        positive_K, negative_K: as of ``class_counts``.
    """
    ratio_K = negative_K / positive_K.where(positive_K > 0, 1.0)
    return torch.where(positive_K > 0, ratio_K.clamp(1.0, MAX_POSITIVE_WEIGHT), 1.0)


def multilabel_loss(logits_BK: Tensor, targets_BK: Tensor, positive_weight_K: Tensor) -> Tensor:
    """Binary cross-entropy, NaN targets left out.

    The sum is divided by B·K, ignored entries included, so that the mean over ranks is the loss of the global batch.
    """
    known_BK = ~targets_BK.isnan()
    loss_BK = F.binary_cross_entropy_with_logits(
        logits_BK, targets_BK.nan_to_num(), pos_weight=positive_weight_K, reduction="none"
    )
    return (loss_BK * known_BK).mean()


def binary_auroc(scores_N: np.ndarray, positive_N: np.ndarray) -> float | None:
    """Probability that a positive scores above a negative, ties counting half; None without both kinds."""
    positives = int(positive_N.sum())
    negatives = len(positive_N) - positives
    if positives == 0 or negatives == 0:
        return None
    from scipy.stats import rankdata  # imported where it is used: it takes half as long as torch's import

    ranks_N = rankdata(scores_N)
    return float((ranks_N[positive_N].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def binary_f1(predicted_N: np.ndarray, positive_N: np.ndarray) -> float:
    """2·TP / (2·TP + FP + FN); 0 where nothing is positive or predicted."""
    hits = int((predicted_N & positive_N).sum())
    total = int(predicted_N.sum() + positive_N.sum())
    return 2 * hits / total if total else 0.0


def best_threshold(scores_N: np.ndarray, positive_N: np.ndarray) -> float:
    """The score at or above which calling a film positive gives the highest F1 (the highest such score).

    Without a positive there is nothing to choose by: 1, so that no probability is called.
    """
    if not positive_N.any():
        return 1.0
    order = np.argsort(-scores_N, kind="stable")
    ordered = scores_N[order]
    hits = np.cumsum(positive_N[order])
    called = np.arange(1, len(order) + 1)
    f1_N = 2 * hits / (called + positive_N.sum())
    f1_N[:-1][ordered[:-1] == ordered[1:]] = -1.0  # equal scores are called together
    return float(ordered[int(np.argmax(f1_N))])


def class_score_table(
    scores_NK: np.ndarray, targets_NK: np.ndarray, thresholds: dict[str, float]
) -> dict[str, dict[str, float | int | None]]:
    """Per class: positives, negatives, AUROC, and F1 at the given thresholds. NaN targets are left out."""
    table: dict[str, dict[str, float | int | None]] = {}
    for k, name in enumerate(LABELS):
        known = ~np.isnan(targets_NK[:, k])
        scores, positive = scores_NK[known, k], targets_NK[known, k] == 1
        table[name] = {
            "positives": int(positive.sum()),
            "negatives": int((~positive).sum()),
            "auroc": binary_auroc(scores, positive),
            "f1": binary_f1(scores >= thresholds[name], positive) if positive.any() else None,
        }
    return table


def choose_finding_thresholds(scores_NK: np.ndarray, targets_NK: np.ndarray) -> dict[str, float]:
    """``best_threshold`` of each class; scores are probabilities."""
    return {
        name: best_threshold(scores_NK[known, k], targets_NK[known, k] == 1)
        for k, name in enumerate(LABELS)
        for known in [~np.isnan(targets_NK[:, k])]
    }


def mean_class_auroc(
    table: dict[str, dict[str, float | int | None]], labels: tuple[str, ...], least: int
) -> float | None:
    """Mean AUROC over those of ``labels`` with at least ``least`` positives (None if there are none)."""
    found = [row["auroc"] for name, row in table.items() if name in labels and (row["positives"] or 0) >= least]
    values = [value for value in found if value is not None]
    return sum(values) / len(values) if values else None


def mean_auroc_interval(
    scores_NK: np.ndarray, targets_NK: np.ndarray, labels: tuple[str, ...], least: int, seed: int
) -> tuple[float, float] | None:
    """95% interval of ``mean_class_auroc`` over resampled studies (percentile bootstrap); None without a mean.

    Args:
        scores_NK: scores; only their order in a class matters.
        targets_NK: 1, 0 or NaN.
        labels, least: as for ``mean_class_auroc``; the classes are those of the whole split.
        seed: seed of the resampling.
    """
    counted = [k for k, name in enumerate(LABELS) if name in labels and (targets_NK[:, k] == 1).sum() >= least]
    generator = np.random.default_rng(seed)
    means = []
    for _ in range(BOOTSTRAP_SAMPLES):
        rows = generator.integers(len(scores_NK), size=len(scores_NK))
        found = [
            binary_auroc(scores_NK[known, k], targets_NK[known, k] == 1)
            for k in counted
            for known in [rows[~np.isnan(targets_NK[rows, k])]]
        ]
        values = [value for value in found if value is not None]
        if values:
            means.append(sum(values) / len(values))
    if not means:
        return None
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)
