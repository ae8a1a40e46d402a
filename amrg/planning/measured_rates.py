"""Rates of this machine, for ``amrg simulate``: real stage-2 training in processes of their own, timed by part.

Rates and observed throughput are those of the fastest of several stretches, each as long as from one checkpoint to the
next: other work of the machine only slows a stretch, and a single step would favor the shortest reports.
"""

import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from amrg.artifacts import atomic_path
from amrg.config import Config
from amrg.config_files import config_from_dict, config_to_dict
from amrg.errors import UserError
from amrg.launcher import local_rank_variables
from amrg.progress import print_on_rank_0

_WARM = 2  # steps that are not counted
_ROUNDS = 3  # of training with one worker, with two, and one beside another: what else the machine does meets all alike
_SMALL, _LARGE = 2**10, 2**22  # numbers in an all-reduce


@dataclass(frozen=True)
class MeasuredRates:
    """Measured rates of one machine, in seconds unless stated otherwise.

    Attributes:
        samples: samples per worker and step.
        compute: a step of one worker, reading excluded.
        read: reading, checking, decoding and packing one sample in one process.
        latency, rate: an all-reduce between two processes (gloo): seconds of a small one, bytes per second of a
            large one.
        reduced: bytes of the gradients that a step reduces.
        noise: standard deviation of the logarithm of a step's seconds.
        copy, write: the part of one worker's checkpoint for which training waits, and the part in the background.
        gather: replaces ``copy`` if the optimiser's state is partitioned over two workers.
        saved: bytes of a checkpoint.
        observed: samples per second of real training with ``1`` worker, with ``2``, and of two independent processes at
            the same time, ``1+1``.
    """

    samples: int
    compute: float
    read: float
    latency: float
    rate: float
    reduced: int
    noise: float
    copy: float
    gather: float
    write: float
    saved: int
    observed: dict[str, float]

    @property
    def contention(self) -> float:
        """Slowdown of a process while an independent one of its kind runs."""
        return 2 * self.observed["1"] / self.observed["1+1"]

    @classmethod
    def load(cls, path: Path) -> "MeasuredRates":
        """Read the file of ``measure_rates``; UserError if it holds no rates."""
        try:
            return cls(**json.loads(path.read_text()))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{path} holds no measured rates ({type(error).__name__}): "
                "take them with `amrg simulate CONFIG --measure`"
            ) from None

    def exchange(self, workers: int) -> float:
        """Seconds of a ring all-reduce of the gradients."""
        if workers == 1:
            return 0.0
        return self.latency * (workers - 1) + 2 * (workers - 1) / workers * self.reduced / self.rate

    def checkpoint_gather_time(self, workers: int) -> float:
        """Seconds for which training waits while a checkpoint is copied; partitioned state is reduced in a ring."""
        return self.copy if workers == 1 else 2 * (workers - 1) / workers * self.gather


def measure_rates(config: Config, inputs: dict[str, Path], samples: int, steps: int, kept: Path) -> MeasuredRates:
    """Measure the parts with one process and with two, then train with one and with two.

    Args:
        config: of stage 2; vision is trained, so that films are read.
        inputs: the artefacts ``data``, ``stage1`` and ``banks``.
        samples: samples per worker and step.
        steps: timed steps.
        kept: file of finished results; results of the same training are read from it instead of being measured again.

    Raises:
        UserError: one of the processes failed.
    """
    once = _ResultFile(kept, _job_spec(config, inputs, samples, steps))

    def train(workers: int) -> float:
        return _start(workers, "train", config, inputs, samples, steps)["samples_per_second"]

    def train_two_independent() -> float:
        with ThreadPoolExecutor(2) as both:
            return sum(both.map(train, (1, 1)))

    print_on_rank_0("measuring: reading, step and checkpoint of one process; transfers between two")
    alone = once("calibrate", lambda: _start(1, "calibrate", config, inputs, samples, steps))
    between = once("exchange", lambda: _start(2, "exchange", config, inputs, samples, steps))
    lines: dict[str, Callable[[], float]] = {
        "1": partial(train, 1),
        "2": partial(train, 2),
        "1+1": train_two_independent,
    }
    observed = dict.fromkeys(lines, 0.0)
    for turn in range(_ROUNDS):
        print_on_rank_0(
            f"measuring: training with one worker, with two, and one beside another, {turn + 1} of {_ROUNDS}"
        )
        for name, take in lines.items():
            observed[name] = max(observed[name], once(f"{name}, turn {turn}", take))
    return MeasuredRates(samples=samples, observed=observed, **alone, **between)


class _ResultFile:
    """Cache of results by name, in a file; a file that is damaged, or ``of`` another training, is ignored."""

    def __init__(self, path: Path, of: dict[str, Any]) -> None:
        self._path, self._content = path, {"of": of, "found": {}}
        try:
            content = json.loads(path.read_text())
        except (OSError, ValueError):
            return
        if content.get("of") == of:
            self._content = content

    def __call__(self, name: str, take: Callable[[], Any]) -> Any:
        found = self._content["found"]
        if name not in found:
            found[name] = take()
            with atomic_path(self._path) as temporary:
                temporary.write_text(json.dumps(self._content))
        return found[name]


def _job_spec(config: Config, inputs: dict[str, Path], samples: int, steps: int) -> dict[str, Any]:
    paths = {name: str(path) for name, path in inputs.items()}
    return {"config": config_to_dict(config), "samples": samples, "steps": steps, "inputs": paths}


def _start(
    workers: int, what: str, config: Config, inputs: dict[str, Path], samples: int, steps: int
) -> dict[str, Any]:
    """Run ``_work`` in ``workers`` processes of one thread each and return the result of the first."""
    job = {"what": what} | _job_spec(config, inputs, samples, steps)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "job.json").write_text(json.dumps(job))
        shared = os.environ | local_rank_variables(workers) | {"OMP_NUM_THREADS": "1"}
        processes = [
            subprocess.Popen(
                [sys.executable, "-m", "amrg.planning.measured_rates", folder],
                env=shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            )
            for rank in range(workers)
        ]
        try:
            codes = [process.wait() for process in processes]
        finally:
            for process in processes:
                process.kill()
        if any(codes):
            raise UserError(f"measuring failed in a process of its own (exit codes {codes}); its message stands above")
        return json.loads((Path(folder) / "found.json").read_text())


def _work(folder: Path) -> None:
    """Entry point of a process that ``_start`` started."""
    from amrg import distributed

    job = json.loads((folder / "job.json").read_text())
    distributed.init_process_group()
    config = config_from_dict(job["config"], "measuring")
    batch = job["samples"] * distributed.world_size()
    config = replace(config, stage2=replace(config.stage2, batch_size=batch))
    inputs = {name: Path(path) for name, path in job["inputs"].items()}
    found = _WORK[job["what"]](config, inputs, job["samples"], job["steps"], folder)
    if distributed.global_rank() == 0:
        (folder / "found.json").write_text(json.dumps(found))
    distributed.barrier()


class _Training:
    """Stage 2 as it is trained, a step at a time."""

    def __init__(self, config: Config, inputs: dict[str, Path], folder: Path) -> None:
        from amrg.training.association_targets import wanted_rows_of
        from amrg.training.engine import Engine
        from amrg.training.report_loss import report_token_loss
        from amrg.training.retrieval_targets import build_retrieval_targets
        from amrg.training.stage2 import build_generator, stage2_optimizer_settings
        from amrg.training.stage2_batches import build_batch_source

        self.model = build_generator(config, inputs["data"], inputs["stage1"], inputs["banks"])
        self.source = build_batch_source(config, self.model, inputs["data"], inputs["banks"], folder)
        own_reports = build_retrieval_targets(config, inputs["data"], inputs["banks"], folder)
        self.engine = Engine(
            self.model,
            partial(
                report_token_loss,
                own_reports=own_reports,
                wanted_rows=wanted_rows_of(config, inputs["data"], inputs["banks"]),
            ),
            stage2_optimizer_settings(config),
            1000,
        )
        self.model.train()
        self.epoch = 0
        self.batches: Iterator[dict[str, Any]] = iter(())

    def next(self) -> Any:
        """The next batch; epochs follow each other."""
        for batch in self.batches:
            return batch
        self.batches, self.epoch = self.source.batches(self.epoch, 0), self.epoch + 1
        return next(self.batches)


def _calibrate(config: Config, inputs: dict[str, Path], samples: int, steps: int, folder: Path) -> dict[str, Any]:
    from amrg.training import checkpoint

    run = _Training(config, inputs, folder)
    between = _steps_per_stretch(config, steps)
    read, batches, _ = _timed(run.next, steps, between)
    turn = iter(batches)
    compute, _, noise = _timed(lambda: run.engine.step(next(turn), 1e-6), steps, between)
    copy, (weights, moments) = _copying(run)
    write, *_ = _timed(
        lambda: checkpoint.save_checkpoint(folder / "checkpoints", weights, moments, {"step": 1}, is_best=True), 3
    )
    trained = {name for name, p in run.model.named_parameters() if p.requires_grad}
    return {
        "read": read / samples,
        "compute": compute,
        "noise": noise,
        "copy": copy,
        "write": write,
        "reduced": sum(tensor.nbytes for name, tensor in weights.items() if name in trained),
        "saved": sum(tensor.nbytes for part in (weights, moments) for tensor in part.values()),
    }


def _exchange(config: Config, inputs: dict[str, Path], samples: int, steps: int, folder: Path) -> dict[str, Any]:
    import torch
    from torch import distributed

    small, large = torch.zeros(_SMALL), torch.zeros(_LARGE)
    latency, *_ = _timed(lambda: distributed.all_reduce(small), steps)
    seconds, *_ = _timed(lambda: distributed.all_reduce(large), steps)
    gather, _ = _copying(_Training(config, inputs, folder))
    rate = large.nbytes / seconds  # each of two sends its half twice
    return {"latency": latency, "rate": rate, "gather": gather}


def _copying(run: _Training) -> tuple[float, Any]:
    """Return the seconds until training continues, and the copied weights and moments."""
    seconds, copies, _ = _timed(lambda: (run.engine.weights(), run.engine.moments()), 3)
    return seconds, copies[-1]


def _train(config: Config, inputs: dict[str, Path], samples: int, steps: int, folder: Path) -> dict[str, Any]:
    """Return the most samples per second between two checkpoints, reading and checkpoint included."""
    from amrg import distributed
    from amrg.training import checkpoint

    run = _Training(config, inputs, folder)
    writer = checkpoint.AsyncCheckpointWriter(folder / "checkpoints", 1)
    for _ in range(_WARM):
        run.engine.step(run.next(), 1e-6)
    between, best = _steps_per_stretch(config, steps), float("inf")
    for saved in range(max(steps // between, 1)):
        distributed.barrier()
        began = time.perf_counter()
        for _ in range(between):
            run.engine.step(run.next(), 1e-6)
        weights, moments = run.engine.weights(), run.engine.moments()
        if distributed.global_rank() == 0:
            writer.save(weights, moments, {"step": saved}, is_best=True)
        distributed.barrier()
        best = min(best, time.perf_counter() - began)
    writer.wait()
    return {"samples_per_second": between * samples * distributed.world_size() / best}


def _steps_per_stretch(config: Config, steps: int) -> int:
    """Steps of one stretch."""
    return min(steps, config.checkpoint.interval)


_WORK: dict[str, Callable[..., dict[str, Any]]] = {"calibrate": _calibrate, "exchange": _exchange, "train": _train}


def _timed(action: Callable[[], Any], times: int, stretch: int = 1) -> tuple[float, list[Any], float]:
    """Time an action after a warm-up: seconds, all its results, and the spread of the seconds' logarithm.

    Args:
        action: what is timed.
        times: number of timed calls.
        stretch: calls per average; the fastest average is returned.
    """
    spent, results = [], []
    for _ in range(times + _WARM):
        began = time.perf_counter()
        results.append(action())
        spent.append(time.perf_counter() - began)
    counted = spent[_WARM:]
    least = min(sum(counted[start : start + stretch]) for start in range(times - stretch + 1)) / stretch
    return least, results, statistics.pstdev(map(math.log, counted))


if __name__ == "__main__":
    _work(Path(sys.argv[1]))
