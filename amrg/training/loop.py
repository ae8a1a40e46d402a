"""The training loop of both stages: epochs, validation, selection of the best weights, and a bit-identical resume.

The randomness of a step is a function of (seed, step, rank), the learning rate a function of the step, and the order
of samples a function of (seed, epoch). A checkpoint therefore holds weights, moments and a cursor. A run that is
killed and resumed ends with the same bits as an uninterrupted run.
"""

import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from amrg.config import CheckpointConfig, TelemetryConfig
from amrg.distributed import all_gather_list, all_reduce_mean, barrier, data_parallel_rank, global_rank
from amrg.errors import UserError
from amrg.precision import autocast
from amrg.progress import print_on_rank_0, track_progress
from amrg.training import checkpoint
from amrg.training.deepspeed_config import OptimizerSettings
from amrg.training.engine import Batch, Engine, Loss
from amrg.training.interruption import GracefulStop, LossGuard, StopRequest, exhaustion_as_user_errors, stop_requests
from amrg.training.schedule import warmup_cosine
from amrg.training.telemetry import Telemetry, profile_training_step
from amrg.training.zero_state import load_weights_into

CURVES, CHECKPOINTS = "curves.jsonl", "checkpoints"
#: Flags that travel with the metrics of a step.
_STOP, _SAVE_FAILED = "stop", "unsaved"


@dataclass(frozen=True)
class TrainingTask:
    """A model with its loss, its data and its validation.

    Attributes:
        model: parameters with ``requires_grad`` are trained; checkpoints hold these and the buffers that change.
        loss: ``loss(model, batch)`` returns the mean over the samples of the batch and a dict of metrics (also means).
        batches: ``batches(epoch, start_step)`` yields this rank's share of each global batch of the epoch, from
            ``start_step`` on; a function of its arguments alone.
        steps_per_epoch: optimizer steps per epoch.
        validate: ``validate(model)`` returns metrics; called on every rank, in evaluation mode, without gradients. The
            metrics are averaged over the ranks.
        selection_metric: (name among the validation metrics, higher is better).
        input_hashes: hashes of the inputs of the run, by name; a checkpoint made from other inputs is refused.
        step_metrics: ``step_metrics(model)`` returns the metrics of profiled steps; called on every rank.
        warn: ``warn(validation metrics)`` returns warnings by name, one line each. A row of ``curves.jsonl`` holds
            them as ``warnings``, and each name is printed once.
    """

    model: nn.Module
    loss: Loss
    batches: Callable[[int, int], Iterator[Batch]]
    steps_per_epoch: int
    validate: Callable[[Any], dict[str, float]]
    selection_metric: tuple[str, bool]
    input_hashes: dict[str, str]
    step_metrics: Callable[[Any], dict[str, float]] = lambda model: {}
    warn: Callable[[dict[str, float]], dict[str, str]] = lambda validation: {}


def fit_task(
    task: TrainingTask,
    optimizer: OptimizerSettings,
    *,
    folder: Path,
    seed: int,
    telemetry: TelemetryConfig,
    checkpointing: CheckpointConfig,
) -> list[dict[str, Any]]:
    """Train a model and leave the weights of its best epoch in it.

    Args:
        task: model, loss, data and validation.
        optimizer: settings of the optimizer.
        folder: receives ``curves.jsonl`` (one row per epoch, no times), ``checkpoints/`` and ``logs/steps.jsonl``.
        seed: seeds all randomness of a step (dropout).
        telemetry: settings of the logs.
        checkpointing: when to save and when to stop.

    Returns:
        The rows of ``curves.jsonl``.

    Raises:
        UserError: the loss is no longer finite or explodes, memory or disk are full, the checkpoint was made from
            other inputs, or the DeepSpeed JSON contradicts the settings.
        GracefulStop: SIGINT or SIGTERM reached any rank; the progress is saved.
    """
    total = optimizer.epochs * task.steps_per_epoch
    warmup = round(optimizer.warmup_fraction * total)
    # The fingerprint reads the frozen weights before the engine partitions them.
    input_hashes = {**task.input_hashes, "frozen weights": checkpoint.frozen_fingerprint(task.model)}
    engine = Engine(task.model, task.loss, optimizer, total)
    run = _RunState(task, engine, folder, checkpointing.keep_last, input_hashes)
    log = Telemetry(folder, telemetry, optimizer.section, optimizer.batch_size, run.step)
    guard = LossGuard(optimizer.section, checkpointing.loss_spike_factor)
    stream: Iterator[Batch] | None = None
    with stop_requests() as stopping, exhaustion_as_user_errors(optimizer.section, folder):
        for step in track_progress(range(run.step, total), f"{optimizer.section}: training", total, run.step):
            epoch, within = divmod(step, task.steps_per_epoch)
            if stream is None or within == 0:
                stream = task.batches(epoch, within)
                task.model.train()
            lr = warmup_cosine(step, total, warmup, optimizer.lr, optimizer.min_lr)
            torch.manual_seed(_step_seed(seed, step))
            stop = _step(run, stream, lr, log, guard, stopping)
            if within + 1 == task.steps_per_epoch:
                validation = _validated(task, optimizer.dtype)
                log.log_epoch(step + 1, validation)
                run.end_epoch(epoch, run.engine.lr, validation)
            elif stop or (step + 1) % checkpointing.interval == 0:
                run.save()
            if stop:
                run.wait()
                raise GracefulStop(step + 1)
    log.close()
    run.finish()
    return run.rows


def _step(
    run: "_RunState",
    stream: Iterator[Batch],
    lr: float,
    log: Telemetry,
    guard: LossGuard,
    stopping: StopRequest,
) -> bool:
    """Train, log and check the step after ``run.step``; return whether any rank was asked to stop."""
    step, engine = run.step, run.engine
    began = time.monotonic()
    batch = next(stream)
    waited = time.monotonic() - began
    flags = {_STOP: float(stopping.requested), _SAVE_FAILED: float(run.save_failed())}
    with profile_training_step(log.should_profile(step)) as shares:
        metrics, norms = engine.step(batch, lr, log.should_profile(step), flags)
    seconds = time.monotonic() - began
    # The flags are reduced over the ranks, so that all ranks act in the same step and none waits for another.
    stop, unsaved = metrics.pop(_STOP), metrics.pop(_SAVE_FAILED)
    run.accumulate(step, metrics)
    profiled = run.task.step_metrics(engine.model) if log.should_profile(step) else {}
    log.log_step(step + 1, {"lr": engine.lr, **metrics, **norms, **shares.values, **profiled}, seconds, waited)
    if wrong := guard.check(metrics["loss"]):
        losses = all_gather_list([(global_rank(), engine.local_loss, _keys(batch))])
        raise guard.stop(wrong, step + 1, losses)
    if unsaved:
        run.wait()
    return stop > 0


def _keys(batch: Batch) -> list[str]:
    """Return the hashed study keys of a batch, or an empty list where it has none."""
    return batch.get("study", []) if isinstance(batch, dict) else []


def _validated(task: TrainingTask, dtype: str) -> dict[str, float]:
    task.model.eval()
    with torch.no_grad(), autocast(dtype):
        return all_reduce_mean(task.validate(task.model))


def _step_seed(seed: int, step: int) -> int:
    """Derive the seed of one (seed, step, rank); ranks that share a model draw the same numbers."""
    return int(np.random.SeedSequence([seed, step, data_parallel_rank()]).generate_state(1, np.uint64)[0])


def _latest(folder: Path) -> checkpoint.Checkpoint | None:
    """Return the newest valid checkpoint; the first rank searches, all ranks return its choice or raise its error."""
    chosen: list[tuple[str | None, str | None]] = []
    if global_rank() == 0:
        try:
            found = checkpoint.find_latest_valid(folder)
            chosen = [(found.path.name if found else None, None)]
            if found:
                checkpoint.remove_newer_than(found)
        except UserError as error:
            chosen = [(None, str(error))]
    (name, wrong), *_ = all_gather_list(chosen)
    if wrong:
        raise UserError(wrong)
    return checkpoint.Checkpoint(folder / name) if name else None


def _check_same_inputs(before: dict[str, str], now: dict[str, str], path: Path) -> None:
    for name, value in now.items():
        if before.get(name) != value:
            raise UserError(
                f"{path} was made from other {name} ({before.get(name, 'unknown')[:12]}, now {value[:12]}): give those "
                f"back, or remove {path.parent} to train anew"
            )


class _RunState:
    """The progress of a run: its step, metrics and best epoch, restored from the latest checkpoint."""

    def __init__(
        self, task: TrainingTask, engine: Engine, folder: Path, keep_last: int, input_hashes: dict[str, str]
    ) -> None:
        self.task, self.engine, self.folder, self.input_hashes = task, engine, folder, input_hashes
        self.writer = checkpoint.AsyncCheckpointWriter(folder / CHECKPOINTS, keep_last) if global_rank() == 0 else None
        self.step = 0
        self.best: float | None = None
        self.sums: dict[str, float] = {}
        self.rows: list[dict[str, Any]] = []
        kept = engine.model.state_dict().keys()
        self.start = {n: buffer.detach().cpu().clone() for n, buffer in engine.model.named_buffers() if n in kept}
        found = _latest(folder / CHECKPOINTS)
        if found:
            state = found.state
            _check_same_inputs(state["made_from"], input_hashes, found.path)
            scalings = state["scheduler"], state.get("loss_scale")
            engine.restore(found.weights(), found.optimizer(), state["step"], *scalings)
            self.step, self.best = state["step"], state["best"]
            self.sums, self.rows = state["sums"], state["rows"]
            print_on_rank_0(f"going on from step {self.step}")

    def accumulate(self, step: int, metrics: dict[str, float]) -> None:
        self.step = step + 1
        for name, value in metrics.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        self.sums["steps"] = self.sums.get("steps", 0.0) + 1

    def end_epoch(self, epoch: int, lr: float, validation: dict[str, float]) -> None:
        """Append the row of the epoch, print its metrics and new warnings, and save."""
        warnings = self.task.warn(validation)
        steps = self.sums.pop("steps")
        trained = {f"train_{name}": value / steps for name, value in self.sums.items()}
        metric, higher_is_better = self.task.selection_metric
        value = validation[metric]
        better = self.best is None or (value > self.best if higher_is_better else value < self.best)
        if better:
            self.best = value
        self.sums = {}
        warned = {name for row in self.rows for name in row.get("warnings", {})}
        row = {"epoch": epoch + 1, "step": self.step, "lr": lr, **trained, **validation, "best": better}
        self.rows.append(row | ({"warnings": warnings} if warnings else {}))
        shown = ", ".join(f"{name} {number:.4f}" for name, number in {**trained, **validation}.items())
        print_on_rank_0(f"epoch {epoch + 1}: {shown}{' (best so far)' if better else ''}")
        for name, warning in warnings.items():
            if name not in warned:
                print_on_rank_0(f"WARNING: {warning}")
        self.save(better)

    def save(self, is_best: bool = False) -> None:
        """Copy the training state and start writing it in the background."""
        weights, moments = self.engine.weights(), self.engine.moments()
        if self.writer is not None:
            weights = {name: value for name, value in weights.items() if not self._is_unchanged_buffer(name, value)}
            state = {
                "step": self.step,
                "best": self.best,
                "sums": dict(self.sums),
                "rows": list(self.rows),
                "scheduler": self.engine.scheduler_state(),
                "loss_scale": self.engine.loss_scale_state(),
                "made_from": self.input_hashes,
            }
            self.writer.save(weights, moments, state, is_best)

    def _is_unchanged_buffer(self, name: str, value: Tensor) -> bool:
        """Whether a tensor is a buffer with its initial value; the model brings it, like frozen weights."""
        return name in self.start and torch.equal(self.start[name], value)

    def save_failed(self) -> bool:
        return self.writer is not None and self.writer.error is not None

    def wait(self) -> None:
        """Wait until the checkpoint is on disk; every rank must call this, and all raise the same UserError."""
        if self.writer is not None:
            self.writer.wait()
        errors = all_gather_list([self.writer.error] if self.writer is not None and self.writer.error else [])
        if errors:
            raise UserError(errors[0])

    def finish(self) -> None:
        """Write the curves and load the best weights into the model."""
        self.wait()
        if global_rank() == 0:
            partial = self.folder / f"{CURVES}.partial"
            partial.write_text("".join(json.dumps(row) + "\n" for row in self.rows))
            os.replace(partial, self.folder / CURVES)
        load_weights_into(self.task.model, self.start | checkpoint.latest_unverified(self.folder / CHECKPOINTS).best())
        self.task.model.eval()
        barrier()
