"""``amrg simulate [CONFIG]``: predict throughput, bottleneck and cost of failures for 1 to 4,096 workers.

A discrete-event model of readers, workers, exchange and checkpoints, on rates that ``--measure`` takes from real
training on this machine. Figures for more than two workers are predictions (docs/scaling.md).
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from amrg import pipeline
from amrg.artifacts import atomic_path
from amrg.cli_config import parse_config_arguments
from amrg.config import Config
from amrg.errors import UserError
from amrg.planning.devices import DEVICES
from amrg.planning.format import format_duration
from amrg.planning.measured_rates import MeasuredRates, measure_rates
from amrg.planning.scaling import Point, clusters_like_measured, clusters_on_gpus, predict_two_workers, scaling_curve
from amrg.planning.simulation import PARTS, SimulatedCluster
from amrg.planning.stage_estimate import Assumptions

_WIDTH = 120  # the table is not to be cut

RATES = "rates.json"  # beside the artefacts of a configuration


def main(arguments: list[str]) -> None:
    """Measure (--measure), simulate, print a table, and draw it (--plot)."""
    options, rest = _parser().parse_known_args(arguments)
    config = parse_config_arguments(rest, "amrg simulate [CONFIG]")
    _check(options)
    path = options.rates or pipeline.artifact_root(config) / RATES
    if options.measure:
        _measure(config, path, options)
    rates = MeasuredRates.load(path)
    observed = rates.observed if options.device is None else {}
    if options.device is None:
        what = "workers like one process of the measured machine"
        clusters = clusters_like_measured(rates, config, options.restart)
    else:
        device = DEVICES[options.device]
        what = f"{device.name}, peaks as amrg plan takes them"
        given = Assumptions(1, device, device.memory, options.efficiency, options.bandwidth)
        clusters = clusters_on_gpus(
            rates, config, given, options.micro or rates.samples, options.noise, options.storage * 1e9, options.restart
        )
    points = scaling_curve(clusters, options.failure_hours or None, options.seed)
    title = f"stage 2 of {config.name}, {clusters[0].samples} studies a worker and step, {what}"
    console = Console(soft_wrap=True, width=_WIDTH)
    console.print(_table(title, points, observed))
    notes = _notes(points, options) + (_compared(rates, clusters[1]) if observed else [])
    console.print("\n".join(notes), highlight=False)
    if options.plot:
        _draw(options.plot, title, points, observed)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="amrg simulate [CONFIG] [--section.key VALUE ...]",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--measure", action="store_true", help="take the rates of this machine first; goes on if stopped"
    )
    parser.add_argument("--steps", type=int, default=20, help="timed steps of --measure (default 20)")
    parser.add_argument("--micro", type=int, help="studies of a worker and step (default: as measured; --measure: 8)")
    parser.add_argument("--rates", type=Path, help=f"file of the rates (default: {RATES} beside the artefacts)")
    parser.add_argument("--device", choices=DEVICES, help="workers are such GPUs (default: like this machine's)")
    parser.add_argument("--efficiency", type=float, default=0.4, help="share of a GPU's peak arithmetic (default 0.4)")
    parser.add_argument("--bandwidth", type=float, default=0.8, help="share of a GPU's bandwidths (default 0.8)")
    parser.add_argument("--noise", type=float, default=0.02, help="spread of a GPU's times, relative (default 0.02)")
    parser.add_argument("--storage", type=float, default=1.0, help="GB/s at which GPUs' checkpoints are written")
    parser.add_argument(
        "--failure-hours",
        type=float,
        default=50_000,
        help="mean hours between two failures of a worker, 0 for none; default 50,000, about what Llama 3's training "
        "met (419 interruptions in 54 days of 16,384 GPUs, arXiv:2407.21783)",
    )
    parser.add_argument("--restart", type=float, default=300, help="seconds from a failure to the next step")
    parser.add_argument("--seed", type=int, default=0, help="of noise and failures")
    parser.add_argument("--plot", type=Path, help="draw it, as PNG or SVG")
    return parser


def _check(options: argparse.Namespace) -> None:
    for name in ("steps", "micro", "storage"):
        value = getattr(options, name)
        if value is not None and value <= 0:
            raise UserError(f"--{name} {value}: more than 0 is needed")
    for name in ("failure_hours", "restart", "noise"):
        if getattr(options, name) < 0:
            raise UserError(f"--{name.replace('_', '-')} {getattr(options, name)}: at least 0 is needed")
    for name in ("efficiency", "bandwidth"):
        if not 0 < getattr(options, name) <= 1:
            raise UserError(f"--{name} {getattr(options, name)}: a share of the peak, above 0 and at most 1")


def _measure(config: Config, path: Path, options: argparse.Namespace) -> None:
    inputs = {kind: artefact.path for kind, artefact in pipeline.step_recipe("stage2", config).inputs.items()}
    kept = path.with_name(f"{path.name}.partial")
    found = measure_rates(config, inputs, options.micro or 8, options.steps, kept)
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(asdict(found), indent=2) + "\n")
    kept.unlink()


def _table(title: str, points: Sequence[Point], observed: dict[str, float]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=title, title_justify="left")
    for name in ("workers", "samples/s", "measured", "of linear", *PARTS[:-1], "with failures"):
        table.add_column(name, justify="right")
    for point in points:
        workers, steady = point.cluster.workers, point.steady
        measured = observed.get(str(workers))
        table.add_row(
            f"{workers:,}",
            f"{steady.rate:,.1f}",
            "" if measured is None else f"{measured:,.1f}",
            f"{steady.rate / workers / points[0].steady.rate:.0%}",
            *(f"{round(steady.spent[part] / steady.seconds, 4) + 0.0:.0%}" for part in PARTS[:-1]),
            f"{point.goodput_share:.1%}",
        )
    return table


def _compared(rates: MeasuredRates, two: SimulatedCluster) -> list[str]:
    """Compare predicted and measured throughput of two workers, which contend for the machine."""
    crowded = predict_two_workers(rates, two)
    return [
        f"on the measured machine two processes that do not talk are {rates.contention:.2f} times as slow as "
        f"one alone: for two workers of it {crowded:,.1f} samples/s are predicted, "
        f"{rates.observed['2']:,.1f} were measured"
    ]


def _notes(points: Sequence[Point], options: argparse.Namespace) -> list[str]:
    last = points[-1]
    lost = {part: last.steady.spent[part] for part in PARTS if part != "compute"}
    summary = (
        f"{last.cluster.workers:,} workers lose most of their time to {max(lost, key=lambda part: lost[part])}; "
        f"checkpoints every {last.cluster.checkpoint_interval} steps, "
        f"{format_duration(last.cluster.copy)} of waiting each"
    )
    failing = (
        f"a worker fails every {options.failure_hours:,.0f} hours, which costs {format_duration(options.restart)} "
        "and the steps since the last checkpoint"
        if options.failure_hours
        else "nothing fails"
    )
    return [summary, failing, "All is predicted but the column `measured` and the rate of reading."]


def _draw(path: Path, title: str, points: Sequence[Point], observed: dict[str, float]) -> None:
    """Throughput, and where the time goes, over the number of workers."""
    try:
        import matplotlib
    except ImportError:
        raise UserError("--plot needs matplotlib: pip install 'amrg[viewer]'") from None
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    sizes = [point.cluster.workers for point in points]
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    left.plot(sizes, [points[0].steady.rate * size for size in sizes], "--", color="grey", label="linear")
    left.plot(sizes, [point.steady.rate for point in points], "o-", label="predicted")
    left.plot(
        sizes, [point.steady.rate * point.goodput_share for point in points], "s:", label="predicted, with failures"
    )
    if observed:
        left.plot([1, 2], [observed["1"], observed["2"]], "k*", markersize=10, label="measured, on one machine")
    left.set(xscale="log", yscale="log", xlabel="workers", ylabel="samples a second")
    left.legend()
    shares: list[Any] = [[point.steady.spent[part] / point.steady.seconds for point in points] for part in PARTS[:-1]]
    right.stackplot(sizes, *shares, labels=PARTS[:-1])
    right.set(xscale="log", xlim=(1, sizes[-1]), ylim=(0, 1), xlabel="workers", ylabel="share of the time (predicted)")
    right.legend(loc="lower left")
    figure.suptitle(title, fontsize=10)
    try:
        figure.savefig(path, dpi=130)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot draw {path}: {error}") from None
    plt.close(figure)
