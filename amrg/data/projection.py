"""Frontal or lateral: a classifier of films for the order of a study's films, where the data set does not tell views.

It is fitted on films of the same data set whose view is told, and used only if it is right on held-out patients. What
it says decides the order of films alone; the view of a film that is not told stays so.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from amrg.data.film_checks import is_lateral_view
from amrg.data.image_ops import letterbox_to_square
from amrg.data.splits import uniform_from_hash
from amrg.data.studies import Source, Study, StudyImages
from amrg.progress import print_on_rank_0

#: Most films of a kind that the classifier is fitted on, and fewest with which it is.
MOST, FEWEST = 300, 30
#: Balanced accuracy on films of held-out patients from which the classifier is used.
REQUIRED = 0.95

_SIZE = 32  # pixels of the side of the thumbnail
_CONTRAST = (1.0, 99.0)  # percentiles that become 0 and 1
_FOLDS = 5
_L2 = 0.1
_FRONTAL = ("PA", "AP", "FRONTAL")


@dataclass(frozen=True)
class Classifier:
    """A fitted logistic regression.

    Attributes:
        weights: float64 [D + 1], of the standardized features, then the intercept.
        center, scale: float64 [D], of the features.
    """

    weights: np.ndarray
    center: np.ndarray
    scale: np.ndarray

    def is_frontal(self, features: np.ndarray) -> np.ndarray:
        """Return whether films, as features [N, D], are frontal, bool [N]."""
        return ((features - self.center) / self.scale) @ self.weights[:-1] + self.weights[-1] > 0


def film_features(film: np.ndarray) -> np.ndarray:
    """Return what tells a frontal film, uint8 [H, W], from a lateral one, float64 [1024]; the same of its mirror image.

    The halves of a small letterboxed film, the right one mirrored: their mean, and how much they differ. A frontal film
    is nearly symmetric; a lateral one may look to either side.
    """
    square = letterbox_to_square(film, _SIZE).astype(np.float64)
    low, high = np.percentile(square, _CONTRAST)
    square = ((square - low) / max(high - low, 1.0)).clip(0, 1)
    left, right = square[:, : _SIZE // 2], square[:, ::-1][:, : _SIZE // 2]
    return np.concatenate([(left + right).ravel() / 2, np.abs(left - right).ravel()])


def fit_classifier(features: np.ndarray, frontal: np.ndarray) -> Classifier:
    """Fit a classifier to films, as features [N, D], that are frontal or lateral, bool [N]; both kinds are needed."""
    center, scale = features.mean(0), features.std(0) + 1e-2
    return Classifier(
        fit_balanced_logistic((features - center) / scale, frontal.astype(np.float64), _L2), center, scale
    )


def fit_balanced_logistic(x: np.ndarray, y: np.ndarray, l2: float) -> np.ndarray:
    """Fit a logistic regression in which both classes count alike.

    Args:
        x: standardized features, [N, D].
        y: 1 positive, 0 negative, [N]; both are needed.
        l2: weight of the squared coefficients, relative to the mean loss.

    Returns:
        The coefficients, then the intercept, [D + 1].
    """
    from scipy.optimize import minimize  # takes a third of a second

    balance = np.where(y == 1, 0.5 / y.mean(), 0.5 / (1 - y.mean()))
    sign = 2 * y - 1

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        margin = sign * (x @ weights[:-1] + weights[-1])
        slope = -balance * sign / (1 + np.exp(margin)) / len(y)
        value = np.mean(balance * np.logaddexp(0, -margin)) + l2 * np.sum(weights[:-1] ** 2)
        return value, np.append(x.T @ slope + 2 * l2 * weights[:-1], slope.sum())

    return minimize(loss, np.zeros(x.shape[1] + 1), jac=True, method="L-BFGS-B").x


def cross_validate(features: np.ndarray, frontal: np.ndarray, groups: Sequence[str]) -> float:
    """Return the balanced accuracy on films of held-out patients; 0 if one part has a kind alone.

    Args:
        features: of the films, [N, D].
        frontal: whether they are frontal, bool [N].
        groups: patient of each film.
    """
    numbers = {group: number for number, group in enumerate(dict.fromkeys(groups))}
    fold = np.array([numbers[group] % _FOLDS for group in groups])
    right = np.zeros(len(frontal), bool)
    for part in range(_FOLDS):
        held = fold == part
        if len(np.unique(frontal[~held])) < 2:
            return 0.0
        if held.any():
            right[held] = fit_classifier(features[~held], frontal[~held]).is_frontal(features[held]) == frontal[held]
    return float((right[frontal].mean() + right[~frontal].mean()) / 2)


class ByProjection:
    """Studies of another source, in which untold films that look frontal follow told ones. Implements ``Source``.

    The order of all others among themselves stays. Nothing changes in a data set that tells all views or none.

    Args:
        source: the other source.
        name: name of its data set in messages, where studies do not have one.
        seed: seed of the films that the classifier is fitted on.

    Attributes:
        summary: for each data set that tells some views and not all: ``told_frontal`` and ``told_lateral``, the films
            that the classifier was fitted on; ``balanced_accuracy``, None if they were too few; whether it is ``used``.
    """

    def __init__(self, source: Source, name: str, seed: int) -> None:
        self._source = source
        self._classifiers: dict[str, Classifier] = {}
        self.summary: dict[str, dict[str, Any]] = {}
        studies = source.studies()
        for dataset in dict.fromkeys(study.dataset for study in studies):
            members = [study for study in studies if study.dataset == dataset]
            unsure = sum(map(_is_unsure, members))
            if unsure and any(any(study.views) for study in members):
                self._fit(dataset, dataset or name, members, unsure, seed)

    def studies(self) -> list[Study]:
        """Return the studies of the other source."""
        return self._source.studies()

    def films(self, study: Study) -> StudyImages:
        """Load the films of a study and put them in order."""
        found = self._source.films(study)
        classifier = self._classifiers.get(study.dataset)
        views = study.views or ("",) * len(found.views)
        if classifier is None or len(views) < 2 or all(views) or found.masks:  # masks are those of the first film
            return found
        untold = [place for place, view in enumerate(views) if not view]
        frontal = classifier.is_frontal(np.stack([film_features(found.views[place]) for place in untold]))
        frontal_places = {place for place, is_frontal in zip(untold, frontal, strict=True) if is_frontal}
        rank = [
            0 if _is_frontal_view(view) else 1 if place in frontal_places else 2 for place, view in enumerate(views)
        ]
        order = sorted(range(len(views)), key=rank.__getitem__)
        predicted = len(frontal_places), len(untold) - len(frontal_places)
        return replace(found, views=[found.views[place] for place in order], order=tuple(order), predicted=predicted)

    def _fit(self, dataset: str, name: str, studies: list[Study], unsure: int, seed: int) -> None:
        features, frontal, groups = _sample(self._source, studies, seed)
        kinds = int(frontal.sum()), int((~frontal).sum())
        accuracy = cross_validate(features, frontal, groups) if min(kinds) >= FEWEST else None
        used = accuracy is not None and accuracy >= REQUIRED
        message = f"{name}: in {unsure} studies the view of a film is not told"
        given = f"{kinds[0]} frontal and {kinds[1]} lateral training films whose view is told"
        if used:
            self._classifiers[dataset] = fit_classifier(features, frontal)
            print_on_rank_0(
                f"{message}: frontal ones first by their look, learned from {given} (accuracy {accuracy:.3f})"
            )
        elif accuracy is None:
            print_on_rank_0(f"{message}, and their order stays: only {given}, {FEWEST} of each are needed to learn it")
        else:
            print_on_rank_0(
                f"{message}, and their order stays: accuracy {accuracy:.3f}, learned from {given}, is too low"
            )
        self.summary[name] = {
            "told_frontal": kinds[0], "told_lateral": kinds[1],
            "balanced_accuracy": None if accuracy is None else round(accuracy, 3), "used": used,
        }  # fmt: skip


def _is_frontal_view(view: str) -> bool:
    """Return whether the name of a view says that the film is frontal, in whatever position (``AP SUPINE``)."""
    return view.split(" ")[0] in _FRONTAL


def _is_unsure(study: Study) -> bool:
    """Return whether a view is not told in a study that has, or may have, several films."""
    return len(study.views) != 1 and not (study.views and all(study.views))


def _sample(source: Source, studies: list[Study], seed: int) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Return features [N, D] of training films whose view is told, whether each is frontal, and its patient."""
    features: list[np.ndarray] = []
    kinds: list[bool] = []
    groups: list[str] = []
    given = [study for study in studies if study.split == "train" and not study.load_error and any(study.views)]
    for study in sorted(given, key=lambda study: uniform_from_hash(seed, "projection", study.key)):
        lacking = [kind for kind in (True, False) if kinds.count(kind) < MOST]
        if not lacking:
            break
        places = [place for place, view in enumerate(study.views) if _kind(view) in lacking]
        if not places:
            continue
        try:
            films = source.films(study).views
        except (OSError, ValueError):  # prepare counts it
            continue
        features += [film_features(films[place]) for place in places]
        kinds += [_kind(study.views[place]) is True for place in places]
        groups += [study.group] * len(places)
    return np.array(features), np.array(kinds, bool), groups


def _kind(view: str) -> bool | None:
    """Return whether a view is frontal or lateral; None if it is neither, or in a position like few others."""
    return True if view in _FRONTAL else False if is_lateral_view(view) else None
