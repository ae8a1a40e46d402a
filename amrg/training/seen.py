"""What stage 1 sees of each study, computed once: inputs of a stage 2 whose vision is frozen."""

import math
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from amrg.data.stream import read, studies
from amrg.models.generator import ReportGenerator, Sight
from amrg.progress import track
from amrg.training import engine
from amrg.training.features import FeatureCache
from amrg.training.packing import PerFilm, stack_films

_BATCH = 32  # studies looked at together
PART = 256  # studies that one rank looks at, a multiple of ``_BATCH``: what is seen hardly depends on the ranks


def look(model: ReportGenerator, films: PerFilm) -> Sight:
    """What stage 1 sees of studies, from their films."""
    return model.see(films.images(engine.device()), films.views)


def as_kept(sight: Sight) -> Sight:
    """Rounded as the cache of ``Seen`` keeps it: what is written of a film does not depend on who looked."""
    return Sight(*(part.bfloat16().float() for part in sight))


class Seen:
    """The studies of a split in index order, with what stage 1 sees of each.

    Args:
        model: whose stage 1 looks, as it is now.
        data: a data artefact.
        split: of it.
        folder: of the cache. Each rank looks at every W-th part; an interrupted filling goes on, with any W.
        dtype: ``bfloat16`` looks under autocast.
    """

    def __init__(self, model: ReportGenerator, data: Path, split: str, folder: Path, dtype: str) -> None:
        self.studies = studies(data, split)
        tokens, queries, dim = model.seen_shape
        self._shapes = ((tokens, dim), (queries, dim), (queries,))
        self._sizes = [math.prod(shape) for shape in self._shapes]
        self._folder = folder / split
        starts = range(0, len(self.studies), PART)
        with torch.no_grad(), engine.precision(dtype):
            self._fill(model.eval(), data, split, starts[engine.rank() :: engine.world_size()])
        engine.barrier()
        self._parts = [self._part(start).rows_N for start in starts]  # mapped when whole, by whichever machine

    def __len__(self) -> int:
        return len(self.studies)

    def __getitem__(self, rows: Tensor) -> Sight:
        """What is seen of rows [B], float32, on this rank's device."""
        seen = torch.stack([self._parts[row // PART][row % PART] for row in rows.tolist()])
        parts = seen.float().to(engine.device()).split(self._sizes, dim=1)
        return Sight(*(part.unflatten(1, shape) for part, shape in zip(parts, self._shapes, strict=True)))

    def _part(self, start: int) -> FeatureCache:
        """Of the studies from number ``start`` on."""
        rows = min(PART, len(self.studies) - start)
        return FeatureCache(self._folder / f"{start:08d}", rows, (sum(self._sizes),))

    def _fill(self, model: ReportGenerator, data: Path, split: str, starts: range) -> None:
        parts = {start: self._part(start) for start in starts}
        left = [
            (part, range(first, min(first + _BATCH, start + len(part))))
            for start, part in parts.items()
            for first in range(start + part.done, start + len(part), _BATCH)
        ]
        samples = read(data, split, [number for _, numbers in left for number in numbers])
        total = sum(-(-len(part) // _BATCH) for part in parts.values())
        for part, numbers in track(left, f"stage 1 looks at {split}", total, total - len(left)):
            seen = look(model, stack_films(islice(samples, len(numbers)), model.stage1.config.image_size))
            part.append(torch.cat([values.flatten(1) for values in seen], dim=1).cpu())
