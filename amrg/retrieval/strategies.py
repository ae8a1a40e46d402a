"""The two strategies that retrieve from a bank without a full copy: ``gather`` sends queries, ``ring`` sends rows.

Both run the operator's own forward and backward on one shard at a time. The backward of a shard needs only ``lse`` and
``delta_i = do_i · o_i + dmass_i mass_i − dlse_i`` of the merged result (kernels/hopfield/README.md), one number each
per query.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from amrg.kernels import Retrieval
from amrg.kernels.hopfield.blockwise import compute_dtype, merge, zero_where_neg_inf
from amrg.kernels.hopfield.ops import hopfield_backward, hopfield_forward
from amrg.kernels.hopfield.reference import Operands, softmax_delta
from amrg.retrieval.collectives import CommGroup, TensorSpec
from amrg.retrieval.types import PartialResult, RetrievalRequest, Shard, ShardedRows, ShardQuery

#: A prime: seeds of different shards and ranks do not coincide, so each draws its own dropout.
_SHARD_SEED = 1_000_003

_Item = TypeVar("_Item")


def retrieve_gather(requests: Sequence[RetrievalRequest]) -> list[Retrieval]:
    """Send the queries to every shard and merge the partial results that come back."""
    return _run(_Gather, requests)


def retrieve_ring(requests: Sequence[RetrievalRequest]) -> list[Retrieval]:
    """Pass the shards round a ring; each rank retrieves for its own queries."""
    return _run(_Ring, requests)


def _run(function: "type[_ShardedRetrieval]", requests: Sequence[RetrievalRequest]) -> list[Retrieval]:
    queries = [_shard_query(request) for request in requests]
    tensors = iter(
        function.apply([request.bank for request in requests], queries, *(query.queries for query in queries))
    )
    results = []
    for query in queries:
        retrieved, lse, mass = (next(tensors) for _ in range(3))
        entropy = next(tensors) if query.return_entropy else None
        weights, indices = (next(tensors), next(tensors)) if query.top_k else (None, None)
        results.append(Retrieval(retrieved, lse, mass, entropy, weights, indices))
    return results


def _shard_query(request: RetrievalRequest) -> ShardQuery:
    seed = None
    if request.dropout:
        drawn = torch.randint(2**62, ()) if request.seed is None else torch.as_tensor(request.seed, dtype=torch.int64)
        seed = drawn.to(request.queries.device, non_blocking=True)
    group = None if request.bank.group is None else request.query_group
    return ShardQuery(request.queries, group, seed, request.dropout, request.top_k, request.return_entropy)


def _retrieve_from_shard(query: ShardQuery, shard: Shard) -> PartialResult:
    """Retrieve from one shard, in float32 (float64 for float64 queries), with row numbers of the full bank."""
    if shard.indexed is None:
        o, lse, mass, entropy, weights, indices, _ = hopfield_forward(
            *_operands(query, shard), query.top_k, query.return_entropy, False
        )
    else:
        o, lse, mass, entropy, weights, indices = _retrieve_from_index(query, shard, query.queries.detach())
    result = [o.to(lse.dtype), lse, mass]
    if query.return_entropy:
        result.append(entropy)
    if query.top_k:
        result += [weights, torch.where(indices >= 0, indices + shard.start, indices)]
    return result


def _retrieve_from_index(query: ShardQuery, shard: Shard, queries: Tensor) -> tuple[Tensor, ...]:
    """Retrieve from the candidates that a shard's index proposes; fields of ``Retrieval``, empty if not requested."""
    assert shard.indexed is not None
    exact, operands = compute_dtype(queries), _operands(query, shard)
    found = shard.indexed.retrieve(
        queries.to(exact), query_group=query.query_group, dropout=query.dropout, seed=operands.seed, top_k=query.top_k,
        return_entropy=query.return_entropy,
    )  # fmt: skip
    unused = found.lse_M[:0]
    return *found[:3], *(unused if field is None else field for field in found[3:])


def _merge(query: ShardQuery, results: Sequence[PartialResult]) -> PartialResult:
    """Merge the results of disjoint rows into one."""
    if len(results) == 1:
        return results[0]
    o, lse, mass, *rest = (torch.stack(pieces) for pieces in zip(*results, strict=True))
    entropy = rest.pop(0) if query.return_entropy else torch.zeros_like(lse)
    tensors = merge(o, lse, mass, entropy)
    merged = list(tensors[: 4 if query.return_entropy else 3])
    if query.top_k:
        weights = rest[0] * torch.exp(lse - zero_where_neg_inf(tensors[1]))[..., None]
        top, order = weights.transpose(0, 1).flatten(1).topk(query.top_k, dim=1)
        merged += [top, rest[1].transpose(0, 1).flatten(1).gather(1, order)]
    return merged


def _operands(query: ShardQuery, shard: Shard) -> Operands:
    group = None if query.query_group is None else shard.group
    seed = None if query.seed is None else query.seed + _SHARD_SEED * shard.start
    return Operands(query.queries.detach(), shard.rows, shard.scale, query.query_group, group, seed, query.dropout)


class _BackwardStats(NamedTuple):
    """Statistics of the merged result that the backward of a shard needs, in the letters of kernels/hopfield/README.md.

    ``do`` [M, D], the others [M].
    """

    do: Tensor
    lse: Tensor
    delta: Tensor
    dmass: Tensor


def _backward_stats(result: Sequence[Tensor], grads: Sequence[Tensor]) -> _BackwardStats:
    retrieved, lse, mass = result
    do, dlse, dmass = grads
    return _BackwardStats(do, lse, softmax_delta(do, dlse, dmass, retrieved, lse, mass), dmass)


def _query_grad(query: ShardQuery, shard: Shard, stats: _BackwardStats) -> Tensor:
    """Compute one shard's term of the gradient of the queries, [M, D]."""
    do, lse, delta, dmass = stats
    if shard.indexed is not None:
        with torch.enable_grad(), torch.autocast(do.device.type, enabled=False):
            queries = query.queries.detach().requires_grad_()
            o_s, lse_s, mass_s, *_ = _retrieve_from_index(query, shard, queries)
            # Its gradient, with the merged lse and delta held fixed, is Σ_j p_ij (dp_ij − delta_i) z_j over candidates.
            share = torch.exp(lse_s - zero_where_neg_inf(lse))
            total = (share * ((do.to(lse.dtype) * o_s).sum(1) + dmass * mass_s - delta)).sum()
            return torch.autograd.grad(total, queries)[0]
    association = lse.new_empty(0, 0)
    dq: Tensor
    dq, _ = hopfield_backward(
        *_operands(query, shard), do.contiguous(), lse, delta, dmass.contiguous(), association, False
    )
    return dq


class _Route(NamedTuple):
    """How ``gather`` sent the queries, and the queries of all ranks that arrived here."""

    router: "QueryRouter"
    gathered: list[ShardQuery]


_Merged = tuple[list[PartialResult], _Route | None]


class _Context(Protocol):
    saved_tensors: tuple[Tensor, ...]
    banks: Sequence[ShardedRows]
    queries: Sequence[ShardQuery]
    route: _Route | None
    lengths: list[int]

    def save_for_backward(self, *tensors: Tensor) -> None: ...
    def mark_non_differentiable(self, *tensors: Tensor) -> None: ...


class _ShardedRetrieval(torch.autograd.Function):
    """Forward and backward that both strategies share; a subclass gives ``retrieve`` and ``query_grads``."""

    @classmethod
    def forward(
        cls, ctx: _Context, banks: Sequence[ShardedRows], queries: Sequence[ShardQuery], *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.banks, ctx.queries = banks, queries
        results, ctx.route = cls.retrieve(banks, queries)
        saved: list[Tensor] = []
        for query, result in zip(queries, results, strict=True):
            result[0] = result[0].to(query.queries.dtype)
            saved += result[:3]
            ctx.mark_non_differentiable(*result[3:])
        ctx.save_for_backward(*saved)
        ctx.lengths = [len(result) for result in results]
        return tuple(tensor for result in results for tensor in result)

    @classmethod
    def backward(cls, ctx: _Context, *grads: Tensor) -> tuple[Tensor | None, ...]:
        stats, start = [], 0
        for i, length in enumerate(ctx.lengths):
            stats.append(_backward_stats(ctx.saved_tensors[i * 3 : i * 3 + 3], grads[start : start + 3]))
            start += length
        return None, None, *cls.query_grads(ctx.banks, ctx.queries, ctx.route, stats)

    @staticmethod
    def retrieve(banks: Sequence[ShardedRows], queries: Sequence[ShardQuery]) -> _Merged:
        """Return the merged result for each query, and the route that ``query_grads`` takes again."""
        raise NotImplementedError

    @staticmethod
    def query_grads(
        banks: Sequence[ShardedRows],
        queries: Sequence[ShardQuery],
        route: _Route | None,
        stats: Sequence[_BackwardStats],
    ) -> list[Tensor]:
        """Return the gradients of this rank's queries."""
        raise NotImplementedError


class _Gather(_ShardedRetrieval):
    @staticmethod
    def retrieve(banks: Sequence[ShardedRows], queries: Sequence[ShardQuery]) -> _Merged:
        router = QueryRouter(
            banks[0].layout.levels, [len(query.queries) for query in queries], queries[0].queries.device
        )
        dispatched = router.dispatch([query.payload() for query in queries])
        gathered = [
            query._replace(queries=tensors[0], query_group=None if query.query_group is None else tensors[1])
            for query, tensors in zip(queries, dispatched, strict=True)
        ]
        partial = [_retrieve_from_shard(query, bank.local_shard()) for query, bank in zip(gathered, banks, strict=True)]
        return router.combine(partial, lambda i, pieces: _merge(queries[i], pieces)), _Route(router, gathered)

    @staticmethod
    def query_grads(
        banks: Sequence[ShardedRows],
        queries: Sequence[ShardQuery],
        route: _Route | None,
        stats: Sequence[_BackwardStats],
    ) -> list[Tensor]:
        assert route is not None
        router, gathered = route
        dispatched = router.dispatch([list(entry) for entry in stats])
        partial = [
            [_query_grad(query, bank.local_shard(), _BackwardStats(*tensors))]
            for query, bank, tensors in zip(gathered, banks, dispatched, strict=True)
        ]
        combined = router.combine(partial, lambda _, pieces: [torch.stack([piece for (piece,) in pieces]).sum(0)])
        return [grad for (grad,) in combined]


class QueryRouter:
    """Dispatch queries to every shard, level by level, and combine the results on the rank of each query.

    Args:
        levels: levels of the layout.
        local_counts: number of this rank's queries per bank.
        device: device of the queries.
    """

    def __init__(self, levels: Sequence[CommGroup], local_counts: list[int], device: torch.device) -> None:
        self.levels = levels
        self.counts: list[list[list[int]]] = []  # [level][rank][bank]: queries that the rank dispatches on the level
        for level in levels:
            self.counts.append(level.all_gather_ints(local_counts, device))
            local_counts = [sum(counts) for counts in zip(*self.counts[-1], strict=True)]

    def dispatch(self, banks: list[list[Tensor]]) -> list[list[Tensor]]:
        """Gather the tensors of all ranks.

        Args:
            banks: for each bank, tensors [M, …] with one row per query of this rank.

        Returns:
            for each bank, the same tensors with the rows of all ranks, rank by rank.
        """
        for level, counts in zip(self.levels, self.counts, strict=True):
            specs = [_flatten(_specs(banks, rank_counts)) for rank_counts in counts]
            by_rank = [_unflatten_like(banks, tensors) for tensors in level.all_gather(_flatten(banks), specs)]
            banks = [
                [torch.cat(pieces) for pieces in zip(*(rank_banks[i] for rank_banks in by_rank), strict=True)]
                for i in range(len(banks))
            ]
        return banks

    def combine(
        self, banks: list[list[Tensor]], join: Callable[[int, list[list[Tensor]]], list[Tensor]]
    ) -> list[list[Tensor]]:
        """Send results back to the ranks of their queries and join those of different ranks.

        Args:
            banks: for each bank, tensors with one row per dispatched query.
            join: maps (number of the bank, tensors from each rank) to the joined tensors.

        Returns:
            for each bank, joined tensors with one row per query of this rank.
        """
        for level, counts in reversed(list(zip(self.levels, self.counts, strict=True))):
            pieces = [
                [tensor.split([rank_counts[i] for rank_counts in counts]) for tensor in tensors]
                for i, tensors in enumerate(banks)
            ]
            outgoing = [[piece[r] for tensors in pieces for piece in tensors] for r in range(level.size)]
            specs = [_flatten(_specs(banks, counts[level.rank]))] * level.size
            by_rank = [_unflatten_like(banks, tensors) for tensors in level.all_to_all(outgoing, specs)]
            banks = [join(i, [rank_banks[i] for rank_banks in by_rank]) for i in range(len(banks))]
        return banks


class _Ring(_ShardedRetrieval):
    @staticmethod
    def retrieve(banks: Sequence[ShardedRows], queries: Sequence[ShardQuery]) -> _Merged:
        merged: list[list[PartialResult]] = [[] for _ in queries]  # none, or one, per query
        for shards in _ring_shards(banks):
            merged = [
                [_merge(query, [*before, _retrieve_from_shard(query, shard)])]
                for query, shard, before in zip(queries, shards, merged, strict=True)
            ]
        return [result for (result,) in merged], None

    @staticmethod
    def query_grads(
        banks: Sequence[ShardedRows],
        queries: Sequence[ShardQuery],
        route: _Route | None,
        stats: Sequence[_BackwardStats],
    ) -> list[Tensor]:
        totals = [torch.zeros_like(entry.do, dtype=entry.lse.dtype) for entry in stats]
        for shards in _ring_shards(banks):
            for total, query, shard, entry in zip(totals, queries, shards, stats, strict=True):
                total += _query_grad(query, shard, entry)
        return [total.to(query.queries.dtype) for total, query in zip(totals, queries, strict=True)]


def _ring_shards(banks: Sequence[ShardedRows]) -> Iterator[list[Shard]]:
    """Yield the shards of all banks, rank by rank, this rank's first."""
    flat = banks[0].layout.flat
    own = [bank.tensors() for bank in banks]
    specs = [[spec for bank in banks for spec in bank.tensor_specs(rank)] for rank in range(flat.size)]
    for owner, tensors in flat.ring_steps(_flatten(own), specs):
        yield [bank.shard(owner, parts) for bank, parts in zip(banks, _unflatten_like(own, tensors), strict=True)]


def _flatten(nested: Sequence[Sequence[_Item]]) -> list[_Item]:
    return [item for items in nested for item in items]


def _unflatten_like(shape: Sequence[Sequence[Tensor]], flat: Sequence[Tensor]) -> list[list[Tensor]]:
    """Split a flat list into lists of the lengths in ``shape``."""
    items = iter(flat)
    return [[next(items) for _ in part] for part in shape]


def _specs(banks: Sequence[Sequence[Tensor]], counts: Sequence[int]) -> list[list[TensorSpec]]:
    """Return the specs of the same tensors with another number of rows per bank."""
    return [
        [((count, *tensor.shape[1:]), tensor.dtype) for tensor in tensors]
        for tensors, count in zip(banks, counts, strict=True)
    ]
