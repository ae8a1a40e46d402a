"""Collation of samples into batches, in the process that decodes them.

Shape legend: M films, B studies, S pixels on a side, K = 14 labels, T report tokens, C tokens of the context,
R of an earlier study.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate, pairwise
from typing import Any, Self

import torch
from torch import Tensor

from amrg.banks.bank import patient_group_id
from amrg.config import Stage1Config
from amrg.data.film_checks import view_kinds_of_films
from amrg.data.image_ops import to_model_input
from amrg.data.prior import Prior
from amrg.data.shards import hash_study_key
from amrg.data.stream import Sample
from amrg.data.studies import Study
from amrg.data.text.prior_mentions import without_prior_mentions
from amrg.data.text.sections import join_sections
from amrg.models.context import ContextTokenizer
from amrg.models.prior import ALONE, TEXT, PriorTokenizer
from amrg.models.tokenizer import IGNORE_INDEX, ReportTokenizer
from amrg.training.multilabel import multilabel_targets


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
    return ImageBatch(
        films, views, tuple(kind for s in samples for kind in view_kinds_of_films(s.study.views, len(s.views)))
    )


def hash_study_keys(studies: Iterable[Study]) -> list[str]:
    """Hash the keys of studies, for messages."""
    return [hash_study_key(study.key) for study in studies]


@dataclass(frozen=True)
class Stage1Collator:
    """Collate samples to ``films``, ``targets`` [B, K] and ``study`` (hashed keys)."""

    size: int
    config: Stage1Config

    def __call__(self, samples: list[Sample]) -> dict[str, Any]:
        """Collate studies for stage 1."""
        studies = [sample.study for sample in samples]
        labels = multilabel_targets(studies, self.config.uncertain_policy, self.config.unmentioned_policy)
        return {"films": collate_images(samples, self.size), "targets": labels, "study": hash_study_keys(studies)}


@dataclass(frozen=True)
class ReportCollator:
    """Collate studies to ``report`` [B, T], ``group`` [B], ``counts`` [B] of ones and ``study`` (hashed keys).

    If the decoder reads context, also to ``context`` and ``context_field`` [B, C] (``ContextTokenizer``). If it reads
    earlier studies, which ``priors`` has by the key of the later one, also to ``prior_text`` [B, R]
    (``PriorTokenizer``) and ``report_alone`` [B, T]: the report without words of change. That is also the ``report`` of
    a study without a prior.
    """

    encode: ReportTokenizer
    encode_context: ContextTokenizer | None = None
    encode_prior: PriorTokenizer | None = None
    priors: Mapping[str, Prior] = field(default_factory=dict)

    def __call__(self, studies: Sequence[Study]) -> dict[str, Any]:
        """Collate the texts of studies for stage 2; padding is ``IGNORE_INDEX``."""
        context = {}
        if self.encode_context is not None:
            ids_BC, field_BC = self.encode_context([study.context for study in studies])
            context = {"context": ids_BC, "context_field": field_BC}
        encoded = [torch.tensor(self.encode(study.report, study.impression)) for study in studies]
        prior = {}
        if self.encode_prior is not None:
            given = [self.priors.get(study.key) for study in studies]
            # Both are padded to one length, as a dropped prior exchanges them.
            alone = [self._alone(study) for study in studies]
            encoded = [full if one else short for full, short, one in zip(encoded, alone, given, strict=True)]
            padded = _padded([*encoded, *alone])
            prior = {TEXT: self.encode_prior(given), ALONE: padded[len(studies) :]}
            encoded = list(padded[: len(studies)])
        return {
            "report": _padded(encoded),
            "group": torch.tensor([patient_group_id(study.group) for study in studies]),
            "counts": torch.ones(len(studies)),
            "study": hash_study_keys(studies),
            **context,
            **prior,
        }

    def _alone(self, study: Study) -> Tensor:
        """Encode a report without words of change.

        Nothing is learned of one that has no other words, or none in the findings that stand before an impression.
        """
        findings, impression = (without_prior_mentions(text) for text in study.sections.values())
        text = join_sections(findings, impression)
        known = findings if self.encode.separate else text
        return torch.tensor(self.encode(text, impression) if known else [IGNORE_INDEX])


def _padded(encoded: Sequence[Tensor]) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence(list(encoded), batch_first=True, padding_value=IGNORE_INDEX)


@dataclass(frozen=True)
class Stage2Collator:
    """Collate samples as ``ReportCollator`` does, with their ``films``."""

    size: int
    reports: ReportCollator

    def __call__(self, samples: list[Sample]) -> dict[str, Any]:
        """Collate films and texts of studies for stage 2."""
        return {"films": collate_images(samples, self.size), **self.reports([sample.study for sample in samples])}
