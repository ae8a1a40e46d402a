"""The two ways of retrieving from a bank without holding it: queries visit the rows, or rows visit the queries.

Both use the operator's own forward and backward on partial memories. The backward of a part needs, of the whole, only
``lse`` and ``delta_i = do_i · o_i + dmass_i mass_i − dlse_i`` (kernels/hopfield/README.md), one number a query.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from amrg.kernels import Retrieval
from amrg.kernels.hopfield.blockwise import merge, zero_where_neg_inf
from amrg.kernels.hopfield.ops import hopfield_backward, hopfield_forward
from amrg.kernels.hopfield.reference import Operands, softmax_delta
from amrg.retrieval.collectives import CommGroup, TensorSpec
from amrg.retrieval.types import PartialResult, RetrievalRequest, Shard, ShardedRows, ShardQuery

#: Apart by a prime, so that shards and ranks draw dropout of their own.
_SHARD_SEED = 1_000_003


def retrieve_gather(requests: Sequence[RetrievalRequest]) -> list[Retrieval]:
    """Queries visit the rows."""
    return _run(_Gather, requests)


def retrieve_ring(requests: Sequence[RetrievalRequest]) -> list[Retrieval]:
    """Rows visit the queries."""
    return _run(_Ring, requests)


def _run(way: Any, requests: Sequence[RetrievalRequest]) -> list[Retrieval]:
    asks = [_ask(request) for request in requests]
    flat = iter(way.apply([request.bank for request in requests], asks, *(ask.queries for ask in asks)))
    results = []
    for ask in asks:
        retrieved, lse, mass = (next(flat) for _ in range(3))
        entropy = next(flat) if ask.entropy else None
        weights, indices = (next(flat), next(flat)) if ask.top_k else (None, None)
        results.append(Retrieval(retrieved, lse, mass, entropy, weights, indices))
    return results


def _ask(request: RetrievalRequest) -> ShardQuery:
    seed = None
    if request.dropout:
        drawn = torch.randint(2**62, ()) if request.seed is None else torch.as_tensor(request.seed, dtype=torch.int64)
        seed = drawn.to(request.queries.device)
    group = None if request.bank.group is None else request.query_group
    return ShardQuery(request.queries, group, seed, request.dropout, request.top_k, request.return_entropy)


def _retrieve_from_shard(ask: ShardQuery, shard: Shard) -> PartialResult:
    """Retrieve from one shard; float32 (float64 for such queries), rows numbered as in the whole bank."""
    o, lse, mass, entropy, weights, indices, _ = hopfield_forward(*_operands(ask, shard), ask.top_k, ask.entropy, False)
    answer = [o.to(lse.dtype), lse, mass]
    if ask.entropy:
        answer.append(entropy)
    if ask.top_k:
        answer += [weights, torch.where(indices >= 0, indices + shard.start, indices)]
    return answer


def _merge(ask: ShardQuery, answers: Sequence[PartialResult]) -> PartialResult:
    """The answers of disjoint rows as one."""
    if len(answers) == 1:
        return answers[0]
    o, lse, mass, *rest = (torch.stack(pieces) for pieces in zip(*answers, strict=True))
    entropy = rest.pop(0) if ask.entropy else torch.zeros_like(lse)
    whole = merge(o, lse, mass, entropy)
    answer = list(whole[: 4 if ask.entropy else 3])
    if ask.top_k:
        weights = rest[0] * torch.exp(lse - zero_where_neg_inf(whole[1]))[..., None]
        top, order = weights.transpose(0, 1).flatten(1).topk(ask.top_k, dim=1)
        answer += [top, rest[1].transpose(0, 1).flatten(1).gather(1, order)]
    return answer


def _operands(ask: ShardQuery, shard: Shard) -> Operands:
    group = None if ask.group is None else shard.group
    seed = None if ask.seed is None else ask.seed + _SHARD_SEED * shard.start
    return Operands(ask.queries.detach(), shard.rows, shard.scale, ask.group, group, seed, ask.dropout)


class _BackwardStats(NamedTuple):
    """What the backward of a part needs of the whole, a row for each query: letters of kernels/hopfield/README.md."""

    do: Tensor
    lse: Tensor
    delta: Tensor
    dmass: Tensor


def _backward_stats(answer: Sequence[Tensor], grads: Sequence[Tensor]) -> _BackwardStats:
    retrieved, lse, mass = answer
    do, dlse, dmass = grads
    return _BackwardStats(do, lse, softmax_delta(do, dlse, dmass, retrieved, lse, mass), dmass)


def _query_grad(ask: ShardQuery, shard: Shard, slope: _BackwardStats) -> Tensor:
    """One shard's part of the gradient of the queries."""
    do, lse, delta, dmass = slope
    association = lse.new_empty(0, 0)
    dq, _ = hopfield_backward(
        *_operands(ask, shard), do.contiguous(), lse, delta, dmass.contiguous(), association, False
    )
    return dq


class _ShardedRetrieval(torch.autograd.Function):
    """Forward and backward but for the way; a subclass gives ``answers`` and ``gradients``."""

    @classmethod
    def forward(cls, ctx: Any, memories: Sequence[ShardedRows], asks: Sequence[ShardQuery], *queries: Tensor) -> Any:
        ctx.memories, ctx.asks = memories, asks
        answers, ctx.visit = cls.answers(memories, asks)
        saved: list[Tensor] = []
        for ask, answer in zip(asks, answers, strict=True):
            answer[0] = answer[0].to(ask.queries.dtype)
            saved += answer[:3]
            ctx.mark_non_differentiable(*answer[3:])
        ctx.save_for_backward(*saved)
        ctx.lengths = [len(answer) for answer in answers]
        return tuple(tensor for answer in answers for tensor in answer)

    @classmethod
    def backward(cls, ctx: Any, *grads: Tensor) -> Any:
        slopes, start = [], 0
        for i, length in enumerate(ctx.lengths):
            slopes.append(_backward_stats(ctx.saved_tensors[i * 3 : i * 3 + 3], grads[start : start + 3]))
            start += length
        return None, None, *cls.gradients(ctx.memories, ctx.asks, ctx.visit, slopes)

    @staticmethod
    def answers(memories: Sequence[ShardedRows], asks: Sequence[ShardQuery]) -> tuple[list[PartialResult], Any]:
        """The merged answers, and what the backward needs to go the same way."""
        raise NotImplementedError

    @staticmethod
    def gradients(
        memories: Sequence[ShardedRows], asks: Sequence[ShardQuery], visit: Any, slopes: Sequence[_BackwardStats]
    ) -> list[Tensor]:
        """The gradients of this rank's queries."""
        raise NotImplementedError


class _Gather(_ShardedRetrieval):
    @staticmethod
    def answers(memories: Sequence[ShardedRows], asks: Sequence[ShardQuery]) -> tuple[list[PartialResult], Any]:
        trip = QueryRouter(memories[0].layout.levels, [len(ask.queries) for ask in asks], asks[0].queries.device)
        gathered = trip.dispatch([ask.payload() for ask in asks])
        visiting = [
            ask._replace(queries=tensors[0], group=None if ask.group is None else tensors[1])
            for ask, tensors in zip(asks, gathered, strict=True)
        ]
        answers = [
            _retrieve_from_shard(ask, memory.local_shard()) for ask, memory in zip(visiting, memories, strict=True)
        ]
        return trip.combine(answers, lambda i, pieces: _merge(asks[i], pieces)), (trip, visiting)

    @staticmethod
    def gradients(
        memories: Sequence[ShardedRows], asks: Sequence[ShardQuery], visit: Any, slopes: Sequence[_BackwardStats]
    ) -> list[Tensor]:
        trip, visiting = visit
        gathered = trip.dispatch([list(slope) for slope in slopes])
        partial = [
            [_query_grad(ask, memory.local_shard(), _BackwardStats(*tensors))]
            for ask, memory, tensors in zip(visiting, memories, gathered, strict=True)
        ]
        return [
            grad for (grad,) in trip.combine(partial, lambda _, pieces: [torch.stack([p for (p,) in pieces]).sum(0)])
        ]


class QueryRouter:
    """The way of queries to every shard, level by level, and of what was found back to whose queries they are.

    Args:
        levels: of the layout.
        mine: number of this rank's queries, for each bank.
        device: of the queries.
    """

    def __init__(self, levels: Sequence[CommGroup], mine: list[int], device: torch.device) -> None:
        self.levels = levels
        self.counts: list[list[list[int]]] = []  # [level][rank][bank]: queries that the rank brought to the level
        for level in levels:
            self.counts.append(level.all_gather_ints(mine, device))
            mine = [sum(theirs) for theirs in zip(*self.counts[-1], strict=True)]

    def dispatch(self, banks: list[list[Tensor]]) -> list[list[Tensor]]:
        """Tensors with a row for each query → those of all ranks, joined."""
        for level, counts in zip(self.levels, self.counts, strict=True):
            specs = [_flatten(_specs(banks, theirs)) for theirs in counts]
            everyone = [_unflatten_like(banks, tensors) for tensors in level.all_gather(_flatten(banks), specs)]
            banks = [
                [torch.cat(pieces) for pieces in zip(*(theirs[i] for theirs in everyone), strict=True)]
                for i in range(len(banks))
            ]
        return banks

    def combine(self, banks: list[list[Tensor]], join: Any) -> list[list[Tensor]]:
        """Tensors with a row for each query of all ranks → ``join(bank, [from each rank])`` of this rank's."""
        for level, counts in reversed(list(zip(self.levels, self.counts, strict=True))):
            pieces = [
                [tensor.split([theirs[i] for theirs in counts]) for tensor in tensors]
                for i, tensors in enumerate(banks)
            ]
            outgoing = [[piece[r] for tensors in pieces for piece in tensors] for r in range(level.size)]
            specs = [_flatten(_specs(banks, counts[level.rank]))] * level.size
            everyone = [_unflatten_like(banks, tensors) for tensors in level.all_to_all(outgoing, specs)]
            banks = [join(i, [theirs[i] for theirs in everyone]) for i in range(len(banks))]
        return banks


class _Ring(_ShardedRetrieval):
    @staticmethod
    def answers(memories: Sequence[ShardedRows], asks: Sequence[ShardQuery]) -> tuple[list[PartialResult], Any]:
        so_far: list[list[PartialResult]] = [[] for _ in asks]
        for shards in _ring_shards(memories):
            so_far = [
                [_merge(ask, [*before, _retrieve_from_shard(ask, shard)])]
                for ask, shard, before in zip(asks, shards, so_far, strict=True)
            ]
        return [answer for (answer,) in so_far], None

    @staticmethod
    def gradients(
        memories: Sequence[ShardedRows], asks: Sequence[ShardQuery], visit: Any, slopes: Sequence[_BackwardStats]
    ) -> list[Tensor]:
        totals = [torch.zeros_like(slope.do, dtype=slope.lse.dtype) for slope in slopes]
        for shards in _ring_shards(memories):
            for total, ask, shard, slope in zip(totals, asks, shards, slopes, strict=True):
                total += _query_grad(ask, shard, slope)
        return [total.to(ask.queries.dtype) for total, ask in zip(totals, asks, strict=True)]


def _ring_shards(memories: Sequence[ShardedRows]) -> Any:
    """The shards of all memories, rank by rank."""
    flat = memories[0].layout.flat
    own = [memory.tensors() for memory in memories]
    specs = [[spec for memory in memories for spec in memory.tensor_specs(rank)] for rank in range(flat.size)]
    for owner, tensors in flat.ring_steps(_flatten(own), specs):
        yield [
            memory.shard(owner, parts) for memory, parts in zip(memories, _unflatten_like(own, tensors), strict=True)
        ]


def _flatten(nested: Sequence[Sequence[Any]]) -> list[Any]:
    return [item for items in nested for item in items]


def _unflatten_like(shape: Sequence[Sequence[Any]], flat: Sequence[Tensor]) -> list[list[Tensor]]:
    """Cut a flat list as ``shape`` is cut."""
    items = iter(flat)
    return [[next(items) for _ in part] for part in shape]


def _specs(banks: Sequence[Sequence[Tensor]], counts: Sequence[int]) -> list[list[TensorSpec]]:
    """Specs of the same tensors with another number of rows for each bank."""
    return [
        [((count, *tensor.shape[1:]), tensor.dtype) for tensor in tensors]
        for tensors, count in zip(banks, counts, strict=True)
    ]
