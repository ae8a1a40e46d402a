"""What the classifier finds on a part of the films; parts are independent.

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
from amrg.data.stream import Sample, iter_samples, num_studies
from amrg.models.cam import activation_maps
from amrg.models.classifier import DiseaseClassifier, mean_over_views
from amrg.models.regions import Regions, find_regions
from amrg.precision import autocast
from amrg.training.collate import collate_images

_BATCH = 32
#: Studies that are worked on in one go: whole batches, so that a batch is the same in any part.
STUDIES_PER_PART = 8 * _BATCH


@dataclass(frozen=True)
class RegionMiner:
    """Finds the regions of parts; what it has written is not done again.

    Attributes:
        config: ``banks``, ``vision`` and ``stage1.dtype`` are read.
        data, stage1: artefacts.
        scratch: folder for what it writes.
    """

    config: Config
    data: Path
    stage1: Path
    scratch: Path

    @cached_property
    def _model(self) -> DiseaseClassifier:
        return DiseaseClassifier.from_pretrained(self.stage1 / "model").to(distributed.device())

    @cached_property
    def _thresholds(self) -> dict[str, float]:
        return json.loads((self.stage1 / "thresholds.json").read_text())

    def find(self, part: tuple[int, list[int]]) -> Path:
        """Regions of the findings that films have and the classifier finds in them.

        Args:
            part: its place among the parts; ascending numbers of studies among those of ``banks.splits``.

        Returns:
            a file of ``study`` (position in the part), ``view``, ``label`` (index in ``LABELS``), ``peak``, ``box`` and
            ``state`` of each region, [n, …], and of how many films of each label were ``positive`` and ``missed``. The
            region of No Finding is there for every film: it shows what the film has of normal anatomy.
        """
        number, studies = part
        path = self.scratch / f"regions-{number:06d}.npz"
        if not path.exists():
            with atomic_path(path) as temporary, temporary.open("wb") as file:
                np.savez(file, allow_pickle=False, **self._found(studies))
        return path

    def _found(self, studies: list[int]) -> dict[str, np.ndarray]:
        counts = {"positive": np.zeros(len(LABELS), np.int64), "missed": np.zeros(len(LABELS), np.int64)}
        places: list[tuple[int, int, int]] = []
        kept: dict[str, list[np.ndarray]] = {"peak": [], "box": [], "state": []}
        position = 0
        for samples in _batches(self._read(studies)):
            sure_BK, regions = self._look(samples)
            first = 0
            for sample, sure_K in zip(samples, sure_BK.tolist(), strict=True):
                views = range(first, first + len(sample.views))
                for k, name in enumerate(LABELS):
                    normal = name == NO_FINDING
                    if not normal and sample.study.labels[name] != POSITIVE:
                        continue
                    counts["positive"][k] += len(views)
                    if not normal and sure_K[k] < self._thresholds[name]:
                        counts["missed"][k] += len(views)
                        continue
                    for film in views:
                        places.append((position, film - first, k))
                        kept["peak"].append(regions.peaks_BK[film, k].numpy())
                        kept["box"].append(regions.boxes_BK5[film, k, 1:].numpy())
                        kept["state"].append(regions.states_BKD[film, k].numpy())
                first, position = views.stop, position + 1
        table = dict(zip(("study", "view", "label"), np.array(places, np.int64).reshape(-1, 3).T, strict=True))
        shapes = {"peak": (), "box": (4,), "state": (self._model.config.query_dim,)}
        columns = {name: np.array(kept[name], np.float32).reshape(-1, *shape) for name, shape in shapes.items()}
        return {**table, **columns, **counts}

    def _look(self, samples: list[Sample]) -> tuple[torch.Tensor, Regions]:
        """Probability of each label [B, K], and the regions of all films."""
        films = collate_images(samples, self._model.config.image_size)
        with torch.no_grad(), autocast(self.config.stage1.dtype):
            out = self._model(films.images(distributed.device()))
        maps_MKHW = activation_maps(self._model.cam_head, out.fine_BHWC, self.config.banks.mining.method)
        regions = find_regions(out.projected_BHWD, maps_MKHW)
        sure_BK = mean_over_views(out.scores_BK, films.views).double().sigmoid().cpu()
        return sure_BK, Regions(*(part.cpu() for part in regions))

    def _read(self, studies: Sequence[int]) -> Iterator[Sample]:
        """The samples with these ascending numbers among those of ``banks.splits``."""
        first = 0
        for split in self.config.banks.splits:
            size = num_studies(self.data, split)
            yield from iter_samples(
                self.data, split, [number - first for number in studies if first <= number < first + size]
            )
            first += size


def _batches(items: Iterable[Any]) -> Iterator[list[Any]]:
    iterator = iter(items)
    while batch := list(islice(iterator, _BATCH)):
        yield batch
