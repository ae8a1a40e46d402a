"""What failures cost, and what `amrg simulate` predicts: python -m benchmarks.fault_tolerance [CONFIG].

Trains the first ``--steps`` of stage 2 on a Ray of its own again and again: undisturbed; with one worker killed; and
for each of ``--seeds`` with workers killed at times that are exponential, ``--mean`` seconds apart on average. The
simulation learns a step and the writing of a checkpoint from the first run and the recovery from the second. The others
it predicts: from the instants at which workers were killed, and on average over such instants.
"""

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, median
from time import monotonic

import psutil

from amrg.cli_config import parse_config_arguments
from amrg.cluster.pipeline import open_ray_session
from amrg.cluster.readers import start_readers
from amrg.cluster.workers import train_with_ray
from amrg.config import Config
from amrg.errors import UserError
from amrg.pipeline import artifact_root, step_recipe
from amrg.planning.simulation import Outcome, SimulatedCluster, failure_times, simulate_training
from amrg.training.loop import CHECKPOINTS
from amrg.training.telemetry import STEPS

_POLL_SECONDS = 0.01  # seconds between two readings of a run's log
_DRAWS = 1000  # of the instants of failures, for an average
_WORKER = "ray::RayTrainWorker"
_PATIENCE = 100  # failures in a row without a new checkpoint


@dataclass(frozen=True)
class Step:
    """One that was done: its number, from 1, and when it began and ended."""

    number: int
    began: float
    ended: float


@dataclass(frozen=True)
class Trace:
    """What was seen of one training, in seconds of one clock.

    Attributes:
        steps: in the order they were done, some more than once.
        kills: when a worker was killed.
        writes: seconds from the end of a step to its checkpoint being whole on disk.
    """

    steps: tuple[Step, ...]
    kills: tuple[float, ...] = ()
    writes: tuple[float, ...] = ()

    @property
    def seconds(self) -> float:
        """From the beginning of the first step to the end of the last."""
        return self.steps[-1].ended - self.steps[0].began

    @property
    def repeated_steps(self) -> int:
        """Steps that were done once more."""
        return len(self.steps) - self.steps[-1].number

    @property
    def failures(self) -> list[float]:
        """When workers were killed, from the beginning of the first step on."""
        return [kill - self.steps[0].began for kill in self.kills]

    @property
    def recoveries(self) -> list[float]:
        """Seconds from a kill to the end of the next step; of several kills before one step, from the last of them."""
        last: dict[float, float] = {}
        for kill in self.kills:
            last[next(step.ended for step in self.steps if step.began > kill)] = kill
        return [ended - kill for ended, kill in last.items()]


def calibrated(config: Config, undisturbed: Trace, disturbed: Trace) -> SimulatedCluster:
    """The cluster that was seen undisturbed and with one failure, for ``simulate_training``."""
    cluster, step = config.cluster, undisturbed.seconds / len(undisturbed.steps)
    return SimulatedCluster(
        cluster.workers, config.stage2.batch_size // cluster.workers, compute=step, read=0.0,
        checkpoint_interval=config.checkpoint.interval, write=median(undisturbed.writes),
        restart=median(disturbed.recoveries) - step,
    )  # fmt: skip


def on_average(cluster: SimulatedCluster, steps: int, between: float) -> tuple[float, float, float]:
    """Failures, seconds and steps done again of a training whose workers fail ``between`` seconds apart on average."""
    found = [simulate_training(cluster, steps, _instants(cluster.workers, between, seed)) for seed in range(_DRAWS)]
    return mean(one.failures for one in found), mean(one.seconds for one in found), mean(map(_again, found))


def _instants(workers: int, between: float, seed: int) -> Iterator[float]:
    return failure_times(workers, between * workers / 3600, seed)


def _again(found: Outcome) -> float:
    return found.repeated / (found.trained / found.steps)


class _Watch(threading.Thread):
    """Looks at a training from its driver, kills workers, and interrupts the driver once there were enough steps."""

    def __init__(self, folder: Path, failures: Iterable[float], steps: int, seed: int) -> None:
        super().__init__(daemon=True)
        self._log, self._checkpoints = folder / "logs" / STEPS, folder / CHECKPOINTS
        self._coming, self._last, self._choice = iter(failures), steps, random.Random(seed)
        self._steps: list[Step] = []
        self._kills: list[float] = []
        self._writes: dict[str, float] = {}
        self._read = 0  # bytes of the log
        self._known: set[int] = set()  # processes that were there when one of them was killed: they all go
        self._over = threading.Event()

    def run(self) -> None:
        failing = next(self._coming, float("inf"))
        while not self._over.wait(_POLL_SECONDS):
            self._poll()
            if self.enough:
                os.kill(os.getpid(), signal.SIGINT)
                return
            if self._steps and monotonic() - self._steps[0].began >= failing and self._kill():
                failing = next(self._coming, float("inf"))

    @property
    def enough(self) -> bool:
        """Whether the last step is done; some more may be."""
        return any(step.number == self._last for step in self._steps)

    def _poll(self) -> None:
        """What has come since the last look."""
        now = monotonic()
        if self._log.exists():
            with self._log.open("rb") as file:
                file.seek(self._read)
                new = file.read()
            complete = new[: new.rfind(b"\n") + 1]
            self._read += len(complete)
            for row in map(json.loads, complete.splitlines()):
                self._steps.append(Step(row["step"], now - row["seconds"], now))
        for path in self._checkpoints.glob("step-*[0-9]"):
            if path.name not in self._writes:
                number = int(path.name.removeprefix("step-"))
                ended = next((step.ended for step in reversed(self._steps) if step.number == number), now)
                self._writes[path.name] = now - ended

    def _kill(self) -> bool:
        """Kill one worker of a group that lost none so far; whether there was any."""
        there = set(_workers()) - self._known
        if there:
            os.kill(self._choice.choice(sorted(there)), signal.SIGKILL)
            self._kills.append(monotonic())
            self._known |= there
        return bool(there)

    def stop(self) -> Trace:
        """What was seen until the last step.

        Raises:
            UserError: the training has fewer steps.
        """
        self._over.set()
        self.join()
        if not self.enough:
            raise UserError(f"stage 2 ended before step {self._last}: take fewer --steps")
        last = [step.number for step in self._steps].index(self._last)
        return Trace(tuple(self._steps[: last + 1]), tuple(self._kills), tuple(self._writes.values()))


def _workers() -> list[int]:
    """Process ids of the workers of this driver's own Ray."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if process.cmdline()[:1] and process.cmdline()[0].startswith(_WORKER):
                found.append(process.pid)
        except psutil.Error:  # it went meanwhile
            continue
    return found


def train_with_failures(config: Config, steps: int, failures: Iterable[float] = (), seed: int = 0) -> Trace:
    """Train the first steps of stage 2, in a folder of its own, while workers are killed.

    Args:
        config: of the run; data, stage 1 and banks are made.
        steps: after which it is interrupted.
        failures: rising instants, in seconds from the beginning of the first step.
        seed: of the choice which worker is killed.
    """
    with _linked_run(config) as linked, open_ray_session(linked, local=True):
        watch = _Watch(
            Path(f"{step_recipe('stage2', linked).path(artifact_root(linked))}.partial"), failures, steps, seed
        )
        watch.start()
        try:
            train_with_ray("stage2", linked, linked.stage2.batch_size, start_readers(linked.cluster))
        except KeyboardInterrupt:
            if not watch.enough:
                raise
        return watch.stop()


@contextmanager
def _linked_run(config: Config) -> Iterator[Config]:
    """The same run in a folder that is removed, with the artefacts that were made before it."""
    made = step_recipe("stage2", config).inputs.values()
    with tempfile.TemporaryDirectory() as folder:
        linked = replace(config, runs=folder)
        artifact_root(linked).mkdir()
        for artefact in made:
            (artifact_root(linked) / artefact.path.name).symlink_to(artefact.path.absolute())
        yield linked


def compare(config: Config, steps: int, between: float, seeds: Iterable[int]) -> None:
    """Train, predict, and print each run when it is over."""
    print("| run | workers killed | seconds | predicted | steps done again | predicted | recovery, s |")
    print("|---|---|---|---|---|---|---|", flush=True)
    calm = train_with_failures(config, steps)
    print(_row("undisturbed", calm), flush=True)
    hit = train_with_failures(config, steps, [calm.seconds / 2])
    print(_row("one worker killed half way", hit), flush=True)
    cluster = calibrated(config, calm, hit)
    for seed in seeds:
        trace = train_with_failures(config, steps, _instants(cluster.workers, between, seed), seed)
        print(
            _row(f"{between:.0f} s apart, seed {seed}", trace, simulate_training(cluster, steps, trace.failures)),
            flush=True,
        )
    killed, seconds, again = on_average(cluster, steps, between)
    print(f"| the same, on average | {killed:.1f} | | {seconds:.1f} | | {again:.1f} | |")
    print(
        f"{steps} steps of {cluster.compute:.2f} s, {cluster.write:.2f} s from a step to its checkpoint on disk, "
        f"{cluster.restart:.1f} s from a failure to the next step"
    )


def _row(name: str, trace: Trace, predicted: Outcome | None = None) -> str:
    back = ", ".join(f"{seconds:.1f}" for seconds in trace.recoveries)
    seconds, again = (f"{predicted.seconds:.1f}", f"{_again(predicted):.0f}") if predicted else ("", "")
    return (
        f"| {name} | {len(trace.kills)} | {trace.seconds:.1f} | {seconds} | {trace.repeated_steps} | {again} | {back} |"
    )


def main() -> None:
    """Train with and without failures and print what they cost."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--steps", type=int, default=60, help="of each training, within its first epoch (default 60)")
    parser.add_argument("--mean", type=float, default=40.0, help="seconds between two failures (default 40)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1], help="a run each (default 0 1)")
    options, rest = parser.parse_known_args(sys.argv[1:])
    try:
        if options.mean <= 0 or options.steps <= 0:
            raise UserError(f"--mean {options.mean} --steps {options.steps}: more than 0 is needed")
        config = parse_config_arguments(rest, "python -m benchmarks.fault_tolerance [CONFIG]")
        config = replace(config, cluster=replace(config.cluster, max_failures=_PATIENCE))
        compare(config, options.steps, options.mean, options.seeds)
    except UserError as error:
        print(f"amrg: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
