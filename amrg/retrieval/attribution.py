"""Which rows a query retrieves most of, averaged over the heads that ask for it.

Shape legend: M queries, H heads, D width, K attributed rows.
"""

import math

import torch
from torch import Tensor

from amrg.kernels.hopfield.blockwise import QUERIES_PER_BLOCK, TopK, association_blocks
from amrg.kernels.hopfield.reference import Operands
from amrg.retrieval.sharded_bank import ShardedBank
from amrg.retrieval.strategies import QueryRouter, Shard


def top_k_rows(
    shard: Shard, queries_MHD: Tensor, lse_MH: Tensor, group_M: Tensor | None, top_k: int
) -> tuple[Tensor, Tensor]:
    """Weights [M, K], the mean over heads of the association, descending, and int64 numbers of the rows [M, K].

    ``lse_MH`` is over the whole bank, so that weights of different shards compare. Where fewer than K rows are visible
    the number is −1 and the weight 0.
    """
    heads = queries_MHD.shape[1]
    weights, indices = [lse_MH.new_empty(0, top_k)], [lse_MH.new_empty(0, top_k, dtype=torch.int64)]
    for start in range(0, len(queries_MHD), max(QUERIES_PER_BLOCK // heads, 1)):
        some = slice(start, start + max(QUERIES_PER_BLOCK // heads, 1))
        part, lse = queries_MHD[some].transpose(0, 1), lse_MH[some].T
        size = part.shape[1]
        group = None if group_M is None or shard.group is None else group_M[some].repeat(heads)
        memory_group = None if group is None else shard.group
        operands = Operands(part.flatten(0, 1), shard.rows, shard.scale, group, memory_group)
        blocks = association_blocks(operands, lse.flatten())
        top = TopK(size, top_k, lse_MH)
        for _, columns, block in blocks:
            mean = block.view(heads, size, -1).mean(0)
            top.add(mean.masked_fill_(mean == 0, -math.inf), columns.start)
        weights.append(top.scores.masked_fill(top.indices < 0, 0.0))
        indices.append(torch.where(top.indices < 0, top.indices, top.indices + shard.start))
    return torch.cat(weights), torch.cat(indices)


def top_k_rows_sharded(
    memory: ShardedBank, queries_MHD: Tensor, lse_MH: Tensor, group_M: Tensor | None, top_k: int
) -> tuple[Tensor, Tensor]:
    """``top_k_rows`` over all shards of a bank; every rank of its layout calls this."""
    group = [] if group_M is None or memory.group is None else [group_M]
    if memory.strategy == "replicate":
        return top_k_rows(memory.local_shard(), queries_MHD, lse_MH, group_M, top_k)
    trip = QueryRouter(memory.layout.levels, [len(queries_MHD)], queries_MHD.device)
    queries, lse, *rest = trip.dispatch([[queries_MHD, lse_MH, *group]])[0]
    found = top_k_rows(memory.local_shard(), queries, lse, rest[0] if rest else None, top_k)

    def best(_: int, shards: list[list[Tensor]]) -> list[Tensor]:
        weights, indices = (torch.cat(parts, dim=1) for parts in zip(*shards, strict=True))
        weights, order = weights.topk(top_k, dim=1)
        return [weights, indices.gather(1, order)]

    weights, indices = trip.combine([list(found)], best)[0]
    return weights, indices
