"""The blockwise retrieval on torch matrix products: M×N never exists, tiles stay in cache between products.

Works on any device; it is the back end of the CPU. ``README.md`` derives the recurrences.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from .reference import VISIBLE_TO_ALL, keep_mask

ROWS = 2048  # queries worked on at a time
TILE = 1 << 19  # scores in one tile: 2 MiB of float32, the second-level caches of two cores
LOG2_E = math.log2(math.e)
EMPTY = -2  # stands for "no group" among the queries, equal to no group of a memory row


def tile_width(rows: int) -> int:
    """Memory rows in one tile, for ``rows`` queries: tiles of equal area, wide enough for the matrix product."""
    return min(max(TILE // max(rows, 1) // 128 * 128, 256), 8192)


def _tiles(memory: Tensor, scale: Tensor | None, dtype: torch.dtype, width: int) -> Iterator[tuple[int, int, Tensor]]:
    """(first row, last row + 1, tile [width, D] in the dtype of the computation); a tile may overwrite the last one."""
    ready = scale is None and memory.dtype == dtype
    buffer = memory.new_empty(0 if ready else min(width, memory.shape[0]), memory.shape[1], dtype=dtype)
    for start in range(0, memory.shape[0], width):
        tile = memory[start : start + width]
        if not ready:
            tile = buffer[: tile.shape[0]].copy_(tile)
        if scale is not None:
            tile *= scale[start : start + width, None]
        yield start, start + tile.shape[0], tile


def compute_dtype(queries: Tensor) -> torch.dtype:
    """float64 stays; everything narrower is accumulated in float32."""
    return torch.float64 if queries.dtype == torch.float64 else torch.float32


def _chunks(queries: Tensor, query_group: Tensor | None) -> Iterator[tuple[slice, Tensor, Tensor | None]]:
    for start in range(0, queries.shape[0], ROWS):
        rows = slice(start, min(start + ROWS, queries.shape[0]))
        group = None
        if query_group is not None:
            group = query_group[rows]
            group = torch.where(group == VISIBLE_TO_ALL, EMPTY, group)[:, None]
        yield rows, queries[rows].to(compute_dtype(queries)), group


def _score(q: Tensor, tile: Tensor, group: Tensor | None, memory_group: Tensor | None, out: Tensor) -> Tensor:
    torch.mm(q, tile.T, out=out)
    if group is not None and memory_group is not None:
        out.masked_fill_(group == memory_group, -torch.inf)
    return out


def association_blocks(
    queries: Tensor, memory: Tensor, scale: Tensor | None, lse: Tensor, query_group: Tensor | None,
    memory_group: Tensor | None,
) -> Iterator[tuple[slice, slice, Tensor]]:  # fmt: skip
    """(rows, columns, association block before dropout), tile by tile; a block is overwritten by the next one."""
    for rows, q, group in _chunks(queries, query_group):
        width = tile_width(q.shape[0])
        buffer = q.new_empty(q.shape[0], min(width, memory.shape[0]))
        safe = finite(lse[rows].to(q.dtype))
        for start, stop, tile in _tiles(memory, scale, q.dtype, width):
            columns = None if memory_group is None else memory_group[start:stop]
            block = _score(q, tile, group, columns, buffer[:, : stop - start])
            yield rows, slice(start, stop), exp_(block.sub_(safe[:, None]))


def exp_(x: Tensor) -> Tensor:
    """``x.exp_()`` of numbers below 0: on CPUs torch's exp2 is 4 times as fast, 40 times where the result underflows.

    Rounding the product makes the result relatively wrong by |x| · 1e-7, where it is e^−|x|.
    """
    return x.mul_(LOG2_E).exp2_()


def finite(x: Tensor) -> Tensor:
    return x.masked_fill(x == -torch.inf, 0.0)


class TopK:
    """The K largest scores of every row met so far, and where they were."""

    def __init__(self, rows: int, k: int, like: Tensor):
        self.k = k
        self.scores = like.new_full((rows, k), -torch.inf)
        self.indices = like.new_full((rows, k), -1, dtype=torch.int64)

    def add(self, block: Tensor, first: int) -> None:
        scores, indices = block.topk(min(self.k, block.shape[1]), dim=1)
        self.scores, order = torch.cat([self.scores, scores], dim=1).topk(self.k, dim=1)
        self.indices = torch.cat([self.indices, indices + first], dim=1).gather(1, order)
        self.indices.masked_fill_(self.scores == -torch.inf, -1)


def forward(
    queries: Tensor, memory: Tensor, scale: Tensor | None, query_group: Tensor | None, memory_group: Tensor | None,
    seed: Tensor | None, dropout: float, top_k: int, entropy: bool, keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Retrieved [M, D], lse [M], mass [M], entropy [M or 0], weights, indices [M, top_k], association [M, N or 0].

    Of the association the entries that were dropped are negative.
    """
    count, dtype = queries.shape[0], compute_dtype(queries)
    retrieved = torch.empty_like(queries, memory_format=torch.contiguous_format)
    lse, mass = (queries.new_empty(count, dtype=dtype) for _ in range(2))
    entropies = queries.new_empty(count if entropy else 0, dtype=dtype)
    weights = queries.new_empty(count, top_k, dtype=dtype)
    indices = queries.new_empty(count, top_k, dtype=torch.int64)
    association = queries.new_empty((count, memory.shape[0]) if keep else (0, 0), dtype=dtype)
    for rows, q, group in _chunks(queries, query_group):
        top = TopK(q.shape[0], top_k, q) if top_k else None
        stored = association[rows] if keep else None
        state = _Softmax(q, entropy)
        shifts = []
        width = tile_width(q.shape[0])
        buffer = q.new_empty(q.shape[0], min(width, memory.shape[0]))
        for start, stop, tile in _tiles(memory, scale, dtype, width):
            columns = None if memory_group is None else memory_group[start:stop]
            block = _score(
                q, tile, group, columns, buffer[:, : stop - start] if stored is None else stored[:, start:stop]
            )
            if top is not None:
                top.add(block, start)
            shifts.append(state.exponentiate(block))
            if dropout and seed is not None:
                kept = block * keep_mask(seed, (rows.start, rows.stop), (start, stop), dropout)
                if stored is not None:
                    block.neg_().add_(kept, alpha=2)  # what is dropped is kept for the backward with a minus
                block = kept
            state.accumulate(block, tile, bool(dropout))
        lse[rows], mass[rows] = state.lse(), state.mass(dropout)
        retrieved[rows] = state.retrieved(dropout)
        if entropy:
            entropies[rows] = state.entropy()
        if top is not None:
            weights[rows], indices[rows] = (top.scores - finite(lse[rows])[:, None]).exp_(), top.indices
        if stored is not None:
            for j, shift in enumerate(shifts):
                stored[:, j * width : (j + 1) * width].mul_(torch.exp(shift - finite(lse[rows]))[:, None])
    return retrieved, lse, mass, entropies, weights, indices, association


class _Softmax:
    """The running state of one chunk: largest score, sum of exponentials and weighted rows relative to it."""

    def __init__(self, q: Tensor, entropy: bool):
        self.peak = q.new_full((q.shape[0],), -torch.inf)
        self.total = q.new_zeros(q.shape[0])
        self.kept = q.new_zeros(q.shape[0])
        self.plogp = q.new_zeros(q.shape[0]) if entropy else None
        self.rows = torch.zeros_like(q)
        self.decay = self.total

    def exponentiate(self, block: Tensor) -> Tensor:
        """Turn scores into exponentials in place; returns the shift that was subtracted, [rows]."""
        peak = torch.maximum(self.peak, block.amax(1))
        shift = finite(peak)
        exp_(block.sub_(shift[:, None]))
        self.decay = torch.exp(self.peak - shift)
        if self.plogp is not None:  # Σ −p ln p when every p so far shrinks by the decay
            self.plogp = self.decay * self.plogp + torch.special.entr(self.decay) * self.total
            self.plogp += torch.special.entr(block).sum(1)
        self.total = self.total * self.decay + block.sum(1)
        self.peak = peak
        return shift

    def accumulate(self, block: Tensor, tile: Tensor, dropped: bool) -> None:
        self.rows.mul_(self.decay[:, None]).addmm_(block, tile)
        self.kept = self.kept * self.decay + block.sum(1) if dropped else self.total

    def lse(self) -> Tensor:
        return finite(self.peak) + self.total.log()

    def _inverse(self, dropout: float) -> Tensor:
        return torch.where(self.total > 0, 1 / (self.total * (1 - dropout)), 0.0)

    def mass(self, dropout: float) -> Tensor:
        return self.kept * self._inverse(dropout)

    def retrieved(self, dropout: float) -> Tensor:
        return self.rows.mul_(self._inverse(dropout)[:, None])

    def entropy(self) -> Tensor:
        assert self.plogp is not None
        return torch.where(self.total > 0, self.plogp / self.total + self.total.log(), 0.0)


def backward(
    grad: Tensor, grad_lse: Tensor, grad_mass: Tensor, queries: Tensor, memory: Tensor, scale: Tensor | None,
    retrieved: Tensor, lse: Tensor, mass: Tensor, query_group: Tensor | None, memory_group: Tensor | None,
    seed: Tensor | None, association: Tensor, dropout: float, need_memory: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Gradients of queries [M, D] and of memory [N, D] ([0, D] unless needed)."""
    dtype = compute_dtype(queries)
    grad_queries = torch.empty_like(queries, memory_format=torch.contiguous_format)
    grad_memory = torch.zeros(memory.shape if need_memory else (0, memory.shape[1]), dtype=dtype, device=memory.device)
    for rows, q, group in _chunks(queries, query_group):
        g, safe = grad[rows].to(dtype), finite(lse[rows])
        lift = grad_mass[rows][:, None]
        # Σ_k a_ik ∂L/∂a_ik, less what comes straight through lse
        centre = (g * retrieved[rows]).sum(1) + grad_mass[rows] * mass[rows]
        centre = (centre - grad_lse[rows].masked_fill(lse[rows] == -torch.inf, 0.0))[:, None]
        g, lift = g / (1 - dropout), lift / (1 - dropout)
        width = tile_width(q.shape[0])
        shape = (q.shape[0], min(width, memory.shape[0]))
        scores, slopes = (None if association.numel() else q.new_empty(shape)), q.new_empty(shape)
        total = torch.zeros_like(q)
        for start, stop, tile in _tiles(memory, scale, dtype, width):
            if scores is None:
                block = kept = association[rows, start:stop]
                if dropout:
                    block, kept = block.abs(), block.clamp_min(0)
            else:
                columns = None if memory_group is None else memory_group[start:stop]
                block = kept = exp_(_score(q, tile, group, columns, scores[:, : stop - start]).sub_(safe[:, None]))
                if dropout and seed is not None:
                    kept = block * keep_mask(seed, (rows.start, rows.stop), (start, stop), dropout)
            slope = torch.mm(g, tile.T, out=slopes[:, : stop - start]).add_(lift).mul_(kept)
            slope.addcmul_(block, centre, value=-1)
            total.addmm_(slope, tile)
            if need_memory:
                grad_memory[start:stop].addmm_(slope.T, q).addmm_(kept.T, g)
        grad_queries[rows] = total
    return grad_queries, grad_memory.to(memory.dtype)


def merge(r_SMD: Tensor, lse_SM: Tensor, mass_SM: Tensor, entropy_SM: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Retrievals from S disjoint parts of a memory as one from the whole (exact: log-sum-exp weights)."""
    if r_SMD.shape[0] == 1:
        return r_SMD[0], lse_SM[0], mass_SM[0], entropy_SM[0]
    lse = torch.logsumexp(lse_SM, 0)
    share = torch.exp(lse_SM - finite(lse))
    entropy = (share * entropy_SM + torch.special.entr(share)).sum(0)
    return torch.einsum("sm,smd->md", share, r_SMD), lse, (share * mass_SM).sum(0), entropy
