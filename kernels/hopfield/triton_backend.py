"""The fused back end: launches the kernels of ``triton_kernels.py`` with the pinned configurations.

Fused for bfloat16, float16 and int8 rows up to the widest of ``launch_configs.WIDTHS``.
"""

from collections.abc import Mapping
from typing import Any

import torch
import triton
from torch import Tensor

from . import launch_configs, triton_kernels
from .blockwise import largest_weights, merge
from .launch_configs import LaunchConfig
from .reference import HALF, Operands, Outputs

TRITON_VERSION: tuple[int, ...] = tuple(map(int, triton.__version__.split(".")[:2]))


def kernel_arguments(operands: Operands) -> dict[str, Any]:
    """Arguments that all kernels share: half-precision ``q``, contiguous ``z``, and what the options switch."""
    queries, memory, scale, query_group, memory_group, seed, dropout = operands
    half = queries.dtype if queries.dtype in HALF else torch.bfloat16
    q = queries.to(half if memory.dtype == torch.int8 else memory.dtype).contiguous()
    unused = q  # stands in for pointers that a kernel compiled without them never reads
    return {
        "q": q, "z": memory.contiguous(), "M": queries.shape[0], "N": memory.shape[0], "D": memory.shape[1],
        "z_scale": unused if scale is None else scale,
        "q_group": unused if query_group is None else query_group.contiguous(),
        "z_group": unused if memory_group is None else memory_group.contiguous(),
        "seed": unused if seed is None else seed,
        "threshold": min(round(dropout * 2**32), 2**32 - 1) - 2**31, "rescale": 1 / (1 - dropout),
        "GROUPED": query_group is not None, "DROPOUT": dropout > 0, "INT8": scale is not None,
        # half operands ignore it; single precision occurs in the interpreter alone
        "PRECISION": "ieee",
    }  # fmt: skip


def run_kernel(kernel: str, grid: tuple[int, ...], arguments: Mapping[str, Any], **options: int | bool) -> None:
    """Launch a kernel on the device of its queries with those of ``arguments`` that it takes.

    Sums of products are fused (``enable_fp_fusion``) with every Triton: its default changes between versions, and with
    it the bits.
    """
    function = getattr(triton_kernels, f"{kernel}_kernel")
    named = {name: arguments[name] for name in function.arg_names if name in arguments}
    with torch.cuda.device_of(arguments["q"]):
        function[grid](**named, **options, enable_fp_fusion=True)


def split_count(blocks: int, tiles: int, processors: int) -> int:
    """Number of splits of the memory with the least waves × span: few queries still fill the GPU.

    Args:
        blocks: blocks of queries.
        tiles: tiles of memory rows; a split reads at least four.
        processors: multiprocessors of the GPU.
    """
    most = max(1, min(tiles // 4, max(8, processors // blocks)))
    return min(range(1, most + 1), key=lambda splits: -(-blocks * splits // processors) * -(-tiles // splits))


class FusedRetrieval:
    """One call's operands as the kernels want them. ``generation`` and ``splits`` override what the GPU suggests."""

    def __init__(self, operands: Operands, generation: int | None = None, splits: int | None = None) -> None:
        self.operands, self.generation, self.splits = operands, generation, splits
        self.shared = kernel_arguments(operands)
        self.q, self.z = self.shared["q"], self.shared["z"]
        (self.M, self.D), self.N = self.q.shape, len(self.z)

    def _run(self, kernel: str, grid: tuple[int, int], config: LaunchConfig, **arguments: Tensor | int | bool) -> None:
        run_kernel(kernel, grid, self.shared | arguments, **config.constants(), **config.options())

    def _config(self, kernel: str) -> LaunchConfig:
        generation = self.generation or launch_configs.gpu_generation(torch.cuda.get_device_capability(self.q.device))
        assert generation is not None
        return launch_configs.launch_config(kernel, "int8" if self.shared["INT8"] else "half", generation, self.D)

    def _grid(self, config: LaunchConfig) -> tuple[tuple[int, int], int]:
        """(blocks of queries, splits of the memory), rows of one split."""
        blocks, tiles = triton.cdiv(self.M, config.BM), triton.cdiv(self.N, config.BN)
        splits = self.splits
        if splits is None:
            processors = torch.cuda.get_device_properties(self.q.device).multi_processor_count
            splits = split_count(blocks, tiles, processors)
        rows_per_split = triton.cdiv(tiles, splits) * config.BN
        return (blocks, triton.cdiv(self.N, rows_per_split)), rows_per_split

    def forward(self, top_k: int, return_entropy: bool) -> Outputs:
        """As ``blockwise.forward``, without a saved p."""
        config = self._config("forward")
        grid, rows_per_split = self._grid(config)
        o = torch.empty(grid[1], self.M, self.D, device=self.q.device)
        lse, mass, entropy = (torch.empty(grid[1], self.M, device=self.q.device) for _ in range(3))
        self._run(
            "forward", grid, config, o=o, lse=lse, mass=mass, entropy=entropy, rows_per_split=rows_per_split,
            ENTROPY=return_entropy,
        )  # fmt: skip
        o, lse, mass, entropy = merge(o, lse, mass, entropy)
        weights, indices = largest_weights(self.operands, top_k, lse)
        entropy = entropy if return_entropy else entropy[:0].clone()
        return o.to(self.operands.queries.dtype), lse, mass, entropy, weights, indices, lse.new_empty(0, 0)

    def backward(
        self, do: Tensor, lse: Tensor, delta: Tensor, dmass: Tensor, needs_memory_grad: bool
    ) -> tuple[Tensor, Tensor]:
        """As ``blockwise.backward``."""
        config = self._config("backward_queries")
        grid, rows_per_split = self._grid(config)
        shared = {"do": do.to(self.q.dtype).contiguous(), "lse": lse, "delta": delta, "dmass": dmass}
        dq = torch.empty(grid[1], self.M, self.D, device=self.q.device)
        self._run("backward_queries", grid, config, **shared, dq=dq, rows_per_split=rows_per_split)
        dz = torch.empty((self.N if needs_memory_grad else 0, self.D), device=self.q.device)
        if needs_memory_grad:
            config = self._config("backward_memory")
            blocks = triton.cdiv(self.N, config.BN), triton.cdiv(self.D, config.BD)
            self._run("backward_memory", blocks, config, **shared, dz=dz)
        return dq.sum(0).to(self.operands.queries.dtype), dz.to(self.z.dtype)
