"""What every shipped kernel compiles to on each card, read from the cubin; no GPU is needed.

    python -m benchmarks.hopfield_compiled [--kernel forward] [--card 90] [--width 768] [--options none]

Exits with 1 if a configuration does not compile or breaks a promise: registers spilled, too much shared memory, and
for the fused kernels no tensor-core instructions (wgmma on sm_90) or no asynchronous copies.
``benchmarks.triton_versions`` does the same with other versions of Triton.
"""

import argparse
import csv
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path

import triton
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from amrg.kernels.hopfield import launch_configs, triton_kernels
from amrg.kernels.hopfield.triton_backend import TRITON_VERSION
from amrg.kernels.hopfield.two_products import COLUMNS, NUM_WARPS

OPTIONS = {
    "all": {"GROUPED": True, "DROPOUT": True, "ENTROPY": True},
    "mask": {"GROUPED": True, "DROPOUT": False, "ENTROPY": False},  # as in generation
    "none": {"GROUPED": False, "DROPOUT": False, "ENTROPY": False},
}
#: Constants of the kernels between two products, with every option.
BETWEEN = {
    "softmax_tile": {"BN": COLUMNS["softmax_tile"], **OPTIONS["all"]},
    "score_gradient": {"BN": COLUMNS["score_gradient"], **OPTIONS["all"], "MEMORY": True},
}
TYPES = dict.fromkeys(("q", "do", "p", "ds", "w"), "*bf16") | dict.fromkeys(("q_group", "z_group", "seed"), "*i64")
TYPES |= dict.fromkeys(("z_scale", "o", "lse", "mass", "entropy", "delta", "dmass", "dq", "dz"), "*fp32")
TYPES |= dict.fromkeys(("s", "dp", "m_i", "l_i", "w_i", "ps_i", "alpha"), "*fp32") | {"rescale": "fp32"}
TYPES |= dict.fromkeys(("M", "N", "rows_per_split", "threshold", "first_m", "first_n", "width"), "i32")


TENSOR_COLUMNS = 512  # of a multiprocessor of Blackwell
MAY_SPILL = (120,)  # neither wgmma nor tcgen05: it takes Ampere's configurations, and some spill a few registers
REGISTERS, THREADS, BLOCKS = 65536, 2048, 32  # of one multiprocessor of sm_80; other cards have no more


@dataclass(frozen=True)
class CompiledUsage:
    """One compiled configuration."""

    kernel: str
    storage: str
    card: int  # compute capability, 90 for sm_90
    width: int  # 0 for a kernel between two products
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
    error: str = ""  # of the compiler

    def violations(self) -> list[str]:
        """The promises this configuration breaks; empty if none."""
        if self.error:
            return [f"does not compile: {self.error}"]
        card = launch_configs.CARDS[self.card]
        tensor = {80: self.mma, 90: self.wgmma, 100: self.tcgen05}[card.generation]
        fused = self.kernel not in BETWEEN
        checks = {
            "registers spill to local memory": (self.spills == 0 and self.stack == 0) or self.card in MAY_SPILL,
            f"more than {card.shared_block} bytes of shared memory": self.shared <= card.shared_block,
            f"more than {TENSOR_COLUMNS} columns of tensor memory": self.tensor_columns <= TENSOR_COLUMNS,
            "no tensor-core instructions of its generation": tensor > 0 or not fused,
            "no asynchronous copies": self.async_copies > 0 or not fused,
        }
        return [violation for violation, holds in checks.items() if not holds]


def _tool(program: str, cubin: bytes, *options: str) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return subprocess.run([program, *options, file.name], capture_output=True, text=True, check=True).stdout


def measure(kernel: str, storage: str, card: int, width: int, options: str = "all") -> CompiledUsage:
    """Compile the configuration that a card takes, with one of ``OPTIONS``, and read its cubin."""
    launch = launch_configs.launch_config(kernel, storage, launch_configs.CARDS[card].generation, width)
    constants = {"PRECISION": "ieee", "INT8": storage == "int8", "D": width, **OPTIONS[options], **launch.constants()}
    found = compile_kernel(kernel, card, constants, **launch.options())
    return replace(found, width=width, block=f"{launch.BM}×{launch.BN}×{launch.BD}")


def measure_between(kernel: str, storage: str, card: int) -> CompiledUsage:
    """Compile a kernel between two products with every option, and read its cubin."""
    found = compile_kernel(kernel, card, {"INT8": storage == "int8", **BETWEEN[kernel]}, NUM_WARPS[kernel])
    return replace(found, block=f"1×{COLUMNS[kernel]}")


def compile_kernel(
    kernel: str, card: int, constants: Mapping[str, object], num_warps: int, num_stages: int = 2
) -> CompiledUsage:
    """Compile a kernel with these compile-time arguments and read its cubin."""
    function = getattr(triton_kernels, f"{kernel}_kernel")
    types = TYPES | {"z": "*i8" if constants["INT8"] else "*bf16"}
    names = function.arg_names
    pointers = [i for i, name in enumerate(names) if types.get(name, "").startswith("*")]
    source = ASTSource(
        fn=function,
        signature={name: types.get(name, "constexpr") for name in names},
        constexprs={(i,): constants[name] for i, name in enumerate(names) if name not in types},
        attrs={(i,): [["tt.divisibility", 16]] for i in pointers},  # as torch allocates them
    )
    compiled = triton.compile(
        source, target=GPUTarget("cuda", card, 32),
        options={"num_warps": num_warps, "num_stages": num_stages, "enable_fp_fusion": True},
    )  # fmt: skip
    cubin = compiled.asm["cubin"]
    usage = _tool(knobs.nvidia.cuobjdump.path, cubin, "--dump-resource-usage")
    assembly = _tool(knobs.nvidia.nvdisasm.path, cubin, "-c", "-ndf")
    registers, stack = (int(re.search(rf"{name}:(\d+)", usage)[1]) for name in ("REG", "STACK"))  # type: ignore[index]

    def count(pattern: str) -> int:
        return len(re.findall(rf"\b{pattern}\b", assembly))

    threads, shared = 32 * num_warps, compiled.metadata.shared
    fitting = (
        (launch_configs.CARDS[card].shared_block + 1024) // (shared + 1024),  # a block's own kilobyte
        REGISTERS // (-(-registers // 8) * 8 * threads), THREADS // threads, BLOCKS,
    )  # fmt: skip
    return CompiledUsage(
        kernel, "int8" if constants["INT8"] else "half", card, 0, "", num_warps, registers, stack,
        count("(?:LDL|STL)"), shared, getattr(compiled.metadata, "tmem_size", 0) or 0, count("HMMA"), count("HGMMA"),
        count(r"UTC\w*MMA"), count("(?:LDGSTS|UTMALDG)"), min(fitting),
    )  # fmt: skip


def l2_intensity(usage: CompiledUsage) -> float:
    """Operations for each byte that a block reads from the second-level cache, in one step of its inner loop.

    Times the cache's bandwidth it bounds the speed, whatever else overlaps (``docs/kernels.md``).
    """
    launch = launch_configs.launch_config(
        usage.kernel, usage.storage, launch_configs.CARDS[usage.card].generation, usage.width
    )
    BM, BN, D, BD = launch.BM, launch.BN, usage.width, launch.BD
    memory = BN * D * (1 if usage.storage == "int8" else 2)
    if usage.kernel == "backward_memory":  # the rows stay, q and do stream past; scores again for each tile of D
        return (2 * D + 2 * BD) * 2 * BM * BN / (memory + 2 * BM * (2 * D + 2 * BD))
    products, operands = {"forward": (2, 1), "backward_queries": (3, 2)}[usage.kernel]
    reloaded = operands * BM * D * 2 if launch.RELOAD_Q else 0
    return products * 2 * BM * BN * D / (memory + reloaded)


def select(kernel: str | None, card: int | None, width: int | None, options: str) -> Iterator[CompiledUsage]:
    """Compile and measure the configurations that match, on every card whose Triton compiles them."""
    for name, storage, number, dim in launch_configs.ALL_CONFIGS:
        chosen = kernel in (None, name) and card in (None, number) and width in (None, dim)
        if chosen and launch_configs.MIN_TRITON[launch_configs.CARDS[number].generation] <= TRITON_VERSION:
            yield _attempt(partial(measure, name, storage, number, dim, options), name, storage, number, dim)
    for name, storage, number in product(BETWEEN, ("half", "int8"), launch_configs.CARDS):
        chosen = kernel in (None, name) and card in (None, number) and width is None
        if chosen and launch_configs.compiles_for(number, TRITON_VERSION):
            yield _attempt(partial(measure_between, name, storage, number), name, storage, number, 0)


def _attempt(compiled: Callable[[], CompiledUsage], kernel: str, storage: str, card: int, width: int) -> CompiledUsage:
    """Measure a configuration; what a compiler raises becomes a usage with its error."""
    try:
        return compiled()
    except Exception as error:  # versions of Triton and ptxas raise whatever they like
        named = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        return CompiledUsage(kernel, storage, card, width, "", 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, named)


def main() -> int:
    """Print registers, shared memory and intensity of each compiled kernel."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kernel", choices=sorted({*(key[0] for key in launch_configs.ALL_CONFIGS), *BETWEEN}))
    parser.add_argument("--card", type=int, choices=launch_configs.CARDS, help="compute capability, 90 for sm_90")
    parser.add_argument("--width", type=int, choices=launch_configs.WIDTHS)
    parser.add_argument("--options", choices=OPTIONS, default="all", help="what is compiled in")
    parser.add_argument("--csv", type=Path, help="also write the table here")
    options = parser.parse_args()
    print(f"Triton {triton.__version__}. Compiled, not timed on a GPU.")
    print(
        "| kernel | rows | sm | D | block | regs | stack | spills | smem KiB | tmem | mma/wgmma/tcgen05 | async |",
        end="",
    )
    print(" blocks/SM | FLOP/B of L2 | violations |\n|" + "---|" * 15)
    rows, broken = [], False
    for usage in select(options.kernel, options.card, options.width, options.options):
        violations = usage.violations()
        broken |= bool(violations)
        intensity = l2_intensity(usage) if usage.width else None
        cells = (
            usage.kernel, usage.storage, usage.card, usage.width, usage.block, usage.registers, usage.stack,
            usage.spills, f"{usage.shared / 1024:.0f}", usage.tensor_columns,
            f"{usage.mma}/{usage.wgmma}/{usage.tcgen05}", usage.async_copies, usage.blocks_per_sm,
            "" if intensity is None else f"{intensity:.0f}", "; ".join(violations),
        )  # fmt: skip
        print("| " + " | ".join(map(str, cells)) + " |", flush=True)
        rows.append(asdict(usage) | {"l2_intensity": intensity, "violations": "; ".join(violations)})
    if options.csv:
        with options.csv.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0].keys())
            writer.writeheader()
            writer.writerows(rows)
    return int(broken)


if __name__ == "__main__":
    sys.exit(main())
