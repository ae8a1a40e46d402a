"""Every shipped launch, compiled for every card with each supported version of Triton; no GPU is needed.

    python -m benchmarks.triton_versions [3.5 3.6 ...] [--folder FOLDER]

Each version is installed from the package registry into a folder of its own, beside this environment, whose torch it
is used with. ``benchmarks.hopfield_compiled`` then compiles every launch with every option in a process of its own.

Prints what the launches of each version and card need at most. Exits with 1 if a launch does not compile, does not
fit, or spills registers where it must not.
"""

import argparse
import csv
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from triton import knobs

from amrg.cli import run_command_line
from amrg.errors import UserError
from amrg.kernels.hopfield.launch_configs import CARDS
from amrg.kernels.hopfield.triton_backend import TRITON_VERSION

#: Minor versions of Triton that ``amrg[gpu]`` admits, to the newest that was there to try.
VERSIONS = ("3.5", "3.6", "3.7", "3.8", "3.9")
#: Programs that read machine code, by the variable that chooses them.
TOOLS = {"TRITON_CUOBJDUMP_PATH": "cuobjdump", "TRITON_NVDISASM_PATH": "nvdisasm"}
COLUMNS = ("Triton", "sm", "launches", "most regs", "most smem KiB", "of", "that spill", "most spills", "violations")
_ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class CardSummary:
    """What the launches of one card need at most with one version of Triton."""

    triton: str
    card: int  # compute capability, 90 for sm_90
    launches: int
    registers: int
    shared: int  # bytes
    spilling: int  # launches with local loads and stores
    spills: int
    violations: tuple[str, ...]  # with the kernel's name

    def cells(self) -> tuple[object, ...]:
        """Return the row of the table."""
        return (
            self.triton, self.card, self.launches, self.registers, f"{self.shared / 1024:.0f}",
            f"{CARDS[self.card].shared_block // 1024}", self.spilling, self.spills, "; ".join(self.violations),
        )  # fmt: skip


def summarize(triton: str, rows: Sequence[dict[str, str]]) -> list[CardSummary]:
    """Return one summary of each card, from the rows that ``hopfield_compiled --csv`` writes."""
    found = []
    for card in CARDS:
        own = [row for row in rows if int(row["card"]) == card]
        spills = [int(row["spills"]) for row in own]
        faults = tuple(
            f"{row['kernel']} {row['storage']} {row['width']}: {row['violations']}" for row in own if row["violations"]
        )
        registers, shared = (max((int(row[name]) for row in own), default=0) for name in ("registers", "shared"))
        found.append(
            CardSummary(
                triton, card, len(own), registers, shared, sum(map(bool, spills)), max(spills, default=0), faults
            )
        )
    return found


def compile_all(version: str, folder: Path) -> list[CardSummary]:
    """Install a minor version of Triton into a folder and compile every launch with it.

    Args:
        version: such as ``3.5``; its newest patch is taken.
        folder: receives the package, Triton's cache and the table; what is there is used again.

    Raises:
        UserError: the version cannot be installed, or the compiling process fails altogether.
    """
    package, table = folder / version / "package", folder / version / "launches.csv"
    if not package.is_dir():
        partial = package.with_name("partial")
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(partial)]
        done = subprocess.run([*command, f"triton=={version}.*"], capture_output=True, text=True)
        if done.returncode:
            raise UserError(f"triton {version} cannot be installed: {_last_line(done.stderr)}")
        partial.rename(package)
    paths = [str(package), str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "TRITON_CACHE_DIR": str(package.parent / "cache")}
    if tuple(map(int, version.split(".")[:2])) < TRITON_VERSION:  # whose disassembler knows fewer cards than its ptxas
        environment |= {name: getattr(knobs.nvidia, tool).path for name, tool in TOOLS.items()}
    table.unlink(missing_ok=True)
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.hopfield_compiled", "--csv", str(table)],
        cwd=_ROOT, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    if not table.exists():
        raise UserError(f"triton {version} compiles nothing: {_last_line(done.stderr)}")
    used = done.stdout.split(". ", 1)[0].removeprefix("Triton ")
    with table.open(newline="") as file:
        return summarize(used, list(csv.DictReader(file)))


def _last_line(text: str) -> str:
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "no message")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("versions", nargs="*", default=VERSIONS, help="minor versions of Triton")
    parser.add_argument("--folder", type=Path, help="keeps packages (0.5 GB each) and what was compiled")
    options = parser.parse_args()
    print("Compiled, not timed on a GPU.")
    print("| " + " | ".join(COLUMNS) + " |\n|" + "---|" * len(COLUMNS), flush=True)
    broken = False
    with nullcontext(options.folder) if options.folder else tempfile.TemporaryDirectory() as folder:
        for version in options.versions:
            for summary in compile_all(version, Path(folder)):
                broken |= bool(summary.violations)
                print("| " + " | ".join(map(str, summary.cells())) + " |", flush=True)
    sys.exit(int(broken))


if __name__ == "__main__":
    run_command_line(main)
