"""One ``torch.library`` operator for the retrieval: back ends by device, shapes for tracing, gradients."""

from typing import Any

import torch
from torch import Tensor

from . import blockwise
from .reference import Retrieval

KEEP_BYTES = 256 * 2**20  # an association up to this size is kept for the backward on the CPU; beyond, recomputed
Outputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


@torch.library.custom_op("amrg::hopfield_forward", mutates_args=(), device_types="cpu")
def hopfield_forward(
    queries: Tensor, memory: Tensor, scale: Tensor | None, query_group: Tensor | None, memory_group: Tensor | None,
    seed: Tensor | None, dropout: float, top_k: int, entropy: bool, keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """See ``blockwise.forward``."""
    return blockwise.forward(queries, memory, scale, query_group, memory_group, seed, dropout, top_k, entropy, keep)


@hopfield_forward.register_kernel("cuda")
def _(
    queries: Tensor, memory: Tensor, scale: Tensor | None, query_group: Tensor | None, memory_group: Tensor | None,
    seed: Tensor | None, dropout: float, top_k: int, entropy: bool, keep: bool,
) -> Outputs:  # fmt: skip
    from . import triton_backend

    return triton_backend.forward(queries, memory, scale, query_group, memory_group, seed, dropout, top_k, entropy)


@hopfield_forward.register_fake
def _(
    queries: Tensor, memory: Tensor, scale: Tensor | None, query_group: Tensor | None, memory_group: Tensor | None,
    seed: Tensor | None, dropout: float, top_k: int, entropy: bool, keep: bool,
) -> Outputs:  # fmt: skip
    count, dtype = queries.shape[0], blockwise.compute_dtype(queries)

    def empty(*shape: int | torch.SymInt) -> Tensor:
        return queries.new_empty(shape, dtype=dtype)

    return (
        torch.empty_like(queries, memory_format=torch.contiguous_format), empty(count), empty(count),
        empty(count if entropy else 0), empty(count, top_k), queries.new_empty((count, top_k), dtype=torch.int64),
        empty(count, memory.shape[0]) if keep else empty(0, 0),
    )  # fmt: skip


@torch.library.custom_op("amrg::hopfield_backward", mutates_args=(), device_types="cpu")
def hopfield_backward(
    grad: Tensor, grad_lse: Tensor, grad_mass: Tensor, queries: Tensor, memory: Tensor, scale: Tensor | None,
    retrieved: Tensor, lse: Tensor, mass: Tensor, query_group: Tensor | None, memory_group: Tensor | None,
    seed: Tensor | None, association: Tensor, dropout: float, need_memory: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """See ``blockwise.backward``."""
    return blockwise.backward(
        grad, grad_lse, grad_mass, queries, memory, scale, retrieved, lse, mass, query_group, memory_group,
        seed, association, dropout, need_memory,
    )  # fmt: skip


@hopfield_backward.register_kernel("cuda")
def _(
    grad: Tensor, grad_lse: Tensor, grad_mass: Tensor, queries: Tensor, memory: Tensor, scale: Tensor | None,
    retrieved: Tensor, lse: Tensor, mass: Tensor, query_group: Tensor | None, memory_group: Tensor | None,
    seed: Tensor | None, association: Tensor, dropout: float, need_memory: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    from . import triton_backend

    return triton_backend.backward(
        grad, grad_lse, grad_mass, queries, memory, scale, retrieved, lse, mass, query_group, memory_group,
        seed, dropout, need_memory,
    )  # fmt: skip


@hopfield_backward.register_fake
def _(
    grad: Tensor, grad_lse: Tensor, grad_mass: Tensor, queries: Tensor, memory: Tensor, scale: Tensor | None,
    retrieved: Tensor, lse: Tensor, mass: Tensor, query_group: Tensor | None, memory_group: Tensor | None,
    seed: Tensor | None, association: Tensor, dropout: float, need_memory: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    shape = memory.shape if need_memory else (0, memory.shape[1])
    return torch.empty_like(queries, memory_format=torch.contiguous_format), memory.new_empty(shape)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Outputs) -> None:
    queries, memory, scale, query_group, memory_group, seed, ctx.dropout, *_ = inputs
    retrieved, lse, mass, _entropy, _weights, _indices, association = output
    ctx.need_memory = memory.requires_grad
    ctx.save_for_backward(queries, memory, scale, query_group, memory_group, seed, retrieved, lse, mass, association)


def _backward(ctx: Any, grad: Tensor, grad_lse: Tensor, grad_mass: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    queries, memory, scale, query_group, memory_group, seed, retrieved, lse, mass, association = ctx.saved_tensors
    grad_queries, grad_memory = hopfield_backward(
        grad.contiguous(), grad_lse.contiguous(), grad_mass.contiguous(), queries, memory, scale, retrieved, lse, mass,
        query_group, memory_group, seed, association, ctx.dropout, ctx.need_memory,
    )  # fmt: skip
    return grad_queries, grad_memory if ctx.need_memory else None, *[None] * 8


hopfield_forward.register_autograd(_backward, setup_context=_setup_context)


def hopfield_retrieve(
    queries: Tensor,
    memory: Tensor,
    *,
    memory_scale: Tensor | None = None,
    query_group: Tensor | None = None,
    memory_group: Tensor | None = None,
    dropout: float = 0.0,
    seed: Tensor | int | None = None,
    top_k: int = 0,
    return_entropy: bool = False,
    keep_bytes: int = KEEP_BYTES,
) -> Retrieval:
    """One association with a shared memory: ``softmax(Q Zᵀ) Z`` (Ramsauer et al. 2021, eq. 3; ``README.md``).

    Args:
        queries: [M, D] float64, float32, bfloat16 or float16, already scaled by β.
        memory: [N, D], rows both key and value; a floating dtype, or int8 with ``memory_scale``.
        memory_scale: [N] float32, row j of the memory is ``memory_scale[j] * memory[j]``.
        query_group, memory_group: int64 [M] and [N]; row j is invisible to query i when they are equal, unless −1.
        dropout: probability with which an entry of the association is dropped; the others are divided by 1 − dropout.
        seed: of the dropout, an int or an int64 scalar tensor; None draws one from torch's generator.
        top_k: how many rows to attribute each query to.
        return_entropy: also return the entropy of the association.
        keep_bytes: CPU only: keep the association for the backward if it is no larger; else it is recomputed.

    Returns:
        ``Retrieval``. Differentiable in queries, and in memory where it requires grad, through retrieved, lse and mass.

    Raises:
        ValueError: arguments that do not fit together.
    """
    _check(queries, memory, memory_scale, query_group, memory_group, dropout, top_k)
    if not dropout:
        seed = None
    elif not isinstance(seed, Tensor):
        drawn = torch.randint(2**62, ()) if seed is None else torch.tensor(seed, dtype=torch.int64)
        seed = drawn.to(queries.device)
    wants_grad = torch.is_grad_enabled() and (queries.requires_grad or memory.requires_grad)
    size = queries.shape[0] * memory.shape[0] * (8 if queries.dtype == torch.float64 else 4)
    keep = wants_grad and queries.device.type == "cpu" and size <= keep_bytes
    retrieved, lse, mass, entropy, weights, indices, _ = hopfield_forward(
        queries, memory, memory_scale, query_group, memory_group, seed, float(dropout), top_k, return_entropy, keep
    )
    return Retrieval(
        retrieved, lse, mass, entropy.detach() if return_entropy else None,
        weights.detach() if top_k else None, indices if top_k else None,
    )  # fmt: skip


def _check(
    queries: Tensor, memory: Tensor, scale: Tensor | None, query_group: Tensor | None, memory_group: Tensor | None,
    dropout: float, top_k: int,
) -> None:  # fmt: skip
    if queries.ndim != 2 or memory.ndim != 2 or queries.shape[1] != memory.shape[1]:
        raise ValueError(f"queries [M, D] and memory [N, D] expected, got {[*queries.shape]} and {[*memory.shape]}")
    if (memory.dtype == torch.int8) != (scale is not None):
        raise ValueError(f"memory_scale goes with int8 rows and only with them; the memory is {memory.dtype}")
    if not (queries.is_floating_point() and (memory.is_floating_point() or scale is not None)):
        raise ValueError(f"queries and memory must be floating, got {queries.dtype} and {memory.dtype}")
    if (query_group is None) != (memory_group is None):
        raise ValueError("query_group and memory_group must be given together")
    for name, group, rows in (("query_group", query_group, queries), ("memory_group", memory_group, memory)):
        if group is not None and (group.shape != rows.shape[:1] or group.dtype != torch.int64):
            raise ValueError(f"{name} must be int64 [{rows.shape[0]}], got {group.dtype} {[*group.shape]}")
    if scale is not None and scale.shape != memory.shape[:1]:
        raise ValueError(f"memory_scale must be [{memory.shape[0]}], got {[*scale.shape]}")
    if not 0 <= dropout < 1 or top_k < 0:
        raise ValueError(f"dropout in [0, 1) and top_k >= 0 expected, got {dropout} and {top_k}")


def quantize_rows(memory: Tensor) -> tuple[Tensor, Tensor]:
    """Rows as int8 and one float32 scale each: ``(int8 [N, D], scale [N])``, half the storage of bfloat16."""
    scale = (memory.abs().amax(1).float() / 127).clamp_min_(torch.finfo(torch.float32).tiny)
    return torch.round(memory.float() / scale[:, None]).to(torch.int8), scale
