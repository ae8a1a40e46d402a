"""The blockwise retrieval on torch matrix products: M×N never exists, tiles stay in cache between products.

Works on any device and dtype; it is the back end of the CPU. ``README.md`` derives it and lists the letters. Shape
legend: M queries, in blocks of m; N memory rows, in tiles of n; D width; S splits of the memory.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from .reference import NO_GROUP, Operands, Outputs, dropout_keep_mask


class TileSizes(NamedTuple):
    """How much of the M×N scores exists at once."""

    queries: int
    scores: int
    rows: int  # most rows of a tile


CPU_TILES = TileSizes(2048, 1 << 19, 8192)  # 2 MiB of float32, the second-level caches of two cores
GPU_TILES = TileSizes(16384, 1 << 25, 1 << 25)  # 128 MiB: few launches, each of which fills the GPU
LOG2_E = math.log2(math.e)
UNGROUPED_QUERY = -2  # stands for NO_GROUP among the queries: equal to no group of a memory row


def tile_sizes(device: torch.device) -> TileSizes:
    """Tiles of a device: what stays in a CPU's caches is too little for a GPU."""
    return GPU_TILES if device.type == "cuda" else CPU_TILES


def tile_width(q: Tensor) -> int:
    """Memory rows in one tile for queries q [m, D]: tiles of equal area, wide enough for the matrix product."""
    sizes = tile_sizes(q.device)
    return min(max(sizes.scores // max(q.shape[0], 1) // 128 * 128, 256), sizes.rows)


def compute_dtype(queries: Tensor) -> torch.dtype:
    """float64 stays; everything narrower is accumulated in float32."""
    return torch.float64 if queries.dtype == torch.float64 else torch.float32


def _query_blocks(operands: Operands) -> Iterator[tuple[slice, Tensor, Tensor | None]]:
    """(rows, q [m, D] in the dtype of the computation, group [m, 1])."""
    queries, group = operands.queries, operands.query_group
    step = tile_sizes(queries.device).queries
    for start in range(0, queries.shape[0], step):
        rows = slice(start, min(start + step, queries.shape[0]))
        group_m = None if group is None else group[rows]
        if group_m is not None:
            group_m = torch.where(group_m == NO_GROUP, UNGROUPED_QUERY, group_m)[:, None]
        yield rows, queries[rows].to(compute_dtype(queries)), group_m


def _memory_tiles(operands: Operands, width: int) -> Iterator[tuple[slice, Tensor, Tensor | None]]:
    """(columns, z [n, D] in the dtype of the computation, group [n]); a tile may overwrite the last one."""
    memory, scale, group = operands.memory, operands.memory_scale, operands.memory_group
    dtype = compute_dtype(operands.queries)
    ready = scale is None and memory.dtype == dtype
    buffer = memory.new_empty(0 if ready else min(width, memory.shape[0]), memory.shape[1], dtype=dtype)
    for start in range(0, memory.shape[0], width):
        columns = slice(start, min(start + width, memory.shape[0]))
        z = memory[columns]
        if not ready:
            z = buffer[: z.shape[0]].copy_(z)
        if scale is not None:
            z *= scale[columns, None]
        yield columns, z, None if group is None else group[columns]


def _scores(q: Tensor, z: Tensor, group_m: Tensor | None, group_n: Tensor | None, out: Tensor) -> Tensor:
    """s [m, n], −inf where a row is hidden from a query."""
    torch.mm(q, z.T, out=out)
    if group_m is not None and group_n is not None:
        out.masked_fill_(group_m == group_n, -torch.inf)
    return out


def association_blocks(operands: Operands, lse: Tensor) -> Iterator[tuple[slice, slice, Tensor]]:
    """(rows, columns, p [m, n]) before dropout, tile by tile; a block is overwritten by the next one."""
    for rows, q, group_m in _query_blocks(operands):
        width = tile_width(q)
        buffer = q.new_empty(q.shape[0], min(width, operands.memory.shape[0]))
        lse_i = zero_where_neg_inf(lse[rows].to(q.dtype))[:, None]
        for columns, z, group_n in _memory_tiles(operands, width):
            s = _scores(q, z, group_m, group_n, buffer[:, : z.shape[0]])
            yield rows, columns, exp_(s.sub_(lse_i))


def exp_(x: Tensor) -> Tensor:
    """``x.exp_()`` of numbers below 0: on CPUs torch's exp2 is 4 times as fast, 40 times where the result underflows.

    Rounding the product makes the result relatively wrong by |x| · 1e-7, where it is e^−|x|.
    """
    return x.mul_(LOG2_E).exp2_()


def zero_where_neg_inf(x: Tensor) -> Tensor:
    """Log-sum-exps that can be subtracted: −inf, of a query that sees no row, becomes 0."""
    return x.masked_fill(x == -torch.inf, 0.0)


class TopK:
    """The K largest scores of every query so far, [m, K], and their rows."""

    def __init__(self, rows: int, k: int, like: Tensor) -> None:
        self.k = k
        self.scores = like.new_full((rows, k), -torch.inf)
        self.indices = like.new_full((rows, k), -1, dtype=torch.int64)

    def add(self, block: Tensor, first: int) -> None:
        """Take in scores [m, n] of the memory rows from ``first``."""
        scores, indices = block.topk(min(self.k, block.shape[1]), dim=1)
        self.scores, order = torch.cat([self.scores, scores], dim=1).topk(self.k, dim=1)
        self.indices = torch.cat([self.indices, indices + first], dim=1).gather(1, order)
        self.indices.masked_fill_(self.scores == -torch.inf, -1)


def largest_weights(operands: Operands, k: int, lse: Tensor) -> tuple[Tensor, Tensor]:
    """The largest p of each query and their rows, [M, k], from its log-sum-exp; computes the scores again."""
    M, dtype = operands.queries.shape[0], lse.dtype
    weights, indices = lse.new_empty(M, k), lse.new_empty(M, k, dtype=torch.int64)
    if not k:
        return weights, indices
    for rows, q, group_m in _query_blocks(operands):
        top, width = TopK(q.shape[0], k, q), tile_width(q)
        buffer = q.new_empty(q.shape[0], min(width, operands.memory.shape[0]))
        for columns, z, group_n in _memory_tiles(operands, width):
            top.add(_scores(q, z, group_m, group_n, buffer[:, : z.shape[0]]), columns.start)
        weights[rows] = (top.scores - zero_where_neg_inf(lse[rows])[:, None]).exp_().to(dtype)
        indices[rows] = top.indices
    return weights, indices


def forward(operands: Operands, top_k: int, return_entropy: bool, save_association: bool) -> Outputs:
    """o [M, D], lse [M], mass [M], entropy [M or 0], weights, indices [M, top_k], p [M, N] or [0, 0].

    Of the saved p the entries that were dropped are negative.
    """
    queries, seed, dropout = operands.queries, operands.seed, operands.dropout
    M, N, dtype = queries.shape[0], operands.memory.shape[0], compute_dtype(queries)
    o = torch.empty_like(queries, memory_format=torch.contiguous_format)
    lse, mass = (queries.new_empty(M, dtype=dtype) for _ in range(2))
    entropy = queries.new_empty(M if return_entropy else 0, dtype=dtype)
    weights = queries.new_empty(M, top_k, dtype=dtype)
    indices = queries.new_empty(M, top_k, dtype=torch.int64)
    association = queries.new_empty((M, N) if save_association else (0, 0), dtype=dtype)
    for rows, q, group_m in _query_blocks(operands):
        top = TopK(q.shape[0], top_k, q) if top_k else None
        saved = association[rows] if save_association else None
        state = _OnlineSoftmax(q, return_entropy)
        shifts = []
        width = tile_width(q)
        buffer = q.new_empty(q.shape[0], min(width, N))
        for columns, z, group_n in _memory_tiles(operands, width):
            p = _scores(q, z, group_m, group_n, buffer[:, : z.shape[0]] if saved is None else saved[:, columns])
            if top is not None:
                top.add(p, columns.start)
            shifts.append(state.exponentiate(p))
            w = p
            if dropout and seed is not None:
                w = p * dropout_keep_mask(seed, (rows.start, rows.stop), (columns.start, columns.stop), dropout)
                if saved is not None:
                    p.neg_().add_(w, alpha=2)  # what is dropped is saved for the backward with a minus
            state.accumulate(w, z, bool(dropout))
        lse[rows], mass[rows] = state.lse(), state.mass(dropout)
        o[rows] = state.output(dropout)
        if return_entropy:
            entropy[rows] = state.entropy()
        lse_i = zero_where_neg_inf(lse[rows])
        if top is not None:
            weights[rows], indices[rows] = (top.scores - lse_i[:, None]).exp_(), top.indices
        if saved is not None:
            for j, shift in enumerate(shifts):
                saved[:, j * width : (j + 1) * width].mul_(torch.exp(shift - lse_i)[:, None])
    return o, lse, mass, entropy, weights, indices, association


class _OnlineSoftmax:
    """The running state of one block of queries, relative to the largest score so far."""

    def __init__(self, q: Tensor, with_entropy: bool) -> None:
        self.m_i = q.new_full((q.shape[0],), -torch.inf)  # [m] max s
        self.l_i = q.new_zeros(q.shape[0])  # [m] Σ p
        self.w_i = q.new_zeros(q.shape[0])  # [m] Σ w
        self.entr_i = q.new_zeros(q.shape[0]) if with_entropy else None  # [m] Σ −p ln p
        self.acc = torch.zeros_like(q)  # [m, D] Σ w z
        self.alpha = self.l_i  # [m] rescales what was accumulated under the old maximum

    def exponentiate(self, s: Tensor) -> Tensor:
        """Turn scores [m, n] into p, not normalized, in place; returns the shift that was subtracted, [m]."""
        m_new = torch.maximum(self.m_i, s.amax(1))
        shift = zero_where_neg_inf(m_new)
        p = exp_(s.sub_(shift[:, None]))
        self.alpha = torch.exp(self.m_i - shift)
        if self.entr_i is not None:  # Σ −p ln p when every p so far shrinks by alpha
            self.entr_i = self.alpha * self.entr_i + torch.special.entr(self.alpha) * self.l_i
            self.entr_i += torch.special.entr(p).sum(1)
        self.l_i = self.l_i * self.alpha + p.sum(1)
        self.m_i = m_new
        return shift

    def accumulate(self, w: Tensor, z: Tensor, dropped: bool) -> None:
        """Add the products of weights [m, n] with rows [n, D]."""
        self.acc.mul_(self.alpha[:, None]).addmm_(w, z)
        self.w_i = self.w_i * self.alpha + w.sum(1) if dropped else self.l_i

    def lse(self) -> Tensor:
        return zero_where_neg_inf(self.m_i) + self.l_i.log()

    def _inv_l(self, dropout: float) -> Tensor:
        return torch.where(self.l_i > 0, 1 / (self.l_i * (1 - dropout)), 0.0)

    def mass(self, dropout: float) -> Tensor:
        return self.w_i * self._inv_l(dropout)

    def output(self, dropout: float) -> Tensor:
        return self.acc.mul_(self._inv_l(dropout)[:, None])

    def entropy(self) -> Tensor:
        assert self.entr_i is not None
        return torch.where(self.l_i > 0, self.entr_i / self.l_i + self.l_i.log(), 0.0)


def backward(
    operands: Operands, do: Tensor, lse: Tensor, delta: Tensor, dmass: Tensor, association: Tensor,
    needs_memory_grad: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """dq [M, D] and dz [N, D] ([0, D] unless needed); p is recomputed unless ``association`` holds it."""
    queries, memory, seed, dropout = operands.queries, operands.memory, operands.seed, operands.dropout
    dtype = compute_dtype(queries)
    dq = torch.empty_like(queries, memory_format=torch.contiguous_format)
    dz_shape = memory.shape if needs_memory_grad else (0, memory.shape[1])
    dz = torch.zeros(dz_shape, dtype=dtype, device=memory.device)
    for rows, q, group_m in _query_blocks(operands):
        lse_i, delta_i = zero_where_neg_inf(lse[rows])[:, None], delta[rows][:, None]
        do_i, dmass_i = do[rows].to(dtype) / (1 - dropout), dmass[rows][:, None] / (1 - dropout)
        width = tile_width(q)
        shape = (q.shape[0], min(width, memory.shape[0]))
        s_buffer, dp_buffer = (None if association.numel() else q.new_empty(shape)), q.new_empty(shape)
        acc = torch.zeros_like(q)  # [m, D] Σ ds z
        for columns, z, group_n in _memory_tiles(operands, width):
            if s_buffer is None:
                p = w = association[rows, columns]
                if dropout:
                    p, w = p.abs(), p.clamp_min(0)
            else:
                p = w = exp_(_scores(q, z, group_m, group_n, s_buffer[:, : z.shape[0]]).sub_(lse_i))
                if dropout and seed is not None:
                    w = p * dropout_keep_mask(seed, (rows.start, rows.stop), (columns.start, columns.stop), dropout)
            ds = torch.mm(do_i, z.T, out=dp_buffer[:, : z.shape[0]]).add_(dmass_i).mul_(w)
            ds.addcmul_(p, delta_i, value=-1)
            acc.addmm_(ds, z)
            if needs_memory_grad:
                dz[columns].addmm_(ds.T, q).addmm_(w.T, do_i)
        dq[rows] = acc
    return dq, dz.to(memory.dtype)


def merge(o_SMD: Tensor, lse_SM: Tensor, mass_SM: Tensor, entropy_SM: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Retrievals from S disjoint parts of a memory as one from all of it (exact: log-sum-exp weights)."""
    if o_SMD.shape[0] == 1:
        return o_SMD[0], lse_SM[0], mass_SM[0], entropy_SM[0]
    lse = torch.logsumexp(lse_SM, 0)
    share_SM = torch.exp(lse_SM - zero_where_neg_inf(lse))
    entropy = (share_SM * entropy_SM + torch.special.entr(share_SM)).sum(0)
    # not an einsum: autocast would round its operands to bfloat16
    return (share_SM[..., None] * o_SMD).sum(0), lse, (share_SM * mass_SM).sum(0), entropy
