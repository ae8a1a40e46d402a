"""``amrg plan [CONFIG] --gpus N``: predict GPU memory, communication, time and the largest micro-batch.

Printed for both stages: memory by part on the fullest GPU, bytes moved per step, time of a step and of the training
on a roofline, and the largest micro-batch; then time and GPU-hours of every step of the pipeline that uses GPUs.
docs/scaling.md explains the figures and compares some of them with measured ones.
"""

import argparse
import json
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from amrg.cli_config import parse_config_arguments
from amrg.config import Config
from amrg.errors import UserError
from amrg.pipeline import artifact_root, step_recipe
from amrg.planning.devices import DEVICES
from amrg.planning.format import format_bytes, format_duration
from amrg.planning.pipeline_estimate import Step, estimate_pipeline
from amrg.planning.stage_estimate import Assumptions, Plan, estimate_stage
from amrg.progress import print_on_rank_0
from amrg.retrieval.communication_cost import NET_RATE

STAGES = ("stage1", "stage2")


def main(arguments: list[str]) -> None:
    """Print the plan of both stages and of the whole chain, or of one stage."""
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")  # peft uses an old name of theirs
    options, rest = _parser().parse_known_args(arguments)
    config = parse_config_arguments(rest, "amrg plan [CONFIG] --gpus N")
    data = step_recipe("prepare", config).path(artifact_root(config))
    given = _assumptions(options, data if data.is_dir() else None)
    console = Console(soft_wrap=True)
    plans: dict[str, Plan] = {}
    for stage in STAGES if options.stage is None else (options.stage,):
        print_on_rank_0(f"tracing {stage} without numbers")
        plans[stage] = estimate_stage(config, stage, given)
        _print(console, config, plans[stage], given)
    content: dict[str, Any] = {stage: _as_json(found) for stage, found in plans.items()}
    if options.stage is None:
        print_on_rank_0("tracing what comes between the stages and after them")
        steps = estimate_pipeline(config, plans, given)
        content["chain"] = [asdict(step) for step in steps]
        console.print(_chain(steps, given))
        console.print("\n".join(f"{step.what}: {step.origin}" for step in steps if step.origin), highlight=False)
    console.print(_assumed(given))
    if options.json:
        _write(options.json, content)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="amrg plan [CONFIG] [--section.key VALUE ...]",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--gpus", type=int, default=1, help="ranks (default 1)")
    parser.add_argument("--device", choices=DEVICES, default="h100", help="whose datasheet peaks (default h100)")
    parser.add_argument("--gpu-memory", type=float, help="GB of one GPU, 1 GB = 1e9 bytes (default: the device's)")
    parser.add_argument("--stage", choices=STAGES, help="only this one (default: both, and the whole chain)")
    parser.add_argument(
        "--studies", type=int, help="of the train split (default: as prepared, configured or published)"
    )
    parser.add_argument("--held-out", type=int, help="studies that reports are written for (default: likewise)")
    parser.add_argument("--efficiency", type=float, default=0.4, help="share of peak arithmetic reached (default 0.4)")
    parser.add_argument("--bandwidth", type=float, default=0.8, help="share of all bandwidths reached (default 0.8)")
    parser.add_argument("--json", type=Path, help="write all figures, in bytes and seconds, to this file too")
    return parser


def _assumptions(options: argparse.Namespace, data: Path | None) -> Assumptions:
    for name in ("gpus", "gpu_memory", "studies", "held_out"):
        value = getattr(options, name)
        if value is not None and value <= 0:
            raise UserError(f"--{name.replace('_', '-')} {value}: more than 0 is needed")
    for name in ("efficiency", "bandwidth"):
        if not 0 < getattr(options, name) <= 1:
            raise UserError(f"--{name} {getattr(options, name)}: a share of the peak, above 0 and at most 1")
    device = DEVICES[options.device]
    memory = device.memory if options.gpu_memory is None else options.gpu_memory * 1e9
    return Assumptions(
        options.gpus, device, memory, options.efficiency, options.bandwidth, studies=options.studies,
        held_out=options.held_out, data=data,
    )  # fmt: skip


def _print(console: Console, config: Config, found: Plan, given: Assumptions) -> None:
    settings, zero = getattr(config, found.section), found.zero
    trained, weights = found.weights.trainable / 1e6, found.weights.total / 1e6
    console.print(
        f"\n{found.section} of {config.name} on {given.machines}, ZeRO {zero.stage} "
        f"({settings.ds_config}): {trained:,.1f} of {weights:,.1f} million weights are trained",
        highlight=False,
    )
    console.print(_memory(found, given))
    console.print(_step(found))
    console.print("\n".join(_lines(config, found, given)), highlight=False)


def _memory(found: Plan, given: Assumptions) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("memory of a GPU", no_wrap=True)
    table.add_column("GPU", justify="right")
    table.add_column("host", justify="right")
    for name, part in found.parts.items():
        table.add_row(name, format_bytes(part.device), format_bytes(part.host) if part.host else "")
    table.add_row(
        f"together, of {format_bytes(given.memory)}",
        format_bytes(found.device_bytes),
        format_bytes(found.host_bytes) if found.host_bytes else "",
    )
    return table


def _step(found: Plan) -> Table:
    moved, spent = found.moved, found.seconds
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("a step of a GPU", no_wrap=True)
    table.add_column("moved", justify="right")
    table.add_column("time", justify="right")
    rows = (
        ("arithmetic", None, spent.arithmetic),
        ("its own memory (beside the arithmetic)", moved.memory, spent.memory),
        ("gradients and weights between GPUs", moved.gradients + moved.weights, spent.communication),
        ("queries to the banks, or their rows", moved.banks_near + moved.banks_far, spent.banks),
        ("to and from the host", moved.host, spent.host),
    )
    for name, count, seconds in rows:
        table.add_row(name, "" if count is None else format_bytes(count), format_duration(seconds))
    table.add_row("together", "", format_duration(spent.step))
    return table


def _lines(config: Config, found: Plan, given: Assumptions) -> list[str]:
    settings, zero = getattr(config, found.section), found.zero
    fits = found.device_bytes <= given.memory
    lines = [
        f"batch {settings.batch_size} = {zero.micro} a GPU × {zero.accumulation} accumulated × {given.gpus} GPUs: "
        + ("fits" if fits else "DOES NOT FIT"),
        f"largest micro-batch: {found.largest}"
        if found.largest
        else "no micro-batch fits: more GPUs, a higher ZeRO stage, offloading, or activation_checkpointing",
        f"{found.size.studies:,} studies ({found.size.origin}), {found.steps:,} steps an epoch, {found.epochs} epochs: "
        f"{format_duration(found.total_seconds)}, {found.total_seconds * given.gpus / 3600:,.1f} GPU-hours",
    ]
    if found.kv_cache:
        count, sequences = found.kv_cache
        lines.append(f"KV cache when reports are written: {format_bytes(count)} for {sequences} sequences of a GPU")
    if found.banks.strategies:
        lines.append(f"how the ranks hold each bank: {', '.join(found.banks.strategies)}")
    return lines + [f"taken as given: {what}" for what in found.assumed]


def _chain(steps: list[Step], given: Assumptions) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("the whole chain", no_wrap=True)
    table.add_column(f"on {given.machines}")
    table.add_column("time", justify="right", no_wrap=True)
    table.add_column("GPU-hours", justify="right", no_wrap=True)
    for step in steps:
        cells = ("not known", "") if step.seconds is None else (format_duration(step.seconds), f"{step.gpu_hours:,.2f}")
        table.add_row(step.verb, step.what, *cells)
    seconds, hours = (sum(getattr(step, name) or 0.0 for step in steps) for name in ("seconds", "gpu_hours"))
    table.add_row("together", "", format_duration(seconds), f"{hours:,.2f}")
    return table


def _assumed(given: Assumptions) -> str:
    return (
        f"\nAll of it is predicted. Assumed: {given.efficiency:.0%} of the peak arithmetic, {given.bandwidth:.0%} "
        f"of all bandwidths, {format_bytes(NET_RATE)}/s a GPU between nodes, reports at their greatest length, "
        f"{given.reserve:.0%} of the memory held back. Not in the time: reading films, validation, checkpoints, the "
        "report bank, metrics."
    )


def _as_json(found: Plan) -> dict[str, Any]:
    """All figures but the sizes of single weights."""
    content = {name: value for name, value in asdict(found).items() if name != "weights"}
    return content | {
        "trained": found.weights.trainable, "weights": found.weights.total, "step_seconds": found.seconds.step,
        "total_seconds": found.total_seconds, "device_bytes": found.device_bytes, "host_bytes": found.host_bytes,
    }  # fmt: skip


def _write(path: Path, content: dict[str, Any]) -> None:
    try:
        path.write_text(json.dumps(content, indent=2) + "\n")
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from None
