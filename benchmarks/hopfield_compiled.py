"""What every shipped kernel compiles to on each GPU generation, read from the cubin; no GPU is needed.

    python -m benchmarks.hopfield_compiled [--kernel forward] [--generation 90] [--width 768] [--options none]

Exits with 1 if a configuration breaks a promise: registers spilled, too much shared memory, no tensor-core
instructions (wgmma on sm_90), or no asynchronous copies.
"""

import argparse
import csv
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from amrg.kernels.hopfield import launch_configs, triton_kernels

CONSTANTS = {"PRECISION": "ieee", "K": 8, "SLOTS": 8}
OPTIONS = {
    "all": {"GROUPED": True, "DROPOUT": True, "ENTROPY": True},
    "mask": {"GROUPED": True, "DROPOUT": False, "ENTROPY": False},  # as in generation
    "none": {"GROUPED": False, "DROPOUT": False, "ENTROPY": False},
}
TYPES = dict.fromkeys(("q", "do"), "*bf16") | dict.fromkeys(("q_group", "z_group", "seed"), "*i64")
TYPES |= dict.fromkeys(("z_scale", "o", "lse", "mass", "entropy", "delta", "dmass", "dq", "dz", "scores"), "*fp32")
TYPES |= {"indices": "*i32", "M": "i32", "N": "i32", "rows_per_split": "i32", "threshold": "i32", "rescale": "fp32"}


@dataclass(frozen=True)
class GpuSpec:
    """Limits of a generation (CUDA programming guide) and published peaks of one card of it."""

    name: str
    shared_block: int  # bytes of shared memory one block may have
    shared_sm: int  # bytes one multiprocessor has
    tensor_columns: int  # columns of tensor memory
    teraflops: float  # dense bfloat16
    terabytes: float  # memory bandwidth, TB/s


GPUS = {
    80: GpuSpec("A100 80GB", 163 * 1024, 164 * 1024, 0, 312, 2.039),
    90: GpuSpec("H100 SXM", 227 * 1024, 228 * 1024, 0, 989, 3.35),
    100: GpuSpec("B200", 227 * 1024, 228 * 1024, 512, 2250, 8.0),
}
REGISTERS, THREADS, BLOCKS = 65536, 2048, 32  # of one multiprocessor, alike on all three


@dataclass(frozen=True)
class CompiledUsage:
    """One compiled configuration."""

    kernel: str
    storage: str
    generation: int
    width: int
    block: str  # queries × memory rows × tile of the width
    warps: int
    registers: int
    stack: int
    spills: int  # local loads and stores
    shared: int  # bytes
    tensor_columns: int
    mma: int  # HMMA: warp-level tensor-core instructions
    wgmma: int  # HGMMA: Hopper's
    tcgen05: int  # UTC*MMA: Blackwell's
    async_copies: int  # LDGSTS, UTMALDG
    blocks_per_sm: int

    def violations(self) -> list[str]:
        """The promises this configuration breaks; empty if none."""
        gpu = GPUS[self.generation]
        tensor = {80: self.mma, 90: self.wgmma, 100: self.tcgen05}[self.generation]
        checks = {
            "registers spill to local memory": self.spills == 0 and self.stack == 0,
            f"more than {gpu.shared_block} bytes of shared memory": self.shared <= gpu.shared_block,
            f"more than {gpu.tensor_columns} columns of tensor memory": self.tensor_columns <= gpu.tensor_columns,
            "no tensor-core instructions of its generation": tensor > 0,
            "no asynchronous copies": self.async_copies > 0,
        }
        return [violation for violation, holds in checks.items() if not holds]


def _tool(name: str, cubin: bytes, *options: str) -> str:
    program = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return subprocess.run([program, *options, file.name], capture_output=True, text=True, check=True).stdout


def measure(kernel: str, storage: str, generation: int, width: int, options: str = "all") -> CompiledUsage:
    """Compile one shipped configuration with one of ``OPTIONS`` and read its cubin."""
    launch = launch_configs.launch_config(kernel, storage, generation, width)
    function = getattr(triton_kernels, f"{kernel}_kernel")
    constants = {**CONSTANTS, **OPTIONS[options], "D": width, "INT8": storage == "int8", **launch.constants()}
    types = TYPES | {"z": "*i8" if storage == "int8" else "*bf16"}
    names = function.arg_names
    pointers = [i for i, name in enumerate(names) if types.get(name, "").startswith("*")]
    source = ASTSource(
        fn=function,
        signature={name: types.get(name, "constexpr") for name in names},
        constexprs={(i,): constants[name] for i, name in enumerate(names) if name not in types},
        attrs={(i,): [["tt.divisibility", 16]] for i in pointers},  # as torch allocates them
    )
    compiled = triton.compile(source, target=GPUTarget("cuda", generation, 32), options=launch.options())
    cubin = compiled.asm["cubin"]
    usage, assembly = _tool("cuobjdump", cubin, "--dump-resource-usage"), _tool("nvdisasm", cubin, "-c", "-ndf")
    registers, stack = (int(re.search(rf"{name}:(\d+)", usage)[1]) for name in ("REG", "STACK"))  # type: ignore[index]

    def count(pattern: str) -> int:
        return len(re.findall(rf"\b{pattern}\b", assembly))

    threads, shared, gpu = 32 * launch.num_warps, compiled.metadata.shared, GPUS[generation]
    fitting = (
        gpu.shared_sm // (shared + 1024),  # a block's own kilobyte
        REGISTERS // (-(-registers // 8) * 8 * threads), THREADS // threads, BLOCKS,
    )  # fmt: skip
    return CompiledUsage(
        kernel, storage, generation, width, f"{launch.BM}×{launch.BN}×{launch.BD}", launch.num_warps, registers, stack,
        count("(?:LDL|STL)"), shared, getattr(compiled.metadata, "tmem_size", 0) or 0, count("HMMA"), count("HGMMA"),
        count(r"UTC\w*MMA"), count("(?:LDGSTS|UTMALDG)"), min(fitting),
    )  # fmt: skip


@dataclass(frozen=True)
class Roofline:
    """A prediction from published peaks, not a measurement."""

    operations: int
    bytes: int
    microseconds: float
    bound: str


def roofline(usage: CompiledUsage, queries: int, rows: int) -> Roofline | None:
    """The least time the GPU allows: products at its peak, operands moved once. None for top-k."""
    if usage.kernel == "top_k":
        return None
    # the memory's gradient computes its scores again for every tile of the width
    again = -(-usage.width // 128) if usage.kernel == "backward_memory" else 1
    products = {"forward": 2, "backward_queries": 3, "backward_memory": 2 * again + 2}[usage.kernel]
    operations = 2 * products * queries * rows * usage.width
    read = {"forward": 1, "backward_queries": 2, "backward_memory": 2}[usage.kernel]  # q, do
    written = 4 * usage.width * (rows if usage.kernel == "backward_memory" else queries)
    moved = rows * usage.width * (1 if usage.storage == "int8" else 2) + 2 * read * queries * usage.width + written
    gpu = GPUS[usage.generation]
    compute, memory = operations / gpu.teraflops / 1e6, moved / gpu.terabytes / 1e6
    return Roofline(operations, moved, max(compute, memory), "compute" if compute > memory else "memory")


def select(kernel: str | None, generation: int | None, width: int | None, options: str) -> Iterator[CompiledUsage]:
    """Compile and measure the configurations that match."""
    for key in launch_configs.ALL_CONFIGS:
        if kernel in (None, key[0]) and generation in (None, key[2]) and width in (None, key[3]):
            yield measure(key[0], key[1], key[2], key[3], options)


def main() -> int:
    """Print registers, shared memory and roofline of each compiled kernel."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kernel", choices=sorted({key[0] for key in launch_configs.ALL_CONFIGS}))
    parser.add_argument("--generation", type=int, choices=launch_configs.GENERATIONS)
    parser.add_argument("--width", type=int, choices=launch_configs.WIDTHS)
    parser.add_argument("--options", choices=OPTIONS, default="all", help="what is compiled in")
    parser.add_argument("--queries", type=int, default=504, help="of the roofline (batch 6, 14 queries, 6 heads)")
    parser.add_argument("--rows", type=int, default=7014, help="of the roofline")
    parser.add_argument("--csv", type=Path, help="also write the table here")
    options = parser.parse_args()
    print(
        f"Triton {triton.__version__}. Compiled, not timed on a GPU. The roofline is a prediction from published peaks"
    )
    print(f"({', '.join(gpu.name for gpu in GPUS.values())}) for {options.queries} queries, {options.rows} rows.")
    print(
        "| kernel | rows | sm | D | block | regs | stack | spills | smem KiB | tmem | mma/wgmma/tcgen05 | async |",
        end="",
    )
    print(" blocks/SM | GFLOP | MB | ≥ µs | bound | violations |\n|" + "---|" * 18)
    rows, broken = [], False
    for usage in select(options.kernel, options.generation, options.width, options.options):
        model, violations = roofline(usage, options.queries, options.rows), usage.violations()
        broken |= bool(violations)
        cells = (
            usage.kernel, usage.storage, usage.generation, usage.width, usage.block, usage.registers, usage.stack,
            usage.spills, f"{usage.shared / 1024:.0f}", usage.tensor_columns,
            f"{usage.mma}/{usage.wgmma}/{usage.tcgen05}", usage.async_copies, usage.blocks_per_sm,
            *((f"{model.operations / 1e9:.1f}", f"{model.bytes / 1e6:.1f}", f"{model.microseconds:.0f}", model.bound)
              if model else ("", "", "", "")), "; ".join(violations),
        )  # fmt: skip
        print("| " + " | ".join(map(str, cells)) + " |", flush=True)
        rows.append(asdict(usage) | (asdict(model) if model else {}))
    if options.csv:
        with options.csv.open("w", newline="") as file:
            writer = csv.DictWriter(file, max(rows, key=len).keys())
            writer.writeheader()
            writer.writerows(rows)
    return int(broken)


if __name__ == "__main__":
    sys.exit(main())
