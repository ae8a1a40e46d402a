"""Collation of samples into batches, in the process that decodes them.

Shape legend: M films, B studies, S pixels on a side, K = 14 labels, T report tokens, C tokens of the context.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from typing import Any, Self

import torch
from torch import Tensor

from amrg.banks.bank import group_id
from amrg.config import Stage1Config
from amrg.data.film_checks import view_kinds
from amrg.data.image_ops import to_model_input
from amrg.data.shards import hash_key
from amrg.data.stream import Sample
from amrg.data.studies import Study
from amrg.models.context import ContextTokenizer
from amrg.models.tokenizer import IGNORE_INDEX, ReportTokenizer
from amrg.training.multilabel import targets


@dataclass(frozen=True)
class ImageBatch:
    """Values for every film of a batch of studies; length and slices refer to studies.

    Attributes:
        values_M: [M, …], in the order of the studies.
        views: number of films of each study.
        kinds: place of each film's view in ``VIEW_KINDS``; None: unknown.
    """

    values_M: Tensor
    views: tuple[int, ...]
    kinds: tuple[int, ...] | None = None

    def __len__(self) -> int:
        return len(self.views)

    def __getitem__(self, part: slice) -> Self:
        edges = [0, *accumulate(self.views)]
        chosen = list(pairwise(edges))[part]
        assert part.step in (None, 1)
        first, last = (chosen[0][0], chosen[-1][1]) if chosen else (0, 0)
        kinds = None if self.kinds is None else self.kinds[first:last]
        return replace(self, values_M=self.values_M[first:last], views=self.views[part], kinds=kinds)

    def pin_memory(self) -> Self:
        """Pin the values; called by torch's DataLoader."""
        return replace(self, values_M=self.values_M.pin_memory())

    def images(self, device: torch.device) -> Tensor:
        """Copy uint8 films [M, S, S] to a device and convert them to model inputs [M, 3, S, S] in [0, 1]."""
        return self.values_M.to(device, non_blocking=True)[:, None].expand(-1, 3, -1, -1) / 255.0


def collate_images(samples: Iterable[Sample], size: int) -> ImageBatch:
    """Letterbox and stack all films of samples, uint8 [M, size, size]."""
    samples = list(samples)
    views = tuple(len(sample.views) for sample in samples)
    films = torch.from_numpy(to_model_input([view for s in samples for view in s.views], size))
    return ImageBatch(films, views, tuple(kind for s in samples for kind in view_kinds(s.study.views, len(s.views))))


def hashed_keys(studies: Iterable[Study]) -> list[str]:
    """Hash the keys of studies, for messages."""
    return [hash_key(study.key) for study in studies]


@dataclass(frozen=True)
class Stage1Collator:
    """Collate samples to ``films``, ``targets`` [B, K] and ``study`` (hashed keys)."""

    size: int
    config: Stage1Config

    def __call__(self, samples: list[Sample]) -> dict[str, Any]:
        """Collate studies for stage 1."""
        studies = [sample.study for sample in samples]
        labels = targets(studies, self.config.uncertain_policy, self.config.unmentioned_policy)
        return {"films": collate_images(samples, self.size), "targets": labels, "study": hashed_keys(studies)}


@dataclass(frozen=True)
class ReportCollator:
    """Collate studies to ``report`` [B, T], ``group`` [B], ``counts`` [B] of ones and ``study`` (hashed keys).

    If the decoder reads context, also to ``context`` and ``context_field`` [B, C] (``ContextTokenizer``).
    """

    encode: ReportTokenizer
    encode_context: ContextTokenizer | None = None

    def __call__(self, studies: Sequence[Study]) -> dict[str, Any]:
        """Collate the texts of studies for stage 2; padding is ``IGNORE_INDEX``."""
        context = {}
        if self.encode_context is not None:
            ids_BC, field_BC = self.encode_context([study.context for study in studies])
            context = {"context": ids_BC, "context_field": field_BC}
        encoded = [torch.tensor(self.encode(study.report, study.impression)) for study in studies]
        return {
            "report": torch.nn.utils.rnn.pad_sequence(encoded, batch_first=True, padding_value=IGNORE_INDEX),
            "group": torch.tensor([group_id(study.group) for study in studies]),
            "counts": torch.ones(len(studies)),
            "study": hashed_keys(studies),
            **context,
        }


@dataclass(frozen=True)
class Stage2Collator:
    """Collate samples as ``ReportCollator`` does, with their ``films``."""

    size: int
    reports: ReportCollator

    def __call__(self, samples: list[Sample]) -> dict[str, Any]:
        """Collate films and texts of studies for stage 2."""
        return {"films": collate_images(samples, self.size), **self.reports([sample.study for sample in samples])}
