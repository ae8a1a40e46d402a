"""A bank whose rows are spread over ranks, retrieved from as if it were whole.

Partial retrievals from disjoint rows merge exactly (log-sum-exp), so it does not matter who computed which. Three ways
(``docs/memory-banks.md`` has their costs, ``amrg.retrieval.communication_cost`` computes them):

``replicate``
    every rank gathers all rows once; after that nothing is sent.
``gather``
    queries go to every shard, partial results come back to whose queries they are; with ``node_ranks``, queries cross
    between nodes once and partial results are merged inside a node before they cross.
``ring``
    rows pass round the ring while each rank works on the ones it holds.

Shape legend: M queries of this rank, N rows of the whole bank, n rows of this shard, D width, K attributed rows.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, distributed, nn

from amrg.banks.bank import MemoryBank
from amrg.config import ShardingStrategy
from amrg.errors import UserError
from amrg.kernels import Retrieval, hopfield_retrieve
from amrg.retrieval.collectives import CommGroup
from amrg.retrieval.communication_cost import cheapest_strategy
from amrg.retrieval.layout import ShardLayout, shard_range
from amrg.retrieval.strategies import retrieve_gather, retrieve_ring
from amrg.retrieval.types import RetrievalRequest, Shard


class ShardedBank(nn.Module):
    """This rank's rows of a bank, with the retrieval from all of them. Buffers only: ZeRO has nothing to partition.

    Args:
        rows: [n, D], rows ``start`` … of the bank, normalised; floating, or int8 with ``scale``.
        start: number of the first of them.
        total: N.
        layout: of the ranks; all memories that are retrieved from together share one.
        scale: [n] float32, of int8 rows.
        group: int64 [n], patient group of each row.
        strategy: how ranks retrieve; ``auto`` takes the one that moves the fewest bytes.
        fingerprint: of the bank; must be the same on all ranks.
        replicate_below_bytes: ``auto`` replicates a bank of at most this size.
        queries: how many a rank is expected to retrieve for at a time, for ``auto``.

    Raises:
        UserError: the shards do not tile [0, N), or belong to different banks; on every rank, naming the wrong one.
    """

    rows: Tensor
    scale: Tensor | None
    group: Tensor | None

    def __init__(
        self, rows: Tensor, *, start: int, total: int, layout: ShardLayout, scale: Tensor | None = None,
        group: Tensor | None = None, strategy: ShardingStrategy = "auto", fingerprint: str = "",
        replicate_below_bytes: int = 2**30, queries: int = 1024,
    ) -> None:  # fmt: skip
        super().__init__()
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
    ) -> "ShardedBank":  # fmt: skip
        """This rank's part of a bank on disk; no other rows are read. Arguments as above."""
        start, stop = shard_range(len(bank), layout.flat.rank, layout.flat.size)
        rows, scale, group = bank.rows(start, stop), bank.scale(start, stop), bank.group_range(start, stop)
        return cls(
            rows.to(device), start=start, total=len(bank), layout=layout, group=group.to(device), strategy=strategy,
            scale=None if scale is None else scale.to(device), fingerprint=bank.content_hash,
            replicate_below_bytes=replicate_below_bytes, queries=queries,
        )  # fmt: skip

    def __len__(self) -> int:
        return self.total

    def tensors(self) -> list[Tensor]:
        """What makes up this shard, as it travels."""
        return [tensor for tensor in (self.rows, self.scale, self.group) if tensor is not None]

    def tensor_specs(self, rank: int) -> list[tuple[tuple[int, ...], torch.dtype]]:
        """Shapes and dtypes of the parts of another rank's shard."""
        start, stop = self.spans[rank]
        return [((stop - start, *part.shape[1:]), part.dtype) for part in self.tensors()]

    def local_shard(self) -> Shard:
        """This rank's shard."""
        return Shard(self.rows, self.scale, self.group, self.start)

    def shard(self, rank: int, parts: Sequence[Tensor]) -> Shard:
        """Another rank's shard from its parts."""
        rest = list(parts[1:])
        scale = rest.pop(0) if self.scale is not None else None
        return Shard(parts[0], scale, rest.pop(0) if self.group is not None else None, self.spans[rank][0])

    def retrieve(
        self, queries: Tensor, *, query_group: Tensor | None = None, dropout: float = 0.0,
        seed: Tensor | int | None = None, top_k: int = 0, return_entropy: bool = False,
    ) -> Retrieval:  # fmt: skip
        """As ``amrg.kernels.hopfield_retrieve`` from all N rows; every rank of the layout calls it, with any number of
        queries. Differentiable in the queries. Attribution numbers rows of the whole bank.

        The dropout is drawn for each shard by the rank that works on it, from its seed: equal in distribution for any
        number of ranks, repeatable for the same number.
        """
        request = RetrievalRequest(self, queries, query_group, dropout, seed, top_k, return_entropy)
        return retrieve_batched([request])[0]

    def _replicate(self) -> None:
        flat = self.layout.flat
        everyone = flat.all_gather(self.tensors(), [self.tensor_specs(rank) for rank in range(flat.size)])
        in_order = sorted(range(flat.size), key=lambda rank: self.spans[rank])
        whole = [torch.cat(pieces) for pieces in zip(*(everyone[rank] for rank in in_order), strict=True)]
        self.rows = whole.pop(0)
        if self.scale is not None:
            self.scale = whole.pop(0)
        if self.group is not None:
            self.group = whole.pop(0)
        self.start = 0


def retrieve_batched(requests: Sequence[RetrievalRequest]) -> list[Retrieval]:
    """Retrieve from several memories in one exchange: what they send shares its messages.

    All ranks of the layout make the same requests, each with queries of its own.
    """
    results: dict[int, Retrieval] = {}
    for name, strategy in (("gather", retrieve_gather), ("ring", retrieve_ring)):
        mine = [i for i, request in enumerate(requests) if request.bank.strategy == name]
        if mine:
            assert len({id(requests[i].bank.layout) for i in mine}) == 1
            results |= dict(zip(mine, strategy([requests[i] for i in mine]), strict=True))
    for i, request in enumerate(requests):
        if request.bank.strategy == "replicate":
            results[i] = _local(request)
    return [results[i] for i in range(len(requests))]


def _local(request: RetrievalRequest) -> Retrieval:
    memory, query_group = request.bank, request.query_group
    return hopfield_retrieve(
        request.queries, memory.rows, memory_scale=memory.scale, query_group=query_group,
        memory_group=None if query_group is None else memory.group, dropout=request.dropout, seed=request.seed,
        top_k=request.top_k, return_entropy=request.return_entropy,
    )  # fmt: skip


def _check_tiling(
    flat: CommGroup, rows: Tensor, start: int, total: int, identity: str, scale: Tensor | None, group: Tensor | None
) -> list[tuple[int, int]]:
    """Every rank's span of rows, checked to cover each row exactly once. The same error on every rank."""
    mine = (start, start + len(rows), total, rows.shape[1], str(rows.dtype), identity)
    fits = all(part is None or len(part) == len(rows) for part in (scale, group))
    wrong = _first_non_finite(rows if scale is None else scale[:, None], start)
    everyone: list = [None] * flat.size
    distributed.all_gather_object(everyone, (*mine, scale is None, group is None, fits, wrong), group=flat.group)
    for rank, (*_, ok, row) in enumerate(everyone):
        if row is not None:
            raise UserError(f"sharded bank: rank {rank}: row {row} is not finite: `amrg bank verify` names its file")
        if not ok:
            raise UserError(f"sharded bank: rank {rank} has scales or groups of another number than its rows")
        differs = [
            a for a, b, c in zip(_COMPARED_FIELDS, everyone[rank][2:-2], everyone[0][2:-2], strict=True) if b != c
        ]
        if differs:
            raise UserError(f"sharded bank: rank {rank} differs from rank 0 in {', '.join(differs)}: same bank needed")
    expected = 0
    for first, stop, rank in sorted((first, stop, rank) for rank, (first, stop, *_) in enumerate(everyone)):
        if first != expected:
            what = f"skips rows {expected} to {first - 1}" if first > expected else f"repeats rows from {first}"
            raise UserError(f"sharded bank: rank {rank} {what}: shards must hold each of the {total} rows once")
        expected = stop
    if expected != total:
        raise UserError(f"sharded bank: rows {expected} to {total - 1} of {total} are on no rank, or beyond the bank")
    return [(first, stop) for first, stop, *_ in everyone]


def _first_non_finite(values: Tensor, start: int) -> int | None:
    """Number of the first row that is not finite; looked for in parts, as rows can fill the memory."""
    for first in range(0, len(values), 65536):
        broken = (~values[first : first + 65536].isfinite().all(1)).nonzero().flatten()
        if len(broken):
            return start + first + int(broken[0])
    return None


_COMPARED_FIELDS = ("number of rows", "width", "dtype", "content", "having scales", "having groups")
