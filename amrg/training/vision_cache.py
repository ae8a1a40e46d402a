"""Cache of stage 1's output for each study: the inputs of stage 2 with frozen vision."""

import math
from collections.abc import Iterator
from functools import partial
from itertools import chain, islice
from pathlib import Path

import torch
from torch import Tensor

from amrg import distributed
from amrg.data.stream import iter_samples, load_studies
from amrg.models.report_generator import ReportGenerator
from amrg.models.vision_output import VisionOutput
from amrg.precision import autocast
from amrg.training.collate import ImageBatch, collate_images
from amrg.training.feature_cache import DistributedFeatureCache

_BATCH = 32  # studies per forward


def encode_films(model: ReportGenerator, films: ImageBatch) -> VisionOutput:
    """Encode the films of studies with stage 1."""
    return model.encode_images(films.images(distributed.device()), films.views, films.kinds)


def round_like_cache(vision: VisionOutput) -> VisionOutput:
    """Round to the dtype of ``VisionCache``, so that a report is the same with and without the cache."""
    return VisionOutput(*(part.bfloat16().float() for part in vision))


class VisionCache:
    """Stage 1's output for the studies of a split, in index order.

    Args:
        model: the generator with the current weights of stage 1.
        data: a data artefact.
        split: split of the data.
        folder: folder of the cache, which all ranks fill (``DistributedFeatureCache``).
        dtype: ``bfloat16`` encodes under autocast.
    """

    def __init__(self, model: ReportGenerator, data: Path, split: str, folder: Path, dtype: str) -> None:
        self.studies = load_studies(data, split)
        self._shapes = model.vision_output_shapes
        self._sizes = [math.prod(shape) for shape in self._shapes]
        compute = partial(self._encode, model.eval(), data, split)
        with torch.no_grad(), autocast(dtype):
            self._cache = DistributedFeatureCache(
                folder / split, len(self.studies), (sum(self._sizes),), _BATCH, compute, f"stage 1 looks at {split}"
            )

    def __len__(self) -> int:
        return len(self.studies)

    def __getitem__(self, rows: Tensor) -> VisionOutput:
        """Return the output for rows [B], float32, on this rank's device."""
        parts = self._cache[rows].float().to(distributed.device(), non_blocking=True).split(self._sizes, dim=1)
        return VisionOutput(*(part.unflatten(1, shape) for part, shape in zip(parts, self._shapes, strict=True)))

    def _encode(self, model: ReportGenerator, data: Path, split: str, batches: list[range]) -> Iterator[Tensor]:
        samples = iter_samples(data, split, list(chain(*batches)))
        for numbers in batches:
            vision = encode_films(model, collate_images(islice(samples, len(numbers)), model.stage1.image_size))
            yield torch.cat([part.flatten(1) for part in vision], dim=1).cpu()
