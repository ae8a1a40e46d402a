"""How much memory a computation takes, from the outside (Linux)."""

import multiprocessing
import threading
from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec

P = ParamSpec("P")


def proc_status_bytes(field: str) -> int:
    """``VmHWM`` (peak), ``VmRSS`` (now), ``RssAnon`` (now, without mapped files) of this process, bytes."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def reset_peak() -> None:
    """Let ``VmHWM`` start again from what is resident now."""
    Path("/proc/self/clear_refs").write_text("5")


def in_fresh_process(function: Callable[P, float], *arguments: P.args, **options: P.kwargs) -> float:
    """The function's value, computed where nothing else has left its memory."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments, options)


class PeakSampler:
    """Peak anonymous memory while the block runs; the kernel keeps no such mark, so it is sampled every 2 ms."""

    def __enter__(self) -> "PeakSampler":
        self.peak, self._stop = proc_status_bytes("RssAnon"), threading.Event()
        self._thread = threading.Thread(target=self._sample)
        self._thread.start()
        return self

    def _sample(self) -> None:
        while not self._stop.wait(0.002):
            self.peak = max(self.peak, proc_status_bytes("RssAnon"))

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
