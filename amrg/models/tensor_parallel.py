"""Tensor parallelism: linear layers of a language model lie in parts on the ranks of a group (arXiv:1909.08053).

Which layers, is said by the plan that transformers has for the architecture. A column layer holds some of the outputs,
a row layer some of the inputs, so that between the two only parts of the attention heads and of the MLP are computed.
LoRA around such a layer is split with it. All other weights are whole on every rank.
"""

import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional as F

from amrg.distributed import TensorGroups
from amrg.errors import UserError
from amrg.models.decoder_smoke_test import without_lora

COLUMN, ROW, SHARED = "colwise", "rowwise", "replicated_with_grad_allreduce"
#: Styles of layers that may as well stay whole, as their inputs and outputs are whole.
_REPLICATED = ("colwise_gather_output", "rowwise_split_input", "embedding_rowwise")


@dataclass(frozen=True)
class Part:
    """What a rank holds of a parameter: a part of an axis."""

    axis: int
    groups: TensorGroups


def partition_of(parameter: Any) -> Part | None:
    """Return what this rank holds of a parameter; None: all of it."""
    return getattr(parameter, _PART, None)


_PART = "amrg_part"


def join_partitions(parameter: nn.Parameter, local: Tensor) -> Tensor:
    """Join a tensor of a parameter's shape, such as a moment, over the ranks. Every rank must call this."""
    part = partition_of(parameter)
    if part is None:
        return local
    pieces = [torch.empty_like(local, memory_format=torch.contiguous_format) for _ in range(part.groups.size)]
    distributed.all_gather(pieces, local.detach().contiguous(), group=part.groups.tensor)
    return torch.cat(pieces, dim=part.axis)


def cut_partition(parameter: nn.Parameter, full: Tensor) -> Tensor:
    """Return this rank's part of a whole tensor; the tensor itself if the parameter is whole."""
    part = partition_of(parameter)
    return full if part is None else full.chunk(part.groups.size, part.axis)[part.groups.part]


class _Copy(torch.autograd.Function):
    """The input of column layers: whole in the forward; the parts' gradients are added in the backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Any) -> Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return _summed(gradients[0], ctx.group), None


class _Sum(torch.autograd.Function):
    """The output of row layers: the parts' outputs are added in the forward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Any) -> Tensor:
        return _summed(x, group)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


def _summed(x: Tensor, group: Any) -> Tensor:
    if group is None:  # a plan counts one rank's part
        return x
    total = x.clone(memory_format=torch.contiguous_format)
    distributed.all_reduce(total, group=group)
    return total


class _Split(nn.Linear):
    """One rank's part of a linear layer, which keeps its parameters."""

    def __init__(self, layer: nn.Linear, groups: TensorGroups) -> None:
        nn.Module.__init__(self)
        self.weight, self.bias, self.group = layer.weight, layer.bias, groups.tensor
        self.out_features, self.in_features = layer.weight.shape


class ColumnLinear(_Split):
    """A linear layer with some of the outputs."""

    def forward(self, input: Tensor) -> Tensor:
        """Compute some of the outputs [..., out / ranks] from all inputs [..., in]."""
        return F.linear(_Copy.apply(input, self.group), self.weight, self.bias)


class RowLinear(_Split):
    """A linear layer with some of the inputs; the bias is whole."""

    def forward(self, input: Tensor) -> Tensor:
        """Compute all outputs [..., out] from some of the inputs [..., in / ranks] of each rank."""
        total = _Sum.apply(F.linear(input, self.weight), self.group)
        return total if self.bias is None else total + self.bias


def split_decoder(model: Any, groups: TensorGroups) -> None:
    """Keep one rank's part of a causal LM, with or without LoRA around it.

    Args:
        model: whole; the same on all ranks.
        groups: of this rank; without process groups the parts are only to be counted.

    Raises:
        UserError: the architecture cannot be split over so many ranks.
    """
    from peft.tuners.lora import LoraLayer  # takes a second

    base = without_lora(model)
    layers = _planned(base, groups.size)
    for name, (style, layer) in layers.items():
        if style == SHARED:
            _add_gradients(layer, groups)
            continue
        inner: dict[str, str] = {"": style}
        if isinstance(layer, LoraLayer):
            if any(layer.use_dora.values()):
                raise UserError(f"decoder.model: {name} has a DoRA, which is not split: {_ADVICE}")
            # Of the two small matrices it is the one that reads or writes what the layer has a part of.
            small = layer.lora_A if style == ROW else layer.lora_B
            inner = {".base_layer": style} | {f".lora_{'A' if style == ROW else 'B'}.{key}": style for key in small}
        for place, kind in inner.items():
            _replace(base, name + place, kind, groups)


_ADVICE = "take zero3.json instead, or a Llama, Mistral, Qwen or Gemma"


def _planned(base: Any, ranks: int) -> dict[str, tuple[str, nn.Module]]:
    """Style and layer by name, of those that transformers' plan splits."""
    kind = base.config.model_type
    prefix = f"{base.base_model_prefix}."
    plan = {prefix + name: style for name, style in (getattr(base.config, "base_model_tp_plan", None) or {}).items()}
    unknown = sorted(set(plan.values()) - {COLUMN, ROW, SHARED, *_REPLICATED})
    if unknown or ROW not in plan.values():
        why = f"the plan of transformers says {unknown[0]}" if unknown else "transformers has no plan for it"
        raise UserError(f"decoder.model: an architecture `{kind}` is not split over ranks ({why}): {_ADVICE}")
    for setting in ("num_attention_heads", "num_key_value_heads"):
        heads = getattr(base.config, setting, None) or ranks
        if heads % ranks:
            raise UserError(
                f"decoder.model has {heads} {setting[4:].replace('_', ' ')}, which tensor_parallel.autotp_size {ranks} "
                "ranks cannot share evenly: take a divisor"
            )
    patterns = [(re.compile(name.replace(".", r"\.").replace("*", r"\d+")), plan[name]) for name in plan]
    return {
        name: (style, layer)
        for name, layer in base.named_modules()
        for pattern, style in patterns
        if style not in _REPLICATED and pattern.fullmatch(name)
    }


def _replace(base: Any, name: str, style: str, groups: TensorGroups) -> None:
    layer = base.get_submodule(name)
    if type(layer) is not nn.Linear:
        raise UserError(f"decoder.model: {name} is a {type(layer).__name__}, which is not split: {_ADVICE}")
    axis = 0 if style == COLUMN else 1
    if layer.weight.shape[axis] % groups.size:
        raise UserError(
            f"decoder.model: {name} has {layer.weight.shape[axis]} features, which tensor_parallel.autotp_size "
            f"{groups.size} ranks cannot share evenly: take a divisor"
        )
    parameters: list[Any] = [layer.weight, *([layer.bias] if layer.bias is not None and style == COLUMN else [])]
    for parameter in parameters:
        setattr(parameter, _PART, Part(axis, groups))
        parameter.tensor_model_parallel = True  # so that DeepSpeed adds its norm up over the ranks
        parameter.data = cut_partition(parameter, parameter.data).clone(memory_format=torch.contiguous_format)
    parent, _, own = name.rpartition(".")
    base.get_submodule(parent).add_module(own, (ColumnLinear if style == COLUMN else RowLinear)(layer, groups))


def _add_gradients(layer: nn.Module, groups: TensorGroups) -> None:
    """Add up the gradients of a norm over parts of heads, whose weights are whole."""
    for parameter in layer.parameters():
        if parameter.requires_grad:
            parameter.register_hook(lambda gradient: _summed(gradient, groups.tensor))
