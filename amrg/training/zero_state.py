"""Complete weights and optimizer moments of a model under DeepSpeed, at any ZeRO stage.

They are gathered and restored as complete tensors, so a run can be resumed with another world size.
"""

from collections.abc import Iterable
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from amrg.distributed import global_rank
from amrg.models.tensor_parallel import cut_partition, join_partitions
from amrg.models.zero3 import gathered_parameters
from amrg.training import deepspeed_internals
from amrg.training.deepspeed_internals import has_partitioned_moments, has_partitioned_weight


def trained_parameters(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """List the parameters that are trained, with their names."""
    return [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]


def optimizer_moment_names(optimizer: Any) -> tuple[str, ...]:
    """Names of the moments of the DeepSpeed engine's optimizer: those of Adam, or of SGD, which may have none."""
    base = deepspeed_internals.inner_optimizer(optimizer)
    if isinstance(base, torch.optim.SGD):
        return ("momentum_buffer",) if base.param_groups[0]["momentum"] else ()
    return "exp_avg", "exp_avg_sq"


def gather_weights(model: nn.Module) -> dict[str, Tensor]:
    """Gather trainable weights (float32, CPU) and persistent buffers on the first rank; empty on the others.

    Every rank must call this.
    """
    from deepspeed.utils import safe_get_full_fp32_param

    def full(parameter: nn.Parameter) -> Tensor:
        if parameter.dtype == torch.float32 and not has_partitioned_weight(parameter):
            return parameter  # complete after a step of ZeRO 0 to 2
        found = safe_get_full_fp32_param(parameter)
        return parameter if found is None else found

    kept = model.state_dict().keys()
    trained = ((name, join_partitions(parameter, full(parameter))) for name, parameter in trained_parameters(model))
    buffers = ((name, buffer) for name, buffer in model.named_buffers() if name in kept)
    return _on_first_rank(chain(trained, buffers))


def gather_moments(model: nn.Module, optimizer: Any) -> dict[str, Tensor]:
    """Gather the moments (CPU) by ``<weight>.<moment>`` on the first rank; empty on the others.

    Every rank must call this.

    Args:
        model: the model.
        optimizer: that of the DeepSpeed engine.
    """
    from deepspeed.utils import safe_get_full_optimizer_state

    def full(parameter: nn.Parameter, moment: str) -> Tensor:
        if has_partitioned_moments(parameter):
            return safe_get_full_optimizer_state(parameter, moment)
        return optimizer.state[parameter][moment]

    names = optimizer_moment_names(optimizer)
    trained = trained_parameters(model)
    return _on_first_rank(
        (f"{name}.{m}", join_partitions(weight, full(weight, m))) for name, weight in trained for m in names
    )


def restore_training_state(
    model: nn.Module,
    engine: Any,
    weights: dict[str, Tensor],
    moments: dict[str, Tensor],
    step: int,
    scheduler: dict[str, Any] | None,
    loss_scale: dict[str, float] | None = None,
) -> None:
    """Restore the state of a run after ``step`` steps. Every rank must call this.

    Args:
        model: the model.
        engine: the DeepSpeed engine around it.
        weights, moments: results of ``gather_weights`` and ``gather_moments``, on every rank.
        step: number of optimizer steps taken.
        scheduler: state of the DeepSpeed JSON's scheduler; None without one.
        loss_scale: state of fp16's loss scale; None without fp16.
    """
    from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

    load_weights_into(model, weights)
    # Adam has not counted the steps that fp16 skipped because a gradient was not finite.
    create_moments(engine.optimizer, step - int(loss_scale["skipped_steps"] if loss_scale else 0))
    for name, parameter in trained_parameters(model):
        values: dict[str | None, Tensor] = {
            None: weights[name],
            **{moment: moments[f"{name}.{moment}"] for moment in optimizer_moment_names(engine.optimizer)},
        }
        for moment, full in values.items():
            value = cut_partition(parameter, full)
            if has_partitioned_weight(parameter):
                deepspeed_internals.set_zero3_shard(parameter, value, moment)
            elif not has_partitioned_moments(parameter):
                if moment:
                    engine.optimizer.state[parameter][moment].copy_(value)
            elif moment:
                safe_set_full_optimizer_state(parameter, value, moment)
            else:
                safe_set_full_fp32_param(parameter, value)
    if scheduler is not None:
        engine.lr_scheduler.load_state_dict(scheduler)
        engine.lr_scheduler.step(engine.lr_scheduler.last_batch_iteration)  # sets the rates of that count
    if loss_scale is not None and engine.fp16_enabled():
        deepspeed_internals.restore_loss_scale(engine, loss_scale)
    engine.global_steps = step


def create_moments(optimizer: Any, step: int) -> None:
    """Create the optimizer state that the first step would create, with the count of ``step`` steps.

    Args:
        optimizer: that of the DeepSpeed engine.
        step: number of optimizer steps taken.
    """
    base = deepspeed_internals.inner_optimizer(optimizer)
    for parameter in deepspeed_internals.flat_zero_weights(optimizer):
        # Existing moments stay the same tensors, because ZeRO 1 and 2 hold views of them.
        moments = base.state.get(parameter) or {
            name: torch.zeros_like(parameter) for name in optimizer_moment_names(optimizer)
        }
        base.state[parameter] = moments
        if not isinstance(base, torch.optim.SGD):
            torchs = isinstance(base, torch.optim.Adam)
            moments["step"] = torch.tensor(float(step), device=parameter.device) if torchs else step
    deepspeed_internals.link_zero_moments(optimizer)


def load_weights_into(model: nn.Module, weights: dict[str, Tensor]) -> None:
    """Copy weights (a subset of the state) into a model, one tensor at a time, partitioned or not."""
    named = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for name, value in weights.items():
        with gathered_parameters([named[name]], modifier=True), torch.no_grad():
            named[name].copy_(value)


def _on_first_rank(tensors: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
    """Copy tensors to the CPU; the other ranks iterate over them too, but keep none: a node has memory for one copy."""
    copies = (
        (name, tensor.detach().to("cpu", copy=True).contiguous()) for name, tensor in tensors if global_rank() == 0
    )
    return dict(copies)
