"""Plain cross-attention to a bank: the control that the published comparison lacks.

Shape legend: B batch, L queries of a sample, S state width, H heads, K width of a head, N rows, D width of the bank.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from amrg.errors import UserError
from amrg.kernels.hopfield.reference import same_group_mask
from amrg.models.hopfield import MemoryOutput, RetrievalSteps
from amrg.models.memory_layer import AnyBank, Block, LocalBank, MemoryLayer


class CrossAttention(MemoryLayer):
    """Multi-head cross-attention with the interface of ``HopfieldMemory``; the bank is projected once per call.

    No affine norms of the stored rows and a fixed scale 1/√K; otherwise the same reading of the same bank.
    """

    def __init__(
        self, state_dim: int, memory_dim: int, out_dim: int, *, heads: int, head_dim: int, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.heads, self.head_dim, self.dropout = heads, head_dim, dropout
        self.state_norm = nn.LayerNorm(state_dim)
        self.q_proj = nn.Linear(state_dim, heads * head_dim)
        self.k_proj = nn.Linear(memory_dim, heads * head_dim)
        self.v_proj = nn.Linear(memory_dim, heads * head_dim)
        self.out_proj = nn.Linear(heads * head_dim, out_dim)
        self._last: tuple[Tensor, LocalBank, Tensor | None] | None = None

    def forward(
        self, x_BLS: Tensor, memory_ND: Tensor | None = None, *, query_group: Tensor | None = None,
        memory_group: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """[B, L, S] → [B, L, O]; arguments as of ``HopfieldMemory.forward``."""
        bank = self._bank(memory_ND, memory_group)
        query, key = self._queries(x_BLS), self._heads(self.k_proj, bank)
        value = self._heads(self.v_proj, bank)
        mask = self._attention_mask(query_group, bank)
        self._last = (x_BLS.detach(), bank, query_group)
        batch = x_BLS.shape[0]
        y = nn.functional.scaled_dot_product_attention(
            query, key.expand(batch, -1, -1, -1), value.expand(batch, -1, -1, -1), attn_mask=mask,
            dropout_p=self.dropout if self.training else 0.0,
        )  # fmt: skip
        if mask is not None:  # a sample that sees no row reads nothing
            y = torch.where(mask.any(-1, keepdim=True), y, 0.0)
        return self.out_proj(y.transpose(1, 2).flatten(2))

    def set_bank(self, bank: AnyBank) -> None:
        """Hold a whole bank; UserError where one is not held whole, since every row is projected in each step."""
        if not isinstance(bank, LocalBank) or bank.backend is not None:
            raise UserError(
                "memory.retrieval cross_attention reads every row in every step: it needs memory.index exact, one rank"
            )
        self.set_memory(bank.rows, group=bank.group, scale=bank.scale)

    def forward_steps(
        self, x_BLS: Tensor, memory_ND: Tensor | None = None, query_group: Tensor | None = None,
        memory_group: Tensor | None = None,
    ) -> RetrievalSteps[MemoryOutput]:  # fmt: skip
        """``forward`` as steps of ``retrieve_in_lockstep``: it asks for nothing."""
        yield from ()
        out = self.forward(x_BLS, memory_ND, query_group=query_group, memory_group=memory_group)
        bank = self._bank(memory_ND, memory_group)
        return MemoryOutput(
            out, self._weights(x_BLS, bank, query_group).mean(1) @ self._dequantized_rows(bank, torch.float32)
        )

    def _queries(self, x_BLS: Tensor) -> Tensor:
        return self.q_proj(self.state_norm(x_BLS)).unflatten(-1, (self.heads, self.head_dim)).transpose(1, 2)

    def _heads(self, projection: nn.Linear, bank: LocalBank) -> Tensor:
        """[1, H, N, K]."""
        rows = self._dequantized_rows(bank, projection.weight.dtype)
        return projection(rows).unflatten(-1, (self.heads, self.head_dim)).transpose(0, 1)[None]

    @staticmethod
    def _dequantized_rows(bank: LocalBank, dtype: torch.dtype) -> Tensor:
        """The rows [N, D], int8 ones times their scale."""
        rows = bank.rows.to(dtype)
        return rows if bank.scale is None else rows * bank.scale[:, None].to(dtype)

    @staticmethod
    def _attention_mask(query_group: Tensor | None, bank: LocalBank) -> Tensor | None:
        """bool [B, 1, 1, N]."""
        if query_group is None or bank.group is None:
            return None
        return ~same_group_mask(query_group, bank.group)[:, None, None, :]

    def _weights(self, x_BLS: Tensor, bank: LocalBank, query_group: Tensor | None) -> Tensor:
        """Attention [B, H, L, N] of the samples given."""
        scores = self._queries(x_BLS) @ self._heads(self.k_proj, bank).mT * self.head_dim**-0.5
        mask = self._attention_mask(query_group, bank)
        if mask is not None:
            scores = scores.masked_fill(~mask, -torch.inf)
        return torch.nan_to_num(scores.softmax(-1))

    @torch.no_grad()
    def attribution(
        self, x_BLS: Tensor, memory_ND: Tensor | None = None, *, query_group: Tensor | None = None,
        memory_group: Tensor | None = None, top_k: int = 5,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """As ``HopfieldMemory.attribution``."""
        mean = self._weights(x_BLS, self._bank(memory_ND, memory_group), query_group).mean(1)
        weights, indices = mean.topk(min(top_k, mean.shape[-1]), dim=-1)
        missing = (0, top_k - weights.shape[-1])
        weights, indices = nn.functional.pad(weights, missing), nn.functional.pad(indices, missing)
        return weights, indices.masked_fill(weights == 0, -1)

    def _last_blocks(self) -> tuple[Iterator[Block], int, int]:
        if self._last is None:
            raise ValueError("no association yet: call forward first")
        x, bank, query_group = self._last
        weights = self._weights(x, bank, query_group).detach().flatten(0, 2)
        everything = slice(0, weights.shape[0]), slice(0, weights.shape[1])
        return iter([(*everything, weights)]), *weights.shape

    def _by_query(self, values: Tensor, samples: int) -> Tensor:
        return values.view(samples, self.heads, -1).mean(1)
