"""Samples to what a step of training reads: stacked, padded, ready to be pinned. Runs where samples are decoded.

Shape legend: M films, B studies, S pixels on a side, K = 14 labels, T report tokens.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any, Self

import torch
from torch import Tensor

from amrg.banks.bank import group_id
from amrg.config import Stage1Config
from amrg.data.image_ops import to_model_input
from amrg.data.shards import hash_key
from amrg.data.stream import Sample
from amrg.data.studies import Study
from amrg.models.report_generator import IGNORE_INDEX
from amrg.models.tokenizer import ReportTokenizer
from amrg.training.multilabel import targets


@dataclass(frozen=True)
class ImageBatch:
    """Something of every film of some studies; its length and its slices count studies.

    Attributes:
        values_M: [M, …], study after study.
        views: number of films of each study.
    """

    values_M: Tensor
    views: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.views)

    def __getitem__(self, part: slice) -> Self:
        edges = [0, *accumulate(self.views)]
        chosen = list(pairwise(edges))[part]
        assert part.step in (None, 1)
        first, last = (chosen[0][0], chosen[-1][1]) if chosen else (0, 0)
        return type(self)(self.values_M[first:last], self.views[part])

    def pin_memory(self) -> Self:
        """For torch's DataLoader."""
        return type(self)(self.values_M.pin_memory(), self.views)

    def images(self, device: torch.device) -> Tensor:
        """uint8 films [M, S, S] as model inputs [M, 3, S, S] in [0, 1] on a device; they travel as bytes."""
        return self.values_M.to(device, non_blocking=True)[:, None].expand(-1, 3, -1, -1) / 255.0


def collate_images(samples: Iterable[Sample], size: int) -> ImageBatch:
    """All films of samples, letterboxed: uint8 [M, size, size]."""
    samples = list(samples)
    views = tuple(len(sample.views) for sample in samples)
    return ImageBatch(torch.from_numpy(to_model_input([view for s in samples for view in s.views], size)), views)


def hashed_keys(studies: Iterable[Study]) -> list[str]:
    """Names by which a message may tell of studies."""
    return [hash_key(study.key) for study in studies]


@dataclass(frozen=True)
class Stage1Collator:
    """Samples → ``films``, ``targets`` [B, K], and the hashed keys of the studies."""

    size: int
    config: Stage1Config

    def __call__(self, samples: list[Sample]) -> dict[str, Any]:
        studies = [sample.study for sample in samples]
        labels = targets(studies, self.config.uncertain_policy, self.config.unmentioned_policy)
        return {"films": collate_images(samples, self.size), "targets": labels, "study": hashed_keys(studies)}


@dataclass(frozen=True)
class ReportCollator:
    """Studies → ``report`` [B, T], ``group`` [B], ``counts`` [B] of ones, and their hashed keys."""

    encode: ReportTokenizer

    def __call__(self, studies: Sequence[Study]) -> dict[str, Any]:
        encoded = [torch.tensor(self.encode(study.report)) for study in studies]
        return {
            "report": torch.nn.utils.rnn.pad_sequence(encoded, batch_first=True, padding_value=IGNORE_INDEX),
            "group": torch.tensor([group_id(study.group) for study in studies]),
            "counts": torch.ones(len(studies)),
            "study": hashed_keys(studies),
        }


@dataclass(frozen=True)
class Stage2Collator:
    """Samples → what ``ReportCollator`` gives, with their ``films``."""

    size: int
    reports: ReportCollator

    def __call__(self, samples: list[Sample]) -> dict[str, Any]:
        return {"films": collate_images(samples, self.size), **self.reports([sample.study for sample in samples])}
