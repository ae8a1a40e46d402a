"""What stage 1 sees of each study, computed once: inputs of a stage 2 whose vision is frozen."""

import math
from collections.abc import Iterator
from functools import partial
from itertools import chain, islice
from pathlib import Path

import torch
from torch import Tensor

from amrg import distributed
from amrg.data.stream import read, studies
from amrg.models.report_generator import ReportGenerator, Sight
from amrg.precision import precision
from amrg.training.collate import PerFilm, stack_films
from amrg.training.feature_cache import SharedFeatures

_BATCH = 32  # studies looked at together


def look(model: ReportGenerator, films: PerFilm) -> Sight:
    """What stage 1 sees of studies, from their films."""
    return model.see(films.images(distributed.device()), films.views)


def as_kept(sight: Sight) -> Sight:
    """Rounded as the cache of ``Seen`` keeps it: what is written of a film does not depend on who looked."""
    return Sight(*(part.bfloat16().float() for part in sight))


class Seen:
    """The studies of a split in index order, with what stage 1 sees of each.

    Args:
        model: whose stage 1 looks, as it is now.
        data: a data artefact.
        split: of it.
        folder: of the cache, which the ranks fill between them (``SharedFeatures``).
        dtype: ``bfloat16`` looks under autocast.
    """

    def __init__(self, model: ReportGenerator, data: Path, split: str, folder: Path, dtype: str) -> None:
        self.studies = studies(data, split)
        self._shapes = model.sight_shapes
        self._sizes = [math.prod(shape) for shape in self._shapes]
        compute = partial(self._look, model.eval(), data, split)
        with torch.no_grad(), precision(dtype):
            self._cache = SharedFeatures(
                folder / split, len(self.studies), (sum(self._sizes),), _BATCH, compute, f"stage 1 looks at {split}"
            )

    def __len__(self) -> int:
        return len(self.studies)

    def __getitem__(self, rows: Tensor) -> Sight:
        """What is seen of rows [B], float32, on this rank's device."""
        parts = self._cache[rows].float().to(distributed.device()).split(self._sizes, dim=1)
        return Sight(*(part.unflatten(1, shape) for part, shape in zip(parts, self._shapes, strict=True)))

    def _look(self, model: ReportGenerator, data: Path, split: str, batches: list[range]) -> Iterator[Tensor]:
        samples = read(data, split, list(chain(*batches)))
        for numbers in batches:
            seen = look(model, stack_films(islice(samples, len(numbers)), model.stage1.config.image_size))
            yield torch.cat([part.flatten(1) for part in seen], dim=1).cpu()
