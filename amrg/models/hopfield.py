"""Associative memory over a frozen bank: the published Hopfield layer with its projections absorbed into the queries.

Shape legend: B batch, L queries of a sample, S state width, H heads, K width of a head's association space,
V width of a head's value, N rows of the bank, D width of the bank, O output width.
"""

from collections.abc import Generator, Iterator, Sequence
from typing import NamedTuple, TypeVar, cast

import torch
from torch import Tensor, nn

from amrg.kernels import Retrieval, hopfield_retrieve
from amrg.kernels.hopfield.blockwise import association_blocks
from amrg.kernels.hopfield.reference import Operands
from amrg.models.memory_layer import AnyBank, Block, LocalBank, MemoryLayer
from amrg.retrieval.attribution import top_k_rows_sharded, top_weighted_rows
from amrg.retrieval.indexed_bank import IndexedBank
from amrg.retrieval.sharded_bank import ShardedBank, retrieve_batched
from amrg.retrieval.types import RetrievalRequest, Shard


class RetrievalCall(NamedTuple):
    """A retrieval that a memory requests: queries [M, D], the bank, and the group of each query."""

    queries: Tensor
    bank: LocalBank
    group: Tensor | None
    dropout: float = 0.0


class MemoryOutput(NamedTuple):
    """Output of a memory [B, L, O], and the retrieved rows as a mean over heads [B, L, D]."""

    out_BLO: Tensor
    rows_BLD: Tensor


R = TypeVar("R")
RetrievalSteps = Generator[RetrievalCall, Retrieval, R]


def retrieve_in_lockstep(memories: Sequence[RetrievalSteps[R]]) -> list[R]:
    """Run several memories in lockstep, so that those on sharded banks share one exchange per step."""
    results: list[R | None] = [None] * len(memories)
    answers: dict[int, Retrieval | None] = dict.fromkeys(range(len(memories)))
    while answers:
        calls = {}
        for i, answer in answers.items():
            try:
                calls[i] = next(memories[i]) if answer is None else memories[i].send(answer)
            except StopIteration as end:
                results[i] = end.value
        answers = dict(zip(calls, _resolve(list(calls.values())), strict=True))
    return cast("list[R]", results)


def _resolve(calls: Sequence[RetrievalCall]) -> list[Retrieval]:
    requests = [
        RetrievalRequest(call.bank.backend, call.queries, call.group, call.dropout)
        for call in calls
        if isinstance(call.bank.backend, ShardedBank)
    ]
    sharded = iter(retrieve_batched(requests) if requests else ())
    return [next(sharded) if isinstance(call.bank.backend, ShardedBank) else _retrieve(call) for call in calls]


def _retrieve(call: RetrievalCall) -> Retrieval:
    if isinstance(call.bank.backend, IndexedBank):
        return call.bank.backend.retrieve(call.queries, query_group=call.group, dropout=call.dropout)
    memory_group = None if call.group is None else call.bank.group
    return hopfield_retrieve(
        call.queries, call.bank.rows, memory_scale=call.bank.scale, query_group=call.group, memory_group=memory_group,
        dropout=call.dropout,
    )  # fmt: skip


class HopfieldMemory(MemoryLayer):
    """Hopfield retrieval from a frozen bank (Ramsauer et al. 2021), all heads over one bank that is never projected.

    Equal to hflayers' ``HopfieldLayer`` with frozen ``lookup_weights`` (kernels/hopfield/README.md derives it;
    ``amrg.models.hflayers`` converts its parameters).

    Args:
        state_dim, memory_dim, out_dim: S, D, O.
        heads, head_dim, value_dim: H, K, V; V = K unless given.
        beta: scaling of the association; 1/√K unless given.
        learn_beta: learn it, one per head, as its logarithm. Otherwise it is a buffer that ``set_beta`` may schedule.
        sharpness: factor on the cosine between a state and a row, added to the learned score; requires states in the
            space of the rows, S = D. Both terms scale with the length of the state: a state of length 0 retrieves all
            rows uniformly. Learned, one per head, if β is. None: the score is the learned term alone.
        update_steps: number of associations; each retrieved state is the input of the next association.
        update_eps: a head stops updating when its association changes by no more than this over a sample
            (Frobenius norm, largest of the batch); 0 never stops and skips the check.
        dropout: dropout on the last association, in training.
    """

    beta: Tensor
    sharpness_H: Tensor | None

    def __init__(
        self, state_dim: int, memory_dim: int, out_dim: int, *, heads: int, head_dim: int, value_dim: int | None = None,
        beta: float | None = None, learn_beta: bool = False, sharpness: float | None = None, update_steps: int = 1,
        update_eps: float = 1e-4, dropout: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__()
        value_dim = head_dim if value_dim is None else value_dim
        if update_steps < 1:
            raise ValueError(f"update_steps counts the associations, at least 1, got {update_steps}")
        self.heads, self.head_dim, self.dropout = heads, head_dim, dropout
        self.update_steps, self.update_eps = update_steps, update_eps
        self.state_norm = nn.LayerNorm(state_dim)
        self.key_gain, self.value_gain = (nn.Parameter(torch.ones(memory_dim)) for _ in range(2))
        self.key_shift, self.value_shift = (nn.Parameter(torch.zeros(memory_dim)) for _ in range(2))
        self.q_proj = nn.Linear(state_dim, heads * head_dim)
        self.k_proj = nn.Linear(memory_dim, heads * head_dim)
        self.v_proj = nn.Linear(memory_dim, heads * value_dim)
        self.out_proj = nn.Linear(heads * value_dim, out_dim)
        for linear in (self.q_proj, self.k_proj, self.v_proj, self.out_proj):
            nn.init.normal_(linear.weight, std=0.02)
            nn.init.zeros_(linear.bias)
        self.learn_beta = learn_beta
        start = torch.full((heads,), head_dim**-0.5 if beta is None else float(beta))
        if learn_beta:
            self.log_beta = nn.Parameter(start.log())
        else:
            self.register_buffer("beta", start)
        if sharpness is None:
            self.sharpness_H = None
        else:
            if state_dim != memory_dim:
                raise ValueError(f"a state of {state_dim} numbers is none of the space of rows of {memory_dim}")
            nn.init.zeros_(self.k_proj.weight)  # the learned term starts at 0
            scale = torch.full((heads,), float(sharpness))
            if learn_beta:
                self.sharpness_H = nn.Parameter(scale)
            else:
                self.register_buffer("sharpness_H", scale)
        self._last: tuple[Tensor, Tensor, LocalBank, Tensor | None] | None = None

    def set_bank(self, bank: AnyBank) -> None:
        """Set the bank: local, indexed, or this rank's part of a sharded one."""
        if isinstance(bank, IndexedBank) or (isinstance(bank, ShardedBank) and bank.strategy != "replicate"):
            self.indirect = bank
        else:
            self.set_memory(bank.rows, group=bank.group, scale=bank.scale)

    def set_beta(self, beta: float | Tensor) -> None:
        """Set β, a number or one per head [H], for schedules."""
        if self.learn_beta:
            raise ValueError("beta is learned: it cannot be scheduled too")
        self.beta.copy_(torch.as_tensor(beta))

    def forward(
        self, x_BLS: Tensor, memory_ND: Tensor | None = None, *, query_group: Tensor | None = None,
        memory_group: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """Compute the output of states, [B, L, S] → [B, L, O].

        ``memory_ND`` holds normalized rows (``normalise_rows``); by default those of ``set_memory``. ``query_group``
        [B] and ``memory_group`` [N] are int64: rows of a sample's own group are masked; group −1 masks nothing.
        """
        return retrieve_in_lockstep([self.forward_steps(x_BLS, memory_ND, query_group, memory_group)])[0].out_BLO

    def forward_steps(
        self, x_BLS: Tensor, memory_ND: Tensor | None = None, query_group: Tensor | None = None,
        memory_group: Tensor | None = None,
    ) -> "RetrievalSteps[MemoryOutput]":  # fmt: skip
        """Run ``forward`` as a generator of retrieval calls, which ``retrieve_in_lockstep`` batches over memories."""
        bank = self._bank(memory_ND, memory_group)
        query_group = self._expand_groups(query_group, bank, x_BLS.shape[1])
        queries, result = yield from self._associate(x_BLS, bank, query_group)
        self._last = (queries.detach().flatten(0, 1), result.lse_M.detach(), bank, query_group)
        value_dim = self.v_proj.out_features // self.heads
        rows = result.retrieved_MD.view_as(queries)
        mass = result.mass_M.to(rows.dtype).view(*rows.shape[:2], 1)  # 1 unless dropped out or fully masked
        # With the weights on the left, their gradients have the layout of the weights and need no copy.
        values = torch.baddbmm(
            (mass * self.v_proj.bias.view(self.heads, 1, value_dim)).mT,
            self.v_proj.weight.view(self.heads, value_dim, -1),
            (rows * self.value_gain + mass * self.value_shift).mT,
        )
        out = self.out_proj(values.permute(2, 0, 1).reshape(*x_BLS.shape[:2], -1))
        return MemoryOutput(out, rows.unflatten(1, x_BLS.shape[:2]).mean(0, dtype=torch.float32))

    def _expand_groups(self, query_group: Tensor | None, bank: LocalBank, length: int) -> Tensor | None:
        """Repeat the group for each absorbed query, in the order (head, sample, query)."""
        if query_group is None or bank.group is None:
            return None
        return query_group.repeat_interleave(length).repeat(self.heads)

    def _absorb(self, key_space_HMK: Tensor) -> Tensor:
        """Map key space to the space of the bank's rows, β γk ⊙ (Wkᵀ q), [H, M, D]."""
        beta = self.log_beta.exp() if self.learn_beta else self.beta
        weight = self.k_proj.weight.view(self.heads, self.head_dim, -1)
        return torch.bmm(key_space_HMK * beta[:, None, None].to(key_space_HMK.dtype), weight) * self.key_gain

    def row_queries(self, x_MS: Tensor) -> Tensor:
        """Queries of the first association in the space of the rows, [H, M, D]; scores are their products with rows."""
        queries = self._absorb(self.q_proj(self.state_norm(x_MS)).unflatten(-1, (self.heads, -1)).transpose(0, 1))
        return queries if self.sharpness_H is None else self._add_state_query(x_MS, queries)

    def _add_state_query(self, states_MD: Tensor, absorbed_HMD: Tensor) -> Tensor:
        """Add the states, [M, D] or [H, M, D], to the absorbed queries; both terms scale with the states' length."""
        assert self.sharpness_H is not None
        dim = states_MD.shape[-1]
        loudness = states_MD.norm(dim=-1, keepdim=True) / dim**0.5  # 1 for a normalized row
        scale = self.sharpness_H[:, None, None].to(absorbed_HMD.dtype) / dim
        return absorbed_HMD * loudness.to(absorbed_HMD.dtype) + states_MD.to(absorbed_HMD.dtype) * scale

    def _associate(
        self, x_BLS: Tensor, bank: LocalBank, group: Tensor | None
    ) -> "RetrievalSteps[tuple[Tensor, Retrieval]]":
        """Run the update steps; return the last absorbed queries [H, B·L, D] and their retrieval."""
        queries = self.row_queries(x_BLS.flatten(0, 1))
        weight = self.k_proj.weight.view(self.heads, self.head_dim, -1).transpose(1, 2)
        bias = self.k_proj.bias.view(self.heads, 1, self.head_dim)
        active = torch.ones(self.heads, dtype=torch.bool, device=x_BLS.device)
        before: tuple[Tensor, Tensor] | None = None
        for _ in range(1, self.update_steps):
            result = yield RetrievalCall(queries.flatten(0, 1), bank, group)
            # Ranks that share a bank must issue equally many retrievals, so they take all steps.
            if before is not None and self.update_eps > 0 and bank.backend is None:
                now = (queries, result.lse_M)
                active = active & (self._association_change(now, before, bank, group, x_BLS.shape[0]) > self.update_eps)
                if not (torch.compiler.is_compiling() or active.any()):
                    break
            before = (queries, result.lse_M)
            rows = result.retrieved_MD.view_as(queries)
            state = torch.baddbmm(bias, rows * self.key_gain + self.key_shift, weight)
            updated = self._absorb(state)
            if self.sharpness_H is not None:
                updated = self._add_state_query(rows, updated)
            queries = torch.where(active[:, None, None], updated, queries)
        dropout = self.dropout if self.training else 0.0
        return queries, (yield RetrievalCall(queries.flatten(0, 1), bank, group, dropout))

    @torch.no_grad()
    def _association_change(
        self,
        now: tuple[Tensor, Tensor],
        before: tuple[Tensor, Tensor],
        bank: LocalBank,
        group: Tensor | None,
        batch: int,
    ) -> Tensor:
        """Change of each head's association, [H]: Frobenius norm over a sample, largest of the batch."""
        moved = torch.zeros_like(now[1])
        memory_group = None if group is None else bank.group
        pair = (
            association_blocks(Operands(queries.flatten(0, 1), bank.rows, bank.scale, group, memory_group), lse)
            for queries, lse in (now, before)
        )
        for (rows, _, new), (_, _, old) in zip(*pair, strict=True):
            moved[rows] += (new - old).square_().sum(1)
        return moved.view(self.heads, batch, -1).sum(2).sqrt().amax(1)

    def _last_blocks(self) -> tuple[Iterator[Block], int, int]:
        if self._last is None:
            raise ValueError("no association yet: call forward first")
        queries, lse, bank, group = self._last
        memory_group = None if group is None else bank.group
        blocks = association_blocks(Operands(queries, bank.rows, bank.scale, group, memory_group), lse)
        return blocks, queries.shape[0], bank.rows.shape[0]

    def _by_query(self, values: Tensor, samples: int) -> Tensor:
        return values.view(self.heads, samples, -1).mean(0)

    @torch.no_grad()
    def _last_entropy(self) -> Tensor:
        assert self._last is not None
        assert self.indirect is not None
        queries, _, _, group = self._last
        entropy = self.indirect.retrieve(queries, query_group=group, return_entropy=True).entropy_M
        assert entropy is not None
        return entropy

    @torch.no_grad()
    def attribution(
        self, x_BLS: Tensor, memory_ND: Tensor | None = None, *, query_group: Tensor | None = None,
        memory_group: Tensor | None = None, top_k: int = 5,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Return the heaviest rows of each query: weights [B, L, top_k], averaged over heads, and int64 row indices.

        If fewer than top_k rows are visible, the remaining indices are −1 and their weights 0.
        """
        bank = self._bank(memory_ND, memory_group)
        group = self._expand_groups(query_group, bank, x_BLS.shape[1])
        queries, result = retrieve_in_lockstep([self._associate(x_BLS, bank, group)])[0]
        lse_HM = result.lse_M.view(self.heads, -1)
        group_M = None if group is None else group[: lse_HM.shape[1]]
        query_payload = queries.transpose(0, 1), lse_HM.T, group_M
        if isinstance(bank.backend, ShardedBank):
            weights, indices = top_k_rows_sharded(bank.backend, *query_payload, top_k)
        else:
            weights, indices = top_weighted_rows(Shard(bank.rows, bank.scale, bank.group, 0), *query_payload, top_k)
        shape = (*x_BLS.shape[:2], top_k)
        return weights.view(shape), indices.view(shape)
