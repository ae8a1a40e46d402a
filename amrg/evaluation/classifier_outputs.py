"""One pass of the stage-1 classifier over the films, for the baselines, localization and the page.

Shape legend: S test studies, M train patients, K = 14 labels, D width of a pooled feature, h w grid of the maps.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from amrg.data.film_checks import view_kinds_of_films
from amrg.data.image_ops import letterbox_to_square
from amrg.data.stream import Sample, iter_split_samples, num_split_studies
from amrg.data.studies import Study
from amrg.models.cam import activation_maps
from amrg.models.classifier import DiseaseClassifier, Stage1Output, mean_over_views
from amrg.models.vision import films_to_tensor
from amrg.precision import autocast
from amrg.progress import track_progress

BATCH = 32

#: Train films of the brightness probe; more films do not change a fit of 13 numbers.
PROBE_FILMS = 1000


@dataclass(frozen=True)
class TestOutputs:
    """Stage-1 outputs on the split under test, in index order.

    Attributes:
        films: uint8 [S, size, size], the first film of each study at the model's input size; masks exist for it only.
        masks: true lesions by finding, bool [size, size], per study.
        pooled_SD: pooled feature, the mean over all films of a study.
        probabilities_SK: sigmoid of the mean logit over all films of a study, as in training.
        maps_SKhw: activation maps of the first films, non-negative.
        grid: cells per side of the encoder's fine grid, the unit of the visual bank's boxes.
    """

    studies: list[Study]
    films: np.ndarray
    masks: list[dict[str, np.ndarray]]
    pooled_SD: np.ndarray
    probabilities_SK: np.ndarray
    maps_SKhw: np.ndarray
    grid: int


@dataclass(frozen=True)
class TrainOutputs:
    """Stage-1 outputs on one film per train patient, for the nearest-neighbor baseline and the brightness probe.

    Attributes:
        probe_films: films of the first studies, uint8 [≤ PROBE_FILMS, size, size].
        thumbnail_keys: all films of the requested studies by study key, for thumbnails of the visual bank's regions.
    """

    studies: list[Study]
    pooled_MD: np.ndarray
    probe_films: np.ndarray
    thumbnail_keys: dict[str, list[np.ndarray]]


def classify_test_split(model: DiseaseClassifier, data: Path, split: str, method: str, dtype: str) -> TestOutputs:
    """Run the classifier and the activation-map ``method`` over a split, in the training precision."""
    size = model.image_size
    studies, films, masks, pooled, probabilities, maps = [], [], [], [], [], []
    for samples in _batches(
        track_progress(iter_split_samples(data, split), f"films of {split}", num_split_studies(data, split))
    ):
        views = [len(s.views) for s in samples]
        first = np.cumsum([0, *views[:-1]])
        batch = np.stack([letterbox_to_square(film, size) for s in samples for film in s.views])
        kinds = [kind for s in samples for kind in view_kinds_of_films(s.study.views, len(s.views))]
        out = _forward(model, batch, dtype, kinds)
        maps.append(activation_maps(model.cam_head, out.fine_BHWC[first], method).cpu().numpy())
        pooled.append(mean_over_views(out.pooled_BD.float(), views).cpu().numpy())
        probabilities.append(out.of_studies(out.scores_BK.double(), views).sigmoid().cpu().numpy())
        films.append(batch[first])
        studies += [s.study for s in samples]
        masks += [{finding: letterbox_to_square(mask, size) for finding, mask in s.masks.items()} for s in samples]
    return TestOutputs(
        studies=studies,
        films=np.concatenate(films),
        masks=masks,
        pooled_SD=np.concatenate(pooled),
        probabilities_SK=np.concatenate(probabilities),
        maps_SKhw=np.concatenate(maps),
        grid=model.encoder.grid,
    )


def classify_train_patients(model: DiseaseClassifier, data: Path, wanted: set[str], dtype: str) -> TrainOutputs:
    """Run the classifier on the first study of each train patient, and keep the films of the ``wanted`` study keys."""
    size = model.image_size
    studies: list[Study] = []
    pooled: list[np.ndarray] = []
    probe_films: list[np.ndarray] = []
    films: dict[str, list[np.ndarray]] = {}
    groups: set[str] = set()

    def first_of_each() -> Iterator[Sample]:
        for sample in track_progress(
            iter_split_samples(data, "train"), "films of train", num_split_studies(data, "train")
        ):
            if sample.study.key in wanted:
                films[sample.study.key] = [letterbox_to_square(view, size) for view in sample.views]
            if sample.study.group not in groups:
                groups.add(sample.study.group)
                yield sample

    for samples in _batches(first_of_each()):
        batch = np.stack([letterbox_to_square(s.views[0], size) for s in samples])
        probe_films += list(batch[: max(0, PROBE_FILMS - len(probe_films))])
        pooled.append(_forward(model, batch, dtype).pooled_BD.float().cpu().numpy())
        studies += [s.study for s in samples]
    return TrainOutputs(studies, np.concatenate(pooled), np.stack(probe_films), films)


def _batches(samples: Iterable[Sample]) -> Iterator[list[Sample]]:
    iterator = iter(samples)
    while batch := list(islice(iterator, BATCH)):
        yield batch


def _forward(
    model: DiseaseClassifier, films: np.ndarray, dtype: str, kinds: Sequence[int] | None = None
) -> Stage1Output:
    device = next(model.parameters()).device
    images = films_to_tensor(list(films), films.shape[1]).to(device)
    with torch.no_grad(), autocast(dtype):
        return model(images, kinds=kinds)
