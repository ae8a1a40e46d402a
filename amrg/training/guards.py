"""What ends a run early without losing work: a signal, a loss that is no number or explodes, no memory left."""

import contextlib
import math
import signal
import statistics
import threading
from collections import deque
from collections.abc import Iterator
from types import FrameType

import torch

from amrg.errors import UserError
from amrg.progress import say

#: Losses that the median is taken of, and how many are needed before it means something.
MEDIAN_OF, LEAST = 100, 20


class StopRequest:
    """Whether SIGTERM or SIGINT has come; a second one interrupts at once."""

    def __init__(self) -> None:
        self.came = False

    def _take(self, number: int, frame: FrameType | None) -> None:
        if self.came:
            raise KeyboardInterrupt
        self.came = True
        say("stopping after this step; once more stops at once")


@contextlib.contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Within the block signals ask for an orderly end. (In a thread that is not the main one nothing can be caught.)"""
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
    """Stops a run whose loss is not finite, or ``explosion`` times the median of the last ``MEDIAN_OF`` steps.

    Args:
        section: ``stage1`` or ``stage2``, for the message.
        explosion: the factor.
    """

    def __init__(self, section: str, explosion: float) -> None:
        self._section, self._explosion = section, explosion
        self._recent: deque[float] = deque(maxlen=MEDIAN_OF)

    def wrong_with(self, loss: float) -> str | None:
        """What is wrong with the loss of a step, or None."""
        if not math.isfinite(loss):
            return f"is {loss}"
        if len(self._recent) >= LEAST:
            median = statistics.median(self._recent)
            if loss > self._explosion * median:
                return f"is {loss:.4g}, {loss / median:.0f} times the median of the last {len(self._recent)} steps"
        self._recent.append(loss)
        return None

    def stop(self, wrong: str, step: int, blamed: list[tuple[int, list[str]]]) -> UserError:
        """The error to raise, the same on every rank.

        Args:
            wrong: from ``wrong_with``.
            step: from 1.
            blamed: ranks whose own loss is not finite, and the hashed keys of their studies.
        """
        ranks = "; ".join(f"rank {rank}, studies {', '.join(keys) or 'unknown'}" for rank, keys in blamed)
        where = f" ({ranks}; hashed keys)" if blamed else ""
        return UserError(
            f"{self._section}: the loss {wrong} at step {step}{where}: lower {self._section}.lr or use dtype float32; "
            "the last good checkpoint is kept, and the same command goes on from it"
        )


@contextlib.contextmanager
def memory_advice(section: str) -> Iterator[None]:
    """Turn running out of memory into one line that says what helps."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError):
        out = True
    except RuntimeError as error:
        out = "can't allocate memory" in str(error) or "not enough memory" in str(error)
        if not out:
            raise
    else:
        out = False
    if out:
        raise UserError(
            f"{section}: out of memory in a step: raise gradient_accumulation_steps in the DeepSpeed JSON, set "
            "stage2.activation_checkpointing, take a higher ZeRO stage or zero3_offload.json, or lower batch_size"
        )
