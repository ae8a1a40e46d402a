"""The GPU back end: launches the kernels of ``triton_kernels.py`` with the pinned configurations.

Fused for bfloat16, float16 and int8 rows up to the widest of ``launch_configs.WIDTHS``, with Triton of
``launch_configs.MIN_TRITON`` or newer; else a GPU takes the blockwise products of ``blockwise.py``.
"""

import torch
import triton
from torch import Tensor

from . import launch_configs, triton_kernels
from .blockwise import merge, zero_where_neg_inf
from .launch_configs import LaunchConfig
from .reference import Operands, Outputs

Argument = Tensor | float | str  # of a kernel
HALF = (torch.bfloat16, torch.float16)
#: Whether this compiler is one that the launch configurations were chosen for.
TRITON_SUPPORTED = tuple(map(int, triton.__version__.split(".")[:2])) >= launch_configs.MIN_TRITON


def is_supported(operands: Operands) -> bool:
    """Whether the kernels serve these operands on this GPU."""
    queries, memory = operands.queries, operands.memory
    known = memory.dtype in (*HALF, torch.int8) and queries.dtype != torch.float64
    fits = memory.shape[1] <= launch_configs.WIDTHS[-1] and memory.shape[0] > 0 and queries.shape[0] > 0
    return (
        TRITON_SUPPORTED
        and known
        and fits
        and launch_configs.gpu_generation(torch.cuda.get_device_capability(queries.device)) is not None
    )


class FusedRetrieval:
    """One call's operands as the kernels want them. ``generation`` and ``splits`` override what the GPU suggests."""

    def __init__(self, operands: Operands, generation: int | None = None, splits: int | None = None) -> None:
        queries, memory, scale, query_group, memory_group, seed, dropout = operands
        self.queries, self.generation, self.splits = queries, generation, splits
        half = queries.dtype if queries.dtype in HALF else torch.bfloat16
        self.operand_dtype = half if memory.dtype == torch.int8 else memory.dtype
        self.q, self.z = queries.to(self.operand_dtype).contiguous(), memory.contiguous()
        self.M, self.N, self.D = queries.shape[0], memory.shape[0], memory.shape[1]
        unused = self.q  # stands in for pointers that a kernel compiled without them never reads
        self.shared: dict[str, Argument] = {
            "q": self.q, "z": self.z, "M": self.M, "N": self.N, "D": self.D,
            "z_scale": unused if scale is None else scale,
            "q_group": unused if query_group is None else query_group.contiguous(),
            "z_group": unused if memory_group is None else memory_group.contiguous(),
            "seed": unused if seed is None else seed,
            "threshold": min(round(dropout * 2**32), 2**32 - 1) - 2**31, "rescale": 1 / (1 - dropout),
            "GROUPED": query_group is not None, "DROPOUT": dropout > 0, "INT8": scale is not None,
            # half operands ignore it; single precision occurs in the interpreter alone
            "PRECISION": "ieee",
        }  # fmt: skip

    def _run(self, kernel: str, grid: tuple[int, int], config: LaunchConfig, **arguments: Argument) -> None:
        function = getattr(triton_kernels, f"{kernel}_kernel")
        given = self.shared | arguments
        named = {name: given[name] for name in function.arg_names if name in given}
        function[grid](**named, **config.constants(), **config.options())

    def _config(self, kernel: str) -> LaunchConfig:
        generation = self.generation or launch_configs.gpu_generation(torch.cuda.get_device_capability(self.q.device))
        assert generation is not None
        return launch_configs.launch_config(kernel, "int8" if self.shared["INT8"] else "half", generation, self.D)

    def _grid(self, config: LaunchConfig) -> tuple[tuple[int, int], int]:
        """(blocks of queries, splits of the memory), rows of one split: few queries still fill the GPU."""
        blocks, tiles = triton.cdiv(self.M, config.BM), triton.cdiv(self.N, config.BN)
        splits = self.splits
        if splits is None:
            processors = torch.cuda.get_device_properties(self.q.device).multi_processor_count
            splits = max(1, min(processors // blocks, tiles // 4))
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
        weights, indices = self._top_k(lse, top_k)
        entropy = entropy if return_entropy else entropy[:0].clone()
        return o.to(self.queries.dtype), lse, mass, entropy, weights, indices, lse.new_empty(0, 0)

    def _top_k(self, lse: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
        if not top_k:
            return lse.new_empty(self.M, 0), lse.new_empty(self.M, 0, dtype=torch.int64)
        config = self._config("top_k")
        grid, rows_per_split = self._grid(config)
        scores = torch.empty(grid[1], self.M, top_k, device=self.q.device)
        indices = torch.empty_like(scores, dtype=torch.int32)
        self._run(
            "top_k", grid, config, scores=scores, indices=indices, rows_per_split=rows_per_split, K=top_k,
            SLOTS=triton.next_power_of_2(top_k),
        )  # fmt: skip
        top, order = scores.transpose(0, 1).flatten(1).topk(top_k, dim=1)
        rows = indices.transpose(0, 1).flatten(1).gather(1, order).long()
        return torch.exp(top - zero_where_neg_inf(lse)[:, None]), rows

    def backward(
        self, do: Tensor, lse: Tensor, delta: Tensor, dmass: Tensor, needs_memory_grad: bool
    ) -> tuple[Tensor, Tensor]:
        """As ``blockwise.backward``."""
        config = self._config("backward_queries")
        grid, rows_per_split = self._grid(config)
        shared = {"do": do.to(self.operand_dtype).contiguous(), "lse": lse, "delta": delta, "dmass": dmass}
        dq = torch.empty(grid[1], self.M, self.D, device=self.q.device)
        self._run("backward_queries", grid, config, **shared, dq=dq, rows_per_split=rows_per_split)
        dz = torch.empty((self.N if needs_memory_grad else 0, self.D), device=self.q.device)
        if needs_memory_grad:
            config = self._config("backward_memory")
            blocks = triton.cdiv(self.N, config.BN), triton.cdiv(self.D, config.BD)
            self._run("backward_memory", blocks, config, **shared, dz=dz)
        return dq.sum(0).to(self.queries.dtype), dz.to(self.z.dtype)
