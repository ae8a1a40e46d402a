"""Test for shortcuts: how well a film's overall brightness alone predicts each label."""

import numpy as np
from scipy import stats

from amrg.data.projection import fit_balanced_logistic
from amrg.training.multilabel import binary_auroc

_PERCENTILES = (1, 5, 10, 25, 50, 75, 90, 95, 99)


def brightness_statistics(images: np.ndarray) -> np.ndarray:
    """Return mean, standard deviation, skewness and percentiles of each film.

    Args:
        images: [N, H, W], any number type.

    Returns:
        float64 [N, 12], independent of the position of any pixel.
    """
    flat = np.asarray(images, np.float64).reshape(len(images), -1)
    percentiles = np.percentile(flat, _PERCENTILES, axis=1).T
    return np.column_stack([flat.mean(1), flat.std(1), stats.skew(flat, axis=1), percentiles])


def brightness_probe(
    train_images: np.ndarray,
    train_labels: np.ndarray,
    test_images: np.ndarray,
    test_labels: np.ndarray,
    names: tuple[str, ...],
    l2: float = 1e-2,
) -> dict[str, float]:
    """Return the AUROC of a logistic regression from brightness statistics to each label.

    Args:
        train_images, test_images: films of different studies, [N, H, W].
        train_labels, test_labels: [N, K], 1 positive, 0 negative; other values are ignored.
        names: names of the K labels.
        l2: weight of the squared coefficients of standardised statistics, relative to the mean loss.

    Returns:
        AUROC on the test films by label, for labels with both values in both sets. 0.5 means no shortcut.
    """
    train, test = brightness_statistics(train_images), brightness_statistics(test_images)
    center, scale = train.mean(0), train.std(0) + 1e-9
    train, test = (train - center) / scale, (test - center) / scale
    scores = {}
    for index, name in enumerate(names):
        known_train, known_test = (np.isin(labels[:, index], (0, 1)) for labels in (train_labels, test_labels))
        y, truth = train_labels[known_train, index], test_labels[known_test, index]
        if 0 < y.sum() < len(y):
            weights = fit_balanced_logistic(train[known_train], y, l2)
            value = binary_auroc(test[known_test] @ weights[:-1], truth == 1)
            if value is not None:
                scores[name] = value
    return scores
