"""Stage 2: train the report generator on the train reports and keep the best epoch by validation.

With frozen vision, stage 1's output for each study is computed once and cached; otherwise films are streamed.
"""

import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from amrg import distributed
from amrg.artifacts import add_artifact_failure, open_artifact
from amrg.banks.bank import REPORTS, TRAIN, VISUAL, MemoryBank
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
from amrg.errors import UserError, collect_errors
from amrg.models.bank_sentences import no_sentences_error
from amrg.models.classifier import DiseaseClassifier
from amrg.models.context import drop_context_fields, format_context, refuse_lacking_context
from amrg.models.decoder import QUANTISED, build_decoder, build_split_decoder, refuse_quantised, smoke_test_decoder
from amrg.models.open_banks import open_sharded_banks, refuse_ring_of_indexes
from amrg.models.prior import ALONE, FILMS, PriorInputs, drop_batch_priors, format_prior, refuse_lacking_priors
from amrg.models.prompt import stream_faults
from amrg.models.report_generator import ReportGenerator
from amrg.models.tokenizer import IGNORE_INDEX, training_text
from amrg.models.vision_output import VisionOutput
from amrg.models.zero3 import gathered_parameters
from amrg.progress import print_on_rank_0
from amrg.retrieval.indexed_bank import search_faults
from amrg.training import deepspeed_config, engine
from amrg.training.association_targets import WantedRows, refuse_no_hopfield, wanted_rows_of
from amrg.training.calibration import calibrate_reports, fit_training_distance
from amrg.training.checkpoint import hashes_of_inputs
from amrg.training.collate import ReportCollator, Stage2Collator
from amrg.training.deepspeed_config import OptimizerSettings
from amrg.training.deepspeed_json import tensor_parallel_size
from amrg.training.loop import TrainingTask, fit_task
from amrg.training.model_card import write_model_card
from amrg.training.retrieval_targets import RetrievalTargets, build_retrieval_targets
from amrg.training.retrieved_text import refuse_changing_text, retrieved_tokens_of
from amrg.training.sample_reports import MemoryWatch, clinical_micro_f1, detect_collapses, failure_rates, greedy_reports
from amrg.training.vision_cache import VisionCache, encode_study_films

MODEL = "model"
SCRATCH = "scratch"  # removed when the artefact is complete

#: Parts of the classifier without a gradient from stage 2's loss.
_HEADS = ("query_weight_KD", "query_bias_K", "cam_head")


@engine.restore_functional_linear()
def train_stage2(config: Config, data: Path, stage1: Path, banks: Path, folder: Path) -> None:
    """Train on ``data`` from the classifier of ``stage1`` and the rows of ``banks``.

    Args:
        config: ``memory``, ``decoder``, ``stage2`` and ``seed`` (unless ``stage2`` has its own) are read.
        data, stage1, banks: artefacts.
        folder: receives ``model/`` (``ReportGenerator.save_pretrained`` and a model card) and ``curves.jsonl``; an
            interrupted run resumes from its checkpoints there.

    Raises:
        UserError: the train split has less than one batch, the decoder is unavailable, or the loss is not finite.
    """
    distributed.init_process_group()
    if config.stage2.seed is not None:
        config = replace(config, seed=config.stage2.seed)
    with engine.tensor_parallel(config.stage2.ds_config):
        _train(config, data, stage1, banks, folder)


def _train(config: Config, data: Path, stage1: Path, banks: Path, folder: Path) -> None:
    settings = config.stage2
    check_no_held_out_rows(config, banks)
    refuse_changing_text(config)
    model = build_generator(config, data, stage1, banks).to(distributed.local_device())
    if engine.zero3_section(settings.ds_config) is None:  # split weights cannot be used before there is an engine
        smoke_test_decoder(model.decoder, model.tokenizer, settings.dtype)
    model.refuse_too_long("stage2.max_report_tokens", settings.max_report_tokens)
    if settings.activation_checkpointing:
        model.decoder.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    if settings.compile:
        model.decoder.compile(dynamic=True)
    source = build_batch_source(config, model, data, banks, folder / SCRATCH)
    own_reports = build_retrieval_targets(config, data, banks, folder / SCRATCH)
    wanted_rows = wanted_rows_of(config, data, banks)
    task = TrainingTask(
        model=model,
        loss=partial(
            report_token_loss,
            own_reports=own_reports,
            wanted_rows=wanted_rows,
            context_dropout=settings.context_dropout,
        ),
        batches=source.batches,
        steps_per_epoch=source.steps_per_epoch,
        validate=partial(source.validate, watch=MemoryWatch.open(model, data, banks)),
        selection_metric=(settings.selection_metric, settings.selection_metric == "val_f1"),
        input_hashes=hashes_of_inputs(config.seed, settings.batch_size, data, banks),
        step_metrics=association_metrics,
        warn=detect_collapses,
    )
    base = model.base_fingerprint()  # before DeepSpeed's half precision casts the weights
    rows = fit_task(
        task,
        stage2_optimizer_settings(config),
        folder=folder,
        seed=config.seed,
        telemetry=config.telemetry,
        checkpointing=config.checkpoint,
    )
    with gathered_parameters(model.saved_parameters()):
        if distributed.global_rank() == 0:
            model.save_pretrained(folder / MODEL, base)
            if not settings.train_vision:  # as stage 1 has left it, whatever its weights were cast to
                shutil.copytree(stage1 / "model", folder / MODEL / "stage1", dirs_exist_ok=True)
            collapsed = next(row.get("warnings", {}) for row in reversed(rows) if row["best"])
            for failure in collapsed.values():
                add_artifact_failure(folder, failure)
            failures = [*open_artifact(banks, "banks").failures, *collapsed.values()]
            write_model_card(folder / MODEL, model, config, data, banks, rows, failures)
    distributed.barrier()
    final = folder / SCRATCH / ("trained" if settings.train_vision else "")
    fit_training_distance(config, model, data, folder, final)
    if config.decoder.predict_outline or config.decoder.use_retrieved_text:
        calibrate_reports(config, model, data, folder, final)


def stage2_optimizer_settings(config: Config) -> OptimizerSettings:
    """Optimizer settings of stage 2."""
    return OptimizerSettings.of("stage2", config.stage2)


def build_generator(config: Config, data: Path, stage1: Path, banks: Path) -> ReportGenerator:
    """Build the generator before training, as a function of the artefacts, the configuration and its seed."""
    classifier = freeze_for_stage2(DiseaseClassifier.from_pretrained(stage1 / "model"), config.stage2.train_vision)
    studies = load_split_studies(data, "train")
    outline, separate = config.decoder.predict_outline, config.decoder.separate_sections
    if separate and not any(study.impression for study in studies):
        raise UserError(_NO_SECTIONS)
    texts = [training_text(study.report, study.impression, outline, separate) for study in studies]
    if config.decoder.context:
        refuse_lacking_context(config.decoder.context, studies)
        texts += [format_context(study.context, config.decoder.context) for study in studies if study.context]
    if config.decoder.prior:
        priors = read_split_priors(config.decoder, data, "train")
        refuse_lacking_priors(priors, config.decoder.prior)
        texts += [format_prior(prior, config.decoder.prior) for prior in priors.values()]
    if distributed.current_groups().size > 1:
        decoder, tokenizer = build_split_decoder(config.decoder, texts, config.seed)
    else:
        decoder, tokenizer = build_decoder(
            config.decoder, texts, config.seed, engine.zero3_section(config.stage2.ds_config)
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        memories = open_sharded_banks(config, banks, config.stage2.batch_size // distributed.data_parallel_size())
        method = MemoryBank.open(banks / VISUAL).header["about"]["method"]
        model = ReportGenerator(classifier, decoder, tokenizer, memories, config.memory, config.decoder, method)
    if not config.stage2.association_loss_weight:
        model.freeze_visual_query()
    return model


def read_split_priors(settings: DecoderConfig, data: Path, split: str) -> dict[str, Prior]:
    """Choose the earlier study of each study of a split that has one of which the decoder reads anything."""
    if not settings.prior:
        return {}
    found = choose_priors(load_split_studies(data, split, with_wordless=True), settings.prior_study)
    return {key: prior for key, prior in found.items() if "films" in settings.prior or prior.report}


def freeze_for_stage2(classifier: DiseaseClassifier, train_vision: bool) -> DiseaseClassifier:
    """Freeze the classifier, or, if vision is trained, only the heads that get no gradient from stage 2's loss."""
    if not train_vision:
        classifier.requires_grad_(False)
    for name, parameter in classifier.named_parameters():
        if name.startswith(_HEADS):
            parameter.requires_grad_(False)
    return classifier


def stage2_faults(config: Config, ranks: int) -> list[str]:
    """Return the contradictions in the settings of stage 2 and its banks for a number of ranks."""
    settings, memory, sharding = config.stage2, config.memory, config.sharding
    checks = [
        lambda: refuse_no_hopfield(config),
        lambda: refuse_ring_of_indexes(config),
        lambda: refuse_changing_text(config),
        lambda: _refuse_split(config),
    ]
    if deepspeed_config.partitions_weights(settings.ds_config):
        checks.append(lambda: refuse_quantised(config.decoder.base_dtype))
    if settings.train_vision and "films" in config.decoder.prior:
        checks.append(_refuse_trained_prior)
    faults = [*stream_faults(config.decoder), *search_faults(memory.index), *collect_errors(*checks)]
    if config.decoder.use_retrieved_text and config.banks.reports.granularity != "sentence":
        faults.append(no_sentences_error("banks.reports.granularity report makes whole reports"))
    if config.decoder.separate_sections and "separate" not in (
        config.data.sections, *(part.sections for part in config.data.mix),
    ):  # fmt: skip
        faults.append(_NO_SECTIONS)
    held_out = [split for split in config.banks.splits if split != TRAIN]
    if held_out and not settings.allow_held_out_bank_rows:
        faults.append(_leak("banks.splits", held_out))
    if memory.retrieval == "cross_attention" and (memory.index != "exact" or ranks > 1):
        faults.append("memory.retrieval cross_attention reads every row: it needs memory.index exact, and one rank")
    if sharding.ranks_per_replica and ranks > 1 and ranks % sharding.ranks_per_replica:
        faults.append(f"sharding.ranks_per_replica {sharding.ranks_per_replica} does not divide {ranks} ranks")
    return faults


def _refuse_split(config: Config) -> None:
    """Raise UserError for what does not go with a language model that ranks share, if they are to share it."""
    size = tensor_parallel_size(config.stage2.ds_config)
    if size == 1:
        return
    what = f"{config.stage2.ds_config}: `tensor_parallel.autotp_size: {size}` does not go with"
    if config.decoder.base_dtype in QUANTISED:
        raise UserError(f"{what} decoder.base_dtype {config.decoder.base_dtype}: take bfloat16")
    if config.stage2.compile:
        raise UserError(f"{what} stage2.compile: say --stage2.compile false")


def _refuse_trained_prior() -> None:
    raise UserError(
        "decoder.prior films are encoded once, by a frozen encoder: say stage2.train_vision false, or decoder.prior "
        "report alone"
    )


_NO_SECTIONS = (
    "decoder.separate_sections: the data do not tell findings and impression apart: say data.sections separate, or "
    "decoder.separate_sections false"
)


def _leak(where: object, held_out: Sequence[str]) -> str:
    return (
        f"{where} holds rows of {' and '.join(sorted(held_out))} studies: their reports would leak into what is "
        "generated. Build the banks with banks.splits [train], or say stage2.allow_held_out_bank_rows: true "
        "(every score then carries a mark)"
    )


def check_no_held_out_rows(config: Config, folder: Path) -> None:
    """Raise UserError if a bank has rows of other splits than train, unless the configuration allows it."""
    for name in (VISUAL, REPORTS):
        held_out = MemoryBank.open(folder / name).header["splits"].keys() - {TRAIN}
        if held_out and not config.stage2.allow_held_out_bank_rows:
            raise UserError(_leak(folder / name, sorted(held_out)))


def report_token_loss(
    model: ReportGenerator,
    batch: dict[str, Any],
    own_reports: RetrievalTargets | None = None,
    wanted_rows: WantedRows | None = None,
    context_dropout: float = 0.0,
) -> tuple[Tensor, dict[str, Tensor | float]]:
    """Cross-entropy per report token of the global batch, as a mean over samples that ranks can average.

    ``own_reports`` and ``wanted_rows`` add the losses of the memories (``amrg.models.retrieval_loss``).
    ``context_dropout`` is the share of the fields of the context that are left out.
    """
    vision = encode_study_films(model, batch["films"]) if "films" in batch else VisionOutput(*batch["vision"])
    own_BQD = None if own_reports is None else own_reports.vectors_for(batch["study"])
    wanted = None if wanted_rows is None else wanted_rows.of(batch["study"])
    context_BC = batch.get("context")
    if context_BC is not None and context_dropout:
        context_BC = drop_context_fields(context_BC, batch["context_field"], context_dropout)
    predicted = model(
        vision,
        batch["group"],
        batch["report"],
        own_BQD,
        wanted,
        batch.get("retrieved"),
        context_BC,
        PriorInputs.of_batch(batch),
    )
    total, recorded = (predicted.loss_B * batch["weight"]).mean(), {}
    for name, teacher, loss_B in (
        ("retrieval_loss", own_reports, predicted.retrieval_B),
        ("association_loss", wanted_rows, predicted.association_B),
    ):
        if teacher is not None and loss_B is not None:
            total = total + teacher.weight * loss_B.mean()
            recorded[name] = loss_B.mean().detach()
    return total, recorded


def association_metrics(model: ReportGenerator) -> dict[str, float]:
    """Perplexities of the memories' last associations; every rank must call this."""
    recorded: dict[str, float] = {}
    for name, memory in model.streamed.items():
        metrics = memory.metrics()
        recorded |= {f"{name}_{key}": metrics[key] for key in ("perplexity", "missed_bound") if key in metrics}
    return recorded


def build_batch_source(config: Config, model: ReportGenerator, data: Path, banks: Path, scratch: Path) -> "_Source":
    """Build the batches of stage 2: films if vision is trained, otherwise stage 1's output, cached in ``scratch``."""
    if config.stage2.train_vision:
        return _Streamed(config, model, data)
    return _Cached(config, model, data, banks, scratch)


class _Source:
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


class _Cached(_Source):
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


class _Streamed(_Source):
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
