"""Which ranks share a bank, how they are connected, and which rows each of them holds."""

from collections.abc import Sequence

from torch import distributed

from amrg.errors import UserError
from amrg.retrieval.collectives import CommGroup


class ShardLayout:
    """Which ranks share a bank, and how they are connected. Every one of them makes it, at the same point.

    Args:
        group: the ranks that hold one copy of the bank between them; None is all ranks. ``hybrid_group`` makes groups
            that hold a copy each.
        ranks_per_node: ranks of the group on one node, consecutive; None makes no difference between nodes.

    Attributes:
        flat: all ranks of the group.
        levels: along which queries travel: between nodes first, then inside; ``[flat]`` without ``ranks_per_node``.
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
            node, place = divmod(self.flat.rank, ranks_per_node)
            across, inside = (
                range(place, size, ranks_per_node),
                range(node * ranks_per_node, (node + 1) * ranks_per_node),
            )
            self.levels = [CommGroup(self._subgroup(ranks)) for ranks in (across, inside)]

    def _subgroup(self, ranks: Sequence[int]) -> distributed.ProcessGroup:
        # Only its members take part: other groups of a hybrid layout need not make theirs at the same time.
        group = distributed.new_group([self.flat.global_rank(r) for r in ranks], use_local_synchronization=True)
        assert isinstance(group, distributed.ProcessGroup)
        return group

    @property
    def bytes_sent(self) -> int:
        """Bytes that this rank handed over for others so far."""
        return self.flat.bytes_sent + sum(level.bytes_sent for level in self.levels if level is not self.flat)


def hybrid_group(ranks_per_replica: int) -> distributed.ProcessGroup:
    """This rank's group of consecutive ranks, where each such group holds a copy of the bank (all ranks call this).

    Raises:
        UserError: the ranks do not divide evenly.
    """
    if distributed.get_world_size() % ranks_per_replica:
        raise UserError(
            f"sharding.ranks_per_replica {ranks_per_replica} does not divide {distributed.get_world_size()} ranks"
        )
    mine, _ = distributed.new_subgroups(ranks_per_replica)
    return mine


def shard_range(rows: int, rank: int, size: int) -> tuple[int, int]:
    """Rows [start, stop) of one rank: shards differ by at most one row, and are empty where there are more ranks."""
    return rows * rank // size, rows * (rank + 1) // size
