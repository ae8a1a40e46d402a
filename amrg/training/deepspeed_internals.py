"""Access to attributes of DeepSpeed that are not public, read from the source of DeepSpeed 0.19.8.

A parameter of ZeRO 3 has ``ds_id``, ``ds_shape`` and ``ds_tensor`` (this rank's shard); one of ZeRO 1 and 2 has
``_hp_mapping`` to its float32 copy. ``amrg.models.zero3`` reads ``ds_id`` itself, as it must not import this package.
"""

import contextlib
import logging
import os
import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from amrg.distributed import TensorGroups, data_parallel_rank, data_parallel_size, global_rank, world_size


def import_deepspeed() -> Any:
    """Import DeepSpeed without its log messages and without compiling operators."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    with _silent_linker():
        import deepspeed

    deepspeed.utils.logger.setLevel(logging.ERROR)
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


class ModelParallelUnit:
    """Tells DeepSpeed, in the words of Megatron-LM, which ranks share a model and which see other samples."""

    def __init__(self, groups: TensorGroups) -> None:
        self._groups = groups

    def get_model_parallel_rank(self) -> int:
        """Return the number of this rank's part."""
        return self._groups.part

    def get_model_parallel_world_size(self) -> int:
        """Return the number of parts."""
        return self._groups.size

    def get_model_parallel_group(self) -> Any:
        """Return the ranks that share a model."""
        return self._groups.tensor

    def get_data_parallel_rank(self) -> int:
        """Return the number of this rank among those that see other samples."""
        return data_parallel_rank()

    def get_data_parallel_world_size(self) -> int:
        """Return the number of ranks that see different samples."""
        return data_parallel_size()

    def get_data_parallel_group(self) -> Any:
        """Return the ranks that hold the same part."""
        return self._groups.data


def forget_model_parallel_unit() -> None:
    """Undo what DeepSpeed remembers of a ``ModelParallelUnit`` for all later engines of the process."""
    import_deepspeed()
    from deepspeed.utils import groups

    groups.mpu = None


@contextlib.contextmanager
def _silent_linker() -> Iterator[None]:
    """Silence what DeepSpeed's import prints on both streams: it tests which of its operators can be linked."""
    sys.stdout.flush()
    kept = {stream: os.dup(stream) for stream in (1, 2)}
    with open(os.devnull, "w") as nowhere:
        for stream in kept:
            os.dup2(nowhere.fileno(), stream)
    try:
        yield
    finally:
        sys.stdout.flush()
        for stream, own in kept.items():
            os.dup2(own, stream)
            os.close(own)


def try_ds_config(config: dict[str, Any], lr: float) -> None:
    """Have DeepSpeed read a resolved configuration, and build its optimizer and scheduler for one weight.

    Raises whatever they raise. Nothing is compiled, so an Adam of DeepSpeed's own is tried as torch's.
    """
    import_deepspeed()
    from deepspeed.runtime import lr_schedules
    from deepspeed.runtime.config import DeepSpeedConfig, DtypeEnum

    # Without the product of the counts: before the ranks have met, DeepSpeed believes that there is one.
    DeepSpeedConfig({name: value for name, value in config.items() if name != "train_batch_size"})
    if "grad_accum_dtype" in config.get("data_types", {}):
        DtypeEnum(config["data_types"]["grad_accum_dtype"])
    given = config.get("optimizer", {})
    kind = torch.optim.SGD if given.get("type") == "SGD" else torch.optim.AdamW
    own = ("adam_w_mode", "torch_adam", "fp32_optimizer_states")
    parameters = {key: value for key, value in given.get("params", {}).items() if key not in own}
    optimizer = kind([nn.Parameter(torch.zeros(1))], **{"lr": lr, **parameters})
    if "scheduler" in config:
        scheduler = getattr(lr_schedules, config["scheduler"]["type"])(optimizer, **config["scheduler"]["params"])
        for _ in range(3):
            scheduler.step()


def uses_torch_adam() -> bool:
    """Whether Adam is torch's own, because DeepSpeed could not compile its own here."""
    from torch.utils.cpp_extension import CUDA_HOME

    return not torch.cuda.is_available() or CUDA_HOME is None


def has_partitioned_weight(parameter: nn.Parameter) -> bool:
    """Whether the weight itself is partitioned (ZeRO 3)."""
    return hasattr(parameter, "ds_id")


def has_partitioned_moments(parameter: nn.Parameter) -> bool:
    """Whether the optimizer moments are partitioned (ZeRO 1 to 3)."""
    return has_partitioned_weight(parameter) or hasattr(parameter, "_hp_mapping")


def complete_weight_dims(parameter: nn.Parameter) -> int:
    """Number of dimensions of the complete weight; a partitioned one is flat."""
    return len(getattr(parameter, "ds_shape", parameter.shape))


def set_zero3_shard(parameter: Any, value: Tensor, moment: str | None) -> None:
    """Set this rank's shard of a ZeRO-3 weight or of a moment (DeepSpeed's own setter fails on a padded last shard)."""
    shard = parameter.ds_tensor.numel()
    flat = nn.functional.pad(value.flatten(), (0, shard * world_size() - value.numel()))
    parameter._z3_optimizer.set_local_hp_param(flat.narrow(0, shard * global_rank(), shard), parameter, moment)


def flat_zero_weights(zero: Any) -> list[Tensor]:
    """Return the tensors that DeepSpeed's inner optimizer steps: this rank's flat float32 groups, or the parameters."""
    flat = getattr(zero, "fp32_partitioned_groups_flat", None)  # ZeRO 3
    if flat is None:
        flat = getattr(zero, "single_partition_of_fp32_groups", None)  # ZeRO 1 and 2
    if flat is None:
        flat = getattr(zero, "fp32_groups_flat_partition", None)  # ZeRO 1 in bf16 mode with float32 gradients
    if flat is None:
        flat = [parameter for group in inner_optimizer(zero).param_groups for parameter in group["params"]]
    return flat


def inner_optimizer(zero: Any) -> Any:
    """Return the optimizer that a ZeRO optimizer wraps, or the optimizer itself."""
    return getattr(zero, "optimizer", zero)


def move_norm_to_host(zero: Any) -> None:
    """Have ZeRO 1 and 2 copy the gradient norm to the host: they look at it again for each group of parameters."""
    if hasattr(zero, "scaled_global_norm"):
        on_device = zero.scaled_global_norm
        zero.scaled_global_norm = lambda *args, **kwargs: on_device(*args, **kwargs).cpu()


#: State of DeepSpeed's loss scalers, which are one number or change in the course of a training.
_SCALER = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")


def loss_scale_state(engine: Any) -> dict[str, float] | None:
    """Return the state of fp16's loss scale, with the number of steps that it has skipped; None without fp16."""
    if not engine.fp16_enabled():
        return None
    scaler = engine.optimizer.loss_scaler
    state = {name: getattr(scaler, name) for name in _SCALER if hasattr(scaler, name)}
    return {**state, _SKIPPED: engine.skipped_steps}


def restore_loss_scale(engine: Any, state: dict[str, float]) -> None:
    """Restore the result of ``loss_scale_state``."""
    for name in state.keys() - {_SKIPPED}:
        setattr(engine.optimizer.loss_scaler, name, state[name])
    engine.skipped_steps = state[_SKIPPED]


_SKIPPED = "skipped_steps"


def link_zero_moments(zero: Any) -> None:
    """Make the moments of a ZeRO-1 or -2 optimizer accessible by parameter."""
    if hasattr(zero, "_lazy_init_hp_params_optimizer_state"):
        zero._lazy_init_hp_params_optimizer_state()
