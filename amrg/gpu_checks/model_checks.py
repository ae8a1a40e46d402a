"""Checks of the memory module beside the CPU, and of the whole chain in processes of its own."""

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from amrg.banks.bank import normalise_rows
from amrg.gpu_checks.kernel_checks import GRADIENT_TOLERANCE
from amrg.gpu_checks.result import StageResult
from amrg.kernels import quantize_rows
from amrg.models.hopfield import HopfieldMemory
from amrg.models.memory_layer import LocalBank
from amrg.retrieval.indexed_bank import IndexedBank, search_faults

#: A demo that takes a GPU seconds; its banks are those that the kernels read.
_SMALL = [
    *("--data.train_studies", "64", "--data.val_studies", "16", "--data.test_studies", "16"),
    *("--data.renders_per_study", "1", "--stage1.epochs", "1", "--stage2.epochs", "1", "--banks.dtype", "bfloat16"),
    *("--generate.max_new_tokens", "24", "--evaluate.meteor", "false"),
]
_MOST_SECONDS = 300  # of one command


def check_modules(device: torch.device) -> StageResult:
    """Compare output and gradients of the memory under bfloat16 autocast with the CPU's, for every kind of bank."""
    torch.manual_seed(0)
    rows, group = normalise_rows(torch.randn(900, 64)), torch.randint(-1, 4, (900,))
    small = quantize_rows(rows)
    banks: dict[str, Callable[[], Any]] = {
        "float32": lambda: LocalBank(rows, None, group),
        "bfloat16": lambda: LocalBank(rows.bfloat16(), None, group),
        "int8": lambda: LocalBank(small[0], small[1], group),
    }
    if not search_faults("ivf"):
        banks["ivf"] = lambda: IndexedBank(rows, group=group, exact_below=10, candidates=64)
    found: dict[str, Any] = {}
    for name, build in banks.items():
        try:
            cpu, other = (_module_results(build(), where) for where in (torch.device("cpu"), device))
            found[name] = max(
                float((a - b).norm() / a.norm().clamp_min(1e-6)) for a, b in zip(cpu, other, strict=True)
            )  # fmt: skip
        except Exception as error:  # what a device raises is what the check is for
            found[name] = f"{type(error).__name__}: {str(error)[:200]}"
    wrong = [
        f"{name} bank: {value}" for name, value in found.items() if isinstance(value, str) or value > GRADIENT_TOLERANCE
    ]
    summary = ", ".join(
        f"{name} {value if isinstance(value, str) else format(value, '.1e')}" for name, value in found.items()
    )
    return StageResult(f"differs from the CPU by: {summary}", [found], wrong)


def _module_results(bank: Any, device: torch.device) -> list[Tensor]:
    """Output and all gradients of one forward and backward, on the CPU; then the metrics are read."""
    torch.manual_seed(1)
    memory = HopfieldMemory(64, 64, 64, heads=2, head_dim=32, dropout=0.1, update_steps=2).train()
    x = torch.randn(4, 14, 64)
    memory.set_bank(bank)
    memory.to(device)
    torch.manual_seed(2)  # dropout's seed
    with torch.autocast(device.type, torch.bfloat16):
        y = memory(x.to(device), query_group=torch.arange(4, device=device))
    y.float().square().sum().backward()
    memory.metrics()
    grads = [p.grad for p in memory.parameters() if p.grad is not None]
    return [y.detach().float().cpu(), *(grad.float().cpu() for grad in grads)]


def check_pipeline(device: torch.device, seconds_left: Callable[[], float]) -> StageResult:
    """Run a small demo to its scores, then stage 2 with every ZeRO stage, dtype and exchange.

    Without a GPU the commands only check their inputs (``--dry-run``).
    """
    amrg = [sys.executable, "-m", "amrg.cli"]
    runs = [
        ("chain", [*amrg, "run", "demo"]),
        *((f"{name}, {dtype}", [*amrg, "stage2", "demo", "--stage2.ds_config", name, "--stage2.dtype", dtype])
          for name, dtype in (
              ("zero0.json", "bfloat16"), ("zero1.json", "float16"), ("zero2.json", "bfloat16"),
              ("zero2.json", "float16"), ("zero3.json", "bfloat16"), ("zero3_offload.json", "bfloat16"),
          )),
    ]  # fmt: skip
    if device.type == "cuda" and torch.cuda.device_count() > 1:
        runs += [
            (f"two GPUs, {strategy}", [
                *("torchrun", "--nproc-per-node", "2", "-m", "amrg.cli", "stage2", "demo"),
                *("--sharding.strategy", strategy),
            ])
            for strategy in ("gather", "ring")
        ]  # fmt: skip
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for number, (name, command) in enumerate(runs if device.type == "cuda" else runs[:1]):
            limit = min(seconds_left(), _MOST_SECONDS)
            if limit <= 0:
                rows.append({"run": name, "skipped": "no time left"})
                continue
            # how a step is computed is no part of its identity: another learning rate makes it train again
            options = ["--runs", folder, *_SMALL, "--stage2.lr", f"{1e-3 + number * 1e-5:g}"]
            dry_run = [] if device.type == "cuda" else ["--dry-run"]
            rows.append({"run": name} | _outcome([*command, *options, *dry_run], limit))
    failures = [f"{row['run']}: {row['message']}" for row in rows if "message" in row]
    skipped = sum("skipped" in row for row in rows)
    summary = f"{len(rows) - len(failures) - skipped} of {len(rows)} runs ended well"
    return StageResult(summary + (f", {skipped} skipped" if skipped else ""), rows, failures)


def _outcome(command: list[str], limit: float) -> dict[str, Any]:
    """Seconds of a command, and the end of what it printed if it failed."""
    start = time.monotonic()
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit, check=False)
    except subprocess.TimeoutExpired:
        return {"seconds": limit, "message": f"took longer than {limit:.0f} s"}
    outcome: dict[str, Any] = {"seconds": round(time.monotonic() - start, 1)}
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines()
        outcome["message"] = lines[-1] if lines else f"exit code {done.returncode}"
    return outcome
