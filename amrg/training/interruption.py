"""Early ends of a run that keep its progress: signals, a loss that is not finite or explodes, exhausted memory."""

import contextlib
import errno
import math
import os
import re
import signal
import statistics
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from pathlib import Path
from types import FrameType

import torch

from amrg.errors import UserError
from amrg.progress import print_on_rank_0

#: Losses that the median is taken of, and how many are needed before it means something.
MEDIAN_WINDOW, MIN_HISTORY = 100, 20
#: Both stages begin near this loss or above. Smaller losses of single batches vary by large factors without harm.
LEAST_EXPLODED = 1.0

#: Seconds in which a second signal is the first one again: launchers pass on what the terminal has already sent.
SIGNAL_DEBOUNCE_SECONDS = 1.0

#: What torch, its readers and NCCL say of a /dev/shm that is too small.
_NO_SHARED_MEMORY = re.compile(r"shared memory|Bus error|</torch_", re.IGNORECASE)
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class GracefulStop(KeyboardInterrupt):
    """Raised when a signal has ended the run and its progress is saved."""

    def __init__(self, step: int) -> None:
        super().__init__(f"stopped as asked after step {step}, which is saved: the same command goes on from there")


_CONDITION: ContextVar[Callable[[], bool]] = ContextVar("condition", default=lambda: False)


@contextlib.contextmanager
def stopping_when(condition: Callable[[], bool]) -> Iterator[None]:
    """Within the block a training also stops after the step at which a condition, asked on any rank, holds."""
    token = _CONDITION.set(condition)
    try:
        yield
    finally:
        _CONDITION.reset(token)


class StopRequest:
    """Flag set by SIGTERM, SIGINT or the end of the ``deepspeed`` command; a second signal stops immediately.

    The condition of ``stopping_when`` requests a stop as well.
    """

    def __init__(self) -> None:
        self._signalled = False
        self._since = 0.0
        self._runner = _deepspeed_runner()

    @property
    def requested(self) -> bool:
        """Whether a signal, the end of DeepSpeed's runner, or a condition asks for a stop."""
        return self._signalled or _deepspeed_runner() != self._runner or _CONDITION.get()()

    def _take(self, number: int, frame: FrameType | None) -> None:
        if self._signalled and time.monotonic() - self._since > SIGNAL_DEBOUNCE_SECONDS:
            raise KeyboardInterrupt
        if not self._signalled:
            self._signalled, self._since = True, time.monotonic()
            print_on_rank_0("stopping after this step; once more stops at once")


def _deepspeed_runner() -> int | None:
    """Process id of the ``deepspeed`` command that started this rank's launcher; None without one.

    The command does not forward signals. A signal sent to it alone ends it, while its launcher and the ranks continue;
    the launcher then has another parent process.
    """
    launcher = Path(f"/proc/{os.getppid()}")
    try:
        if b"deepspeed.launcher.launch" not in (launcher / "cmdline").read_bytes():
            return None
        return int((launcher / "stat").read_text().rsplit(")", 1)[1].split()[1])
    except OSError:
        return None


@contextlib.contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Within the block, signals request an orderly end (in the main thread only, as Python handles them there)."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.signal(number, request._take) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class LossGuard:
    """Stop a run whose loss is not finite or far above the median of the last ``MEDIAN_WINDOW`` steps.

    Args:
        section: ``stage1`` or ``stage2``, for the message.
        loss_spike_factor: a loss above this many times the median, and above ``LEAST_EXPLODED``, stops the run.
    """

    def __init__(self, section: str, loss_spike_factor: float) -> None:
        self._section, self._spike_factor = section, loss_spike_factor
        self._recent: deque[float] = deque(maxlen=MEDIAN_WINDOW)

    def check(self, loss: float) -> str | None:
        """Describe the fault of a step's loss, or return None."""
        if not math.isfinite(loss):
            return f"is {loss}"
        if len(self._recent) >= MIN_HISTORY:
            median = statistics.median(self._recent)
            if loss > max(self._spike_factor * median, LEAST_EXPLODED):
                return f"is {loss:.4g}, {loss / median:.0f} times the median of the last {len(self._recent)} steps"
        self._recent.append(loss)
        return None

    def stop(self, wrong: str, step: int, losses: Sequence[tuple[int, float, list[str]]]) -> UserError:
        """Build the error to raise, the same on every rank.

        Args:
            wrong: from ``check``.
            step: from 1.
            losses: (rank, its own loss, hashed keys of its studies) of each rank. The error names the ranks whose loss
                is not finite, or else the one with the largest loss.
        """
        blamed = [row for row in losses if not math.isfinite(row[1])] or [max(losses, key=lambda row: row[1])]
        ranks = "; ".join(f"rank {rank}, studies {', '.join(keys) or 'unknown'}" for rank, _, keys in blamed)
        return UserError(
            f"{self._section}: the loss {wrong} at step {step} ({ranks}; hashed keys): lower {self._section}.lr or use "
            "dtype float32; the last good checkpoint is kept, and the same command goes on from it"
        )


@contextlib.contextmanager
def exhaustion_as_user_errors(section: str, folder: Path) -> Iterator[None]:
    """Convert errors of exhausted memory or disk space to a UserError with advice."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError):
        raise _out_of_memory(section) from None
    except RuntimeError as error:
        if "can't allocate memory" in str(error) or "not enough memory" in str(error):
            raise _out_of_memory(section) from None
        if _NO_SHARED_MEMORY.search(str(error)):
            raise UserError(
                f"{section}: the shared memory of this machine is used up: give /dev/shm more room (`docker run "
                "--shm-size 8g`), or read films without processes of their own: --data.loader_workers 0"
            ) from None
        raise
    except OSError as error:
        if error.errno in _NO_ROOM:
            raise UserError(
                f"{section}: cannot write to {folder}: {error.strerror}; the last checkpoint is whole: make room, and "
                "the same command goes on from it"
            ) from None
        raise


def _out_of_memory(section: str) -> UserError:
    return UserError(
        f"{section}: out of memory in a step: give the DeepSpeed JSON a smaller train_micro_batch_size_per_gpu (it "
        "accumulates the rest), set stage2.activation_checkpointing, take a higher ZeRO stage or zero3_offload.json, "
        f"or lower {section}.batch_size"
    )
