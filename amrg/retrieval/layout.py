"""The layout of a sharded bank: the ranks that share it, their process groups, and the rows of each rank."""

from collections.abc import Sequence

from torch import distributed

from amrg.errors import UserError
from amrg.retrieval.collectives import CommGroup


class ShardLayout:
    """The process groups of the ranks that share a bank. Creating it is collective over these ranks.

    Args:
        group: the ranks that share one copy of the bank; None is all ranks. ``hybrid_replica_group`` makes groups that
            hold one copy each.
        ranks_per_node: consecutive ranks of the group on one node; None treats all ranks alike.

    Attributes:
        flat: all ranks of the group.
        levels: groups through which queries are dispatched, in order: between nodes, then inside a node; ``[flat]``
            without ``ranks_per_node``.
    """

    def __init__(self, group: distributed.ProcessGroup | None = None, ranks_per_node: int | None = None) -> None:
        self.flat = CommGroup(group)
        self.levels = [self.flat]
        size = self.flat.size
        if ranks_per_node and 1 < ranks_per_node < size:
            if size % ranks_per_node:
                raise UserError(
                    f"sharding.ranks_per_node {ranks_per_node} does not divide the {size} ranks that share a bank"
                )
            node, local_rank = divmod(self.flat.rank, ranks_per_node)
            between = range(local_rank, size, ranks_per_node)
            inside = range(node * ranks_per_node, (node + 1) * ranks_per_node)
            self.levels = [CommGroup(self._subgroup(ranks)) for ranks in (between, inside)]

    def _subgroup(self, ranks: Sequence[int]) -> distributed.ProcessGroup:
        # Only the members synchronise, so groups of a hybrid layout do not wait for each other.
        group = distributed.new_group([self.flat.global_rank(r) for r in ranks], use_local_synchronization=True)
        assert isinstance(group, distributed.ProcessGroup)
        return group

    @property
    def bytes_sent(self) -> int:
        """Bytes that this rank sent to others so far."""
        return self.flat.bytes_sent + sum(level.bytes_sent for level in self.levels if level is not self.flat)


def hybrid_replica_group(ranks_per_replica: int) -> distributed.ProcessGroup:
    """Return this rank's group of consecutive ranks that share one copy of the bank. All ranks must call this.

    Raises:
        UserError: ``ranks_per_replica`` does not divide the number of ranks.
    """
    if distributed.get_world_size() % ranks_per_replica:
        raise UserError(
            f"sharding.ranks_per_replica {ranks_per_replica} does not divide {distributed.get_world_size()} ranks"
        )
    local_group, _ = distributed.new_subgroups(ranks_per_replica)
    return local_group


def shard_row_range(rows: int, rank: int, size: int) -> tuple[int, int]:
    """Return the rows [start, stop) of one rank. Shards differ by at most one row, and can be empty."""
    return rows * rank // size, rows * (rank + 1) // size
