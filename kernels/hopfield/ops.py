"""The retrieval as ``torch.library`` operators: choice of the back end, shapes for tracing, gradients."""

from typing import Protocol, Unpack

import torch
from torch import Tensor

from . import blockwise
from .backends import back_end
from .reference import Operands, Outputs, Retrieval, softmax_delta

MAX_SAVED_BYTES = 256 * 2**20

# An operator takes no tuples: ``Operands`` are its first seven arguments, and its schema is written out.
_OPERANDS = (
    "Tensor queries, Tensor memory, Tensor? memory_scale, Tensor? query_group, Tensor? memory_group, Tensor? seed, "
    "float dropout"
)
# Unpack, as `*Operands` would iterate over the class.
#: … and top_k, return_entropy, save_association.
ForwardArguments = tuple[Unpack[Operands], int, bool, bool]  # noqa: UP044
#: … and do, lse, delta, dmass, association, needs_memory_grad.
BackwardArguments = tuple[Unpack[Operands], Tensor, Tensor, Tensor, Tensor, Tensor, bool]  # noqa: UP044


@torch.library.custom_op(
    "amrg::hopfield_forward", mutates_args=(),
    schema=f"({_OPERANDS}, int top_k, bool return_entropy, bool save_association) -> ({', '.join(['Tensor'] * 7)})",
)  # fmt: skip
def hopfield_forward(*arguments: *ForwardArguments) -> Outputs:
    """See ``blockwise.forward``. Autocast ends here: it would round what is float32."""
    operands, (top_k, return_entropy, save_association) = Operands(*arguments[:7]), arguments[7:]
    with torch.autocast(operands.queries.device.type, enabled=False):
        retrieval = back_end(operands)
        if retrieval is not None:
            return retrieval.forward(top_k, return_entropy)
        return blockwise.forward(operands, top_k, return_entropy, save_association)


@hopfield_forward.register_fake
def _(*arguments: *ForwardArguments) -> Outputs:
    (queries, memory, *_), (top_k, return_entropy, save_association) = arguments[:7], arguments[7:]
    M, dtype = queries.shape[0], blockwise.compute_dtype(queries)

    def empty(*shape: int | torch.SymInt) -> Tensor:
        return queries.new_empty(shape, dtype=dtype)

    return (
        torch.empty_like(queries, memory_format=torch.contiguous_format), empty(M), empty(M),
        empty(M if return_entropy else 0), empty(M, top_k), queries.new_empty((M, top_k), dtype=torch.int64),
        empty(M, memory.shape[0]) if save_association else empty(0, 0),
    )  # fmt: skip


@torch.library.custom_op(
    "amrg::hopfield_backward", mutates_args=(),
    schema=f"({_OPERANDS}, Tensor do, Tensor lse, Tensor delta, Tensor dmass, Tensor association, "
    "bool needs_memory_grad) -> (Tensor, Tensor)",
)  # fmt: skip
def hopfield_backward(*arguments: *BackwardArguments) -> tuple[Tensor, Tensor]:
    """See ``blockwise.backward``."""
    operands, (do, lse, delta, dmass, association, needs_memory_grad) = Operands(*arguments[:7]), arguments[7:]
    with torch.autocast(operands.queries.device.type, enabled=False):
        retrieval = back_end(operands)
        if retrieval is not None:
            return retrieval.backward(do, lse, delta, dmass, needs_memory_grad)
        return blockwise.backward(operands, do, lse, delta, dmass, association, needs_memory_grad)


@hopfield_backward.register_fake
def _(*arguments: *BackwardArguments) -> tuple[Tensor, Tensor]:
    queries, memory, needs_memory_grad = arguments[0], arguments[1], arguments[-1]
    shape = memory.shape if needs_memory_grad else (0, memory.shape[1])
    return torch.empty_like(queries, memory_format=torch.contiguous_format), memory.new_empty(shape)


class _Context(Protocol):
    saved_tensors: tuple[Tensor, ...]
    dropout: float
    needs_memory_grad: bool

    def save_for_backward(self, *tensors: Tensor | None) -> None: ...


def _setup_context(ctx: _Context, inputs: ForwardArguments, output: Outputs) -> None:
    *tensors, ctx.dropout = inputs[:7]
    o, lse, mass, *_, association = output
    ctx.needs_memory_grad = inputs[1].requires_grad
    ctx.save_for_backward(*tensors, o, lse, mass, association)


def _backward(ctx: _Context, do: Tensor, dlse: Tensor, dmass: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    saved = ctx.saved_tensors  # read once: activation checkpointing refuses a second time
    o, lse, mass, association = saved[6:]
    operands = Operands._make([*saved[:6], ctx.dropout])
    do, dmass = do.contiguous(), dmass.contiguous()
    delta = softmax_delta(do, dlse, dmass, o, lse, mass)
    dq, dz = hopfield_backward(*operands, do, lse, delta, dmass, association, ctx.needs_memory_grad)
    return dq, dz if ctx.needs_memory_grad else None, *[None] * 8


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
    max_saved_bytes: int = MAX_SAVED_BYTES,
) -> Retrieval:
    """One update of a modern Hopfield network without its projections: ``O = softmax(Q Zᵀ) Z``.

    Equation 3 of Ramsauer et al., "Hopfield Networks is All You Need" (ICLR 2021), with one memory of stored patterns
    for all queries; computed blockwise as in Dao, "FlashAttention-2" (ICLR 2024). ``README.md`` derives it.

    ================  =======  =====================================================================================
    queries           [M, D]   Q: float64, float32, bfloat16 or float16, already scaled by β
    memory            [N, D]   Z, key and value at once: floating, or int8 with ``memory_scale``
    memory_scale      [N]      float32: row j is ``memory_scale[j] * memory[j]``
    query_group       [M]      int64: row j is hidden from query i where their groups are equal, unless they are −1
    memory_group      [N]      int64
    ``retrieved_MD``  [M, D]   O, in the dtype of the queries
    ``lse_M``         [M]      log Σ_j exp(q_i · z_j); it and the next three are float32, or float64 as the queries
    ``mass_M``        [M]      Σ_j w_ij, w being p after dropout
    ``entropy_M``     [M]      −Σ_j p_ij ln p_ij, or None
    ``weights_MK``    [M, K]   the ``top_k`` largest p_ij, descending, or None
    ``indices_MK``    [M, K]   their rows, int64, or None
    ================  =======  =====================================================================================

    Differentiable in the queries, and in the memory where it requires grad, through retrieved, lse and mass.

    Args:
        dropout: probability with which an entry of p is dropped; the others are divided by 1 − dropout.
        seed: seed of the dropout, an int or an int64 scalar tensor; None draws one from torch's generator.
        top_k: K, number of rows to attribute each query to.
        return_entropy: also return the entropy of p.
        max_saved_bytes: on a CPU p is saved for the backward up to this size; beyond it is recomputed.

    Raises:
        ValueError: arguments that do not fit together.
    """
    if not dropout:
        seed = None
    elif not isinstance(seed, Tensor):
        drawn = torch.randint(2**62, ()) if seed is None else torch.tensor(seed, dtype=torch.int64)
        seed = drawn.to(queries.device, non_blocking=True)
    operands = Operands(queries, memory, memory_scale, query_group, memory_group, seed, float(dropout))
    _check(operands, top_k)
    wants_grad = torch.is_grad_enabled() and (queries.requires_grad or memory.requires_grad)
    size = queries.shape[0] * memory.shape[0] * (8 if queries.dtype == torch.float64 else 4)
    save_association = wants_grad and queries.device.type == "cpu" and size <= max_saved_bytes
    o, lse, mass, entropy, weights, indices, _ = hopfield_forward(*operands, top_k, return_entropy, save_association)
    return Retrieval(
        o, lse, mass, entropy.detach() if return_entropy else None,
        weights.detach() if top_k else None, indices if top_k else None,
    )  # fmt: skip


def _check(operands: Operands, top_k: int) -> None:
    queries, memory, scale, query_group, memory_group, _, dropout = operands
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
