"""The DeepSpeed engine: one process or many, CPU (gloo) or GPU (nccl), any ZeRO stage.

It provides the loop with optimizer steps and with the complete trainable weights and moments, however they are
partitioned (``amrg.training.zero_state``).
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from amrg.distributed import (
    all_reduce_mean,
    current_groups,
    init_process_group,
    local_device,
    tensor_groups,
    world_size,
)
from amrg.errors import UserError
from amrg.models.profiling import OPTIMISER, profile_region
from amrg.models.tensor_parallel import join_partitions
from amrg.models.zero3 import Zero3Config
from amrg.precision import autocast, emulates_bfloat16, matmul_precision
from amrg.progress import print_on_rank_0
from amrg.training import deepspeed_internals, zero_state
from amrg.training.deepspeed_config import OptimizerSettings, require_zero3, resolve_ds_config, uses_half_weights
from amrg.training.deepspeed_internals import has_partitioned_moments, import_deepspeed, uses_torch_adam
from amrg.training.deepspeed_json import AUTO, load_ds_config, tensor_parallel_size
from amrg.training.zero_state import trained_parameters

#: Any input of ``loss``; its tensors have the samples on their first axis.
Batch = Any
Loss = Callable[[Any, Batch], tuple[Tensor, dict[str, Tensor | float]]]


def refuse_half_without_gpu(settings: OptimizerSettings) -> None:
    """Raise UserError for float16 on CPUs."""
    if settings.dtype == "float16" and local_device().type == "cpu":
        raise UserError(f"{settings.section}.dtype float16 needs a GPU: use bfloat16 or float32")


def note_emulated_bfloat16(settings: OptimizerSettings) -> None:
    """Print a line where bfloat16 costs time."""
    if settings.dtype == "bfloat16" and local_device().type == "cpu" and emulates_bfloat16():
        print_on_rank_0(f"{settings.section}.dtype bfloat16 is emulated by this CPU: float32 is usually faster")


class _Objective(nn.Module):
    """A model with its loss, so that the engine's forward returns the loss."""

    def __init__(self, model: nn.Module, loss: Loss, dtype: str) -> None:
        super().__init__()
        self.model, self.loss, self.dtype = model, loss, dtype

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor | float]]:
        with autocast(self.dtype):
            return self.loss(self.model, batch)


@contextlib.contextmanager
def restore_functional_linear() -> Iterator[None]:
    """Restore ``torch.nn.functional.linear`` after the block (or the decorated function).

    ZeRO 3 overrides it for the rest of the process, so a later step would round differently than in its own process.
    """
    before = nn.functional.linear
    try:
        yield
    finally:
        nn.functional.linear = before


@contextlib.contextmanager
def tensor_parallel(ds_config: str) -> Iterator[None]:
    """Within the block ranks share a language model as a DeepSpeed JSON says. Every rank must enter it.

    Raises:
        UserError: the JSON is missing or malformed, or the ranks cannot be grouped so.
    """
    size = tensor_parallel_size(ds_config)
    if world_size() % size:
        raise UserError(f"{ds_config}: `tensor_parallel.autotp_size: {size}` does not divide {world_size()} ranks")
    try:
        with tensor_groups(size):
            yield
    finally:
        if size > 1:
            deepspeed_internals.forget_model_parallel_unit()


class Engine:
    """A model under ``deepspeed.initialize``.

    Args:
        model: the model; parameters without ``requires_grad`` stay unchanged.
        loss: ``loss(model, batch) -> (mean over the batch's samples, metrics that are also means)``.
        settings: optimizer settings with the path of the DeepSpeed JSON.
        total_steps: optimizer steps of the whole run.

    Raises:
        UserError: the JSON is missing, malformed or contradicts the settings.
    """

    def __init__(self, model: nn.Module, loss: Loss, settings: OptimizerSettings, total_steps: int) -> None:
        init_process_group()
        refuse_half_without_gpu(settings)
        note_emulated_bfloat16(settings)
        config = resolve_ds_config(load_ds_config(settings.ds_config), settings, world_size(), total_steps)
        self.model, self.accumulation, self._dtype = model, config["gradient_accumulation_steps"], settings.dtype
        parameters = _parameter_groups(model, settings)
        client = None
        if "optimizer" not in config:
            client = torch.optim.AdamW(parameters, lr=settings.lr, fused=True)
            config["zero_force_ds_cpu_optimizer"] = False  # offloaded, torch's fused AdamW steps on the CPU as well
        elif config["optimizer"]["type"] == "SGD":
            config["zero_allow_untested_optimizer"] = True  # it is tested here
            config["zero_force_ds_cpu_optimizer"] = False
        elif uses_torch_adam():
            config["optimizer"]["params"]["torch_adam"] = True
        if uses_half_weights(config):
            _match_norms(model)
        deepspeed = import_deepspeed()
        self._engine, *_ = deepspeed.initialize(
            model=_Objective(model, loss, settings.dtype), optimizer=client, model_parameters=parameters, config=config,
            mpu=deepspeed_internals.ModelParallelUnit(current_groups()) if current_groups().size > 1 else None,
        )  # fmt: skip
        # Not lazily, because DeepSpeed links the moments of all groups after the first group's first step.
        zero_state.create_moments(self._engine.optimizer, 0)
        deepspeed_internals.move_norm_to_host(self._engine.optimizer)

    def step(
        self, batch: Batch, lr: float, with_norms: bool = False, flags: dict[str, float] | None = None
    ) -> tuple[dict[str, float], dict[str, float]]:
        """Take an optimizer step on this rank's share of a global batch.

        Args:
            batch, lr: samples and learning rate; the rates of decoder and Q-Former scale with it. A scheduler of the
                JSON sets its own rate instead. ``self.lr`` is the rate of the step.
            with_norms: also return the gradient norm of each module.
            flags: values of this rank; their means over the ranks are returned among the metrics.

        Returns:
            ``loss`` and the metrics of the loss function as means over the global batch; and gradient norms before
            clipping: ``gradient_norm`` of all parameters if DeepSpeed provides it, and ``gradient_norm/<module>``.
        """
        if self._engine.lr_scheduler is None:  # otherwise the JSON's own scheduler sets the rates
            for group in self._engine.optimizer.param_groups:
                group["lr"] = lr * group.get("lr_scale", 1.0)
        else:
            lr = float(self._engine.optimizer.param_groups[0]["lr"])
        self.lr = lr
        sums: dict[str, Tensor | float] = {}
        norms: dict[str, Tensor | float] = {}
        for micro in split_global_batch(batch, self.accumulation):
            with matmul_precision(self._dtype):
                loss, metrics = self._engine(micro)
                self._engine.backward(loss)
            if with_norms and self._engine.is_gradient_accumulation_boundary():
                norms = self._gradient_norms()
            with profile_region(OPTIMISER):
                self._engine.step()
            for name, value in {"loss": loss.detach(), **metrics}.items():
                number = value.detach().double() if isinstance(value, Tensor) else value
                sums[name] = sums.get(name, 0.0) + number / self.accumulation
        if (total_norm := self._engine.get_global_grad_norm()) is not None:
            norms = {"gradient_norm": total_norm, **norms}
        numbers = copy_to_floats({**sums, **norms})
        self.local_loss = numbers["loss"]
        means = all_reduce_mean({**{name: numbers[name] for name in sums}, **(flags or {})})
        return means, {name: numbers[name] for name in norms}

    def _gradient_norms(self) -> dict[str, Tensor | float]:
        """Gradient norm of each module, partitioned or not. Every rank must call this."""
        from deepspeed.utils import safe_get_full_grad

        squares: dict[str, Tensor] = {}
        for name, parameter in trained_parameters(self.model):
            gradient = safe_get_full_grad(parameter) if has_partitioned_moments(parameter) else parameter.grad
            if gradient is not None:
                module = f"gradient_norm/{name.split('.')[0]}"
                square = join_partitions(parameter, gradient).float().square().sum().double()
                squares[module] = squares[module] + square if module in squares else square
        return {module: square.sqrt() for module, square in squares.items()}

    def scheduler_state(self) -> dict[str, Any] | None:
        """State of the DeepSpeed JSON's scheduler; None without one."""
        scheduler = self._engine.lr_scheduler
        return scheduler.state_dict() if scheduler is not None else None

    def loss_scale_state(self) -> dict[str, float] | None:
        """State of fp16's loss scale; None without fp16."""
        return deepspeed_internals.loss_scale_state(self._engine)

    def weights(self) -> dict[str, Tensor]:
        """Gather trainable weights (float32, CPU) and persistent buffers on the first rank; empty on the others.

        Every rank must call this.
        """
        return zero_state.gather_weights(self.model)

    def moments(self) -> dict[str, Tensor]:
        """Gather the optimizer moments (CPU) by ``<weight>.<moment>`` in the same way."""
        return zero_state.gather_moments(self.model, self._engine.optimizer)

    def restore(
        self,
        weights: dict[str, Tensor],
        moments: dict[str, Tensor],
        step: int,
        scheduler: dict[str, Any] | None,
        loss_scale: dict[str, float] | None = None,
    ) -> None:
        """Restore the results of the methods above after ``step`` steps."""
        zero_state.restore_training_state(self.model, self._engine, weights, moments, step, scheduler, loss_scale)


def copy_to_floats(values: Mapping[str, Tensor | float]) -> dict[str, float]:
    """Copy numbers to the host in one go: on a GPU each copy waits for the device."""
    on_device = {n: v.detach().double() for n, v in values.items() if isinstance(v, Tensor) and v.device.type != "cpu"}
    copied = dict(zip(on_device, torch.stack([*on_device.values()]).tolist(), strict=True)) if on_device else {}
    return {name: copied[name] if name in copied else float(value) for name, value in values.items()}


def _match_norms(model: nn.Module) -> None:
    """Cast the input of each normalization to the dtype of its weights, which autocast leaves as they are on CPUs."""

    def cast(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        weight: Any = module.weight
        return tuple(x.to(weight.dtype) if isinstance(x, Tensor) and x.is_floating_point() else x for x in inputs)

    for module in model.modules():
        norm = isinstance(module, nn.LayerNorm | nn.GroupNorm | nn.modules.batchnorm._BatchNorm)
        if norm and module.weight is not None:
            module.register_forward_pre_hook(cast)


def zero3_section(ds_config: str, required: bool = False) -> Zero3Config:
    """Return the ZeRO section of a DeepSpeed JSON of stage 3, which partitions weights over the ranks; else None.

    Raises:
        UserError: the JSON is missing or malformed, or stage 3 is required and it has another.
    """
    if required:
        require_zero3(ds_config)
    zero = load_ds_config(ds_config).get("zero_optimization", {})
    if zero.get("stage") != 3:
        return None
    import_deepspeed()  # import it silently before another package does
    return {key: value for key, value in zero.items() if value != AUTO and key != "offload_optimizer"}


def partition_weights(module: nn.Module, zero: dict[str, Any]) -> None:
    """Partition an inference module's weights over the ranks (``zero3_section``); a forward gathers them by layer."""
    import_deepspeed().initialize(model=module, config={"train_micro_batch_size_per_gpu": 1, "zero_optimization": zero})


def split_global_batch(batch: Batch, parts: int) -> list[Batch]:
    """Split a batch into equal parts along the samples: a tensor or list, or a dict or tuple of those."""
    if parts == 1:
        return [batch]
    if isinstance(batch, dict):
        cut = {key: split_global_batch(value, parts) for key, value in batch.items()}
        return [{key: pieces[i] for key, pieces in cut.items()} for i in range(parts)]
    if isinstance(batch, tuple):
        return list(zip(*(split_global_batch(value, parts) for value in batch), strict=True))
    size = len(batch) // parts
    return [batch[i * size : (i + 1) * size] for i in range(parts)]


def _parameter_groups(model: nn.Module, settings: OptimizerSettings) -> list[dict[str, Any]]:
    """Group parameters by weight decay (matrices only) and learning rate (decoder and Q-Former may differ)."""
    own = settings.own_rates
    groups: dict[tuple[str, bool], list[nn.Parameter]] = {}
    for name, parameter in trained_parameters(model):
        module = name.split(".")[0]
        vectors = deepspeed_internals.complete_weight_dims(parameter) < 2
        groups.setdefault((module if module in own else "", vectors), []).append(parameter)
    return [
        {"params": groups[module, vectors], "weight_decay": 0.0 if vectors else settings.weight_decay}
        | ({"lr": own[module], "lr_scale": own[module] / settings.lr} if module else {})
        for module, vectors in sorted(groups)
    ]
