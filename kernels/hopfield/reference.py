"""Ground truth of the retrieval: the plain formula in float64, and the definitions that every back end shares.

Shape legend: M queries, N memory rows, D width, K attributed rows.
"""

from typing import NamedTuple

import torch
from torch import Tensor

HALF = (torch.bfloat16, torch.float16)
NO_GROUP = -1  # group of the rows that no patient owns: they are hidden from no query


class Operands(NamedTuple):
    """Inputs of a retrieval, as ``hopfield_retrieve`` describes them; ``seed`` is a tensor where there is dropout."""

    queries: Tensor  # [M, D]
    memory: Tensor  # [N, D]
    memory_scale: Tensor | None = None  # [N]
    query_group: Tensor | None = None  # [M]
    memory_group: Tensor | None = None  # [N]
    seed: Tensor | None = None  # []
    dropout: float = 0.0


class Retrieval(NamedTuple):
    """Result of ``hopfield_retrieve``. The last three fields are None unless they were asked for."""

    retrieved_MD: Tensor  # o_i = Σ_j w_ij z_j, in the queries' dtype
    lse_M: Tensor  # log Σ_j exp(q_i · z_j) over the visible rows, −inf where there is none
    mass_M: Tensor  # Σ_j w_ij: 1 without dropout, 0 where no row is visible
    entropy_M: Tensor | None = None  # −Σ_j p_ij ln p_ij, before dropout, nats
    weights_MK: Tensor | None = None  # the largest p_ij, before dropout, descending
    indices_MK: Tensor | None = None  # their rows, int64; −1 where fewer than K rows are visible


#: What a back end's forward returns: o, lse, mass, entropy, weights, indices, and p where it is saved for the backward.
Outputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


def _mix(x: Tensor) -> Tensor:
    """An avalanche of int32 words, in place: shift–multiply rounds, the last shift left out as only high bits are used.

    torch shifts int32 arithmetically; the masks make the shifts logical.
    """
    x ^= (x >> 16).bitwise_and_(0xFFFF)
    x *= 0x7FEB352D
    x ^= (x >> 15).bitwise_and_(0x1FFFF)
    return x.mul_(0x846CA68B - (1 << 32))


def _keys(start: int, stop: int, seed: Tensor, salt: int) -> Tensor:
    """One int32 key per index of [start, stop), from one half of the 64-bit seed."""
    index = torch.arange(start, stop, device=seed.device, dtype=torch.int64)
    word = (index * 0x9E3779B1 + seed.bitwise_right_shift(salt)).bitwise_and_(0xFFFFFFFF)
    return _mix(word.sub_((word >> 31) << 32).to(torch.int32))


def dropout_keep_mask(seed: Tensor, rows: tuple[int, int], columns: tuple[int, int], dropout: float) -> Tensor:
    """Which entries of p survive dropout: bool [rows, columns], a function of seed and indices alone.

    Counter-based: entry (i, j) hashes a key of i with a key of j, so that any block can be drawn again on its own.
    """
    words = _keys(*rows, seed, 0)[:, None] ^ _keys(*columns, seed, 32)[None, :]
    return _mix(words) >= round(dropout * 2**32) - 2**31


def same_group_mask(query_group: Tensor, memory_group: Tensor) -> Tensor:
    """Which rows are hidden from which query: bool [M, N], true where both belong to the same group."""
    return (query_group[:, None] == memory_group[None, :]) & (memory_group != NO_GROUP)


def softmax_delta(do: Tensor, dlse: Tensor, dmass: Tensor, o: Tensor, lse: Tensor, mass: Tensor) -> Tensor:
    """FlashAttention-2's delta, Σ_j p_ij dp_ij, less the gradient that reaches the scores through lse: [M]."""
    delta = (do.to(lse.dtype) * o.to(lse.dtype)).sum(1) + dmass * mass
    return delta - dlse.masked_fill(lse == -torch.inf, 0.0)


def reference_retrieve(
    queries: Tensor,
    memory: Tensor,
    *,
    memory_scale: Tensor | None = None,
    query_group: Tensor | None = None,
    memory_group: Tensor | None = None,
    dropout: float = 0.0,
    seed: Tensor | int = 0,
    top_k: int = 0,
) -> Retrieval:
    """``softmax(Q Zᵀ) Z`` written out in float64 with the M×N matrix of p; autograd gives its gradients.

    Same arguments and results as ``amrg.kernels.hopfield_retrieve``; the entropy is always returned.
    """
    q, z = queries.double(), memory.double()
    if memory_scale is not None:
        z = z * memory_scale.double()[:, None]
    s = q @ z.T
    if query_group is not None and memory_group is not None:
        s = s.masked_fill(same_group_mask(query_group, memory_group), -torch.inf)
    lse = torch.logsumexp(s, dim=1)
    has_visible_row = lse > -torch.inf
    p = torch.exp(s - torch.where(has_visible_row, lse, 0.0)[:, None])
    w = p
    if dropout:
        seed = torch.as_tensor(seed, dtype=torch.int64, device=q.device)
        w = p * dropout_keep_mask(seed, (0, q.shape[0]), (0, z.shape[0]), dropout) / (1 - dropout)
    entropy = torch.special.entr(p.detach()).sum(1)
    weights, indices = p.detach().topk(min(top_k, z.shape[0]), dim=1)
    weights = torch.nn.functional.pad(weights, (0, top_k - weights.shape[1]))
    indices = torch.nn.functional.pad(indices, (0, top_k - indices.shape[1])).masked_fill(weights == 0, -1)
    return Retrieval(w @ z, lse, w.sum(1), entropy, weights, indices)
