"""Base class of the memories: a frozen bank, and statistics of the associations with it.

Shape legend: N rows of the bank, D its width.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from amrg.retrieval.indexed_bank import IndexedBank
from amrg.retrieval.sharded_bank import ShardedBank

Block = tuple[slice, slice, Tensor]  # queries, memory rows, association weights between them


class AssociationStatistics:
    """Accumulator of the perplexity and the row usage of any number of queries."""

    def __init__(self, memory_rows: int, device: torch.device) -> None:
        self.queries = 0
        self.perplexity = torch.zeros((), device=device, dtype=torch.float64)
        self.usage_N = torch.zeros(memory_rows, device=device)
        self.peak_N = torch.zeros(memory_rows, device=device)

    @torch.no_grad()
    def add(self, blocks: Iterable[Block], queries: int) -> None:
        """Add an association [queries, N], tiled by ``blocks``; the weights of each query sum to 1."""
        entropy = torch.zeros(queries, device=self.usage_N.device)
        for rows, columns, block in blocks:
            entropy[rows] += torch.special.entr(block).sum(1)
            self.usage_N[columns] += block.sum(0)
            self.peak_N[columns] = torch.maximum(self.peak_N[columns], block.amax(0).to(self.peak_N.dtype))
        self.queries += queries
        self.perplexity += entropy.exp().sum()

    def add_entropy(self, entropy: Tensor) -> None:
        """Add the entropies of associations whose weights are not available here; only the perplexity is updated."""
        self.queries += entropy.numel()
        self.perplexity += entropy.exp().sum()

    def result(self) -> dict[str, float]:
        """Return the statistics.

        ``perplexity``: exp(entropy), mean over queries and heads: the effective number of rows of one query.
        ``effective_rows``: exp(entropy) of the mean association: the effective number of rows over all queries.
        ``never_retrieved``: share of rows whose weight is below 0.5 / N for every query.
        """
        perplexity = {"perplexity": float(self.perplexity / max(self.queries, 1))}
        count = self.usage_N.numel()
        if not count:
            return perplexity
        usage = self.usage_N / self.usage_N.sum().clamp_min(torch.finfo(torch.float32).tiny)
        return perplexity | {
            "effective_rows": float(torch.special.entr(usage).sum().exp()),
            "never_retrieved": float((self.peak_N < 0.5 / count).float().mean()),
        }


class LocalBank(NamedTuple):
    """Rows [N, D], scale [N] of int8 rows, and group [N] of each row; for a sharded bank those of this rank.

    ``backend`` retrieves from a bank that is sharded or indexed; None: the operator reads the local rows.
    """

    rows: Tensor
    scale: Tensor | None
    group: Tensor | None
    backend: ShardedBank | IndexedBank | None = None

    @property
    def rows_in_all(self) -> int:
        """N, summed over the ranks of a sharded bank."""
        return self.backend.total if isinstance(self.backend, ShardedBank) else len(self.rows)


AnyBank = LocalBank | ShardedBank | IndexedBank


class MemoryLayer(nn.Module):
    """A module with a bank in non-persistent buffers (the bank is an artefact of its own)."""

    memory: Tensor | None
    memory_scale: Tensor | None
    memory_group: Tensor | None

    def __init__(self) -> None:
        super().__init__()
        for name in ("memory", "memory_scale", "memory_group"):
            self.register_buffer(name, None, persistent=False)
        self.indirect: ShardedBank | IndexedBank | None = None
        self._statistics: AssociationStatistics | None = None

    def set_memory(self, rows_ND: Tensor, *, group: Tensor | None = None, scale: Tensor | None = None) -> None:
        """Set a bank of normalised rows, the default of ``forward``."""
        self.memory, self.memory_scale, self.memory_group = rows_ND.detach(), scale, group

    @property
    def bank(self) -> LocalBank:
        """The bank that ``set_memory`` or ``set_bank`` has set."""
        return self._bank(None, None)

    def _bank(self, memory: Tensor | None, memory_group: Tensor | None) -> LocalBank:
        if memory is not None:
            return LocalBank(memory, None, memory_group)
        if self.indirect is not None:
            return LocalBank(self.indirect.rows, self.indirect.scale, self.indirect.group, self.indirect)
        if self.memory is None:
            raise ValueError("no memory: pass one to forward or call set_memory first")
        return LocalBank(self.memory, self.memory_scale, self.memory_group if memory_group is None else memory_group)

    def _last_blocks(self) -> tuple[Iterator[Block], int, int]:
        """Return the association of the last forward in blocks, and its numbers of queries and memory rows."""
        raise NotImplementedError

    def _last_entropy(self) -> Tensor:
        """Compute the entropies of the last forward's associations with an indirect bank, [queries]."""
        raise NotImplementedError

    def _by_query(self, values: Tensor, samples: int) -> Tensor:
        """Average values of the last forward's associations, in the order of ``_last_blocks``, over heads, [B, L]."""
        raise NotImplementedError

    @torch.no_grad()
    def of_queries(self, samples: int) -> dict[str, Tensor]:
        """Statistics of each query of the last forward, mean over heads, [B, L]; costs one more product of its size.

        All ranks that share a bank must call this.

        Args:
            samples: B of the last forward.

        Returns:
            ``perplexity``: exp(entropy), the effective number of rows; with an index also ``missed_bound``.
        """
        if self.indirect is None:
            blocks, queries, _ = self._last_blocks()
            entropy = torch.zeros(queries, device=next(self.parameters()).device)
            for rows, _, block in blocks:
                entropy[rows] += torch.special.entr(block).sum(1)
        else:
            entropy = self._last_entropy()
        measured = {"perplexity": self._by_query(entropy.exp(), samples)}
        if isinstance(self.indirect, IndexedBank):
            measured["missed_bound"] = self._by_query(self.indirect.missed_mass_bound, samples)
        return measured

    def update_statistics(self) -> None:
        """Add the last forward to the statistics; costs one more product of its size."""
        if self.indirect is not None:
            self._statistics = self._statistics or AssociationStatistics(0, next(self.parameters()).device)
            self._statistics.add_entropy(self._last_entropy())
            return
        blocks, queries, rows = self._last_blocks()
        if self._statistics is None or self._statistics.usage_N.numel() != rows:
            self._statistics = AssociationStatistics(rows, next(self.parameters()).device)
        self._statistics.add(blocks, queries)

    def metrics(self) -> dict[str, float]:
        """Statistics of the forwards observed since the last call (of the last forward alone if there were none)."""
        if self._statistics is None:
            self.update_statistics()
        assert self._statistics is not None
        result, self._statistics = self._statistics.result(), None
        if isinstance(self.indirect, IndexedBank):
            result["missed_bound"] = float(self.indirect.missed_mass_bound.mean())
        return result
