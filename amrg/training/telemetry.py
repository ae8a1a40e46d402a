"""Logs of a training run: a JSON line and TensorBoard scalars per step, and regular profiles.

Every ``telemetry.profile_interval`` steps, one step is profiled: the share of each part of the model in its time,
forward and backward (torch's profiler; an operator of the backward belongs to the part whose forward recorded it), the
gradient norm of each module, and the perplexity of the memories. Logging does not affect training.
"""

import json
import os
import secrets
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from amrg.config import TelemetryConfig
from amrg.distributed import global_rank
from amrg.errors import UserError, collect_errors
from amrg.models.profiling import REGION_PREFIX

STEPS, EPOCHS = "steps.jsonl", "epochs.jsonl"
WANDB_ID = "wandb_id"

#: Called after each optimizer step on each rank with its number and its log record.
StepListener = Callable[[int, dict[str, float]], None]

_WATCHER: ContextVar[StepListener] = ContextVar("watcher", default=lambda step, values: None)

_BACKWARD = "autograd::engine::evaluate_function"
#: Silences the profiler's library, which otherwise prints its starts and missing GPUs.
os.environ.setdefault("KINETO_LOG_LEVEL", "99")

_COLLECTIVES = ("gloo:", "nccl:", "record_param_comms")


@contextmanager
def listening_to_steps(watcher: StepListener) -> Iterator[None]:
    """Within the block, call ``watcher`` after every training step."""
    token = _WATCHER.set(watcher)
    try:
        yield
    finally:
        _WATCHER.reset(token)


class Telemetry:
    """Logs of one run: ``logs/steps.jsonl`` and ``epochs.jsonl``, ``logs/tensorboard/``, optionally Weights & Biases.

    Args:
        folder: folder of the artefact; ``logs/`` is not part of its content.
        config: settings of the logs.
        section: ``stage1`` or ``stage2``.
        batch_size: samples per step over all ranks.
        step: steps done before; what an interrupted run has logged of later ones is removed.
    """

    def __init__(self, folder: Path, config: TelemetryConfig, section: str, batch_size: int, step: int = 0) -> None:
        self._every, self._batch_size = config.profile_interval, batch_size
        self._writers: list[Any] = []
        self._epochs: list[Any] = []
        if global_rank() != 0:
            return
        logs = folder / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        self._writers.append(_Lines(logs / STEPS, step))
        if config.tensorboard:
            self._writers.append(_TensorBoard(logs / "tensorboard", step))
        if config.wandb_project is not None:
            self._writers.append(_Wandb(logs, config.wandb_project, section))
        self._epochs = [_Lines(logs / EPOCHS, step), *self._writers[1:]]

    def should_profile(self, step: int) -> bool:
        """Whether this step (from 0) is profiled; the first ones, which warm up, are not."""
        return step % self._every == min(self._every - 1, 5)

    def log_step(self, step: int, values: dict[str, float], seconds: float, data_wait: float) -> None:
        """Log the metrics of a step, its duration and its time waiting for data, in seconds."""
        speed = {
            "samples_per_second": self._batch_size / max(seconds, 1e-9),
            "share/data": data_wait / max(seconds, 1e-9),
        }
        record = {**values, **speed, "seconds": seconds}
        _WATCHER.get()(step, record)
        for writer in self._writers:
            writer.write(step, record)

    def log_epoch(self, step: int, validation: dict[str, float]) -> None:
        """Log the validation metrics of the epoch that ended with this step, as ``validation/<name>``."""
        for writer in self._epochs:
            writer.write(step, {f"validation/{name}": value for name, value in validation.items()})

    def close(self) -> None:
        """Close all writers."""
        for writer in dict.fromkeys([*self._writers, *self._epochs]):
            writer.close()


class TimeShares:
    """Shares of the time of one step; ``values`` is set when the block of ``profile_training_step`` ends."""

    def __init__(self) -> None:
        self.values: dict[str, float] = {}


@contextmanager
def profile_training_step(wanted: bool) -> Iterator[TimeShares]:
    """If ``wanted``, profile the block: the share of each part of the model in its time, as ``share/<part>``."""
    found = TimeShares()
    if not wanted:
        yield found
        return
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * torch.cuda.is_available()
    with profile(activities=activities) as profiler:
        began = time.monotonic()
        yield found
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds = time.monotonic() - began
    found.values = {f"share/{name}": spent / seconds for name, spent in sorted(time_by_region(profiler).items())}


def time_by_region(profiler: profile) -> dict[str, float]:
    """Seconds of each region of ``amrg.models.profiling``, forward and backward, and of communication (``exchange``).

    The time of a nested part is not counted for the outer one. Times are those of kernels on a GPU, else of the CPU.
    """
    spent: defaultdict[str, float] = defaultdict(float)
    part_of: dict[int, str] = {}
    backward: list[Any] = []
    for event in profiler.events() or []:
        if event.device_type != DeviceType.CPU:  # on a GPU each range comes a second time, as a range of the device
            continue
        if event.name.startswith(_BACKWARD):
            backward.append(event)
            continue
        if event.name.startswith(_COLLECTIVES):
            if not any(one.name.startswith(_COLLECTIVES) for one in _around(event)):
                spent["exchange"] += _seconds(event)
        elif event.name.startswith(REGION_PREFIX):
            name = event.name.removeprefix(REGION_PREFIX)
            spent[name] += _seconds(event)
            around = _part_around(event)
            if around:
                spent[around] -= _seconds(event)
        elif event.sequence_nr >= 0 and (around := _part_around(event)):
            part_of[event.sequence_nr] = around
    for event in backward:
        if event.sequence_nr in part_of:
            spent[part_of[event.sequence_nr]] += _seconds(event)
    return dict(spent)


def _around(event: Any) -> Iterator[Any]:
    """Yield the events around an event, the innermost first."""
    while (event := event.cpu_parent) is not None:
        yield event


def _part_around(event: Any) -> str | None:
    names = (one.name for one in _around(event))
    return next((name.removeprefix(REGION_PREFIX) for name in names if name.startswith(REGION_PREFIX)), None)


def _seconds(event: Any) -> float:
    """Total time of an event, including its children."""
    return (event.device_time_total if torch.cuda.is_available() else event.cpu_time_total) / 1e6


class _Lines:
    def __init__(self, path: Path, step: int) -> None:
        if path.exists():
            partial = path.with_name(f"{path.name}.partial")
            partial.write_text("".join(_lines_until(step, path.read_text(errors="replace"))))
            os.replace(partial, path)
        self._file = path.open("a", buffering=1)

    def write(self, step: int, values: dict[str, float]) -> None:
        self._file.write(json.dumps({"step": step, **{name: round(v, 8) for name, v in values.items()}}) + "\n")

    def close(self) -> None:
        self._file.close()


def _lines_until(step: int, text: str) -> Iterator[str]:
    """Yield the lines of steps up to ``step``; the last one may have been cut off."""
    for line in text.splitlines(keepends=True):
        try:
            if json.loads(line)["step"] <= step and line.endswith("\n"):
                yield line
        except (ValueError, KeyError, TypeError):
            continue


class _TensorBoard:
    def __init__(self, folder: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=step + 1)

    def write(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


def telemetry_faults(config: TelemetryConfig) -> list[str]:
    """Return missing requirements of the configured logs."""
    return collect_errors(_wandb) if config.wandb_project else []


def _wandb() -> Any:
    """Return the module, if it is installed and has a key or needs none."""
    try:
        import wandb
    except ImportError:
        raise UserError("telemetry.wandb_project needs wandb: `pip install 'amrg[wandb]'`") from None
    keyless = os.environ.get("WANDB_MODE", "online") in ("offline", "disabled", "dryrun")
    if not keyless and hasattr(wandb, "api") and not wandb.api.api_key:
        raise UserError(f"telemetry.wandb_project: Weights & Biases has no key of yours: {_WANDB_ADVICE}")
    return wandb


def _run_id(path: Path) -> str:
    """Return the id of this training's run in Weights & Biases, drawn once and kept in a file."""
    if not path.exists():
        path.write_text(secrets.token_hex(4))
    return path.read_text()


_WANDB_ADVICE = "run `wandb login`, or set WANDB_MODE=offline, or leave telemetry.wandb_project out"


class _Wandb:
    def __init__(self, folder: Path, project: str, section: str) -> None:
        try:
            # "allow": the run of this id goes on, or begins.
            self._run = _wandb().init(
                project=project, name=section, dir=str(folder), id=_run_id(folder / WANDB_ID), resume="allow"
            )
        except UserError:
            raise
        except Exception as error:  # its own kinds: no key, no network, no such project
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"telemetry.wandb_project: Weights & Biases says: {reason}: {_WANDB_ADVICE}") from None

    def write(self, step: int, values: dict[str, float]) -> None:
        self._run.log(values, step=step)

    def close(self) -> None:
        self._run.finish()
