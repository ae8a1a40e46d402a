"""What passes between sharded banks and the strategies that retrieve from them."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from torch import Tensor

from amrg.config import ShardingStrategy
from amrg.retrieval.collectives import TensorSpec
from amrg.retrieval.layout import ShardLayout


class Shard(NamedTuple):
    """Some rows of a bank and the number of the first."""

    rows: Tensor
    scale: Tensor | None
    group: Tensor | None
    start: int


class ShardedRows(Protocol):
    """What a strategy needs of a sharded bank: this rank's shard, and the layout of all."""

    strategy: ShardingStrategy
    layout: ShardLayout
    rows: Tensor
    scale: Tensor | None
    group: Tensor | None

    def tensors(self) -> list[Tensor]: ...

    def tensor_specs(self, rank: int) -> list[TensorSpec]: ...

    def local_shard(self) -> Shard: ...

    def shard(self, rank: int, parts: Sequence[Tensor]) -> Shard: ...


class RetrievalRequest(NamedTuple):
    """One retrieval, arguments as ``amrg.retrieval.sharded_bank.ShardedBank.retrieve``."""

    bank: ShardedRows
    queries: Tensor
    query_group: Tensor | None = None
    dropout: float = 0.0
    seed: Tensor | int | None = None
    top_k: int = 0
    return_entropy: bool = False


class ShardQuery(NamedTuple):
    """What is asked of a shard: a request without its memory."""

    queries: Tensor
    group: Tensor | None
    seed: Tensor | None
    dropout: float
    top_k: int
    entropy: bool

    def payload(self) -> list[Tensor]:
        """What travels to a shard."""
        return [self.queries] if self.group is None else [self.queries, self.group]


#: What a shard answers, a tensor for each: retrieved, lse, mass, then entropy and (weights, indices) where asked for.
PartialResult = list[Tensor]
