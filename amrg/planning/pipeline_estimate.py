"""Time and GPU-hours of the pipeline's steps that use GPUs; all figures are predictions.

Added to the plans of both stages: mining of the visual bank, the encoding of each film by frozen vision, and the
generation of reports.
"""

from dataclasses import dataclass, replace
from typing import Any

from torch import nn, zeros

from amrg.config import Config
from amrg.data.labels import LABELS
from amrg.errors import UserError
from amrg.planning.architectures import Size
from amrg.planning.meta_models import Base, dummy_image_batch, dummy_vision_output, stage1_skeleton
from amrg.planning.stage_estimate import (
    Assumptions,
    Plan,
    build_skeleton,
    count_train_samples,
    estimate_split_size,
    prompt_length,
)
from amrg.planning.step_time import StepBytes, roofline_step_time
from amrg.planning.trace import Tracer
from amrg.planning.zero_memory import count_parameters


@dataclass(frozen=True)
class Step:
    """One step of the pipeline.

    Attributes:
        verb: the step's verb.
        what: description of the work.
        seconds: from beginning to end; None where the size of the held-out split is not known.
        gpu_hours: for which GPUs are held, also those that wait.
        origin: source of the number of held-out studies; empty for the other steps.
    """

    verb: str
    what: str
    seconds: float | None
    gpu_hours: float | None
    origin: str = ""


@dataclass(frozen=True)
class ImageCost:
    """Seconds that one film takes on one device outside of training.

    Attributes:
        forward_seconds: a forward of the classifier.
        cam_seconds: class activation maps of all labels, after it.
    """

    forward_seconds: float
    cam_seconds: float


def estimate_pipeline(config: Config, plans: dict[str, Plan], given: Assumptions, tokenizer: Any = None) -> list[Step]:
    """Predict all steps, in their order.

    Args:
        config: of the run; its banks are taken to be mined from the train split alone.
        plans: of both stages.
        given: what is assumed.
        tokenizer: as for ``plan``.
    """
    size, film = plans["stage2"].size, seconds_per_film(config, plans["stage1"], given)

    def step(verb: str, what: str, spent: float) -> Step:
        return Step(verb, what, spent, spent * given.gpus / 3600)

    steps = [
        step("stage1", f"{config.stage1.epochs} epochs", plans["stage1"].total_seconds),
        step("banks", *estimate_mining(config, size, film, given)),
    ]
    if not config.stage2.train_vision:
        steps.append(step("stage2", f"{size.films:,} films seen", size.films * film.forward_seconds / given.gpus))
    steps.append(step("stage2", f"{config.stage2.epochs} epochs", plans["stage2"].total_seconds))
    try:
        held_out = estimate_split_size(config, given, config.generate.split)
    except UserError as unknown:
        return [*steps, Step("generate", str(unknown), None, None)]
    settings = config.generate
    what = f"{held_out.studies:,} reports of {settings.max_new_tokens} tokens"
    spent = held_out.films * film.forward_seconds / given.gpus + generation_step(
        config, held_out.studies, given, tokenizer
    )
    return [*steps, replace(step("generate", what, spent), origin=held_out.origin)]


def seconds_per_film(config: Config, stage1: Plan, given: Assumptions) -> ImageCost:
    """From ``stage1``'s plan: what autograd keeps of a film in training is taken to be written and read here, too."""
    tracer = Tracer(stage1_skeleton(config), config.stage1.dtype)
    flops = tracer.flops(lambda model: model(dummy_image_batch(model, 2))) / 2
    films = stage1.zero.micro * stage1.size.films / count_train_samples(config, stage1.size)
    kept = stage1.parts["activations"].device / films
    encoder: Any = tracer.model.encoder
    labels, features = len(LABELS), encoder.grid**2 * encoder.fine_dim
    # `amrg.models.cam`, in float32: the scores of all cells and labels, and a map from weights, both from all features;
    # then `amrg.models.regions`: each map's weights on the projected features.
    projected = encoder.grid**2 * config.vision.query_dim
    flops_of_maps = 2.0 * labels * (2 * features + projected)
    maps = _seconds(flops_of_maps, 4.0 * (2 * features + projected), "float32", given)
    return ImageCost(_seconds(flops, 2 * kept, config.stage1.dtype, given), maps)


def estimate_mining(config: Config, size: Size, film: ImageCost, given: Assumptions) -> tuple[str, float]:
    """Mining of a train split, in words and seconds; films are divided among the GPUs, as a cluster does."""
    settings, samples = config.banks.mining, count_train_samples(config, size)
    films = size.films * min(settings.max_studies or samples, samples) / samples
    return f"{films:,.0f} films", films * (film.forward_seconds + film.cam_seconds) / given.gpus


def generation_step(config: Config, studies: int, given: Assumptions, tokenizer: Any = None) -> float:
    """Seconds for the reports of so many studies, each at its greatest length.

    A token takes one pass over the decoder's weights and, as transformers' cache works, three over the keys and
    values: a token is appended by copying (read, write), then they are read; beams are put in order by copying, too.
    """
    settings, dtype = config.generate, config.stage2.dtype
    # Ranks that share a model in training hold it whole when it writes.
    config = replace(config, stage2=replace(config.stage2, ds_config="zero0.json"))
    skeleton = build_skeleton(config, "stage2", estimate_split_size(config, given), tokenizer)
    read = _decoder_bytes(skeleton.model, config.decoder.base_dtype)
    tracer = Tracer(skeleton, dtype)
    batch = min(settings.batch_size, studies)
    of_rank = -(-batch // given.gpus)
    sequences = of_rank * settings.num_beams
    prompt, new = prompt_length(config, tracer.model), settings.max_new_tokens
    streams = tracer.flops(lambda model: model.embed_streams(dummy_vision_output(model, 2), zeros(2).long())) / 2
    reading, first = tracer.generation_flops(prompt)
    _, last = tracer.generation_flops(prompt + max(new - 2, 0))
    position = sequences * tracer.cache_bytes()
    gathered = 0.0 if settings.ds_config is None else read * (given.gpus - 1) / given.gpus
    begin = _seconds(of_rank * streams + sequences * reading, read + prompt * position, dtype, given, gathered)
    copies = 5 if settings.num_beams > 1 else 3
    # The mean token has new / 2 before it, itself counted.
    token = _seconds(
        sequences * (first + last) / 2, read + copies * (prompt + new / 2) * position, dtype, given, gathered
    )
    return -(-studies // batch) * (begin + (new - 1) * token)


def _decoder_bytes(model: Any, base: Base) -> float:
    weights = count_parameters(nn.ModuleDict({"decoder": model.decoder}), base)
    return 4.0 * weights.trainable + weights.frozen_bytes


def _seconds(flops: float, memory: float, dtype: str, given: Assumptions, gathered: float = 0.0) -> float:
    """The roofline of one pass on one device; bytes of its own memory, and of weights gathered from other ranks."""
    bytes_ = StepBytes(0.0, gathered, 0.0, 0.0, 0.0, memory)
    return roofline_step_time(flops, bytes_, given.device, dtype, given.gpus, given.efficiency, given.bandwidth).step
