"""Regions that the classifier finds on one part of the films. Parts are independent.

Shape legend: K = 14 labels, V views, M films, D row length, n regions of a part.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from amrg import distributed
from amrg.artifacts import atomic_path
from amrg.config import Config
from amrg.data.labels import LABELS, NO_FINDING, POSITIVE
from amrg.data.stream import Sample, iter_split_samples, num_split_studies
from amrg.models.cam import activation_maps
from amrg.models.classifier import DiseaseClassifier
from amrg.models.regions import Regions, regions_of_films
from amrg.precision import autocast
from amrg.training.collate import collate_images

_BATCH = 32
#: Studies per part: a multiple of the batch size, so that batches do not depend on the parts.
STUDIES_PER_PART = 8 * _BATCH


@dataclass(frozen=True)
class RegionMiner:
    """Find the regions of parts and write them to files; existing files are kept.

    Attributes:
        config: ``banks``, ``vision`` and ``stage1.dtype`` are read.
        data: data artefact.
        stage1: stage 1 artefact.
        scratch: folder of the files.
    """

    config: Config
    data: Path
    stage1: Path
    scratch: Path

    @cached_property
    def _model(self) -> DiseaseClassifier:
        return DiseaseClassifier.from_pretrained(self.stage1 / "model").to(distributed.local_device())

    @cached_property
    def _thresholds(self) -> dict[str, float]:
        return json.loads((self.stage1 / "thresholds.json").read_text())

    def find(self, part: tuple[int, list[int]]) -> Path:
        """Find the regions of all findings that are labelled positive and that the classifier detects.

        Args:
            part: (number of the part, ascending numbers of its studies among those of ``banks.splits``).

        Returns:
            path of a file with ``study`` (position in the part), ``view``, ``label`` (index in ``LABELS``), ``peak``,
            ``box`` and ``state`` of each region, [n, …], and the number of ``positive`` and ``missed`` films per label.
            Every film has a region of No Finding, which shows normal anatomy.
        """
        number, studies = part
        path = self.scratch / f"regions-{number:06d}.npz"
        if not path.exists():
            with atomic_path(path) as temporary, temporary.open("wb") as file:
                np.savez(file, allow_pickle=False, **self._regions(studies))
        return path

    def _regions(self, studies: list[int]) -> dict[str, np.ndarray]:
        counts = {"positive": np.zeros(len(LABELS), np.int64), "missed": np.zeros(len(LABELS), np.int64)}
        places: list[tuple[int, int, int]] = []
        kept: dict[str, list[np.ndarray]] = {"peak": [], "box": [], "state": []}
        position = 0
        for samples in _batches(self._read(studies)):
            probabilities_BK, regions = self._classify(samples)
            first = 0
            for sample, probabilities_K in zip(samples, probabilities_BK.tolist(), strict=True):
                views = range(first, first + len(sample.views))
                for k, name in enumerate(LABELS):
                    normal = name == NO_FINDING
                    if not normal and sample.study.labels[name] != POSITIVE:
                        continue
                    counts["positive"][k] += len(views)
                    if not normal and probabilities_K[k] < self._thresholds[name]:
                        counts["missed"][k] += len(views)
                        continue
                    for image in views:
                        places.append((position, image - first, k))
                        kept["peak"].append(regions.peaks_BK[image, k].numpy())
                        kept["box"].append(regions.boxes_BK5[image, k, 1:].numpy())
                        kept["state"].append(regions.states_BKD[image, k].numpy())
                first, position = views.stop, position + 1
        table = dict(zip(("study", "view", "label"), np.array(places, np.int64).reshape(-1, 3).T, strict=True))
        shapes = {"peak": (), "box": (4,), "state": (self._model.config.query_dim,)}
        columns = {name: np.array(kept[name], np.float32).reshape(-1, *shape) for name, shape in shapes.items()}
        return {**table, **columns, **counts}

    def _classify(self, samples: list[Sample]) -> tuple[torch.Tensor, Regions]:
        """Return the probability of each label [B, K] and the regions of all films."""
        images = collate_images(samples, self._model.image_size)
        with torch.no_grad(), autocast(self.config.stage1.dtype):
            out = self._model(images.images(distributed.local_device()), kinds=images.kinds)
        maps_MKHW = activation_maps(self._model.cam_head, out.fine_BHWC, self.config.banks.mining.method)
        regions = regions_of_films(out.projected_BHWD, maps_MKHW)
        probabilities_BK = out.of_studies(out.scores_BK, images.views).double().sigmoid().cpu()
        return probabilities_BK, Regions(*(part.cpu() for part in regions))

    def _read(self, studies: Sequence[int]) -> Iterator[Sample]:
        """Yield the samples with these ascending numbers among those of ``banks.splits``."""
        first = 0
        for split in self.config.banks.splits:
            size = num_split_studies(self.data, split)
            yield from iter_split_samples(
                self.data, split, [number - first for number in studies if first <= number < first + size]
            )
            first += size


def _batches(items: Iterable[Any]) -> Iterator[list[Any]]:
    iterator = iter(items)
    while batch := list(islice(iterator, _BATCH)):
        yield batch
