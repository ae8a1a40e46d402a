"""Approximate retrieval from very large banks: a faiss index proposes rows, the association over them is exact.

The index searches a few cells of rows (IVF) or a graph of neighbours (HNSW) instead of all rows. The mass that the
candidates miss has an upper bound. Every row of a cell is within radius ρ_c of the cell's center μ_c, so that
q · z ≤ q · μ_c + |q| ρ_c (Cauchy–Schwarz). In a searched cell, no rejected row scores higher than the last candidate.
The bound always holds. It is tight only where cells are small; a bound of 1 carries no information.

Shape legend: M queries, N rows, D width, K candidates, C cells.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from amrg.artifacts import atomic_path, sha256_of_file
from amrg.errors import UserError, collect_errors
from amrg.kernels import Retrieval, hopfield_retrieve
from amrg.kernels.hopfield.blockwise import compute_dtype, zero_where_neg_inf
from amrg.kernels.hopfield.reference import NO_GROUP, dropout_keep_mask
from amrg.model_files import error_in_one_line
from amrg.progress import print_on_rank_0

if TYPE_CHECKING:
    import faiss

IndexKind = Literal["ivf", "hnsw"]

MIN_INDEXED_ROWS = 65_536  # up to this many rows the fused operator over all rows is faster than an index
CANDIDATES = 1024  # K
PROBES = 16  # cells searched per query
MAX_GATHERED_VALUES = 1 << 25  # values of candidate rows gathered at a time: 128 MiB of float32
_BLOCK = 65_536
_INDEX, _CELLS = "index.faiss", "cells.safetensors"  # files of a saved index
_SEED = 1234  # seed of the clustering; the index is a function of the rows


class IndexedBank(nn.Module):
    """A frozen bank with an index; retrieves from candidates, like ``amrg.kernels.hopfield_retrieve``.

    Args:
        rows: [N, D], normalised; floating, or int8 with ``scale``.
        scale: [N] float32, scales of int8 rows.
        group: int64 [N], patient group of each row.
        kind: ``ivf`` or ``hnsw``.
        candidates: number of rows per query over which the association is computed.
        probes: cells searched per query (``ivf``); for ``hnsw`` the beam size is ``candidates``.
        exact_below: banks of at most this many rows get no index; retrieval is exact.
        saved: folder of the saved index, which is built and written if it is missing, damaged or of other rows.
        content_hash: content hash of the bank, of which a saved index must be.

    Attributes:
        missed_mass_bound: [M] upper bound on the share of the association's mass that the last retrieval missed.

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
        saved: Path | None = None, content_hash: str = "",
    ) -> None:  # fmt: skip
        super().__init__()
        for name, value in (("rows", rows.detach()), ("scale", scale), ("group", group)):
            self.register_buffer(name, value, persistent=False)
        self.candidates, self.probes = min(candidates, len(rows)), probes
        self._cells = None if len(rows) <= exact_below else _open_index(self, kind, saved, content_hash)

    def __len__(self) -> int:
        return len(self.rows)

    def dequantize(self, index: Tensor | slice) -> Tensor:
        """Return the indexed rows as float32, [..., D]."""
        rows = self.rows[index].float()
        return rows if self.scale is None else rows * self.scale[index][..., None]

    def retrieve(
        self, queries: Tensor, *, query_group: Tensor | None = None, dropout: float = 0.0,
        seed: Tensor | int | None = None, top_k: int = 0, return_entropy: bool = False,
    ) -> Retrieval:  # fmt: skip
        """Retrieve from the candidates like ``hopfield_retrieve``; differentiable in the queries.

        Sets ``missed_mass_bound``.
        """
        if self._cells is None:
            self.missed_mass_bound = queries.new_zeros(len(queries), dtype=compute_dtype(queries))
            return hopfield_retrieve(
                queries, self.rows, memory_scale=self.scale, query_group=query_group,
                memory_group=None if query_group is None else self.group, dropout=dropout, seed=seed, top_k=top_k,
                return_entropy=return_entropy,
            )  # fmt: skip
        found_MK, worst_M, unprobed_M = self._cells.search(queries.detach().float(), self.candidates)
        size = max(MAX_GATHERED_VALUES // (self.candidates * self.rows.shape[1]), 1)
        if dropout:
            drawn = torch.randint(2**62, ()) if seed is None else torch.as_tensor(seed, dtype=torch.int64)
            seed = drawn.to(queries.device, non_blocking=True)
        parts = []
        for start in range(0, max(len(queries), 1), size):
            block_M = slice(start, start + size)
            group = None if query_group is None or self.group is None else query_group[block_M]
            block_seed = None if not dropout else torch.as_tensor(seed) + start
            parts.append(self._associate(queries[block_M], found_MK[block_M], group, dropout, block_seed, top_k))
        retrieved, lse, mass, entropy, weights, indices = (torch.cat(pieces) for pieces in zip(*parts, strict=True))
        rejected = worst_M + (self._cells.probed_rows_M - found_MK.shape[1]).clamp(min=0).log()
        self.missed_mass_bound = torch.sigmoid(torch.logaddexp(rejected, unprobed_M) - lse.detach()).to(lse.dtype)
        return Retrieval(
            retrieved, lse, mass, entropy if return_entropy else None, weights if top_k else None,
            indices if top_k else None,
        )  # fmt: skip

    def _associate(
        self, queries: Tensor, found_MK: Tensor, group: Tensor | None, dropout: float, seed: Tensor | None, top_k: int
    ) -> tuple[Tensor, ...]:
        """Compute the association of some queries over their candidates, and the fields of ``Retrieval`` from it.

        Outside autocast, which would round the operands of the products to half precision.
        """
        with torch.autocast(queries.device.type, enabled=False):
            return self._associate_exactly(queries, found_MK, group, dropout, seed, top_k)

    def _associate_exactly(
        self, queries: Tensor, found_MK: Tensor, group: Tensor | None, dropout: float, seed: Tensor | None, top_k: int
    ) -> tuple[Tensor, ...]:
        q = queries.to(compute_dtype(queries))
        rows_MKD = self.dequantize(found_MK.clamp(min=0)).to(q.dtype)
        scores = torch.einsum("md,mkd->mk", q, rows_MKD)
        hidden = found_MK < 0
        if group is not None and self.group is not None:
            row_group = self.group[found_MK.clamp(min=0)]
            hidden = hidden | ((row_group == group[:, None]) & (row_group != NO_GROUP))
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
        missing = (0, top_k - weights.shape[1])
        weights, indices = nn.functional.pad(weights, missing), nn.functional.pad(indices, missing, value=-1)
        return retrieved, lse, kept.sum(1), entropy, weights, indices


class _FaissIndex:
    """A faiss index over a bank.

    Args:
        index: the index.
        kind: kind of the index.
        probes: cells searched per query.
        cells: size, center and radius of each cell: float32 [C], [C, D], [C].
        device: device of the bank.
    """

    def __init__(
        self, index: "faiss.Index", kind: IndexKind, probes: int, cells: Mapping[str, Tensor], device: torch.device
    ) -> None:  # fmt: skip
        self.kind, self.probes, self.cells = kind, probes, dict(cells)
        self.sizes, self.centers, self.radii = cells["sizes"], cells["centers"], cells["radii"]
        self._cpu_index = index
        self._quantizer: Any = getattr(index, "quantizer", None)
        self._index: Any = index
        if kind == "ivf":  # faiss has no graph on GPUs
            self._index = _on_gpu(index, device)
            self._index.nprobe = probes
        self.probed_rows_M = torch.empty(0)

    @classmethod
    def build(cls, bank: IndexedBank, kind: IndexKind) -> "_FaissIndex":
        """Cluster the rows of a bank and index them."""
        faiss = _faiss()
        count, dim = bank.rows.shape
        cells = max(1, min(round(4 * count**0.5), count // 20))
        inner = faiss.METRIC_INNER_PRODUCT
        index = faiss.IndexIVFFlat(faiss.IndexFlatIP(dim), dim, cells, inner)
        index.cp.spherical, index.cp.niter, index.cp.seed, index.cp.max_points_per_centroid = True, 5, _SEED, 64
        # Rows have nearly the same norm, so the largest inner product is the smallest angle.
        index.cp.min_points_per_centroid = 20
        sample = torch.randperm(count, generator=torch.Generator().manual_seed(_SEED))[: cells * 64]
        index.train(bank.dequantize(sample.sort().values.to(bank.rows.device)).cpu().numpy())
        graph = faiss.IndexHNSWFlat(dim, 32, inner) if kind == "hnsw" else None
        members = torch.empty(count, dtype=torch.int64)
        for start in range(0, count, _BLOCK):
            block = bank.dequantize(slice(start, start + _BLOCK)).cpu()
            array = block.numpy()
            members[start : start + len(block)] = torch.from_numpy(index.quantizer.assign(array, 1)[:, 0])
            (graph or index).add(array)
        return cls(graph or index, kind, bank.probes, _cell_geometry(bank, members, cells), bank.rows.device)

    def save(self, folder: Path, content_hash: str) -> None:
        """Write the index as a folder, in place of an older one."""
        with atomic_path(folder) as partial:
            partial.mkdir()
            _faiss().write_index(self._cpu_index, str(partial / _INDEX))
            about = {"bank": content_hash, "index": sha256_of_file(partial / _INDEX)}
            save_file(self.cells, partial / _CELLS, about)
            shutil.rmtree(folder, ignore_errors=True)

    @classmethod
    def load(cls, folder: Path, bank: IndexedBank, kind: IndexKind, content_hash: str) -> "_FaissIndex":
        """Read what ``save`` wrote.

        Raises:
            ValueError: it is of another bank, or was changed.
        """
        with safe_open(folder / _CELLS, "pt") as file:
            about, cells = file.metadata(), {name: file.get_tensor(name) for name in ("sizes", "centers", "radii")}
        if about["bank"] != content_hash:
            raise ValueError("it is of other rows")
        if about["index"] != sha256_of_file(folder / _INDEX):
            raise ValueError(f"{_INDEX} was changed")
        return cls(_faiss().read_index(str(folder / _INDEX)), kind, bank.probes, cells, bank.rows.device)

    def search(self, queries_MD: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return candidates [M, K], the last candidate's score [M], a bound on log Σ exp over unprobed cells [M]."""
        array, device = queries_MD.cpu().contiguous().numpy(), queries_MD.device
        if self.kind == "hnsw":
            self._index.hnsw.efSearch = max(count, 64)
        scores, found = (torch.from_numpy(part) for part in self._index.search(array, count))
        bound = torch.addmm((queries_MD.cpu().norm(dim=1)[:, None] * self.radii), queries_MD.cpu(), self.centers.T)
        bound += self.sizes.log()
        if self.kind == "ivf":
            probed = torch.from_numpy(self._quantizer.search(array, min(self.probes, len(self.sizes)))[1])
            bound.scatter_(1, probed, -torch.inf)
            probed_rows = self.sizes[probed].sum(1)
        else:  # a graph search covers no cell completely
            probed_rows = torch.zeros(len(array))
        self.probed_rows_M = probed_rows.to(device)
        return found.to(device), scores[:, -1].to(device), torch.logsumexp(bound, 1).to(device)


def _open_index(bank: IndexedBank, kind: IndexKind, saved: Path | None, content_hash: str) -> _FaissIndex:
    """Read the saved index, or build it and save it."""
    if saved is not None and saved.is_dir():
        try:
            return _FaissIndex.load(saved, bank, kind, content_hash)
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
            print_on_rank_0(f"memory.index: {saved} cannot be used ({error_in_one_line(error)}): it is built again")
    index = _FaissIndex.build(bank, kind)
    if saved is not None:
        try:
            index.save(saved, content_hash)
        except (OSError, RuntimeError) as error:
            print_on_rank_0(
                f"memory.index: {saved} cannot be written ({error_in_one_line(error)}): the next run builds the index "
                "again"
            )
    return index


def _on_gpu(index: "faiss.Index", device: torch.device) -> "faiss.Index":
    """Return the index on the GPU of the bank, if faiss is built for GPUs (``faiss-gpu``) and finds one."""
    library = _faiss()
    if device.type != "cuda" or not library.get_num_gpus():
        return index
    moved: faiss.Index = library.index_cpu_to_gpu(library.StandardGpuResources(), device.index or 0, index)
    return moved


def _cell_geometry(bank: IndexedBank, members: Tensor, cells: int) -> dict[str, Tensor]:
    """Return the size, center and radius of each cell, as ``_FaissIndex`` takes them."""
    dim = bank.rows.shape[1]
    sizes = torch.bincount(members, minlength=cells).float()
    centers, radii = torch.zeros(cells, dim), torch.zeros(cells)
    for start in range(0, len(members), _BLOCK):
        centers.index_add_(0, members[start : start + _BLOCK], bank.dequantize(slice(start, start + _BLOCK)).cpu())
    centers /= sizes.clamp(min=1)[:, None]
    for start in range(0, len(members), _BLOCK):
        cell = members[start : start + _BLOCK]
        distance = (bank.dequantize(slice(start, start + _BLOCK)).cpu() - centers[cell]).norm(dim=1)
        radii.scatter_reduce_(0, cell, distance, "amax")
    # Rounding must not shrink the ball.
    return {"sizes": sizes, "centers": centers, "radii": radii * (1 + 1e-5)}


def search_faults(kind: str) -> list[str]:
    """Return an error text if ``memory.index`` needs faiss and it is not installed."""
    return [] if kind == "exact" else collect_errors(_faiss)


def _faiss() -> ModuleType:
    try:
        import faiss
    except ImportError:
        raise UserError(
            "memory.index ivf and hnsw need faiss: `pip install 'amrg[search]'`, or memory.index exact"
        ) from None
    return faiss
