"""Attribution: the rows with the largest weights for a query, averaged over heads.

Shape legend: M queries, H heads, D width, K attributed rows.
"""

import math

import torch
from torch import Tensor

from amrg.kernels.hopfield.blockwise import TopK, association_blocks, tile_sizes
from amrg.kernels.hopfield.reference import Operands
from amrg.retrieval.sharded_bank import ShardedBank
from amrg.retrieval.strategies import QueryRouter
from amrg.retrieval.types import Shard


def top_weighted_rows(
    shard: Shard, queries_MHD: Tensor, lse_MH: Tensor, group_M: Tensor | None, top_k: int
) -> tuple[Tensor, Tensor]:
    """Return the weights [M, K] and int64 row numbers [M, K] of the K rows with the largest mean weight over heads.

    Weights are in descending order. ``lse_MH`` is over the full bank, so that weights of different shards are
    comparable. Where fewer than K rows are visible, the number is −1 and the weight 0.
    """
    heads = queries_MHD.shape[1]
    weights, indices = [lse_MH.new_empty(0, top_k)], [lse_MH.new_empty(0, top_k, dtype=torch.int64)]
    step = max(tile_sizes(queries_MHD.device).queries // heads, 1)
    for start in range(0, len(queries_MHD), step):
        block_M = slice(start, start + step)
        queries, lse = queries_MHD[block_M].transpose(0, 1), lse_MH[block_M].T
        size = queries.shape[1]
        group = None if group_M is None or shard.group is None else group_M[block_M].repeat(heads)
        memory_group = None if group is None else shard.group
        operands = Operands(queries.flatten(0, 1), shard.rows, shard.scale, group, memory_group)
        blocks = association_blocks(operands, lse.flatten())
        top = TopK(size, top_k, lse_MH)
        for _, columns, block in blocks:
            mean = block.view(heads, size, -1).mean(0)
            top.add(mean.masked_fill_(mean == 0, -math.inf), columns.start)
        weights.append(top.scores.masked_fill(top.indices < 0, 0.0))
        indices.append(torch.where(top.indices < 0, top.indices, top.indices + shard.start))
    return torch.cat(weights), torch.cat(indices)


def top_k_rows_sharded(
    bank: ShardedBank, queries_MHD: Tensor, lse_MH: Tensor, group_M: Tensor | None, top_k: int
) -> tuple[Tensor, Tensor]:
    """Run ``top_weighted_rows`` over all shards of a bank. Every rank of its layout must call this."""
    group = [] if group_M is None or bank.group is None else [group_M]
    if bank.strategy == "replicate":
        return top_weighted_rows(bank.local_shard(), queries_MHD, lse_MH, group_M, top_k)
    router = QueryRouter(bank.layout.levels, [len(queries_MHD)], queries_MHD.device)
    queries, lse, *rest = router.dispatch([[queries_MHD, lse_MH, *group]])[0]
    found = top_weighted_rows(bank.local_shard(), queries, lse, rest[0] if rest else None, top_k)

    def best(_: int, shards: list[list[Tensor]]) -> list[Tensor]:
        weights, indices = (torch.cat(parts, dim=1) for parts in zip(*shards, strict=True))
        weights, order = weights.topk(top_k, dim=1)
        return [weights, indices.gather(1, order)]

    weights, indices = router.combine([list(found)], best)[0]
    return weights, indices
