"""Ground truth of the retrieval: the plain formula in float64, and the definitions that every back end shares.

Shape legend: M queries, N memory rows, D width, K attributed rows.
"""

from typing import NamedTuple

import torch
from torch import Tensor

VISIBLE_TO_ALL = -1  # a memory row of this group is hidden from nobody


class Retrieval(NamedTuple):
    """What ``hopfield_retrieve`` returns. The last three fields are None unless they were asked for."""

    retrieved_MD: Tensor  # Σ_j w_ij z_j, in the queries' dtype
    lse_M: Tensor  # log Σ_j exp(q_i · z_j) over the visible rows, −inf where there is none
    mass_M: Tensor  # Σ_j w_ij: 1 without dropout, 0 where no row is visible
    entropy_M: Tensor | None = None  # −Σ_j a_ij ln a_ij, before dropout, nats
    weights_MK: Tensor | None = None  # the largest a_ij, before dropout, descending
    indices_MK: Tensor | None = None  # their rows, int64; −1 where fewer than K rows are visible


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


def keep_mask(seed: Tensor, rows: tuple[int, int], columns: tuple[int, int], dropout: float) -> Tensor:
    """Which entries of the association survive dropout: bool [rows, columns], a function of seed and indices alone.

    Counter-based: entry (i, j) hashes a key of i with a key of j, so that any block can be drawn again on its own.
    """
    words = _keys(*rows, seed, 0)[:, None] ^ _keys(*columns, seed, 32)[None, :]
    return _mix(words) >= round(dropout * 2**32) - 2**31


def hidden(query_group: Tensor, memory_group: Tensor) -> Tensor:
    """Which rows a query must not see: bool [M, N], true where both belong to the same group."""
    return (query_group[:, None] == memory_group[None, :]) & (memory_group != VISIBLE_TO_ALL)


def reference_retrieve(
    queries_MD: Tensor,
    memory_ND: Tensor,
    *,
    memory_scale: Tensor | None = None,
    query_group: Tensor | None = None,
    memory_group: Tensor | None = None,
    dropout: float = 0.0,
    seed: Tensor | int = 0,
    top_k: int = 0,
) -> Retrieval:
    """``softmax(Q Zᵀ) Z`` written out in float64 with the whole M×N association; autograd gives its gradients.

    Same arguments and results as ``amrg.kernels.hopfield_retrieve``; the entropy is always returned.
    """
    q, z = queries_MD.double(), memory_ND.double()
    if memory_scale is not None:
        z = z * memory_scale.double()[:, None]
    scores = q @ z.T
    if query_group is not None and memory_group is not None:
        scores = scores.masked_fill(hidden(query_group, memory_group), -torch.inf)
    lse = torch.logsumexp(scores, dim=1)
    seen = lse > -torch.inf
    association = torch.exp(scores - torch.where(seen, lse, 0.0)[:, None])
    weights = association
    if dropout:
        seed = torch.as_tensor(seed, dtype=torch.int64, device=q.device)
        keep = keep_mask(seed, (0, q.shape[0]), (0, z.shape[0]), dropout)
        weights = association * keep / (1 - dropout)
    entropy = torch.special.entr(association.detach()).sum(1)
    top, index = association.detach().topk(min(top_k, z.shape[0]), dim=1)
    top = torch.nn.functional.pad(top, (0, top_k - top.shape[1]))
    index = torch.nn.functional.pad(index, (0, top_k - index.shape[1])).masked_fill(top == 0, -1)
    return Retrieval(weights @ z, lse, weights.sum(1), entropy, top, index)
