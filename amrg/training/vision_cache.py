"""What stage 1 sees of each study, computed once: inputs of a stage 2 whose vision is frozen."""

import math
from collections.abc import Iterator
from functools import partial
from itertools import chain, islice
from pathlib import Path

import torch
from torch import Tensor

from amrg import distributed
from amrg.data.stream import iter_samples, load_studies
from amrg.models.report_generator import ReportGenerator, VisionOutput
from amrg.precision import autocast
from amrg.training.collate import ImageBatch, collate_images
from amrg.training.feature_cache import DistributedFeatureCache

_BATCH = 32  # studies looked at together


def encode_films(model: ReportGenerator, films: ImageBatch) -> VisionOutput:
    """What stage 1 sees of studies, from their films."""
    return model.encode_images(films.images(distributed.device()), films.views)


def round_like_cache(sight: VisionOutput) -> VisionOutput:
    """Rounded as the cache of ``Seen`` keeps it: what is written of a film does not depend on who looked."""
    return VisionOutput(*(part.bfloat16().float() for part in sight))


class VisionCache:
    """The studies of a split in index order, with what stage 1 sees of each.

    Args:
        model: whose stage 1 looks, as it is now.
        data: a data artefact.
        split: of it.
        folder: of the cache, which the ranks fill between them (``DistributedFeatureCache``).
        dtype: ``bfloat16`` looks under autocast.
    """

    def __init__(self, model: ReportGenerator, data: Path, split: str, folder: Path, dtype: str) -> None:
        self.studies = load_studies(data, split)
        self._shapes = model.sight_shapes
        self._sizes = [math.prod(shape) for shape in self._shapes]
        compute = partial(self._look, model.eval(), data, split)
        with torch.no_grad(), autocast(dtype):
            self._cache = DistributedFeatureCache(
                folder / split, len(self.studies), (sum(self._sizes),), _BATCH, compute, f"stage 1 looks at {split}"
            )

    def __len__(self) -> int:
        return len(self.studies)

    def __getitem__(self, rows: Tensor) -> VisionOutput:
        """What is seen of rows [B], float32, on this rank's device."""
        parts = self._cache[rows].float().to(distributed.device()).split(self._sizes, dim=1)
        return VisionOutput(*(part.unflatten(1, shape) for part, shape in zip(parts, self._shapes, strict=True)))

    def _look(self, model: ReportGenerator, data: Path, split: str, batches: list[range]) -> Iterator[Tensor]:
        samples = iter_samples(data, split, list(chain(*batches)))
        for numbers in batches:
            seen = encode_films(model, collate_images(islice(samples, len(numbers)), model.stage1.config.image_size))
            yield torch.cat([part.flatten(1) for part in seen], dim=1).cpu()
