"""Reading DeepSpeed JSON files: what later code relies on has the right type, or one line says what has not."""

import json
import math
from pathlib import Path
from typing import Any

from amrg.config_files import find_config_file
from amrg.errors import UserError

AUTO = "auto"
#: DeepSpeed's name of the section on tensor parallelism, and of the number of ranks that share a model.
TENSOR_PARALLEL, AUTOTP_SIZE = "tensor_parallel", "autotp_size"

#: Optimizers whose moments checkpoints know, by lower-case name, as DeepSpeed spells them.
OPTIMIZERS = {"adam": "Adam", "adamw": "AdamW", "sgd": "SGD"}
#: Schedulers whose state is a step count.
SCHEDULERS = ("WarmupLR", "WarmupDecayLR", "WarmupCosineLR", "OneCycle", "LRRangeTest")

_COUNTS = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
_FLAGS = (
    "wall_clock_breakdown", "memory_breakdown", "dump_state", "prescale_gradients", "zero_allow_untested_optimizer",
    "zero_force_ds_cpu_optimizer",
)  # fmt: skip
_MODES = ("bf16", "bfloat16", "fp16", "amp")
_SECTIONS = (
    *_MODES, "optimizer", "scheduler", "zero_optimization", "activation_checkpointing", "aio", "comms_logger",
    "compile", "csv_monitor", "data_efficiency", "data_types", "flops_profiler", "tensor_parallel", "tensorboard",
    "torch_autocast", "wandb",
)  # fmt: skip


def load_ds_config(name: str) -> dict[str, Any]:
    """Read a DeepSpeed JSON by path or by bare name; keys that are null are left out.

    Raises:
        UserError: the file is missing, is not a JSON object, or has a value of a wrong type.
    """
    path = find_config_file(name)
    try:
        content = json.loads(path.read_bytes(), object_pairs_hook=_unique_keys, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not readable JSON: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} must hold a JSON object, as DeepSpeed's documentation describes")
    content = _without_nulls(content)
    for key in _SECTIONS:
        if not isinstance(content.get(key, {}), dict) and not (key == "amp" and content[key] == AUTO):
            raise _wrong(path, key, content[key], _SECTION_HINTS.get(key, "an object in braces"))
    for key in _COUNTS:
        if key in content and content[key] != AUTO and not _is_count(content[key]):
            raise _wrong(path, key, content[key], 'a whole number of at least 1, without quotes, or "auto"')
    for key in ("gradient_clipping", "gradient_predivide_factor"):
        _require_number(path, content, key)
    if not (_is_number(content.get("steps_per_print", 1)) and content.get("steps_per_print", 1)):  # often 1e9
        raise _wrong(path, "steps_per_print", content["steps_per_print"], "a number above 0, without quotes")
    for key in _FLAGS:
        if not isinstance(content.get(key, False), bool):
            raise _wrong(path, key, content[key], "true or false")
    for key in _MODES:
        enabled = content[key].get("enabled", False) if isinstance(content.get(key), dict) else False
        if enabled != AUTO and not isinstance(enabled, bool):
            raise _wrong(path, f"{key}.enabled", enabled, 'true, false or "auto"')
    _check_zero(path, content)
    _check_tensor_parallel(path, content)
    _check_optimizer(path, content)
    _check_scheduler(path, content)
    return content


def tensor_parallel_size(name: str) -> int:
    """Return the number of ranks that share a language model, as a DeepSpeed JSON says (``tensor_parallel``)."""
    return max(1, load_ds_config(name).get(TENSOR_PARALLEL, {}).get(AUTOTP_SIZE, 1))


_SECTION_HINTS = {
    "zero_optimization": 'an object such as {"stage": 2}',
    "optimizer": 'an object such as {"type": "AdamW", "params": {"lr": "auto"}}',
    "scheduler": 'an object such as {"type": "WarmupLR", "params": {"warmup_num_steps": "auto"}}',
} | dict.fromkeys(_MODES, 'an object such as {"enabled": true}')


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key `{twice}` is there twice in one object")
    return content


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number of JSON")


def _without_nulls(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _without_nulls(value) for key, value in content.items() if value is not None}
    return content


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_number(value: Any) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and math.isfinite(value) and value >= 0


def _require_number(path: Path, section: dict[str, Any], key: str, prefix: str = "") -> None:
    if key in section and section[key] != AUTO and not _is_number(section[key]):
        raise _wrong(path, prefix + key, section[key], 'a number of at least 0, without quotes, or "auto"')


def _check_zero(path: Path, content: dict[str, Any]) -> None:
    """Check the stage and write it as a number; DeepSpeed also reads its text."""
    zero = content.get("zero_optimization", {})
    if "stage" in zero:
        stages = {stage: number for number in range(4) for stage in (str(number), f"{number}.0")}
        stage = None if isinstance(zero["stage"], bool) else stages.get(str(zero["stage"]))
        if stage is None:
            raise _wrong(path, "zero_optimization.stage", zero["stage"], "0, 1, 2 or 3")
        zero["stage"] = stage
    for key in ("offload_optimizer", "offload_param"):
        if not isinstance(zero.get(key, {}), dict):
            raise _wrong(path, f"zero_optimization.{key}", zero[key], 'an object such as {"device": "cpu"}')


def _check_tensor_parallel(path: Path, content: dict[str, Any]) -> None:
    section = content.get(TENSOR_PARALLEL, {})
    size = section.get(AUTOTP_SIZE, 0)
    if size != 0 and not _is_count(size):
        raise _wrong(path, f"{TENSOR_PARALLEL}.{AUTOTP_SIZE}", size, "the number of ranks that share a model")
    if others := sorted(section.keys() - {AUTOTP_SIZE}):
        raise UserError(
            f"{path}: `{TENSOR_PARALLEL}.{others[0]}` is not supported: transformers' own plan says how a model is "
            f"split; give {AUTOTP_SIZE} alone"
        )


def _check_optimizer(path: Path, content: dict[str, Any]) -> None:
    optimizer = content.get("optimizer")
    if optimizer is None:
        return
    parameters = _check_type(path, "optimizer", optimizer, tuple(OPTIMIZERS.values()), "leave the section out: AdamW")
    optimizer["type"] = OPTIMIZERS[optimizer["type"].lower()]
    for key in ("lr", "weight_decay", "eps", "momentum", "dampening"):
        _require_number(path, parameters, key, "optimizer.params.")
    betas = parameters.get("betas", AUTO)
    if betas != AUTO and not (
        isinstance(betas, list) and len(betas) == 2 and all(_is_number(beta) and beta < 1 for beta in betas)
    ):
        raise _wrong(path, "optimizer.params.betas", betas, 'two numbers from 0 to below 1, or "auto"')
    if parameters.get("amsgrad"):
        raise UserError(f"{path}: `optimizer.params.amsgrad` is not supported: set it to false")


def _check_scheduler(path: Path, content: dict[str, Any]) -> None:
    scheduler = content.get("scheduler")
    if scheduler is None:
        return
    parameters = _check_type(
        path, "scheduler", scheduler, SCHEDULERS, "leave the section out: linear warm-up, then cosine"
    )
    for key in ("warmup_num_steps", "total_num_steps"):
        if key in parameters and parameters[key] != AUTO and not _is_count(parameters[key]):
            raise _wrong(path, f"scheduler.params.{key}", parameters[key], 'a whole number of at least 1, or "auto"')
    for key in ("warmup_min_lr", "warmup_max_lr", "warmup_min_ratio", "cos_min_ratio"):
        _require_number(path, parameters, key, "scheduler.params.")


def _check_type(path: Path, name: str, section: dict[str, Any], known: tuple[str, ...], instead: str) -> dict[str, Any]:
    """Check ``type`` (any case for optimizers) and return ``params``, an empty object where there are none."""
    kind = section.get("type")
    if not isinstance(kind, str) or (kind not in known and (name != "optimizer" or kind.lower() not in OPTIMIZERS)):
        found = "missing" if kind is None else json.dumps(kind)
        raise UserError(
            f"{path}: `{name}.type` is {found}: checkpoints can go on with {', '.join(known)}; take one of these, or "
            f"{instead}"
        )
    parameters = section.setdefault("params", {})
    if not isinstance(parameters, dict):
        raise _wrong(path, f"{name}.params", parameters, "an object in braces")
    return parameters


def _wrong(path: Path, key: str, found: Any, right: str) -> UserError:
    return UserError(f"{path}: `{key}` is {json.dumps(found)[:80]}, but must be {right}")
