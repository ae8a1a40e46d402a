"""A DeepSpeed JSON, taken as it is: "auto" is filled in from our configuration, and a disagreement is an error.

The keys that both sides know are listed here once; everything else in the file goes to DeepSpeed untouched.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, Self

from amrg.config import Stage1Config, Stage2Config, find_config
from amrg.errors import UserError, collect_errors

AUTO = "auto"


@dataclass(frozen=True)
class OptimizerSettings:
    """How a model is trained; the same for both stages.

    Attributes:
        section: part of the configuration the values come from, for error messages (``stage1``, ``stage2``).
        epochs: passes over the training split.
        batch_size: samples of one optimiser step, over all ranks and accumulation steps.
        lr, min_lr: peak and final learning rate.
        decoder_lr, qformer_lr: peak of parameters whose name begins with ``decoder.`` or ``qformer.``, where it is
            another.
        weight_decay: decoupled decay; vectors (biases, norms) are spared.
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
        """Peak rates of the modules that have another than ``lr``."""
        known = {"decoder": self.decoder_lr, "qformer": self.qformer_lr}
        return {module: lr for module, lr in known.items() if lr is not None and lr != self.lr}

    @classmethod
    def of(cls, section: str, ours: Stage1Config | Stage2Config) -> Self:
        """The settings of a stage as the engine reads them."""
        return cls(
            section=section,
            epochs=ours.epochs,
            batch_size=ours.batch_size,
            lr=ours.lr,
            decoder_lr=getattr(ours, "decoder_lr", None),
            qformer_lr=getattr(ours, "qformer_lr", None),
            min_lr=getattr(ours, "min_lr", 0.0),
            weight_decay=ours.weight_decay,
            warmup_fraction=ours.warmup_fraction,
            max_grad_norm=ours.max_grad_norm,
            dtype=ours.dtype,
            ds_config=ours.ds_config,
        )


def engine_faults(ours: OptimizerSettings, world_size: int) -> list[str]:
    """What the DeepSpeed JSON of a stage contradicts, or lacks, before the number of steps is known."""
    return collect_errors(lambda: resolve(_without_steps(load_ds_config(ours.ds_config)), ours, world_size, 1))


def is_split(name: str) -> bool:
    """Whether a DeepSpeed JSON splits weights over the ranks (ZeRO 3); not where it cannot be read."""
    return not collect_errors(lambda: refuse_whole_weights(name))


def refuse_whole_weights(name: str) -> None:
    """Raises UserError unless a DeepSpeed JSON is of ZeRO stage 3."""
    stage = load_ds_config(name).get("zero_optimization", {}).get("stage")
    if stage != 3:
        raise UserError(f"{name} is of ZeRO stage {stage}: only stage 3 splits weights; take zero3.json")


def _without_steps(content: dict[str, Any]) -> dict[str, Any]:
    """Without numbers of steps that a file fixes: they are compared when the data are known."""
    parameters = (content.get("scheduler") or {}).get("params") or {}
    for key in ("warmup_num_steps", "total_num_steps"):
        if key in parameters:
            parameters[key] = AUTO
    return content


def load_ds_config(name: str) -> dict[str, Any]:
    """The content of a DeepSpeed JSON by path or by bare name.

    Raises:
        UserError: there is none, or it is not a JSON object.
    """
    path = find_config(name)
    try:
        content = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not readable JSON: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} must hold a JSON object, as DeepSpeed's documentation describes")
    return content


#: Keys of the JSON that say how DeepSpeed computes and what it tells, whatever their value.
_ENGINE = {
    "train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "activation_checkpointing",
    "zero_allow_untested_optimizer", "zero_force_ds_cpu_optimizer", "aio", "compile", "steps_per_print", "dump_state",
    "wall_clock_breakdown", "memory_breakdown", "flops_profiler", "comms_logger", "tensorboard", "wandb", "csv_monitor",
}  # fmt: skip
#: What the shipped JSONs say beside ZeRO.
_PLAIN = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping")
#: Those of ``zero_optimization`` that change what is learned: lossy exchange, late updates.
_ZERO_LEARNED = (
    "zero_quantized_weights", "zero_quantized_nontrainable_weights", "zero_quantized_gradients", "zenflow",
)  # fmt: skip


def learned(content: dict[str, Any], zero: int) -> dict[str, Any]:
    """What of a DeepSpeed JSON decides what is learned, over a file that says nothing but a ZeRO stage.

    Left out are how DeepSpeed computes, what is off, what our configuration decides (``resolve`` refuses a file that
    says otherwise), and AdamW as it is without the file. A key that is not known here stays.

    Args:
        content: the parsed JSON; not changed.
        zero: the ZeRO stage to name, whatever the file says.
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
    kept = _said(config)
    if kept.get("optimizer") == {"type": "AdamW"}:
        del kept["optimizer"]
    lossy = _said({key: stage[key] for key in _ZERO_LEARNED if stage.get(key)})
    return {**dict.fromkeys(_PLAIN, AUTO), **kept, "zero_optimization": {"stage": zero, **lossy}}


def _said(section: dict[str, Any]) -> dict[str, Any]:
    """A section without "auto", and without parts that are off or say nothing."""
    kept = {key: _said(value) if isinstance(value, dict) else value for key, value in section.items()}
    return {} if kept.get("enabled") is False else {k: v for k, v in kept.items() if v not in (AUTO, {})}


def resolve(content: dict[str, Any], ours: OptimizerSettings, world_size: int, total_steps: int) -> dict[str, Any]:
    """The configuration that ``deepspeed.initialize`` gets.

    Args:
        content: the parsed JSON; not changed.
        ours: what our configuration says.
        world_size: number of ranks.
        total_steps: optimiser steps of the whole run.

    Raises:
        UserError: a value of the file contradicts ours (both are named), the batch cannot be divided among the
            ranks, or an "auto" stands where nothing is known to fill it in.
    """
    config = json.loads(json.dumps(content))
    for key, value in _AUTO_DEFAULTS.items():
        section, leaf = _descend(config, key)
        if section is not None and section.get(leaf) == AUTO:
            section[leaf] = value
    for key, (name, value) in _shared(ours, total_steps).items():
        section, leaf = _descend(config, key)
        if section is None or leaf not in section:
            continue
        if section[leaf] == AUTO:
            section[leaf] = value
        elif section[leaf] != value:
            raise _conflict(ours, key, section[leaf], name, value)
    for module, lr in ours.own_rates.items() if config.get("scheduler") else ():
        setting = f"{ours.section}.{module}_lr"
        raise UserError(
            f"{ours.ds_config} brings a scheduler, which gives all weights one rate, but {setting} is {lr}: remove the "
            f"scheduler from the JSON, or say --{setting} None"
        )
    _precision(config, ours)
    _batch(config, ours, world_size)
    config.setdefault("gradient_clipping", ours.max_grad_norm)
    # "auto" here means "as DeepSpeed thinks best", which is what it does when the key is absent.
    zero = config.get("zero_optimization", {})
    for key in [key for key, value in zero.items() if value == AUTO]:
        del zero[key]
    for key in _unresolved_autos(config):
        raise UserError(f'{ours.ds_config}: nothing is known to fill in `{key}: "auto"`; give a value or remove it')
    return config


def _shared(ours: OptimizerSettings, total_steps: int) -> dict[str, tuple[str, Any]]:
    """Keys of the JSON that our configuration decides: their name there and the value."""
    known = {**vars(ours), "warmup_fraction × steps": round(ours.warmup_fraction * total_steps), "steps": total_steps}
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


#: "auto" values that stand for a convention rather than for something of ours.
_AUTO_DEFAULTS = {
    "optimizer.params.betas": [0.9, 0.999],
    "optimizer.params.eps": 1e-8,
    "scheduler.params.warmup_min_lr": 0.0,
}


def _precision(config: dict[str, Any], ours: OptimizerSettings) -> None:
    """DeepSpeed's own bf16 mode is used only where the file asks for it; its fp16 mode (it scales the loss) always."""
    if ours.dtype == "float16":
        config.setdefault("fp16", {"enabled": AUTO})
    for name, dtype in (("bf16", "bfloat16"), ("bfloat16", "bfloat16"), ("fp16", "float16")):
        section = config.get(name)
        if not isinstance(section, dict):
            continue
        if section.get("enabled") == AUTO:
            section["enabled"] = dtype == ours.dtype == "float16"
        elif section.get("enabled") and ours.dtype != dtype:
            raise _conflict(ours, f"{name}.enabled", True, "dtype", ours.dtype)


def _batch(config: dict[str, Any], ours: OptimizerSettings, world_size: int) -> None:
    """Fill in and check micro-batch × accumulation × ranks = global batch."""
    micro = config.get("train_micro_batch_size_per_gpu", AUTO)
    accumulation = config.get("gradient_accumulation_steps", AUTO)
    if accumulation == AUTO:
        accumulation = 1 if micro == AUTO else max(1, ours.batch_size // (micro * world_size))
    if micro == AUTO:
        micro = ours.batch_size // (accumulation * world_size)
    if micro * accumulation * world_size != ours.batch_size:
        raise UserError(
            f"{ours.ds_config}: train_micro_batch_size_per_gpu {micro} × gradient_accumulation_steps {accumulation} × "
            f"{world_size} ranks is {micro * accumulation * world_size}, but {ours.section}.batch_size is "
            f"{ours.batch_size}: change one of them"
        )
    config["train_batch_size"] = ours.batch_size
    config["train_micro_batch_size_per_gpu"] = micro
    config["gradient_accumulation_steps"] = accumulation


def _descend(config: dict[str, Any], key: str) -> tuple[dict[str, Any] | None, str]:
    *parents, leaf = key.split(".")
    section: Any = config
    for parent in parents:
        section = section.get(parent) if isinstance(section, dict) else None
    return (section if isinstance(section, dict) else None), leaf


def _conflict(ours: OptimizerSettings, key: str, theirs: Any, name: str, value: Any) -> UserError:
    return UserError(
        f"{ours.ds_config} says `{key}: {json.dumps(theirs)}` but {ours.section}.{name} is {json.dumps(value)}: "
        'make them equal, or write "auto" in the JSON'
    )


def _unresolved_autos(value: Any, prefix: str = "") -> Iterator[str]:
    if value == AUTO:
        yield prefix
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from _unresolved_autos(inner, f"{prefix}.{key}" if prefix else str(key))
