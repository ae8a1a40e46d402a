"""What a run would lack, told before anything is made: files, models, settings, disk, memory, GPUs.

Each check lives with what it is about and gives its faults as lines. Here they are put to the steps that need them,
and what these steps hold is set against the machine. No weight is read: models are built on the meta device.
"""

import math
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from amrg.config import Config, Stage1Config, Stage2Config
from amrg.data.sources import configured_source_size, source_faults
from amrg.errors import UserError, collect_errors

#: Bytes of a stored film for each pixel of a square of its short side, as JPEG; the demo's films take 0.33.
FILM_BYTES = 0.25
#: Bytes of a cached feature (`amrg.training.feature_cache`), and of a float32 weight.
_FEATURE, _WEIGHT = 2, 4


@dataclass(frozen=True)
class Machine:
    """Where a run is to be: bytes of free disk, of its memory, and of one GPU (None: there is none).

    Attributes:
        ranks: processes of this machine that train together.
    """

    disk: int
    memory: int
    gpu: int | None
    ranks: int = 1


@dataclass(frozen=True)
class Need:
    """Bytes that a step holds at least: on disk when it is done and beside that meanwhile, on the host, on a GPU."""

    kept: float = 0.0
    passing: float = 0.0
    memory: float = 0.0
    gpu: float = 0.0


@dataclass(frozen=True)
class Run:
    """What is looked at.

    Attributes:
        config: of the run.
        data: the data artefact, where it is made already.
        ranks: that train together.
        machine: None where the work is done on other machines than this one.
        begun: bytes that an interrupted step has written already.
    """

    config: Config
    data: Path | None
    ranks: int
    machine: Machine | None
    begun: int = 0


def describe_machine(folder: Path) -> Machine:
    """The machine that this process runs on; the disk of a folder, which need not be there yet."""
    import torch

    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")  # of a container
    if limit.is_file() and (text := limit.read_text().strip()).isdecimal():
        memory = min(memory, int(text))
    gpu = torch.cuda.get_device_properties(0).total_memory if torch.cuda.is_available() else None
    local = int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE") or "1")
    return Machine(shutil.disk_usage(_existing(folder)).free, memory, gpu, local)


def examine_steps(verbs: Sequence[str], run: Run) -> tuple[list[str], list[str]]:
    """Faults, and what is worth a warning, of the steps that are still to be made, each in a line."""
    faults = _folder_faults(Path(run.config.runs).absolute())
    for verb in verbs:
        faults += _CHECKS[verb](run)
    if run.machine is not None:
        faults += _room_faults(verbs, run, run.machine)
    warnings = _evaluate_warnings(run.config) if "evaluate" in verbs else []
    return list(dict.fromkeys(faults)), [*warnings, *_gpu_warnings(verbs, run.config)]


# ---- what is there, and what goes together ----


def _folder_faults(folder: Path) -> list[str]:
    existing = _existing(folder)
    if existing.is_dir() and os.access(existing, os.W_OK | os.X_OK):
        return []
    return [f"cannot write to {existing}: choose another folder with --runs"]


def _existing(folder: Path) -> Path:
    return next(path for path in (folder, *folder.parents) if path.exists())


def _prepare(run: Run) -> list[str]:
    return source_faults(run.config.data)


def _stage1(run: Run) -> list[str]:
    from amrg.models.qformer import qformer_init_faults
    from amrg.models.vision import encoder_size_faults, weights_faults
    from amrg.planning.meta_models import stage1_skeleton

    config = run.config
    try:
        encoder: Any = stage1_skeleton(config).model.encoder
        faults = encoder_size_faults(encoder) + weights_faults(config.vision)
    except UserError as error:
        faults = [str(error)]
    return faults + qformer_init_faults(config.vision) + _training(run, "stage1", config.stage1)


def _training(run: Run, section: str, config: Stage1Config | Stage2Config) -> list[str]:
    from amrg.training.deepspeed_config import OptimizerSettings, engine_faults
    from amrg.training.engine import refuse_half_without_gpu
    from amrg.training.telemetry import telemetry_faults

    optimisation = OptimizerSettings.of(section, config)
    faults = engine_faults(optimisation, run.ranks) + telemetry_faults(run.config.telemetry)
    if run.machine is not None:
        faults += collect_errors(lambda: refuse_half_without_gpu(optimisation))
    samples = _train_samples(run, with_wordless=section == "stage1")
    if samples is not None and samples < config.batch_size:
        faults.append(f"{section}.batch_size {config.batch_size} is above the {samples} train studies: lower it")
    return faults


def _train_samples(run: Run, with_wordless: bool) -> int | None:
    """Of the train split, at most; None where that is not known."""
    if run.data is not None:
        from amrg.data.stream import num_split_studies

        return num_split_studies(run.data, "train", with_wordless)
    config = run.config.data
    if config.train_studies is None or config.mix:  # a limit is of each data set
        return None
    return config.train_studies * (config.renders_per_study if config.source == "openi_drr" else 1)


def _banks(run: Run) -> list[str]:
    from amrg.models.cam import refuse_unknown
    from amrg.models.text_encoder import encoder_faults

    config = run.config.banks
    return encoder_faults(config.reports.encoder) + collect_errors(lambda: refuse_unknown(config.mining.method))


def _stage2(run: Run) -> list[str]:
    from amrg.models.decoder import decoder_faults
    from amrg.models.text_encoder import encoder_faults
    from amrg.training.stage2 import stage2_faults

    config = run.config
    # Its retrieval loss encodes reports again.
    encoder = encoder_faults(config.banks.reports.encoder) if config.stage2.retrieval_loss_weight else []
    decoder = decoder_faults(config.decoder) or _positions(
        run, {"stage2.max_report_tokens": config.stage2.max_report_tokens}
    )
    faults = decoder + encoder + (stage2_faults(config, run.ranks) or _split(run)) + _context(run)
    return faults + _training(run, "stage2", config.stage2)


def _split(run: Run) -> list[str]:
    """Whether ranks can share the decoder where the DeepSpeed JSON says that they do."""
    from amrg.planning.meta_models import stage2_skeleton
    from amrg.training.deepspeed_json import tensor_parallel_size

    if tensor_parallel_size(run.config.stage2.ds_config) == 1:
        return []
    return collect_errors(lambda: stage2_skeleton(run.config))


def _context(run: Run) -> list[str]:
    """Whether the data, where they are made, have what the decoder is to read beside the films."""
    from amrg.models.prior import refuse_lacking_priors
    from amrg.training.stage2_batches import read_split_priors

    settings, data = run.config.decoder, run.data
    if data is None:
        return []
    faults = _lacking_context(run, "decoder.context", settings.context)
    if settings.prior:
        faults += collect_errors(
            lambda: refuse_lacking_priors(read_split_priors(settings, data, "train"), settings.prior)
        )
    return faults


def _lacking_context(run: Run, setting: str, fields: Sequence[str]) -> list[str]:
    """Whether train studies, where the data are made, have the fields of the context that a setting names."""
    from amrg.data.stream import load_split_studies
    from amrg.models.context import refuse_lacking_context

    if run.data is None or not fields:
        return []
    return collect_errors(partial(refuse_lacking_context, setting, fields, load_split_studies(run.data, "train")))


def _generate(run: Run) -> list[str]:
    from amrg.inference.generate import generate_faults
    from amrg.models.decoder import decoder_faults

    config = run.config
    base = [] if config.decoder.tuning == "full" else decoder_faults(config.decoder)
    return (
        (base or _positions(run, {"generate.max_new_tokens": config.generate.max_new_tokens}))
        + generate_faults(config)
        + _lacking_context(run, "generate.recall_context", config.generate.query_context)
    )


def _positions(run: Run, tokens: dict[str, int]) -> list[str]:
    """Whether the decoder has positions for prompt, streams and so many tokens of a report, by their setting."""
    from amrg.models.decoder import find_tokenizer
    from amrg.planning.meta_models import stage2_skeleton

    try:
        model: Any = stage2_skeleton(run.config, tokenizer=find_tokenizer(run.config.decoder)).model
    except (UserError, OSError, ValueError):  # told by another check, or not on this disk
        return []
    return collect_errors(*(partial(model.refuse_too_long, setting, count) for setting, count in tokens.items()))


def _evaluate(run: Run) -> list[str]:
    from amrg.evaluation.language import language_faults

    return language_faults()


def _gpu_warnings(verbs: Sequence[str], config: Config) -> list[str]:
    """What an old GPU cannot compute itself."""
    import torch

    if not torch.cuda.is_available():
        return []
    (major, minor), warnings = torch.cuda.get_device_capability(), []
    # A card runs code for it or an older one of its generation, and compiles PTX (`compute_`) for it or any older one.
    built = [arch.split("_") for arch in torch.cuda.get_arch_list() if arch.split("_")[1].isdecimal()]
    if not any(
        divmod(int(card), 10) <= (major, minor) and (kind == "compute" or int(card) // 10 == major)
        for kind, card in built
    ):
        warnings.append(f"this torch has no code for the GPU (sm_{major}{minor}): install a torch that is built for it")
    if not torch.cuda.is_bf16_supported(including_emulation=False):
        warnings += [
            f"{stage}.dtype bfloat16: this GPU only emulates it: say --{stage}.dtype float16 and a --{stage}.ds_config "
            "of ZeRO 1, such as zero1.json"
            for stage in ("stage1", "stage2")
            if stage in verbs and getattr(config, stage).dtype == "bfloat16"
        ]
    return warnings


def _evaluate_warnings(config: Config) -> list[str]:
    from amrg.evaluation.language import meteor_warning

    return [warning for warning in (meteor_warning(),) if warning and config.evaluate.meteor]


def _graph(run: Run) -> list[str]:
    from amrg.graph.curated import read_curated_edges

    file = run.config.graph.curated
    return collect_errors(lambda: read_curated_edges(Path(file))) if file else []


_CHECKS: dict[str, Callable[[Run], list[str]]] = {
    "prepare": _prepare,
    "graph": _graph,
    "stage1": _stage1,
    "banks": _banks,
    "stage2": _stage2,
    "generate": _generate,
    "evaluate": _evaluate,
}


# ---- what there is room for ----


def _room_faults(verbs: Sequence[str], run: Run, machine: Machine) -> list[str]:
    """Disk at its fullest moment, and memory of each step."""
    kept = fullest = 0.0
    faults = []
    for verb, need in _needs(verbs, run, machine):
        fullest = max(fullest, kept + need.kept + need.passing)
        kept += need.kept
        what = "weights, gradients and moments"
        if need.memory > machine.memory:
            faults.append(
                f"{verb} holds at least {_gb(need.memory)} ({what}, their copies for checkpoints; activations are not "
                f"counted), and this machine has {_gb(machine.memory)} of memory: take smaller models, or offload less"
            )
        if machine.gpu is not None and need.gpu > machine.gpu:
            faults.append(
                f"{verb} holds at least {_gb(need.gpu)} on each GPU ({what}; activations are not counted), which has "
                f"{_gb(machine.gpu)}: take a higher ZeRO stage, more GPUs or an offloading JSON (`amrg plan` tells)"
            )
    if fullest - run.begun > machine.disk:
        faults.append(
            f"{run.config.runs}: some {_gb(fullest - run.begun)} will be written at most at a time, and the disk has "
            f"{_gb(machine.disk)} free (taken: {FILM_BYTES} bytes a pixel of a stored film, "
            "checkpoint.keep_last checkpoints, cached features): make room, or choose another folder with --runs"
        )
    return faults


def _needs(verbs: Sequence[str], run: Run, machine: Machine) -> Iterator[tuple[str, Need]]:
    """Of each step whose models can be built; what is wrong with the others is told already."""
    estimates = {"prepare": _shards, "stage1": _classifier, "banks": _rows, "stage2": _generator}
    for verb in verbs:
        try:
            if verb in estimates:
                yield verb, estimates[verb](run, machine)
        except (UserError, OSError, ValueError):
            continue


def _size(run: Run) -> tuple[int, int]:
    """Studies and films, at most; none where that is not known."""
    if run.data is None:
        return configured_source_size(run.config.data) or (0, 0)
    from amrg.data.stream import num_films_by_study
    from amrg.data.studies import SPLITS

    films = [count for split in SPLITS for count in num_films_by_study(run.data, split, with_wordless=True)]
    return len(films), sum(films)


def _shards(run: Run, machine: Machine) -> Need:
    return Need(kept=_size(run)[1] * run.config.data.image_size**2 * FILM_BYTES)


def _classifier(run: Run, machine: Machine) -> Need:
    from amrg.planning.meta_models import dummy_image_batch, stage1_skeleton

    model: Any = stage1_skeleton(run.config).model
    need = _trained(run, machine, model, "stage1", run.config.stage1)
    if not model.encoder.frozen_stem:
        return need
    features = math.prod(model.encoder.stem(dummy_image_batch(model, 1).to("meta")).shape)
    cache = _FEATURE * features * _size(run)[1] * run.config.stage1.augmented_copies
    return replace(need, passing=need.passing + cache)


def _rows(run: Run, machine: Machine) -> Need:
    from amrg.planning.meta_models import bank_shapes

    size = sum(bank.rows * bank.dim * bank.element for bank in bank_shapes(run.config))
    return Need(kept=size, passing=size)  # made in parts, then joined


def _generator(run: Run, machine: Machine) -> Need:
    from amrg.planning.meta_models import stage2_skeleton

    model: Any = stage2_skeleton(run.config).model
    need = _trained(run, machine, model, "stage2", run.config.stage2, run.config.decoder.base_dtype)
    if run.config.stage2.train_vision:
        return need
    cache = _FEATURE * sum(map(math.prod, model.vision_output_shapes)) * _size(run)[0]
    return replace(need, passing=need.passing + cache)


def _trained(
    run: Run, machine: Machine, model: Any, section: str, config: Stage1Config | Stage2Config, base: Any = "float32"
) -> Need:
    """Weights and checkpoints of a stage, as ``amrg plan`` counts them."""
    from amrg.planning.zero_memory import CHECKPOINT, ZeroSettings, count_parameters, zero_memory_per_rank
    from amrg.training.deepspeed_config import OptimizerSettings, resolve_ds_config
    from amrg.training.deepspeed_json import load_ds_config, tensor_parallel_size

    weights = count_parameters(model, base)
    settings = resolve_ds_config(load_ds_config(config.ds_config), OptimizerSettings.of(section, config), run.ranks, 1)
    zero = ZeroSettings.read(settings)
    parts = zero_memory_per_rank(weights, zero, run.ranks // tensor_parallel_size(config.ds_config))
    del parts["buffers"]  # they may stay empty
    step = sum(part.device for part in parts.values())
    saving = parts["weights"].device + parts["optimiser"].device
    copies = CHECKPOINT * weights.saved
    host = (
        0.0 if "nvme" in (zero.offload_weights, zero.offload_optimizer) else sum(part.host for part in parts.values())
    )
    on_host = (host, host) if machine.gpu is not None else (host + step, host + saving)
    return Need(
        kept=_WEIGHT * weights.saved,
        # Those that stay, the one that is being written, and the best epoch's weights.
        passing=(run.config.checkpoint.keep_last + 1) * copies + _WEIGHT * weights.saved,
        memory=max(machine.ranks * on_host[0], machine.ranks * on_host[1] + copies),
        gpu=step,
    )


def _gb(size: float) -> str:
    """Bytes as read by people; 1 GB = 1e9 bytes."""
    return f"{size / 1e9:,.1f} GB"
