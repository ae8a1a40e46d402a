"""Messages between the disease queries along the knowledge graph: attention with a bias per edge.

Shape legend: B batch, Q = 14 queries, D width, H heads, E = D / H.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class GraphAttention(nn.Module):
    """Multi-head attention among the queries, added to them: softmax(q · k / √E + s_h b) v with strengths b of edges.

    The scale s_h of each head is learned and 1 at first, and the bias of a query to itself is 0. The strength is a
    logarithm of how much more often than by chance both findings are stated, so that without q · k this ratio weights
    a message. The output projection is 0 at first: training begins at the function without messages.

    Args:
        dim: D.
        heads: H.
        strengths_QQ: strengths of the edges (``KnowledgeGraph.label_strengths``).
    """

    strengths_QQ: Tensor

    def __init__(self, dim: int, heads: int, strengths_QQ: Tensor) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(dim)
        self.query_key_value = nn.Linear(dim, 3 * dim)
        self.output = nn.Linear(dim, dim)
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)
        self.scale_H = nn.Parameter(torch.ones(heads))
        self.register_buffer("strengths_QQ", strengths_QQ.float())

    def forward(self, queries_BQD: Tensor) -> Tensor:
        """Return the queries with the messages of the others."""
        parts = self.query_key_value(self.norm(queries_BQD)).chunk(3, dim=-1)
        query, key, value = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)  # [B, H, Q, E]
        bias_HQQ = (self.scale_H[:, None, None] * self.strengths_QQ).to(query.dtype)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=bias_HQQ)
        return queries_BQD + self.output(mixed.transpose(1, 2).flatten(2))
