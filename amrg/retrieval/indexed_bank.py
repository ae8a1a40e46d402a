"""Approximate retrieval from very large banks: a faiss index proposes rows, the association over them is exact.

The index looks at a few cells of rows (IVF) or walks a graph of neighbours (HNSW) instead of reading the bank. What the
candidates miss is bounded, not guessed: every row of a cell lies within its radius ρ_c of its centre μ_c, so that
q · z ≤ q · μ_c + |q| ρ_c (Cauchy–Schwarz), and inside a cell that was looked at no row that was passed over beats the
last candidate. The bound holds always; it is tight only where cells are (a bound of 1 says that nothing is known).

Shape legend: M queries, N rows, D width, K candidates, C cells.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from amrg.errors import UserError, collect_errors
from amrg.kernels import Retrieval, hopfield_retrieve
from amrg.kernels.hopfield.blockwise import compute_dtype, zero_where_neg_inf
from amrg.kernels.hopfield.reference import NO_GROUP, dropout_keep_mask

IndexKind = Literal["ivf", "hnsw"]

MIN_INDEXED_ROWS = 65_536  # rows up to which the fused operator reads the whole bank faster than an index helps
CANDIDATES = 1024  # K
PROBES = 16  # cells looked at for each query
MAX_GATHERED_VALUES = 1 << 25  # numbers of candidate rows gathered at a time: 128 MiB of float32
_BLOCK = 65_536
_SEED = 1234  # of the clustering; the index is a function of the rows


class IndexedBank(nn.Module):
    """A frozen bank behind an index; retrieves like ``amrg.kernels.hopfield_retrieve``, from candidates.

    Args:
        rows: [N, D], normalised; floating, or int8 with ``scale``.
        scale: [N] float32, of int8 rows.
        group: int64 [N], patient group of each row.
        kind: ``ivf`` or ``hnsw``.
        candidates: rows that the association is taken over, for each query.
        probes: cells that are looked at (``ivf``); size of the beam is ``candidates`` for ``hnsw``.
        exact_below: banks of at most this many rows are read whole, without an index.

    Attributes:
        missed_mass_bound: [M] bound on the share of the association's mass that the last retrieval missed.

    Raises:
        UserError: faiss is not installed.
    """

    rows: Tensor
    scale: Tensor | None
    group: Tensor | None
    missed_mass_bound: Tensor

    def __init__(
        self, rows: Tensor, *, scale: Tensor | None = None, group: Tensor | None = None, kind: IndexKind = "ivf",
        candidates: int = CANDIDATES, probes: int = PROBES, exact_below: int = MIN_INDEXED_ROWS,
    ) -> None:  # fmt: skip
        super().__init__()
        for name, value in (("rows", rows.detach()), ("scale", scale), ("group", group)):
            self.register_buffer(name, value, persistent=False)
        self.candidates, self.probes = min(candidates, len(rows)), probes
        self._cells = None if len(rows) <= exact_below else _FaissIndex(self, kind)

    def __len__(self) -> int:
        return len(self.rows)

    def dequantize(self, which: Tensor | slice) -> Tensor:
        """Some rows as float32 numbers, [..., D]."""
        rows = self.rows[which].float()
        return rows if self.scale is None else rows * self.scale[which][..., None]

    def retrieve(
        self, queries: Tensor, *, query_group: Tensor | None = None, dropout: float = 0.0,
        seed: Tensor | int | None = None, top_k: int = 0, return_entropy: bool = False,
    ) -> Retrieval:  # fmt: skip
        """As ``hopfield_retrieve``, from the candidates alone; differentiable in the queries. Sets ``missed``."""
        if self._cells is None:
            self.missed_mass_bound = queries.new_zeros(len(queries), dtype=compute_dtype(queries))
            return hopfield_retrieve(
                queries, self.rows, memory_scale=self.scale, query_group=query_group,
                memory_group=None if query_group is None else self.group, dropout=dropout, seed=seed, top_k=top_k,
                return_entropy=return_entropy,
            )  # fmt: skip
        found_MK, worst_M, unseen_M = self._cells.search(queries.detach().float(), self.candidates)
        size = max(MAX_GATHERED_VALUES // (self.candidates * self.rows.shape[1]), 1)
        if dropout:
            seed = torch.randint(2**62, ()) if seed is None else torch.as_tensor(seed, dtype=torch.int64)
        parts = []
        for start in range(0, max(len(queries), 1), size):
            some = slice(start, start + size)
            group = None if query_group is None or self.group is None else query_group[some]
            shift = None if not dropout else torch.as_tensor(seed) + start
            parts.append(self._associate(queries[some], found_MK[some], group, dropout, shift, top_k))
        retrieved, lse, mass, entropy, weights, indices = (torch.cat(pieces) for pieces in zip(*parts, strict=True))
        passed = worst_M + (self._cells.seen_M - found_MK.shape[1]).clamp(min=0).log()
        self.missed_mass_bound = torch.sigmoid(torch.logaddexp(passed, unseen_M) - lse.detach()).to(lse.dtype)
        return Retrieval(
            retrieved, lse, mass, entropy if return_entropy else None, weights if top_k else None,
            indices if top_k else None,
        )  # fmt: skip

    def _associate(
        self, queries: Tensor, found_MK: Tensor, group: Tensor | None, dropout: float, seed: Tensor | None, top_k: int
    ) -> tuple[Tensor, ...]:
        """The association of some queries with their candidates."""
        q = queries.to(compute_dtype(queries))
        rows_MKD = self.dequantize(found_MK.clamp(min=0)).to(q.dtype)
        scores = torch.einsum("md,mkd->mk", q, rows_MKD)
        hidden = found_MK < 0
        if group is not None and self.group is not None:
            theirs = self.group[found_MK.clamp(min=0)]
            hidden = hidden | ((theirs == group[:, None]) & (theirs != NO_GROUP))
        scores = scores.masked_fill(hidden, -torch.inf)
        empty = hidden.all(1)
        lse = torch.logsumexp(scores.masked_fill(empty[:, None], 0.0), 1).masked_fill(empty, -torch.inf)
        association = torch.exp(scores - zero_where_neg_inf(lse)[:, None])
        kept = association
        if dropout:
            assert seed is not None
            kept = association * dropout_keep_mask(seed, (0, len(q)), (0, scores.shape[1]), dropout) / (1 - dropout)
        retrieved = torch.einsum("mk,mkd->md", kept, rows_MKD).to(queries.dtype)
        entropy = torch.special.entr(association.detach()).sum(1)
        weights, order = association.detach().topk(min(top_k, scores.shape[1]), dim=1)
        indices = found_MK.gather(1, order).masked_fill(weights == 0, -1)
        return retrieved, lse, kept.sum(1), entropy, weights, indices


class _FaissIndex:
    """A faiss index over a bank, and centre, radius and size of each cell of its rows."""

    def __init__(self, memory: IndexedBank, kind: IndexKind) -> None:
        faiss = _faiss()
        count, dim = memory.rows.shape
        self.kind, self.probes = kind, memory.probes
        cells = max(1, min(round(4 * count**0.5), count // 20))
        inner = faiss.METRIC_INNER_PRODUCT
        index = faiss.IndexIVFFlat(faiss.IndexFlatIP(dim), dim, cells, inner)
        index.cp.spherical, index.cp.niter, index.cp.seed, index.cp.max_points_per_centroid = True, 5, _SEED, 64
        # Rows have (nearly) one length, so that the largest product is the smallest angle.
        index.cp.min_points_per_centroid = 20
        spread = torch.randperm(count, generator=torch.Generator().manual_seed(_SEED))[: cells * 64]
        index.train(memory.dequantize(spread.sort().values.to(memory.rows.device)).cpu().numpy())
        graph = faiss.IndexHNSWFlat(dim, 32, inner) if kind == "hnsw" else None
        members = torch.empty(count, dtype=torch.int64)
        for start in range(0, count, _BLOCK):
            block = memory.dequantize(slice(start, start + _BLOCK)).cpu()
            array = block.numpy()
            members[start : start + len(block)] = torch.from_numpy(index.quantizer.assign(array, 1)[:, 0])
            (graph or index).add(array)
        self._index, self._quantizer = graph or index, index.quantizer
        index.nprobe = self.probes
        self.sizes, self.centres, self.radii = _shape(memory, members, cells)
        self.seen_M = torch.empty(0)

    def search(self, queries_MD: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """Candidates [M, K], the score of the last [M], and log Σ exp of what unseen cells could hold at most [M]."""
        array, device = queries_MD.cpu().contiguous().numpy(), queries_MD.device
        if self.kind == "hnsw":
            self._index.hnsw.efSearch = max(count, 64)
        scores, found = (torch.from_numpy(part) for part in self._index.search(array, count))
        bound = torch.addmm((queries_MD.cpu().norm(dim=1)[:, None] * self.radii), queries_MD.cpu(), self.centres.T)
        bound += self.sizes.log()
        if self.kind == "ivf":
            probed = torch.from_numpy(self._quantizer.search(array, min(self.probes, len(self.sizes)))[1])
            bound.scatter_(1, probed, -torch.inf)
            seen = self.sizes[probed].sum(1)
        else:  # a walk on the graph leaves no cell wholly seen
            seen = torch.zeros(len(array))
        self.seen_M = seen.to(device)
        return found.to(device), scores[:, -1].to(device), torch.logsumexp(bound, 1).to(device)


def _shape(memory: IndexedBank, members: Tensor, cells: int) -> tuple[Tensor, Tensor, Tensor]:
    """Size, mean and radius of each cell: float32 [C], [C, D], [C]."""
    dim = memory.rows.shape[1]
    sizes = torch.bincount(members, minlength=cells).float()
    centres, radii = torch.zeros(cells, dim), torch.zeros(cells)
    for start in range(0, len(members), _BLOCK):
        centres.index_add_(0, members[start : start + _BLOCK], memory.dequantize(slice(start, start + _BLOCK)).cpu())
    centres /= sizes.clamp(min=1)[:, None]
    for start in range(0, len(members), _BLOCK):
        some = members[start : start + _BLOCK]
        away = (memory.dequantize(slice(start, start + _BLOCK)).cpu() - centres[some]).norm(dim=1)
        radii.scatter_reduce_(0, some, away, "amax")
    return sizes, centres, radii * (1 + 1e-5)  # rounding must not shrink the ball


def search_faults(kind: str) -> list[str]:
    """What is missing for ``memory.index``."""
    return [] if kind == "exact" else collect_errors(_faiss)


def _faiss():  # type: ignore[no-untyped-def]  # faiss has no types
    try:
        import faiss
    except ImportError:
        raise UserError(
            "memory.index ivf and hnsw need faiss: `pip install 'amrg[search]'`, or memory.index exact"
        ) from None
    return faiss
