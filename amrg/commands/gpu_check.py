"""``amrg gpu-check``: check that everything works on this machine's GPU, and how fast it is (docs/gpu.md)."""

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from amrg.artifacts import atomic_path
from amrg.errors import UserError
from amrg.gpu_checks import kernel_checks, model_checks
from amrg.gpu_checks.result import StageResult
from amrg.progress import print_on_rank_0

STAGES = ("environment", "kernels", "random_bits", "speed", "modules", "chain")


def main(arguments: list[str]) -> None:
    """Run the stages and print a table; the JSON file is rewritten after each; exit code 1 if one fails."""
    parser = argparse.ArgumentParser(prog="amrg gpu-check", description=__doc__)
    parser.add_argument("--seconds", type=float, default=480, help="start no stage after this time (default 480)")
    parser.add_argument("--out", type=Path, default=Path("gpu-check.json"), help="results (default gpu-check.json)")
    parser.add_argument("--stage", nargs="+", choices=STAGES, default=STAGES, help="only these stages")
    parser.add_argument("--dry-run", action="store_true", help="small sizes on the CPU: shows that the check works")
    options = parser.parse_args(arguments)
    if not (torch.cuda.is_available() or options.dry_run):
        raise UserError("no GPU that this torch can use: see `nvidia-smi`, or try the check itself with --dry-run")
    device = torch.device("cpu" if options.dry_run else "cuda")
    deadline = time.monotonic() + options.seconds
    checks: dict[str, Callable[[], StageResult]] = {
        "environment": partial(kernel_checks.check_environment, device),
        "kernels": partial(kernel_checks.check_kernels, device),
        "random_bits": partial(kernel_checks.check_random_bits, device),
        "speed": partial(kernel_checks.check_forward_speed, device),
        "modules": partial(model_checks.check_modules, device),
        "chain": partial(model_checks.check_pipeline, device, lambda: deadline - time.monotonic()),
    }
    results: dict[str, dict[str, Any]] = {}
    for name in STAGES:
        if name not in options.stage:
            continue
        if time.monotonic() > deadline:
            results[name] = asdict(StageResult("no time left")) | {"seconds": 0.0, "skipped": True}
        else:
            print_on_rank_0(f"{name} …")
            results[name] = _timed(checks[name])
        _save(options.out, results)
    _show(results)
    if any(result["failures"] for result in results.values()):
        sys.exit(1)


def _timed(check: Callable[[], StageResult]) -> dict[str, Any]:
    start = time.monotonic()
    try:
        result = check()
    except Exception as error:  # one stage that breaks must not hide what the others find
        message = f"{type(error).__name__}: {str(error)[:300]}"
        result = StageResult(message, failures=[message])
    return asdict(result) | {"seconds": round(time.monotonic() - start, 1)}


def _save(path: Path, results: dict[str, dict[str, Any]]) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(results, indent=1) + "\n")


def _show(results: dict[str, dict[str, Any]]) -> None:
    table = Table("", "stage", "s", "found")
    for name, result in results.items():
        mark = "–" if result.get("skipped") else "✗" if result["failures"] else "✓"
        found = "\n".join([result["summary"], *result["failures"][:5]])
        table.add_row(mark, name, f"{result['seconds']:.0f}", found, style="red" if result["failures"] else "")
    Console(soft_wrap=not sys.stdout.isatty()).print(table)
