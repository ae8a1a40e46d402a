"""The GPU back end: launches the kernels of ``triton_kernels.py`` with the pinned configurations.

Fused for bfloat16, float16 and int8 rows up to the widest of ``launch_configs.WIDTHS``, with Triton of
``launch_configs.MIN_TRITON`` or newer; else a GPU takes the blockwise products of ``blockwise.py``.
"""

from typing import Any

import torch
import triton
from torch import Tensor

from . import blockwise, launch_configs, triton_kernels

HALF = (torch.bfloat16, torch.float16)
#: Whether this compiler is one that the launch configurations were chosen for.
CHOSEN_FOR = tuple(map(int, triton.__version__.split(".")[:2])) >= launch_configs.MIN_TRITON


def fused(queries: Tensor, memory: Tensor) -> bool:
    """Whether the kernels serve these operands on this GPU."""
    known = memory.dtype in (*HALF, torch.int8) and queries.dtype != torch.float64
    narrow = memory.shape[1] <= launch_configs.WIDTHS[-1] and memory.shape[0] > 0 and queries.shape[0] > 0
    return (
        CHOSEN_FOR
        and known
        and narrow
        and launch_configs.gpu_generation(torch.cuda.get_device_capability(queries.device)) is not None
    )


def forward(
    queries: Tensor, memory: Tensor, scale: Tensor | None, query_group: Tensor | None, memory_group: Tensor | None,
    seed: Tensor | None, dropout: float, top_k: int, entropy: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """As ``blockwise.forward``, without a stored association."""
    arguments = (queries, memory, scale, query_group, memory_group, seed, dropout, top_k, entropy)
    return (
        Fused(*arguments[:7]).forward(top_k, entropy)
        if fused(queries, memory)
        else blockwise.forward(*arguments, False)
    )


def backward(
    grad: Tensor, grad_lse: Tensor, grad_mass: Tensor, queries: Tensor, memory: Tensor, scale: Tensor | None,
    retrieved: Tensor, lse: Tensor, mass: Tensor, query_group: Tensor | None, memory_group: Tensor | None,
    seed: Tensor | None, dropout: float, need_memory: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """As ``blockwise.backward``."""
    if not fused(queries, memory):
        return blockwise.backward(
            grad, grad_lse, grad_mass, queries, memory, scale, retrieved, lse, mass, query_group, memory_group, seed,
            lse.new_empty(0, 0), dropout, need_memory,
        )  # fmt: skip
    call = Fused(queries, memory, scale, query_group, memory_group, seed, dropout)
    return call.backward(grad, grad_lse, grad_mass, retrieved, lse, mass, need_memory)


class Fused:
    """One call's operands as the kernels want them. ``generation`` and ``splits`` override what the GPU suggests."""

    def __init__(
        self, queries: Tensor, memory: Tensor, scale: Tensor | None, query_group: Tensor | None,
        memory_group: Tensor | None, seed: Tensor | None, dropout: float, generation: int | None = None,
        splits: int | None = None,
    ):  # fmt: skip
        self.queries, self.generation, self.splits = queries, generation, splits
        half = queries.dtype if queries.dtype in HALF else torch.bfloat16
        self.operand = half if memory.dtype == torch.int8 else memory.dtype
        self.q, self.z = queries.to(self.operand).contiguous(), memory.contiguous()
        self.count, self.rows, self.width = queries.shape[0], memory.shape[0], memory.shape[1]
        nothing = self.q  # stands in for pointers that a kernel compiled without them never reads
        self.shared: dict[str, Any] = {
            "z_scale": nothing if scale is None else scale,
            "q_group": nothing if query_group is None else query_group.contiguous(),
            "z_group": nothing if memory_group is None else memory_group.contiguous(),
            "seed": nothing if seed is None else seed,
            "threshold": min(round(dropout * 2**32), 2**32 - 1) - 2**31, "rescale": 1 / (1 - dropout),
            "GROUPED": query_group is not None, "DROPOUT": dropout > 0, "INT8": scale is not None,
            # half operands ignore it; single precision occurs in the interpreter alone
            "PRECISION": "ieee",
        }  # fmt: skip

    def _run(self, kernel: str, grid: tuple[int, int], launch: launch_configs.LaunchConfig, **arguments: Any) -> None:
        function = getattr(triton_kernels, f"{kernel}_kernel")
        given = {"q": self.q, "z": self.z, "M": self.count, "N": self.rows, "D": self.width, **self.shared, **arguments}
        named = {name: given[name] for name in function.arg_names if name in given}
        function[grid](**named, **launch.constants(), **launch.options())

    def _launch(self, kernel: str) -> launch_configs.LaunchConfig:
        generation = self.generation or launch_configs.gpu_generation(torch.cuda.get_device_capability(self.q.device))
        assert generation is not None
        return launch_configs.launch_config(kernel, "int8" if self.shared["INT8"] else "half", generation, self.width)

    def _grid(self, launch: launch_configs.LaunchConfig) -> tuple[tuple[int, int], int]:
        """(blocks of queries, splits of the memory), rows of one split: few queries still fill the GPU."""
        blocks, tiles = triton.cdiv(self.count, launch.BM), triton.cdiv(self.rows, launch.BN)
        splits = self.splits
        if splits is None:
            processors = torch.cuda.get_device_properties(self.q.device).multi_processor_count
            splits = max(1, min(processors // blocks, tiles // 4))
        span = triton.cdiv(tiles, splits) * launch.BN
        return (blocks, triton.cdiv(self.rows, span)), span

    def forward(self, top_k: int, entropy: bool) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        launch = self._launch("forward")
        grid, span = self._grid(launch)
        r = torch.empty(grid[1], self.count, self.width, device=self.q.device)
        lse, mass, entropies = (torch.empty(grid[1], self.count, device=self.q.device) for _ in range(3))
        self._run(
            "forward", grid, launch, o=r, lse=lse, mass=mass, entropy=entropies, rows_per_split=span, ENTROPY=entropy
        )
        r, lse, mass, entropies = blockwise.merge(r, lse, mass, entropies)
        weights, indices = self._top(lse, top_k)
        entropies = entropies if entropy else entropies[:0].clone()
        return r.to(self.queries.dtype), lse, mass, entropies, weights, indices, lse.new_empty(0, 0)

    def _top(self, lse: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
        if not top_k:
            return lse.new_empty(self.count, 0), lse.new_empty(self.count, 0, dtype=torch.int64)
        launch = self._launch("top_k")
        grid, span = self._grid(launch)
        scores = torch.empty(grid[1], self.count, top_k, device=self.q.device)
        indices = torch.empty_like(scores, dtype=torch.int32)
        slots = triton.next_power_of_2(top_k)
        self._run("top_k", grid, launch, scores=scores, indices=indices, rows_per_split=span, K=top_k, SLOTS=slots)
        best, order = scores.transpose(0, 1).flatten(1).topk(top_k, dim=1)
        rows = indices.transpose(0, 1).flatten(1).gather(1, order).long()
        return torch.exp(best - blockwise.finite(lse)[:, None]), rows

    def backward(
        self, grad: Tensor, grad_lse: Tensor, grad_mass: Tensor, retrieved: Tensor, lse: Tensor, mass: Tensor,
        need_memory: bool,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        launch = self._launch("backward_queries")
        grid, span = self._grid(launch)
        centre = (grad.float() * retrieved.float()).sum(1) + grad_mass * mass
        centre -= grad_lse.masked_fill(lse == -torch.inf, 0.0)
        g = grad.to(self.operand).contiguous()
        dq = torch.empty(grid[1], self.count, self.width, device=self.q.device)
        shared = {"do": g, "lse": lse, "delta": centre, "dmass": grad_mass}
        self._run("backward_queries", grid, launch, **shared, dq=dq, rows_per_split=span)
        dz = torch.empty((self.rows if need_memory else 0, self.width), device=self.q.device)
        if need_memory:
            launch = self._launch("backward_memory")
            blocks = triton.cdiv(self.rows, launch.BN), triton.cdiv(self.width, launch.BD)
            self._run("backward_memory", blocks, launch, **shared, dz=dz)
        return dq.sum(0).to(self.queries.dtype), dz.to(self.z.dtype)
