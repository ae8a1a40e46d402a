"""The training loop of both stages: epochs, validation, the best weights, and a resume that changes nothing.

All randomness of a step follows from (seed, step, rank), the learning rate from the step, the order of samples from
(seed, epoch): a checkpoint therefore holds weights, moments and a cursor, and a run killed anywhere and started again
ends in the same bits as one that was not.
"""

import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from amrg.config import CheckpointConfig, TelemetryConfig
from amrg.distributed import all_gather_list, all_reduce_mean, barrier, rank
from amrg.errors import UserError
from amrg.precision import autocast
from amrg.progress import echo, track
from amrg.training import checkpoint
from amrg.training.deepspeed_config import OptimizerSettings
from amrg.training.engine import Batch, Engine, Loss, load_into
from amrg.training.interruption import GracefulStop, LossGuard, StopRequest, stop_requests, user_errors
from amrg.training.schedule import warmup_cosine
from amrg.training.telemetry import Telemetry, profile_step

CURVES, CHECKPOINTS = "curves.jsonl", "checkpoints"
#: Flags that travel with the metrics of a step.
_STOP, _SAVE_FAILED = "stop", "unsaved"


def fit(
    model: nn.Module,
    loss: Loss,
    batches: Callable[[int, int], Iterator[Batch]],
    steps_per_epoch: int,
    optimisation: OptimizerSettings,
    validate: Callable[[Any], dict[str, float]],
    selection_metric: tuple[str, bool],
    folder: Path,
    seed: int,
    telemetry: TelemetryConfig,
    checkpointing: CheckpointConfig,
    input_hashes: dict[str, str],
    step_metrics: Callable[[Any], dict[str, float]] = lambda model: {},
    warn: Callable[[dict[str, float]], dict[str, str]] = lambda validation: {},
) -> list[dict[str, Any]]:
    """Train, and leave the weights of the best epoch in the model.

    Args:
        model: parameters with ``requires_grad`` are trained; checkpoints hold these and the buffers that change.
        loss: ``loss(model, batch)`` gives a mean over the samples of the batch and a dict of metrics (means, too).
        batches: ``batches(epoch, start_step)`` yields this rank's share of each global batch of the epoch, from
            ``start_step`` on; a function of its arguments alone.
        steps_per_epoch: optimiser steps of one epoch.
        optimisation: settings.
        validate: ``validate(model)`` gives metrics; called on every rank, in evaluation mode, without gradients. What
            the ranks return is averaged.
        selection_metric: (name among the validation metrics, higher is better).
        folder: receives ``curves.jsonl`` (one row an epoch, no times), ``checkpoints/`` and ``logs/steps.jsonl``.
        seed: of everything random in a step (dropout).
        telemetry: what to tell of a step.
        checkpointing: how often to save, and when to stop.
        input_hashes: hashes of what the run reads, by name; a checkpoint that was made from something else is refused.
        step_metrics: ``step_metrics(model)`` returns the metrics of profiled steps; called on every rank.
        warn: ``warn(metrics of a validation)`` gives what is wrong by name, one line each; a row of ``curves.jsonl``
            holds it as ``warnings``, and the user is told of each name once.

    Returns:
        The rows of ``curves.jsonl``.

    Raises:
        UserError: the loss is no longer finite or explodes, memory or disk are full, the checkpoint was made from
            something else, or the DeepSpeed JSON contradicts the settings.
        GracefulStop: SIGINT or SIGTERM came to any rank; what was done is saved.
    """
    total = optimisation.epochs * steps_per_epoch
    warmup = round(optimisation.warmup_fraction * total)
    input_hashes = {**input_hashes, "frozen weights": checkpoint.frozen_fingerprint(model)}
    run = _RunState(
        folder, Engine(model, loss, optimisation, total), selection_metric, checkpointing.keep_last, input_hashes
    )
    log = Telemetry(folder, telemetry, optimisation.section, optimisation.batch_size)
    guard = LossGuard(optimisation.section, checkpointing.loss_spike_factor)
    stream: Iterator[Batch] | None = None
    with stop_requests() as stopping, user_errors(optimisation.section, folder):
        for step in track(range(run.step, total), f"{optimisation.section}: training", total, run.step):
            epoch, within = divmod(step, steps_per_epoch)
            if stream is None or within == 0:
                stream = batches(epoch, within)
                model.train()
            lr = warmup_cosine(step, total, warmup, optimisation.lr, optimisation.min_lr)
            torch.manual_seed(_step_seed(seed, step))
            stop = _step(run, stream, lr, log, guard, stopping, step_metrics)
            if within + 1 == steps_per_epoch:
                validation = _validated(validate, model, optimisation)
                log.tell_epoch(step + 1, validation)
                run.end_epoch(epoch, lr, validation, warn(validation))
            elif stop or (step + 1) % checkpointing.interval == 0:
                run.save()
            if stop:
                run.wait()
                raise GracefulStop(step + 1)
    log.close()
    run.finish(model)
    return run.rows


def _step(
    run: "_RunState",
    stream: Iterator[Batch],
    lr: float,
    log: Telemetry,
    guard: LossGuard,
    stopping: StopRequest,
    closely: Callable[[Any], dict[str, float]],
) -> bool:
    """The step after ``run.step``, told and judged; whether any rank was asked to stop."""
    step, engine = run.step, run.engine
    began = time.monotonic()
    batch = next(stream)
    waited = time.monotonic() - began
    flags = {_STOP: float(stopping.requested), _SAVE_FAILED: float(run.save_failed())}
    with profile_step(log.should_profile(step)) as shares:
        metrics, norms = engine.step(batch, lr, log.should_profile(step), flags)
    seconds = time.monotonic() - began
    # What one rank met, all learn of in the same step: none is left waiting for the others.
    stop, unsaved = metrics.pop(_STOP), metrics.pop(_SAVE_FAILED)
    run.accumulate(step, metrics)
    seen = closely(engine.model) if log.should_profile(step) else {}
    log.log_step(step + 1, {"lr": lr, **metrics, **norms, **shares.values, **seen}, seconds, waited)
    if wrong := guard.check(metrics["loss"]):
        losses = all_gather_list([(rank(), engine.local_loss, _keys(batch))])
        raise guard.stop(wrong, step + 1, losses)
    if unsaved:
        run.wait()
    return stop > 0


def _keys(batch: Batch) -> list[str]:
    """The hashed keys of the studies of a batch, where it tells them."""
    return batch.get("study", []) if isinstance(batch, dict) else []


def _validated(
    validate: Callable[[Any], dict[str, float]], model: nn.Module, ours: OptimizerSettings
) -> dict[str, float]:
    model.eval()
    with torch.no_grad(), autocast(ours.dtype):
        return all_reduce_mean(validate(model))


def _step_seed(seed: int, step: int) -> int:
    """One seed for each (seed, step, rank)."""
    return int(np.random.SeedSequence([seed, step, rank()]).generate_state(1, np.uint64)[0])


def _latest(folder: Path) -> checkpoint.Checkpoint | None:
    """The checkpoint that all ranks go on from; the first one looks for it, and whether it is damaged."""
    chosen: list[tuple[str | None, str | None]] = []
    if rank() == 0:
        try:
            found = checkpoint.latest_valid(folder)
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
    """The cursor of a run: where it is, what it has seen, its best epoch; saved and found again."""

    def __init__(
        self, folder: Path, engine: Engine, select: tuple[str, bool], keep: int, made_from: dict[str, str]
    ) -> None:
        self.folder, self.engine, self.made_from = folder, engine, made_from
        self.writer = checkpoint.AsyncCheckpointWriter(folder / CHECKPOINTS, keep) if rank() == 0 else None
        self.metric, self.higher = select
        self.step = 0
        self.best: float | None = None
        self.sums: dict[str, float] = {}
        self.rows: list[dict[str, Any]] = []
        kept = engine.model.state_dict().keys()
        self.start = {n: buffer.detach().cpu().clone() for n, buffer in engine.model.named_buffers() if n in kept}
        found = _latest(folder / CHECKPOINTS)
        if found:
            state = found.state
            _check_same_inputs(state["made_from"], made_from, found.path)
            engine.restore(found.weights(), found.optimizer(), state["step"], state["scheduler"])
            self.step, self.best = state["step"], state["best"]
            self.sums, self.rows = state["sums"], state["rows"]
            echo(f"going on from step {self.step}")

    def accumulate(self, step: int, metrics: dict[str, float]) -> None:
        self.step = step + 1
        for name, value in metrics.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        self.sums["steps"] = self.sums.get("steps", 0.0) + 1

    def end_epoch(self, epoch: int, lr: float, validation: dict[str, float], warnings: dict[str, str]) -> None:
        """Close the epoch's row, decide whether it is the best, warn of what no epoch warned of before, and save."""
        steps = self.sums.pop("steps")
        trained = {f"train_{name}": value / steps for name, value in self.sums.items()}
        value = validation[self.metric]
        better = self.best is None or (value > self.best if self.higher else value < self.best)
        if better:
            self.best = value
        self.sums = {}
        warned = {name for row in self.rows for name in row.get("warnings", {})}
        row = {"epoch": epoch + 1, "step": self.step, "lr": lr, **trained, **validation, "best": better}
        self.rows.append(row | ({"warnings": warnings} if warnings else {}))
        shown = ", ".join(f"{name} {number:.4f}" for name, number in {**trained, **validation}.items())
        echo(f"epoch {epoch + 1}: {shown}{' (best so far)' if better else ''}")
        for name, warning in warnings.items():
            if name not in warned:
                echo(f"WARNING: {warning}")
        self.save(better)

    def save(self, is_best: bool = False) -> None:
        """Copy what was learned, and begin to write it."""
        weights, moments = self.engine.weights(), self.engine.moments()
        if self.writer is not None:
            weights = {name: value for name, value in weights.items() if not self._as_at_start(name, value)}
            state = {
                "step": self.step,
                "best": self.best,
                "sums": dict(self.sums),
                "rows": list(self.rows),
                "scheduler": self.engine.scheduler_state(),
                "made_from": self.made_from,
            }
            self.writer.save(weights, moments, state, is_best)

    def _as_at_start(self, name: str, value: Tensor) -> bool:
        """Whether this is a buffer that training has not changed: it comes with the model, as frozen weights do."""
        return name in self.start and torch.equal(self.start[name], value)

    def save_failed(self) -> bool:
        return self.writer is not None and self.writer.error is not None

    def wait(self) -> None:
        """Until what was saved is on disk. Every rank must call this, and all raise the same UserError if it is not."""
        if self.writer is not None:
            self.writer.wait()
        errors = all_gather_list([self.writer.error] if self.writer is not None and self.writer.error else [])
        if errors:
            raise UserError(errors[0])

    def finish(self, model: nn.Module) -> None:
        """Write the curves and put the best weights into the model."""
        self.wait()
        if rank() == 0:
            partial = self.folder / f"{CURVES}.partial"
            partial.write_text("".join(json.dumps(row) + "\n" for row in self.rows))
            os.replace(partial, self.folder / CURVES)
        load_into(model, self.start | checkpoint.latest_unverified(self.folder / CHECKPOINTS).best())
        model.eval()
        barrier()
