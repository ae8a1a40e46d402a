"""A bank whose rows are sharded over ranks, with exact retrieval from all of them.

Partial results of disjoint rows merge exactly (log-sum-exp), so any rank may compute any part. There are three
strategies (``docs/memory-banks.md`` states their costs, ``amrg.retrieval.communication_cost`` computes them):

``replicate``
    every rank gathers all rows once; retrieval then sends nothing.
``gather``
    queries are sent to every shard, and partial results are sent back to the rank of each query. With
    ``ranks_per_node``, queries cross between nodes once, and partial results are merged inside a node before they are
    sent to another.
``ring``
    shards are passed round a ring, and each rank retrieves for its own queries from the shard it holds.

Shape legend: M queries of this rank, N rows of the full bank, n rows of this shard, D width, K attributed rows.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, distributed, nn

from amrg.banks.bank import MemoryBank
from amrg.config import ShardingStrategy
from amrg.errors import UserError
from amrg.kernels import Retrieval, hopfield_retrieve
from amrg.retrieval.collectives import CommGroup
from amrg.retrieval.communication_cost import cheapest_strategy
from amrg.retrieval.indexed_bank import IndexedBank, IndexKind
from amrg.retrieval.layout import ShardLayout, shard_row_range
from amrg.retrieval.strategies import retrieve_gather, retrieve_ring
from amrg.retrieval.types import RetrievalRequest, Shard


class ShardedBank(nn.Module):
    """This rank's shard of a bank, with retrieval from all shards. It has buffers only, so ZeRO partitions nothing.

    Args:
        rows: [n, D], rows ``start`` … of the bank, normalised; floating, or int8 with ``scale``.
        start: number of the first row of the shard.
        total: N.
        layout: layout of the ranks; all banks of a batched retrieval share one.
        scale: [n] float32, scales of int8 rows.
        group: int64 [n], patient group of each row.
        strategy: how ranks retrieve; ``auto`` selects the strategy that sends the fewest bytes.
        fingerprint: content hash of the bank; must be the same on all ranks.
        replicate_below_bytes: ``auto`` replicates a bank of at most this size.
        queries: expected number of queries per rank and retrieval, for ``auto``.
        index: index of the shard, for ``gather``; None retrieves from all rows.

    Raises:
        UserError: the shards do not tile [0, N), or belong to different banks; on every rank, naming the wrong one.
    """

    rows: Tensor
    scale: Tensor | None
    group: Tensor | None

    def __init__(
        self, rows: Tensor, *, start: int, total: int, layout: ShardLayout, scale: Tensor | None = None,
        group: Tensor | None = None, strategy: ShardingStrategy = "auto", fingerprint: str = "",
        replicate_below_bytes: int = 2**30, queries: int = 1024, index: IndexedBank | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        assert index is None or strategy == "gather"
        self.index = index
        self.layout, self.start, self.total, self.dim = layout, start, total, rows.shape[1]
        for name, value in (("rows", rows.detach()), ("scale", scale), ("group", group)):
            self.register_buffer(name, value, persistent=False)
        self.spans = _check_tiling(layout.flat, rows, start, total, fingerprint, scale, group)
        if strategy == "auto":
            strategy = cheapest_strategy(
                total, self.dim, layout.flat.size, queries, rows.dtype.itemsize, replicate_below_bytes
            )
        self.strategy = strategy
        if self.strategy == "replicate":
            self._replicate()

    @classmethod
    def open(
        cls, bank: MemoryBank, layout: ShardLayout, *, device: torch.device | None = None,
        strategy: ShardingStrategy = "auto", replicate_below_bytes: int = 2**30, queries: int = 1024,
        kind: IndexKind | None = None, saved: Path | None = None,
    ) -> "ShardedBank":  # fmt: skip
        """Open this rank's shard of a bank on disk; no other rows are read. Arguments as in the constructor.

        Args:
            kind: kind of the shard's index, with ``gather``; None for no index.
            saved: folder of the saved indexes, one for each range of rows.
        """
        start, stop = shard_row_range(len(bank), layout.flat.rank, layout.flat.size)
        rows, scale, group = bank.rows(start, stop), bank.scale(start, stop), bank.group_range(start, stop)
        rows, scale, group = rows.to(device), None if scale is None else scale.to(device), group.to(device)
        index = None
        if kind is not None:
            index = IndexedBank(
                rows, scale=scale, group=group, kind=kind, content_hash=bank.content_hash,
                saved=None if saved is None else saved / f"{start}-{stop}",
            )  # fmt: skip
        return cls(
            rows, start=start, total=len(bank), layout=layout, scale=scale, group=group, strategy=strategy,
            fingerprint=bank.content_hash, replicate_below_bytes=replicate_below_bytes, queries=queries, index=index,
        )  # fmt: skip

    def __len__(self) -> int:
        return self.total

    def tensors(self) -> list[Tensor]:
        """Return the tensors of this shard in the order in which they are sent."""
        return [tensor for tensor in (self.rows, self.scale, self.group) if tensor is not None]

    def tensor_specs(self, rank: int) -> list[tuple[tuple[int, ...], torch.dtype]]:
        """Return the shapes and dtypes of the tensors of another rank's shard."""
        start, stop = self.spans[rank]
        return [((stop - start, *part.shape[1:]), part.dtype) for part in self.tensors()]

    def local_shard(self) -> Shard:
        """Return this rank's shard."""
        return Shard(self.rows, self.scale, self.group, self.start, self.index)

    def shard(self, rank: int, parts: Sequence[Tensor]) -> Shard:
        """Build another rank's shard from its tensors."""
        rest = list(parts[1:])
        scale = rest.pop(0) if self.scale is not None else None
        return Shard(parts[0], scale, rest.pop(0) if self.group is not None else None, self.spans[rank][0])

    def retrieve(
        self, queries: Tensor, *, query_group: Tensor | None = None, dropout: float = 0.0,
        seed: Tensor | int | None = None, top_k: int = 0, return_entropy: bool = False,
    ) -> Retrieval:  # fmt: skip
        """Retrieve from all N rows like ``amrg.kernels.hopfield_retrieve``; differentiable in the queries.

        Every rank of the layout must call this, with any number of queries. Attribution gives row numbers of the full
        bank. The rank that works on a shard draws its dropout from its own seed, so the dropout is equal in
        distribution for any number of ranks and repeatable for the same number.
        """
        request = RetrievalRequest(self, queries, query_group, dropout, seed, top_k, return_entropy)
        return retrieve_batched([request])[0]

    def _replicate(self) -> None:
        flat = self.layout.flat
        by_rank = flat.all_gather(self.tensors(), [self.tensor_specs(rank) for rank in range(flat.size)])
        in_order = sorted(range(flat.size), key=lambda rank: self.spans[rank])
        gathered = [torch.cat(pieces) for pieces in zip(*(by_rank[rank] for rank in in_order), strict=True)]
        self.rows = gathered.pop(0)
        if self.scale is not None:
            self.scale = gathered.pop(0)
        if self.group is not None:
            self.group = gathered.pop(0)
        self.start = 0


def retrieve_batched(requests: Sequence[RetrievalRequest]) -> list[Retrieval]:
    """Retrieve from several banks with shared messages.

    All ranks of the layout must make the same requests, each with its own queries.
    """
    results: dict[int, Retrieval] = {}
    for name, strategy in (("gather", retrieve_gather), ("ring", retrieve_ring)):
        selected = [i for i, request in enumerate(requests) if request.bank.strategy == name]
        if selected:
            assert len({id(requests[i].bank.layout) for i in selected}) == 1
            results |= dict(zip(selected, strategy([requests[i] for i in selected]), strict=True))
    for i, request in enumerate(requests):
        if request.bank.strategy == "replicate":
            results[i] = _retrieve_local(request)
    return [results[i] for i in range(len(requests))]


def _retrieve_local(request: RetrievalRequest) -> Retrieval:
    bank, query_group = request.bank, request.query_group
    return hopfield_retrieve(
        request.queries, bank.rows, memory_scale=bank.scale, query_group=query_group,
        memory_group=None if query_group is None else bank.group, dropout=request.dropout, seed=request.seed,
        top_k=request.top_k, return_entropy=request.return_entropy,
    )  # fmt: skip


def _check_tiling(
    flat: CommGroup, rows: Tensor, start: int, total: int, fingerprint: str, scale: Tensor | None, group: Tensor | None
) -> list[tuple[int, int]]:
    """Gather the row range of each rank. All ranks raise the same error unless each row is on exactly one rank."""
    fits = all(part is None or len(part) == len(rows) for part in (scale, group))
    wrong = _first_non_finite(rows if scale is None else scale[:, None], start)
    compared = (total, rows.shape[1], str(rows.dtype), fingerprint, scale is None, group is None)
    local = (start, start + len(rows), *compared, fits, wrong)
    by_rank = [local] * flat.size
    distributed.all_gather_object(by_rank, local, group=flat.group)
    for rank, (*_, ok, row) in enumerate(by_rank):
        if row is not None:
            raise UserError(f"sharded bank: rank {rank}: row {row} is not finite: `amrg bank verify` names its file")
        if not ok:
            raise UserError(f"sharded bank: rank {rank} has scales or groups of another number than its rows")
        differs = [a for a, b, c in zip(_COMPARED_FIELDS, by_rank[rank][2:-2], by_rank[0][2:-2], strict=True) if b != c]
        if differs:
            raise UserError(f"sharded bank: rank {rank} differs from rank 0 in {', '.join(differs)}: same bank needed")
    expected = 0
    for first, stop, rank in sorted((first, stop, rank) for rank, (first, stop, *_) in enumerate(by_rank)):
        if first != expected:
            what = f"skips rows {expected} to {first - 1}" if first > expected else f"repeats rows from {first}"
            raise UserError(f"sharded bank: rank {rank} {what}: shards must hold each of the {total} rows once")
        expected = stop
    if expected != total:
        raise UserError(f"sharded bank: rows {expected} to {total - 1} of {total} are on no rank, or beyond the bank")
    return [(first, stop) for first, stop, *_ in by_rank]


def _first_non_finite(values: Tensor, start: int) -> int | None:
    """Return the number of the first row that is not finite; works in blocks, since rows can fill the memory."""
    for first in range(0, len(values), 65536):
        invalid = (~values[first : first + 65536].isfinite().all(1)).nonzero().flatten()
        if len(invalid):
            return start + first + int(invalid[0])
    return None


_COMPARED_FIELDS = ("number of rows", "width", "dtype", "content", "having scales", "having groups")
