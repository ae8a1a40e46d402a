"""What a part of the films, or of the regions found on them, needs of the classifier; parts are independent.

Shape legend: K = 14 labels, V views, H W fine grid, M films, D row length.
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
from torch import Tensor
from torch.nn import functional as F

from amrg.artifacts import whole
from amrg.config import Config
from amrg.data.labels import FINDINGS, LABELS, POSITIVE
from amrg.data.stream import Sample, count, read
from amrg.memory.bank import DTYPES, TRAIN
from amrg.memory.writer import BankWriter
from amrg.mining.cam import activation_maps
from amrg.models.stage1 import DiseaseClassifier, per_study
from amrg.models.vision import to_images
from amrg.training import engine
from amrg.training.packing import stack_films

#: Two rows of one film and finding with at least this cosine are the same region twice.
SAME = 0.98
_BATCH = 32
#: Studies, or regions, that are worked on in one go: whole batches, so that a batch is the same in any part.
PART = 8 * _BATCH


@dataclass(frozen=True)
class Candidate:
    """A film with one finding, and where its activation exceeds τ.

    Attributes:
        study: position among the mined studies.
        view: number of the film among the study's.
        finding: its name.
        shown_HW: all patches above τ, bool: what the masked film keeps.
        patches: (row, column, activation) of the strongest, none beside a stronger one.
    """

    study: int
    view: int
    finding: str
    shown_HW: np.ndarray
    patches: list[tuple[int, int, float]]


@dataclass(frozen=True)
class Regions:
    """A part of the visual bank.

    Attributes:
        number: its place among the parts.
        candidates: in the bank's order, with the number of their study among those of ``banks.splits``.
        tokens: the rows of the disease queries follow.
        about: of the bank.
    """

    number: int
    candidates: list[tuple[int, Candidate]]
    tokens: bool
    about: dict[str, Any]


@dataclass(frozen=True)
class Miner:
    """Searches and encodes parts; what it has written is not done again.

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
        return DiseaseClassifier.from_pretrained(self.stage1 / "model").to(engine.device())

    def search(self, part: tuple[int, list[int]]) -> Path:
        """Unscaled maps of the findings that films have and the classifier finds in them.

        Args:
            part: its place among the parts; ascending numbers of studies among those of ``banks.splits``.

        Returns:
            a file of ``study`` (position in the part), ``view``, ``label`` [n], ``maps`` [n, H, W], and of how often
            each of ``FINDINGS`` was ``positive`` and ``missed``.
        """
        number, studies = part
        path = self.scratch / f"searched-{number:06d}.npz"
        if not path.exists():
            with whole(path) as temporary, temporary.open("wb") as file:
                np.savez(file, allow_pickle=False, **self._searched(studies))
        return path

    def _searched(self, studies: list[int]) -> dict[str, np.ndarray]:
        thresholds = json.loads((self.stage1 / "thresholds.json").read_text())
        grid = self._model.encoder.grid
        counts = {"positive": np.zeros(len(FINDINGS), np.int64), "missed": np.zeros(len(FINDINGS), np.int64)}
        places, maps, position = [], [np.empty((0, grid, grid), np.float32)], 0
        for samples in _batches(self._read(studies)):
            films = stack_films(samples, self._model.config.image_size)
            with torch.no_grad(), engine.precision(self.config.stage1.dtype):
                out = self._model(films.images(engine.device()))
            probabilities_BK = per_study(out.scores_BK, films.views).double().sigmoid().cpu()
            method = self.config.banks.mining.method
            maps_MKHW = activation_maps(self._model.cam_head, out.fine_BHWC, method).cpu().numpy()
            of_study = np.split(maps_MKHW, np.cumsum(films.views)[:-1])
            for sample, scores_K, maps_VKHW in zip(samples, probabilities_BK, of_study, strict=True):
                for i, name in enumerate(FINDINGS):
                    label = LABELS.index(name)
                    if sample.study.labels[name] == POSITIVE:
                        counts["positive"][i] += len(maps_VKHW)
                        if scores_K[label] >= thresholds[name]:
                            maps.append(maps_VKHW[:, label])
                            places += [(position, view, label) for view in range(len(maps_VKHW))]
                        else:
                            counts["missed"][i] += len(maps_VKHW)
                position += 1
        place = dict(zip(("study", "view", "label"), np.array(places, np.int64).reshape(-1, 3).T, strict=True))
        return {**place, "maps": np.concatenate(maps), **counts}

    def encode(self, part: Regions) -> Path:
        """A bank of the rows of some regions."""
        folder = self.scratch / f"regions-{part.number:06d}"
        if not folder.exists():
            banks = self.config.banks
            with whole(folder) as temporary, BankWriter(
                temporary, self._model.config.query_dim, dtype=DTYPES[banks.dtype],
                allow_split=(*banks.splits, TRAIN), about=part.about,
            ) as writer:  # fmt: skip
                for rows_ND, provenance in self._encoded(part.candidates):
                    writer.add(rows_ND, provenance)
                if part.tokens:
                    writer.add(self._model.disease_queries.detach(), [_token(name) for name in LABELS])
        return folder

    def _encoded(self, candidates: list[tuple[int, Candidate]]) -> Iterator[tuple[Tensor, list[dict[str, Any]]]]:
        """Rows and provenance of regions, film by film."""
        of_study: dict[int, list[Candidate]] = {}
        for study, candidate in candidates:
            of_study.setdefault(study, []).append(candidate)
        samples = self._read(list(of_study))
        pairs = ((sample, one) for sample, own in zip(samples, of_study.values(), strict=True) for one in own)
        for batch in _batches(pairs):
            size = self._model.config.image_size
            images = to_images([sample.views[candidate.view] for sample, candidate in batch], size)
            shown = torch.from_numpy(np.stack([candidate.shown_HW for _, candidate in batch])).float()
            masked = images * F.interpolate(shown[:, None], images.shape[-2:], mode="nearest")
            with torch.no_grad(), engine.precision(self.config.stage1.dtype):
                fine_BHWC = self._model(masked.to(engine.device())).fine_BHWC
                regions_BHWD = self._model.regions(fine_BHWC).float().cpu()
            for (sample, candidate), regions_HWD in zip(batch, regions_BHWD, strict=True):
                rows_ND = torch.stack([regions_HWD[y, x] for y, x, _ in candidate.patches])
                fresh = distinct(rows_ND)
                yield rows_ND[fresh], [_region(sample, candidate, i) for i in fresh]

    def _read(self, studies: Sequence[int]) -> Iterator[Sample]:
        """The samples with these ascending numbers among those of ``banks.splits``."""
        first = 0
        for split in self.config.banks.splits:
            size = count(self.data, split)
            yield from read(self.data, split, [number - first for number in studies if first <= number < first + size])
            first += size


def distinct(rows_ND: Tensor) -> list[int]:
    """Positions of the rows that are not the same (``SAME``) as an earlier kept one."""
    unit_ND = F.normalize(rows_ND, dim=-1)
    kept: list[int] = []
    for i in range(len(unit_ND)):
        if not kept or float((unit_ND[kept] @ unit_ND[i]).max()) < SAME:
            kept.append(i)
    return kept


def _region(sample: Sample, candidate: Candidate, i: int) -> dict[str, Any]:
    y, x, score = candidate.patches[i]
    study = sample.study
    return {
        "key": study.key,
        "group": study.group,
        "split": study.split,
        "findings": [candidate.finding],
        "source": "region",
        "view": candidate.view,
        "box": [x, y, x + 1, y + 1],
        "score": score,
    }


def _token(name: str) -> dict[str, Any]:
    return {"key": "", "group": "", "split": TRAIN, "findings": [name], "source": "disease_token"}


def _batches(items: Iterable[Any]) -> Iterator[list[Any]]:
    iterator = iter(items)
    while batch := list(islice(iterator, _BATCH)):
        yield batch
