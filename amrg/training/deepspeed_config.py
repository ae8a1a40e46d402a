"""DeepSpeed JSON files: "auto" is replaced by values of the configuration, and a contradiction is an error.

The keys that both configurations have are listed here; all other keys are passed to DeepSpeed unchanged.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, Self

from amrg.config import CONFIGS, Stage1Config, Stage2Config
from amrg.config_files import find_config_file
from amrg.errors import UserError, collect_errors
from amrg.training.deepspeed_json import AUTO, AUTOTP_SIZE, TENSOR_PARALLEL, load_ds_config


@dataclass(frozen=True)
class OptimizerSettings:
    """Settings of the optimizer, the same for both stages.

    Attributes:
        section: section of the configuration that the values come from, for error messages (``stage1``, ``stage2``).
        epochs: passes over the training split.
        batch_size: samples per optimizer step, over all ranks and accumulation steps.
        lr, min_lr: peak and final learning rate.
        decoder_lr, qformer_lr: peak learning rate of parameters whose name begins with ``decoder.`` or ``qformer.``;
            None: ``lr``.
        weight_decay: decoupled decay; not applied to vectors (biases, norms).
        warmup_fraction: share of all steps spent warming up.
        max_grad_norm: largest global gradient norm.
        dtype: ``bfloat16`` computes under torch autocast; weights, gradients and moments stay float32. ``float16`` is
            DeepSpeed's mixed precision, for GPUs.
        ds_config: a DeepSpeed JSON, or the bare name of one in ``configs/``.
    """

    section: str
    epochs: int
    batch_size: int
    lr: float
    weight_decay: float
    warmup_fraction: float
    max_grad_norm: float
    dtype: Literal["float32", "bfloat16", "float16"]
    min_lr: float = 0.0
    ds_config: str = "zero0.json"
    decoder_lr: float | None = None
    qformer_lr: float | None = None

    @property
    def own_rates(self) -> dict[str, float]:
        """Peak learning rates of the modules whose rate differs from ``lr``."""
        known = {"decoder": self.decoder_lr, "qformer": self.qformer_lr}
        return {module: lr for module, lr in known.items() if lr is not None and lr != self.lr}

    @classmethod
    def of(cls, section: str, settings: Stage1Config | Stage2Config) -> Self:
        """Collect the optimizer settings of a stage."""
        return cls(
            section=section,
            epochs=settings.epochs,
            batch_size=settings.batch_size,
            lr=settings.lr,
            decoder_lr=getattr(settings, "decoder_lr", None),
            qformer_lr=getattr(settings, "qformer_lr", None),
            min_lr=getattr(settings, "min_lr", 0.0),
            weight_decay=settings.weight_decay,
            warmup_fraction=settings.warmup_fraction,
            max_grad_norm=settings.max_grad_norm,
            dtype=settings.dtype,
            ds_config=settings.ds_config,
        )


def engine_faults(settings: OptimizerSettings, world_size: int) -> list[str]:
    """Return the contradictions and gaps of a stage's DeepSpeed JSON, before the number of steps is known."""

    def check() -> None:
        config = resolve_ds_config(_without_steps(load_ds_config(settings.ds_config)), settings, world_size, 1)
        # Importing DeepSpeed takes seconds, and the files of the package are known to be right.
        if find_config_file(settings.ds_config).parent != CONFIGS:
            refuse_as_deepspeed(config, settings)

    return collect_errors(check)


def refuse_as_deepspeed(config: dict[str, Any], settings: OptimizerSettings) -> None:
    """Raise UserError if DeepSpeed refuses a resolved configuration, or its optimizer or scheduler their parameters."""
    from amrg.training.deepspeed_internals import try_ds_config

    try:
        try_ds_config(config, settings.lr)
    except Exception as error:  # pydantic's, assertions, wrong arguments of an optimizer or a scheduler
        reason = " ".join(str(error).split())
        raise UserError(f"{settings.ds_config}: DeepSpeed refuses it: {reason[:300] or type(error).__name__}") from None


def partitions_weights(name: str) -> bool:
    """Whether a DeepSpeed JSON partitions weights over the ranks (ZeRO 3); False if it cannot be read."""
    return not collect_errors(lambda: require_zero3(name))


def require_zero3(name: str) -> None:
    """Raise UserError unless a DeepSpeed JSON is of ZeRO stage 3."""
    stage = load_ds_config(name).get("zero_optimization", {}).get("stage")
    if stage != 3:
        raise UserError(f"{name} is of ZeRO stage {stage}: only stage 3 splits weights; take zero3.json")


def _without_steps(content: dict[str, Any]) -> dict[str, Any]:
    """Replace fixed numbers of steps by "auto"; they are compared when the data are known."""
    parameters = (content.get("scheduler") or {}).get("params") or {}
    for key in ("warmup_num_steps", "total_num_steps"):
        if key in parameters:
            parameters[key] = AUTO
    return content


#: Keys of the JSON that only affect the computation and the logs, whatever their value.
_ENGINE = {
    "train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "activation_checkpointing",
    "zero_allow_untested_optimizer", "zero_force_ds_cpu_optimizer", "aio", "compile", "steps_per_print", "dump_state",
    "wall_clock_breakdown", "memory_breakdown", "flops_profiler", "comms_logger", "tensorboard", "wandb", "csv_monitor",
    TENSOR_PARALLEL,
}  # fmt: skip
#: Keys of the shipped JSONs other than ``zero_optimization``.
_PLAIN = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping")
#: Keys of ``zero_optimization`` that change the result: lossy communication, delayed updates.
_ZERO_LEARNED = (
    "zero_quantized_weights", "zero_quantized_nontrainable_weights", "zero_quantized_gradients", "zenflow",
)  # fmt: skip


def keys_that_change_training(content: dict[str, Any], zero: int) -> dict[str, Any]:
    """Reduce a DeepSpeed JSON to the keys that change the result of training.

    Removed are keys that only affect the computation, disabled sections, keys that the configuration decides
    (``resolve_ds_config`` refuses a file that contradicts it), and the default AdamW. Unknown keys are kept.

    Args:
        content: the parsed JSON; not changed.
        zero: the ZeRO stage to write, whatever the file has.
    """
    config = json.loads(json.dumps({key: value for key, value in content.items() if key not in _ENGINE}))
    for key in _SHARED:
        section, leaf = _descend(config, key)
        if section is not None:
            section.pop(leaf, None)
    for key, value in _AUTO_DEFAULTS.items():
        section, leaf = _descend(config, key)
        if section is not None and section.get(leaf) == value:
            del section[leaf]
    stage = config.pop("zero_optimization", {})
    kept = _effective(config)
    if kept.get("optimizer") == {"type": "AdamW"}:
        del kept["optimizer"]
    lossy = _effective({key: stage[key] for key in _ZERO_LEARNED if stage.get(key)})
    return {**dict.fromkeys(_PLAIN, AUTO), **kept, "zero_optimization": {"stage": zero, **lossy}}


def _effective(section: dict[str, Any]) -> dict[str, Any]:
    """Remove "auto" values, disabled sections and empty sections."""
    kept = {key: _effective(value) if isinstance(value, dict) else value for key, value in section.items()}
    return {} if kept.get("enabled") is False else {k: v for k, v in kept.items() if v not in (AUTO, {})}


def resolve_ds_config(
    content: dict[str, Any], settings: OptimizerSettings, world_size: int, total_steps: int
) -> dict[str, Any]:
    """Build the configuration for ``deepspeed.initialize``.

    Args:
        content: the parsed JSON; not changed.
        settings: settings of the stage.
        world_size: number of ranks.
        total_steps: optimizer steps of the whole run.

    Raises:
        UserError: a value of the file contradicts the settings (both are named), the batch cannot be divided among the
            ranks, or there is no value for an "auto".
    """
    config = json.loads(json.dumps(content))
    for key, value in _AUTO_DEFAULTS.items():
        section, leaf = _descend(config, key)
        if section is not None and section.get(leaf) == AUTO:
            section[leaf] = value
    for key, (name, value) in _shared(settings, total_steps).items():
        section, leaf = _descend(config, key)
        if section is None or leaf not in section:
            continue
        if section[leaf] == AUTO:
            section[leaf] = value
        elif section[leaf] != value:
            raise _conflict(settings, key, section[leaf], name, value)
    for module, lr in settings.own_rates.items() if config.get("scheduler") else ():
        setting = f"{settings.section}.{module}_lr"
        raise UserError(
            f"{settings.ds_config} brings a scheduler, which gives all weights one rate, but {setting} is {lr}: remove "
            f"the scheduler from the JSON, or say --{setting} None"
        )
    _precision(config, settings)
    # Our own, because DeepSpeed would replace layers with LoRA by layers without, and not say so.
    size = max(1, config.pop(TENSOR_PARALLEL, {}).get(AUTOTP_SIZE, 1))
    if size > 1:
        _refuse_tensor_parallel(config, settings, size, world_size)
    if uses_half_weights(config) and config.setdefault("zero_optimization", {}).get("stage", 0) == 0:
        # The same arithmetic on one rank or many; DeepSpeed's own for stage 0 keeps weights that nothing can save.
        config["zero_optimization"]["stage"] = 1
    _batch(config, settings, world_size // size)
    config.setdefault("gradient_clipping", settings.max_grad_norm)
    # "auto" in this section selects DeepSpeed's default, which an absent key selects, too.
    zero = config.get("zero_optimization", {})
    for key in [key for key, value in zero.items() if value == AUTO]:
        del zero[key]
    for key in _unresolved_autos(config):
        raise UserError(f'{settings.ds_config}: nothing is known to fill in `{key}: "auto"`; give a value or remove it')
    return config


def _refuse_tensor_parallel(config: dict[str, Any], settings: OptimizerSettings, size: int, ranks: int) -> None:
    """Raise UserError for what does not go with tensor parallelism."""
    where = f"{settings.ds_config}: `{TENSOR_PARALLEL}.{AUTOTP_SIZE}: {size}`"
    zero = config.get("zero_optimization", {})
    if settings.section != "stage2":
        raise UserError(f"{where} splits a language model, and {settings.section} has none: take another JSON for it")
    if ranks % size:
        raise UserError(f"{where} does not divide {ranks} ranks: start a multiple of {size}")
    if zero.get("stage") == 3:
        raise UserError(f"{where} does not go with ZeRO 3, which splits the model itself: take stage 0, 1 or 2")
    for key in ("offload_optimizer", "offload_param"):
        if zero.get(key, {}).get("device", "none") != "none":
            raise UserError(f"{where} does not go with zero_optimization.{key}: remove one of them")
    if uses_half_weights(config):
        raise UserError(f"{where} does not go with DeepSpeed's bf16 and fp16 modes: take dtype bfloat16 without them")


def _shared(settings: OptimizerSettings, total_steps: int) -> dict[str, tuple[str, Any]]:
    """Keys of the JSON that the configuration decides, with the name of the setting and its value."""
    known = {
        **vars(settings),
        "warmup_fraction × steps": max(1, round(settings.warmup_fraction * total_steps)),  # DeepSpeed wants one
        "steps": total_steps,
    }
    return {key: (name, known[name]) for key, name in _SHARED.items()}


_SHARED = {
    "train_batch_size": "batch_size",
    "gradient_clipping": "max_grad_norm",
    "optimizer.params.lr": "lr",
    "optimizer.params.weight_decay": "weight_decay",
    "scheduler.params.warmup_max_lr": "lr",
    "scheduler.params.warmup_num_steps": "warmup_fraction × steps",
    "scheduler.params.total_num_steps": "steps",
}


#: Values of "auto" keys that have no setting in the configuration.
_AUTO_DEFAULTS = {
    "optimizer.params.betas": [0.9, 0.999],
    "optimizer.params.eps": 1e-8,
    "scheduler.params.warmup_min_lr": 0.0,
}


def _precision(config: dict[str, Any], settings: OptimizerSettings) -> None:
    """Enable DeepSpeed's bf16 mode only if the file does; enable its fp16 mode (with loss scaling) for float16."""
    amp = config.pop("amp", {})
    if amp != AUTO and amp.get("enabled", False) not in (False, AUTO):
        raise UserError(
            f"{settings.ds_config}: `amp` needs NVIDIA Apex, which is not supported: remove it, or take bf16"
        )
    if settings.dtype == "float16":
        config.setdefault("fp16", {"enabled": AUTO})
    for name, dtype in (("bf16", "bfloat16"), ("bfloat16", "bfloat16"), ("fp16", "float16")):
        section = config.get(name, {})
        if section.get("enabled") == AUTO:
            section["enabled"] = dtype == settings.dtype == "float16"
        elif section.get("enabled") and settings.dtype != dtype:
            raise _conflict(settings, f"{name}.enabled", True, "dtype", settings.dtype)


def uses_half_weights(config: dict[str, Any]) -> bool:
    """Whether a resolved configuration enables DeepSpeed's bf16 or fp16 mode, in which weights are half precision."""
    return any(config.get(name, {}).get("enabled") for name in ("bf16", "bfloat16", "fp16"))


def _batch(config: dict[str, Any], settings: OptimizerSettings, world_size: int) -> None:
    """Fill in and check micro-batch × accumulation × ranks = global batch."""
    micro = config.get("train_micro_batch_size_per_gpu", AUTO)
    accumulation = config.get("gradient_accumulation_steps", AUTO)
    if accumulation == AUTO:
        accumulation = 1 if micro == AUTO else max(1, settings.batch_size // (micro * world_size))
    if micro == AUTO:
        micro = settings.batch_size // (accumulation * world_size)
    if micro * accumulation * world_size != settings.batch_size:
        raise UserError(
            f"{settings.ds_config}: train_micro_batch_size_per_gpu {micro} × gradient_accumulation_steps "
            f"{accumulation} × {world_size} ranks is {micro * accumulation * world_size}, but "
            f"{settings.section}.batch_size is {settings.batch_size}: change one of them"
        )
    config["train_batch_size"] = settings.batch_size
    config["train_micro_batch_size_per_gpu"] = micro
    config["gradient_accumulation_steps"] = accumulation


def _descend(config: dict[str, Any], key: str) -> tuple[dict[str, Any] | None, str]:
    *parents, leaf = key.split(".")
    section: Any = config
    for parent in parents:
        section = section.get(parent) if isinstance(section, dict) else None
    return (section if isinstance(section, dict) else None), leaf


def _conflict(settings: OptimizerSettings, key: str, found: Any, name: str, value: Any) -> UserError:
    return UserError(
        f"{settings.ds_config} says `{key}: {json.dumps(found)}` but {settings.section}.{name} is {json.dumps(value)}: "
        'make them equal, or write "auto" in the JSON'
    )


def _unresolved_autos(value: Any, prefix: str = "") -> Iterator[str]:
    if value == AUTO:
        yield prefix
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from _unresolved_autos(inner, f"{prefix}.{key}" if prefix else str(key))
