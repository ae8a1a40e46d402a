"""Stage 2: train the report generator on the train reports and keep the best epoch by validation.

With frozen vision, stage 1's output for each study is computed once and cached; otherwise films are streamed.
"""

import shutil
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from amrg import distributed
from amrg.artifacts import add_artifact_failure, open_artifact
from amrg.banks.bank import REPORTS, TRAIN, VISUAL, MemoryBank
from amrg.config import Config
from amrg.data.stream import (
    load_split_studies,
)
from amrg.errors import UserError, collect_errors
from amrg.models.bank_sentences import no_sentences_error
from amrg.models.classifier import DiseaseClassifier
from amrg.models.context import format_context, refuse_lacking_context
from amrg.models.decoder import build_decoder, build_split_decoder
from amrg.models.decoder_loading import QUANTISED, refuse_quantised
from amrg.models.decoder_smoke_test import smoke_test_decoder
from amrg.models.open_banks import open_memory_banks, refuse_ring_of_indexes
from amrg.models.prior import format_prior, refuse_lacking_priors
from amrg.models.prompt import stream_faults
from amrg.models.report_generator import ReportGenerator
from amrg.models.tokenizer import training_text
from amrg.models.zero3 import gathered_parameters
from amrg.retrieval.indexed_bank import search_faults
from amrg.training import deepspeed_config, engine
from amrg.training.association_targets import refuse_no_hopfield, wanted_rows_of
from amrg.training.calibration import calibrate_reports, fit_training_distance
from amrg.training.checkpoint import hashes_of_inputs
from amrg.training.deepspeed_config import OptimizerSettings
from amrg.training.deepspeed_json import tensor_parallel_size
from amrg.training.loop import TrainingTask, fit_task
from amrg.training.model_card import write_model_card
from amrg.training.report_loss import association_metrics, report_token_loss
from amrg.training.retrieval_targets import build_retrieval_targets
from amrg.training.retrieved_text import refuse_changing_text
from amrg.training.sample_reports import MemoryWatch, detect_collapses
from amrg.training.stage2_batches import SCRATCH, build_batch_source, read_split_priors

MODEL = "model"

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
        refuse_lacking_context("decoder.context", config.decoder.context, studies)
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
        memories = open_memory_banks(config, banks, config.stage2.batch_size // distributed.data_parallel_size())
        method = MemoryBank.open(banks / VISUAL).header["about"]["method"]
        model = ReportGenerator(classifier, decoder, tokenizer, memories, config.memory, config.decoder, method)
    if not config.stage2.association_loss_weight:
        model.freeze_visual_query()
    return model


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
