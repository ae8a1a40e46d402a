"""Batches of stage 2: stage 1's cached output or films, with reports, contexts and earlier studies; validation."""

import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from amrg import distributed
from amrg.config import Config, DecoderConfig
from amrg.data.prior import Prior, choose_priors
from amrg.data.shards import hash_study_key
from amrg.data.splits import uniform_from_hash
from amrg.data.stream import (
    Stream,
    draw_epoch_rows,
    group_by_length,
    iter_split_samples,
    load_split_studies,
    num_split_studies,
    reader_processes,
    study_weights,
)
from amrg.errors import UserError
from amrg.models.prior import ALONE, FILMS, drop_batch_priors
from amrg.models.report_generator import ReportGenerator
from amrg.models.tokenizer import IGNORE_INDEX
from amrg.progress import print_on_rank_0
from amrg.training.collate import ReportCollator, Stage2Collator
from amrg.training.report_loss import report_token_loss
from amrg.training.retrieved_text import retrieved_tokens_of
from amrg.training.sample_reports import MemoryWatch, clinical_micro_f1, failure_rates, greedy_reports
from amrg.training.vision_cache import VisionCache, encode_study_films

SCRATCH = "scratch"  # removed when the artefact is complete


def read_split_priors(settings: DecoderConfig, data: Path, split: str) -> dict[str, Prior]:
    """Choose the earlier study of each study of a split that has one of which the decoder reads anything."""
    if not settings.prior:
        return {}
    found = choose_priors(load_split_studies(data, split, with_wordless=True), settings.prior_study)
    return {key: prior for key, prior in found.items() if "films" in settings.prior or prior.report}


def build_batch_source(config: Config, model: ReportGenerator, data: Path, banks: Path, scratch: Path) -> "BatchSource":
    """Build the batches of stage 2: films if vision is trained, otherwise stage 1's output, cached in ``scratch``."""
    if config.stage2.train_vision:
        return _Streamed(config, model, data)
    return _Cached(config, model, data, banks, scratch)


class BatchSource:
    """Batches of the train split and the loss on validation."""

    steps_per_epoch: int

    def __init__(self, config: Config, model: ReportGenerator, data: Path) -> None:
        self.model, self.data = model, data
        self.seed, self.batch_size, self.settings = config.seed, config.stage2.batch_size, config.stage2
        self.priors = {split: read_split_priors(config.decoder, data, split) for split in ("train", "val")}
        self.reports = ReportCollator(
            model.report_encoder(config.stage2.max_report_tokens),
            model.context_encoder(),
            model.prior_encoder(),
            self.priors["train"] | self.priors["val"],
        )
        for split in ("train", "val"):
            if not num_split_studies(data, split):
                raise UserError(f"the split `{split}` of {data} has no studies: stage 2 needs some")
        # Validation reports by hashed key, if the best epoch is chosen by what reports state.
        selected_by_reports = self.settings.selection_metric == "val_f1"
        self._references = (
            {hash_study_key(study.key): study.report for study in load_split_studies(data, "val")}
            if selected_by_reports
            else {}
        )

    def batches(self, epoch: int, start: int) -> Iterator[dict[str, Any]]:
        """Yield this rank's share of each global batch of the epoch, from batch ``start`` on."""
        raise NotImplementedError

    def validation(self) -> Iterator[dict[str, Any]]:
        """Yield this rank's share of each validation batch; equally many on every rank."""
        raise NotImplementedError

    def validate(self, model: ReportGenerator, watch: MemoryWatch) -> dict[str, float]:
        """Cross-entropy per report token over the validation split, and metrics of sample reports and memories."""
        sums = {"loss": 0.0, "tokens": 0.0}
        reports: list[tuple[str, str]] = []
        seconds = 0.0
        for number, batch in enumerate(map(self.as_trained, self.validation())):
            if "films" in batch:
                batch["vision"] = encode_study_films(model, batch.pop("films"))
            if (wanted := self._wanted_reports(number) - len(reports)) > 0:
                began = time.perf_counter()
                reports += greedy_reports(model, batch, wanted, self.settings.max_report_tokens)
                seconds += time.perf_counter() - began
            summed, _ = report_token_loss(model, {**batch, "weight": batch["counts"]})
            watch.add(model, batch)
            sums["loss"] += float(summed) * len(batch["counts"])
            sums["tokens"] += float(((batch["report"] != IGNORE_INDEX).sum(1) * batch["counts"]).sum())
        mean = distributed.all_reduce_mean(sums)
        found = {"val_loss": mean["loss"] / mean["tokens"]}
        texts = [text for _, text in reports]
        if self._references:
            found["val_f1"] = clinical_micro_f1(texts, [self._references[key] for key, _ in reports])
            print_on_rank_0(f"stage2: val_f1 of {len(texts)} validation reports, written in {seconds:.0f} s")
        watched = failure_rates(texts[: self.settings.num_sample_reports]) if self.settings.num_sample_reports else {}
        return {**found, **watched, **watch.result()}

    def _wanted_reports(self, batch: int) -> int:
        """Number of reports that a validation has written after its batch of this number."""
        settings = self.settings
        sampled = settings.num_sample_reports if batch == 0 else 0
        return max(sampled, settings.selection_reports) if self._references else sampled

    def lengths(self, config: Config) -> list[int] | None:
        """Token counts of the train reports; None unless batches are grouped by length."""
        if not config.stage2.group_by_length:
            return None
        return [
            len(self.reports.encode(study.report, study.impression)) for study in load_split_studies(self.data, "train")
        ]

    def with_some_priors(self, packed: dict[str, Any], epoch: int) -> dict[str, Any]:
        """Leave out the priors of a share of the studies; which ones depends on seed, epoch and study only."""
        share = self.settings.prior_dropout
        if ALONE not in packed or not share:
            return packed
        drawn = [uniform_from_hash(self.seed, f"prior {epoch}", key) for key in packed["study"]]
        return drop_batch_priors(packed, torch.tensor(drawn) < share)

    def as_trained(self, packed: dict[str, Any]) -> dict[str, Any]:
        """Leave out the contexts and the priors of a validation batch where every training batch lacks them."""
        if "context" in packed and self.settings.context_dropout == 1:
            packed = {**packed, "context": torch.full_like(packed["context"], IGNORE_INDEX)}
        if ALONE in packed and self.settings.prior_dropout == 1:
            packed = drop_batch_priors(packed, torch.ones_like(packed["report"][:, 0], dtype=torch.bool))
        return packed

    def with_token_weights(self, packed: dict[str, Any]) -> dict[str, Any]:
        """Add ``weight`` [B], with which the mean over samples and ranks is a mean over the global batch's tokens."""
        tokens = float((packed["report"] != IGNORE_INDEX).sum())  # before the copy: on a GPU it would wait for it
        mean = distributed.all_reduce_mean({"tokens": tokens})["tokens"]
        packed = _to_device(packed)
        return {**packed, "weight": packed["counts"] * len(packed["counts"]) / mean}


class _Cached(BatchSource):
    """Batches with cached output of a frozen stage 1."""

    def __init__(self, config: Config, model: ReportGenerator, data: Path, banks: Path, folder: Path) -> None:
        super().__init__(config, model, data)
        self.train, self.val = (VisionCache(model, data, s, folder, config.stage2.dtype) for s in ("train", "val"))
        both = {"train": self.train, "val": self.val}
        self._text = retrieved_tokens_of(config, model, data, banks, both, folder)
        self._weights = study_weights(data, "train", config.data.weights)
        samples = len(draw_epoch_rows(len(self.train), self._weights, self.seed, 0))
        self.steps_per_epoch = samples // self.batch_size
        self._lengths = self.lengths(config)
        if not self.steps_per_epoch or self.batch_size % distributed.data_parallel_size():
            raise UserError(
                f"stage2.batch_size {self.batch_size} does not fit {samples} train studies on "
                f"{distributed.data_parallel_size()} ranks: take a multiple of the ranks, at most the studies"
            )

    def batches(self, epoch: int, start: int) -> Iterator[dict[str, Any]]:
        drawn = draw_epoch_rows(len(self.train), self._weights, self.seed, epoch)
        drawn = drawn[np.random.default_rng([self.seed, epoch]).permutation(len(drawn))]
        if self._lengths is not None:
            drawn = group_by_length(drawn, np.array(self._lengths), self.batch_size, [self.seed, epoch])
        order = torch.from_numpy(drawn)
        for step in range(start, self.steps_per_epoch):
            rows = order[step * self.batch_size : (step + 1) * self.batch_size]
            batch = self._batch("train", rows[distributed.data_parallel_rank() :: distributed.data_parallel_size()])
            yield self.with_token_weights(self.with_some_priors(batch, epoch))

    def validation(self) -> Iterator[dict[str, Any]]:
        for rows, counted in iter_rank_batches(len(self.val), self.batch_size):
            yield _to_device(self._batch("val", rows) | {"counts": counted})

    def _batch(self, split: str, rows: Tensor) -> dict[str, Any]:
        cache = self.train if split == "train" else self.val
        studies = [cache.studies[row] for row in rows.tolist()]
        batch = {"vision": cache[rows], **self.reports(studies)}
        if "films" in self.model.settings.prior:
            batch[FILMS] = cache.prior_films([self.priors[split].get(study.key) for study in studies])
        return batch if self._text is None else {**batch, "retrieved": self._text[split][rows]}


class _Streamed(BatchSource):
    """Batches with films from the shards, for training vision."""

    def __init__(self, config: Config, model: ReportGenerator, data: Path) -> None:
        super().__init__(config, model, data)
        self._pack = Stage2Collator(model.stage1.image_size, self.reports)
        self._stream = Stream(
            data,
            "train",
            self.batch_size,
            self.seed,
            distributed.data_parallel_rank(),
            distributed.data_parallel_size(),
            readers=reader_processes(config.data.loader_workers),
            collate=self._pack,
            lengths=self.lengths(config),
            weights=study_weights(data, "train", config.data.weights),
        )
        self.steps_per_epoch = self._stream.steps_per_epoch

    def batches(self, epoch: int, start: int) -> Iterator[dict[str, Any]]:
        for batch in self._stream.epoch(epoch, start):
            yield self.with_token_weights(self.with_some_priors(batch, epoch))

    def validation(self) -> Iterator[dict[str, Any]]:
        samples = iter_split_samples(self.data, "val")
        for number, (rows, counted) in enumerate(
            iter_rank_batches(num_split_studies(self.data, "val"), self.batch_size)
        ):
            batch = list(islice(samples, self.batch_size))
            local = [batch[row - number * self.batch_size] for row in rows.tolist()]
            yield _to_device(self._pack(local) | {"counts": counted})


def _to_device(batch: dict[str, Any]) -> dict[str, Any]:
    """Move tensors to this rank's device; films are moved when they are encoded."""
    device = distributed.local_device()
    return {name: v.to(device, non_blocking=True) if isinstance(v, Tensor) else v for name, v in batch.items()}


def iter_rank_batches(total: int, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield this rank's rows of each batch of 0 … total - 1, and 1 for a real row, 0 for padding.

    Every rank gets equally many batches of equal size, because the model contains collectives.
    """
    world = distributed.data_parallel_size()
    for start in range(0, total, batch_size):
        rows = torch.arange(start, min(start + batch_size, total))
        padded = torch.cat([rows, rows[:1].expand(-len(rows) % world)])
        counts = (torch.arange(len(padded)) < len(rows)).float()
        yield padded[distributed.data_parallel_rank() :: world], counts[distributed.data_parallel_rank() :: world]
