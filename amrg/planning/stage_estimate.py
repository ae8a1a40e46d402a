"""Memory by part, communication, time and largest micro-batch of one stage."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from amrg.config import Config, Stage1Config, Stage2Config
from amrg.data.labels import LABELS
from amrg.data.sources import published_source_size
from amrg.data.sources.mix import mixed_data_configs as parts_of_mix
from amrg.data.stream import draw_epoch_rows, num_films_by_study, study_weights
from amrg.errors import UserError
from amrg.planning.architectures import SPLITS, Size
from amrg.planning.devices import Device
from amrg.planning.meta_models import Base, MetaModel, stage1_skeleton, stage2_skeleton
from amrg.planning.step_time import (
    BankPlacement,
    StepBytes,
    StepTime,
    place_banks_on_ranks,
    predict_step_bytes,
    roofline_step_time,
)
from amrg.planning.trace import Tracer
from amrg.planning.zero_memory import (
    CHECKPOINT,
    MemoryUse,
    ParameterCounts,
    ZeroSettings,
    check_zero_with_base,
    count_parameters,
    zero_memory_per_rank,
)
from amrg.training import deepspeed_config, deepspeed_json, stage1, stage2

_OPTIMISATION = {"stage1": stage1.stage1_optimizer_settings, "stage2": stage2.stage2_optimizer_settings}
#: Sources of the size of a split.
_PREPARED, _TABLED = "of the prepared data", "at most, by the tables of data.path"


@dataclass(frozen=True)
class Assumptions:
    """Assumptions of a plan.

    Attributes:
        gpus: number of ranks.
        memory: bytes of each; None takes the device's.
        device: device whose peaks are used.
        efficiency: share of the peak arithmetic that is reached.
        bandwidth: share of every bandwidth that is reached.
        reserve: share of the memory that CUDA, libraries and fragmentation take.
        studies: of the train split; None takes what is known of the data set.
        held_out: studies of the split that reports are written for, likewise.
        data: the prepared data, where they are.
    """

    gpus: int
    device: Device
    memory: float
    efficiency: float = 0.4
    bandwidth: float = 0.8
    reserve: float = 0.06
    studies: int | None = None
    held_out: int | None = None
    data: Path | None = None

    @property
    def machines(self) -> str:
        """GPUs and their memory in words."""
        return f"{self.gpus} × {self.device.name} of {self.memory / 1e9:g} GB"


@dataclass(frozen=True)
class Plan:
    """Prediction for one stage.

    Attributes:
        section: ``stage1`` or ``stage2``.
        weights, zero, banks, size: the model, ZeRO settings, banks and data set of the figures.
        parts: bytes by part at the configured micro-batch.
        largest: samples of the largest micro-batch that fits; 0 where none does.
        moved, seconds: bytes and time per optimiser step and device.
        steps: optimiser steps per epoch.
        epochs: number of epochs.
        kv_cache: bytes of keys and values when reports are written (stage 2), and sequences held together.
        assumed: descriptions of the assumptions.
    """

    section: str
    weights: ParameterCounts
    zero: ZeroSettings
    banks: BankPlacement
    size: Size
    parts: dict[str, MemoryUse]
    largest: int
    moved: StepBytes
    seconds: StepTime
    steps: int
    epochs: int
    kv_cache: tuple[float, int] | None
    assumed: tuple[str, ...]

    @property
    def device_bytes(self) -> float:
        """Bytes on one device."""
        return sum(part.device for part in self.parts.values())

    @property
    def host_bytes(self) -> float:
        """Bytes in the memory of the host, for one rank."""
        return sum(part.host for part in self.parts.values())

    @property
    def total_seconds(self) -> float:
        """Seconds of all epochs."""
        return self.seconds.step * self.steps * self.epochs


def estimate_split_size(config: Config, given: Assumptions, split: str = "train", with_wordless: bool = False) -> Size:
    """Find the size of a split: given, prepared, from the data set's tables, configured or published, in that order.

    Args:
        config, given: configuration and assumptions of the plan.
        split: name of the split.
        with_wordless: count studies without a text, too, which only stage 1 uses; only prepared data distinguish them.

    Raises:
        UserError: none of these is known.
    """
    train = split == "train"
    option, requested = ("--studies", given.studies) if train else ("--held-out", given.held_out)
    renders = config.data.renders_per_study if config.data.source == "openi_drr" and train else 1
    known = None
    if given.data is not None:
        films = num_films_by_study(given.data, split, with_wordless)
        known = Size(len(films) // renders, sum(films), _PREPARED)
        if requested is None:
            return known
    known = known or _tabled(config, split) or SPLITS.get(config.data.source, {}).get(split)
    limit = getattr(config.data, f"{split}_studies")
    if requested is None and known and (limit is None or limit >= known.studies):
        return known
    studies, origin = (limit, f"data.{split}_studies") if requested is None else (requested, option)
    if studies is None:
        raise UserError(f"how many {split} studies {config.data.source} has is not known here: give {option}")
    return Size(studies, round(studies * (known.films / known.studies if known else renders)), origin)


def _tabled(config: Config, split: str) -> Size | None:
    """Return the size by the tables of the data folder, if they exist and tell the split; no report is read."""
    if config.data.splits != "official":
        return None
    try:
        sizes = published_source_size(config.data)
    except UserError:
        return None
    return Size(*sizes[split], _TABLED) if sizes and sizes[split][0] else None


def count_train_samples(config: Config, size: Size) -> int:
    """Count the samples of a train split: each render of the embedded data set is one sample."""
    return size.films if config.data.source == "openi_drr" else size.studies


def _epoch_samples(config: Config, size: Size, given: Assumptions, with_wordless: bool) -> int:
    """Count the samples of an epoch: a data set of ``data.mix`` by its weight, if the size is that of the data sets."""
    weights = config.data.weights
    if weights and size.origin == _PREPARED and given.data is not None:
        weights_N = study_weights(given.data, "train", weights, with_wordless)
        return len(draw_epoch_rows(size.studies, weights_N, 0, 0))
    if weights and size.origin == _TABLED:
        sizes = {name: published_source_size(part) or {} for name, part in parts_of_mix(config.data).items()}
        return round(sum(weights[name] * one.get("train", (0, 0))[0] for name, one in sizes.items()))
    return count_train_samples(config, size)


def estimate_stage(config: Config, section: str, given: Assumptions, tokenizer: Any = None) -> Plan:
    """Predict one stage.

    Raises:
        UserError: the batch does not divide among the ranks, the DeepSpeed JSON contradicts the configuration, or sizes
            of a model are not known.
    """
    settings: Stage1Config | Stage2Config = getattr(config, section)
    size = estimate_split_size(config, given, with_wordless=section == "stage1")
    samples = count_train_samples(config, size)
    steps = max(_epoch_samples(config, size, given, section == "stage1") // settings.batch_size, 1)
    zero = ZeroSettings.read(
        deepspeed_config.resolve_ds_config(
            deepspeed_json.load_ds_config(settings.ds_config), _OPTIMISATION[section](config), given.gpus, steps
        )
    )
    shared = deepspeed_json.tensor_parallel_size(settings.ds_config)
    ranks = given.gpus // shared
    base: Base = config.decoder.base_dtype if section == "stage2" else "float32"
    check_zero_with_base(zero, base)
    checkpointing = section == "stage2" and config.stage2.activation_checkpointing
    skeleton = build_skeleton(config, section, size, tokenizer)
    weights = count_parameters(skeleton.model, base)
    tracer = Tracer(skeleton, settings.dtype, checkpointing)
    two, three = tracer.trace(2), tracer.trace(3)
    # Stage 1 learns from every film of a study; stage 2's trace has a study's films in it.
    films = size.films / samples if section == "stage1" else 1.0

    def parts(micro: int) -> dict[str, MemoryUse]:
        trace, banks = two.extrapolate(three, micro * films), bank_estimates(config, skeleton, given, micro)
        return {
            **zero_memory_per_rank(weights, zero, ranks),
            "activations": MemoryUse(trace.saved + banks.remote_query_bytes),
            "working memory": MemoryUse(trace.workspace_bytes),
            "banks": MemoryUse(banks.held),
            "copies for checkpoints": MemoryUse(0, CHECKPOINT * weights.saved),
            "reserve": MemoryUse(given.reserve * given.memory),
        }

    trace, banks = two.extrapolate(three, zero.micro * films), bank_estimates(config, skeleton, given, zero.micro)
    traffic = predict_step_bytes(weights, zero, ranks, trace.saved, (banks.near, banks.far), checkpointing)
    time = roofline_step_time(
        trace.flops * zero.accumulation,
        traffic,
        given.device,
        settings.dtype,
        given.gpus,
        given.efficiency,
        given.bandwidth,
    )
    return Plan(
        section, weights, zero, banks, size, parts(zero.micro), max_micro_batch(parts, given.memory), traffic, time,
        steps, settings.epochs, _cache(config, tracer, given) if section == "stage2" else None, skeleton.assumed,
    )  # fmt: skip


def build_skeleton(config: Config, section: str, size: Size, tokenizer: Any = None) -> MetaModel:
    """Build the stage's model on the meta device."""
    if section == "stage1":
        return stage1_skeleton(config)
    films = 1 if config.data.source == "openi_drr" else max(round(size.films / size.studies), 1)
    return stage2_skeleton(config, films, tokenizer)


def bank_estimates(config: Config, skeleton: MetaModel, given: Assumptions, micro: int) -> BankPlacement:
    """Place a stage's banks on the ranks, and count the traffic of a micro-batch's retrieval."""
    per_study = len(LABELS) * config.memory.heads
    return place_banks_on_ranks(
        skeleton.banks,
        config.sharding,
        config.memory.index,
        given.gpus,
        micro * per_study,
        config.stage2.batch_size
        // (given.gpus // deepspeed_json.tensor_parallel_size(config.stage2.ds_config))
        * per_study,
        given.device.ranks_per_node,
    )


def max_micro_batch(parts: Any, memory: float, limit: int = 2**16) -> int:
    """Return the largest micro-batch whose parts fit; 0 if one sample does not."""

    def fits(micro: int) -> bool:
        return sum(part.device for part in parts(micro).values()) <= memory

    low, high = 0, 1
    while high < limit and fits(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _cache(config: Config, tracer: Tracer, given: Assumptions) -> tuple[float, int]:
    """Bytes of keys and values on a rank when a batch of reports is at its longest, and its sequences."""
    settings = config.generate
    sequences = -(-settings.batch_size // given.gpus) * settings.num_beams
    positions = prompt_length(config, tracer.model) + settings.max_new_tokens - 1  # the last token is never read
    full = tracer.cache_bytes() * deepspeed_json.tensor_parallel_size(
        config.stage2.ds_config
    )  # shared in training alone
    return full * sequences * positions, sequences


def prompt_length(config: Config, model: Any) -> int:
    """Length of a study's prefix in the decoder: the prompt and all streams."""
    use = config.decoder
    streams = sum((use.use_queries, use.use_visual_memory, use.use_report_memory))
    prompt = model.prompt
    words = len(prompt.before) + len(prompt.behind) + len(prompt.between) + len(prompt.after)
    words += use.retrieved_tokens * use.use_retrieved_text + use.context_tokens * bool(use.context)
    words += use.prior_tokens * bool(use.prior) + model.prior_positions
    return words + model.vision_shape[0] + len(LABELS) * streams
