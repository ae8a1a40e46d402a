"""The retrieval as two half-precision matrix products a tile, with one Triton kernel between them, for a GPU.

The products are the vendor's, so any width and any card are served; scores of one tile exist in float32, M×N never
does. The kernels are ``softmax_tile_kernel`` and ``score_gradient_kernel``. Shape legend: M queries, in blocks of m; N
memory rows, in tiles of n; D width.
"""

from collections.abc import Iterator

import torch
import triton
from torch import Tensor

from .blockwise import GPU_TILES, largest_weights
from .reference import Operands, Outputs
from .triton_backend import kernel_arguments, run_kernel

COLUMNS = {"softmax_tile": 4096, "score_gradient": 1024}  # scores of one query that a program reads at once
NUM_WARPS = {"softmax_tile": 8, "score_gradient": 4}


def product(a: Tensor, b: Tensor) -> Tensor:
    """``a b`` in float32 from half-precision operands."""
    if a.is_cuda:
        return torch.mm(a, b, out_dtype=torch.float32)
    return torch.mm(a.float(), b.float())  # torch has no such product of the CPU, where Triton's interpreter runs


class TwoProductsRetrieval:
    """One call's operands as the products want them; ``tiles`` are (queries, scores) of a tile."""

    def __init__(self, operands: Operands, tiles: tuple[int, int] = (GPU_TILES.queries, GPU_TILES.scores)) -> None:
        self.operands = operands
        self.shared = kernel_arguments(operands)
        self.q, self.z = self.shared["q"], self.shared["z"]
        self.M, self.N = len(self.q), len(self.z)
        self.queries_per_block, self.scores_per_tile = tiles

    def _blocks(self) -> Iterator[slice]:
        for start in range(0, self.M, self.queries_per_block):
            yield slice(start, min(start + self.queries_per_block, self.M))

    def _tiles(self, queries: int) -> Iterator[tuple[slice, Tensor]]:
        """(columns, z [n, D] in half precision, int8 rows without their scale)."""
        width = max(self.scores_per_tile // queries // 128 * 128, 128)
        for start in range(0, self.N, width):
            columns = slice(start, min(start + width, self.N))
            yield columns, self.z[columns].to(self.q.dtype)

    def _run(self, kernel: str, grid: tuple[int, ...], rows: slice, columns: slice, **arguments: Tensor | bool) -> None:
        place = {"first_m": rows.start, "first_n": columns.start, "width": columns.stop - columns.start}
        run_kernel(
            kernel, grid, self.shared | place | arguments, BN=COLUMNS[kernel], num_warps=NUM_WARPS[kernel]
        )  # fmt: skip

    def forward(self, top_k: int, return_entropy: bool) -> Outputs:
        """As ``blockwise.forward``, without a saved p."""
        o = torch.empty_like(self.operands.queries, memory_format=torch.contiguous_format)
        lse, mass, entropy = (torch.empty(self.M, device=self.q.device) for _ in range(3))
        for rows in self._blocks():
            q = self.q[rows]
            m_i = torch.full((len(q),), -torch.inf, device=q.device)
            l_i, w_i, ps_i, alpha = (torch.zeros_like(m_i) for _ in range(4))
            acc = torch.zeros(q.shape, device=q.device)  # [m, D] Σ w z
            for columns, z in self._tiles(len(q)):
                s = product(q, z.T)
                w = torch.empty_like(s, dtype=q.dtype)
                self._run(
                    "softmax_tile", (len(q),), rows, columns, s=s, p=w, m_i=m_i, l_i=l_i, w_i=w_i, ps_i=ps_i,
                    alpha=alpha, ENTROPY=return_entropy,
                )  # fmt: skip
                acc.mul_(alpha[:, None]).add_(product(w, z))
            visible = l_i > 0
            inv_l = torch.where(visible, 1 / l_i, 0.0)
            o[rows], lse[rows] = acc * inv_l[:, None], torch.where(visible, m_i + l_i.log(), -torch.inf)
            mass[rows] = (w_i if self.operands.dropout else l_i) * inv_l
            entropy[rows] = torch.where(visible, m_i + l_i.log() - ps_i * inv_l, 0.0)
        weights, indices = largest_weights(self.operands, top_k, lse)
        return o, lse, mass, entropy if return_entropy else entropy[:0].clone(), weights, indices, lse.new_empty(0, 0)

    def backward(
        self, do: Tensor, lse: Tensor, delta: Tensor, dmass: Tensor, needs_memory_grad: bool
    ) -> tuple[Tensor, Tensor]:
        """As ``blockwise.backward``."""
        do = do.to(self.q.dtype).contiguous()
        dq = torch.empty_like(self.operands.queries, memory_format=torch.contiguous_format)
        dz = torch.zeros((self.N if needs_memory_grad else 0, self.z.shape[1]), device=self.q.device)
        for rows in self._blocks():
            q, do_i = self.q[rows], do[rows]
            acc = torch.zeros(q.shape, device=q.device)  # [m, D] Σ ds z
            for columns, z in self._tiles(len(q)):
                s, dp = product(q, z.T), product(do_i, z.T)
                ds = torch.empty_like(s, dtype=q.dtype)
                w = torch.empty_like(ds) if needs_memory_grad else ds
                grid = (len(q), triton.cdiv(len(z), COLUMNS["score_gradient"]))
                self._run(
                    "score_gradient", grid, rows, columns, s=s, dp=dp, ds=ds, w=w, lse=lse, delta=delta, dmass=dmass,
                    MEMORY=needs_memory_grad,
                )  # fmt: skip
                acc.add_(product(ds, z))
                if needs_memory_grad:
                    dz[columns] += product(ds.T, q) + product(w.T, do_i)
            dq[rows] = acc
        return dq, dz.to(self.z.dtype)
