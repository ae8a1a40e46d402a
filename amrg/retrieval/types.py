"""Types shared by sharded banks and the strategies that retrieve from them.

Shape legend: M queries, n rows of a shard, D width, K attributed rows.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

from torch import Tensor

from amrg.config import ShardingStrategy
from amrg.retrieval.collectives import TensorSpec
from amrg.retrieval.layout import ShardLayout

if TYPE_CHECKING:
    from amrg.retrieval.indexed_bank import IndexedBank


class Shard(NamedTuple):
    """Consecutive rows of a bank.

    Attributes:
        rows: [n, D], normalised; floating, or int8 with ``scale``.
        scale: [n] float32, scales of int8 rows.
        group: [n] int64, patient group of each row.
        start: number of the first row in the full bank.
        indexed: the rows with an index, from whose candidates the shard then retrieves.
    """

    rows: Tensor
    scale: Tensor | None
    group: Tensor | None
    start: int
    indexed: "IndexedBank | None" = None


class ShardedRows(Protocol):
    """The interface of a sharded bank that the strategies use.

    ``rows`` [n, D], ``scale`` [n] and ``group`` [n] are this rank's shard; ``layout`` connects the ranks.
    """

    strategy: ShardingStrategy
    layout: ShardLayout
    rows: Tensor
    scale: Tensor | None
    group: Tensor | None

    def tensors(self) -> list[Tensor]:
        """Return the tensors of this rank's shard that other ranks need."""

    def tensor_specs(self, rank: int) -> list[TensorSpec]:
        """Return shapes and dtypes of the tensors of a rank's shard."""

    def local_shard(self) -> Shard:
        """Return this rank's shard."""

    def shard(self, rank: int, parts: Sequence[Tensor]) -> Shard:
        """Build the shard of a rank from its tensors."""


class RetrievalRequest(NamedTuple):
    """One retrieval by this rank from a sharded bank: the arguments of ``ShardedBank.retrieve``.

    Attributes:
        bank: the sharded bank.
        queries: [M, D].
        query_group: [M] int64; rows of the same patient group are hidden from the query.
        dropout: probability with which a row is dropped for a query.
        seed: seed of the dropout; None draws one.
        top_k: K, 0 for no attribution.
        return_entropy: whether to compute the entropy of the association.
    """

    bank: ShardedRows
    queries: Tensor
    query_group: Tensor | None = None
    dropout: float = 0.0
    seed: Tensor | int | None = None
    top_k: int = 0
    return_entropy: bool = False


class ShardQuery(NamedTuple):
    """A request without its bank, as a shard is queried.

    ``gather`` replaces ``queries`` and ``query_group`` by those of all ranks.

    Attributes:
        queries: [M, D].
        query_group: [M] int64; None where the request or the bank has no groups.
        seed: int64 scalar on the device of the queries; None without dropout.
        dropout, top_k, return_entropy: as in ``RetrievalRequest``.
    """

    queries: Tensor
    query_group: Tensor | None
    seed: Tensor | None
    dropout: float
    top_k: int
    return_entropy: bool

    def payload(self) -> list[Tensor]:
        """Return the tensors that are sent to other ranks."""
        return [self.queries] if self.query_group is None else [self.queries, self.query_group]


#: Result of some rows of a bank: retrieved [M, D], lse [M], mass [M], then entropy [M] and attribution weights [M, K]
#: with int64 row numbers [M, K] if requested. Results of disjoint rows can be merged.
PartialResult = list[Tensor]
