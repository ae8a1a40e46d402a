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
        node_ranks: ranks of the group on one node, consecutive; None makes no difference between nodes.

    Attributes:
        flat: all ranks of the group.
        levels: along which queries travel: between nodes first, then inside; ``[flat]`` without ``node_ranks``.
    """

    def __init__(self, group: distributed.ProcessGroup | None = None, node_ranks: int | None = None) -> None:
        self.flat = CommGroup(group)
        self.levels = [self.flat]
        size = self.flat.size
        if node_ranks and 1 < node_ranks < size:
            if size % node_ranks:
                raise UserError(f"sharding.node_ranks {node_ranks} does not divide the {size} ranks that share a bank")
            node, place = divmod(self.flat.rank, node_ranks)
            across, inside = range(place, size, node_ranks), range(node * node_ranks, (node + 1) * node_ranks)
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


def hybrid_group(ranks_per_copy: int) -> distributed.ProcessGroup:
    """This rank's group of consecutive ranks, where each such group holds a copy of the bank (all ranks call this).

    Raises:
        UserError: the ranks do not divide evenly.
    """
    if distributed.get_world_size() % ranks_per_copy:
        raise UserError(
            f"sharding.ranks_per_copy {ranks_per_copy} does not divide {distributed.get_world_size()} ranks"
        )
    mine, _ = distributed.new_subgroups(ranks_per_copy)
    return mine


def shard_range(rows: int, rank: int, size: int) -> tuple[int, int]:
    """Rows [start, stop) of one rank: shards differ by at most one row, and are empty where there are more ranks."""
    return rows * rank // size, rows * (rank + 1) // size
