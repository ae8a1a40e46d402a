"""Cache of stage 1's output for each study: the inputs of stage 2 with frozen vision."""

import math
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import chain, islice
from pathlib import Path

import torch
from torch import Tensor

from amrg import distributed
from amrg.data.prior import Prior
from amrg.data.stream import iter_split_samples, load_split_studies
from amrg.models.prior import PriorFilms
from amrg.models.report_generator import ReportGenerator
from amrg.models.vision_output import VisionOutput
from amrg.precision import autocast
from amrg.training.collate import ImageBatch, collate_images
from amrg.training.feature_cache import DistributedFeatureCache

_BATCH = 32  # studies per forward


def encode_study_films(model: ReportGenerator, films: ImageBatch) -> VisionOutput:
    """Encode the films of studies with stage 1."""
    return model.encode_images(films.images(distributed.local_device()), films.views, films.kinds)


def round_like_cache(vision: VisionOutput) -> VisionOutput:
    """Round to the dtype of ``VisionCache``, so that a report is the same with and without the cache."""
    return VisionOutput(*(part.bfloat16().float() for part in vision))


class VisionCache:
    """Stage 1's output for the studies of a split, in index order.

    Args:
        model: the generator with the current weights of stage 1.
        data: a data artefact.
        split: split of the data. Studies without a text are encoded too, for ``prior_films`` alone, if the model reads
            films of earlier studies.
        folder: folder of the cache, which all ranks fill (``DistributedFeatureCache``).
        dtype: ``bfloat16`` encodes under autocast.
    """

    def __init__(self, model: ReportGenerator, data: Path, split: str, folder: Path, dtype: str) -> None:
        self._with_wordless = "films" in model.settings.prior
        encoded = load_split_studies(data, split, self._with_wordless)
        self.studies = [study for study in encoded if study.report != ""]
        self._row_of = {study.key: row for row, study in enumerate(encoded)}
        self._rows = torch.tensor([self._row_of[study.key] for study in self.studies])
        self._shapes = model.vision_output_shapes
        self._sizes = [math.prod(shape) for shape in self._shapes]
        compute = partial(self._encode, model.eval(), data, split)
        with torch.no_grad(), autocast(dtype):
            self._cache = DistributedFeatureCache(
                folder / split, len(encoded), (sum(self._sizes),), _BATCH, compute, f"stage 1 looks at {split}"
            )

    def __len__(self) -> int:
        return len(self.studies)

    def __getitem__(self, rows: Tensor) -> VisionOutput:
        """Return the output for rows [B], float32, on this rank's device."""
        return self._encoded(self._rows[rows])

    def prior_films(self, priors: Sequence[Prior | None]) -> PriorFilms:
        """Return the output for the films of earlier studies, on this rank's device."""
        rows = torch.tensor([0 if prior is None else self._row_of[prior.key] for prior in priors])
        given_B = torch.tensor([prior is not None for prior in priors], device=distributed.local_device())
        return PriorFilms(*self._encoded(rows)[:3], given_B)

    def _encoded(self, rows: Tensor) -> VisionOutput:
        parts = self._cache[rows].float().to(distributed.local_device(), non_blocking=True).split(self._sizes, dim=1)
        return VisionOutput(*(part.unflatten(1, shape) for part, shape in zip(parts, self._shapes, strict=True)))

    def _encode(self, model: ReportGenerator, data: Path, split: str, batches: list[range]) -> Iterator[Tensor]:
        samples = iter_split_samples(data, split, list(chain(*batches)), self._with_wordless)
        for numbers in batches:
            vision = encode_study_films(model, collate_images(islice(samples, len(numbers)), model.stage1.image_size))
            yield torch.cat([part.flatten(1) for part in vision], dim=1).cpu()
