"""Pool of processes, each of which runs one step at a time on its share of the cores."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import TypeVar

from amrg.config import Config
from amrg.config_files import config_to_dict
from amrg.errors import UserError
from amrg.progress import print_on_rank_0

T = TypeVar("T")

_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


class Jobs:
    """Worker processes, one per job, with one waiting thread each.

    A step that fails, or whose process dies, raises UserError in its caller; other steps continue. Leaving the block by
    an exception interrupts the running steps, and the next start resumes them.

    Args:
        count: number of concurrent steps.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._waiting = ThreadPoolExecutor(count)
        self._local = threading.local()
        self._processes: list[_Process] = []
        self._lock, self._stopping = threading.Lock(), False

    def submit(self, work: Callable[..., T], *arguments: object) -> Future[T]:
        """Queue ``work``, which may call ``make``, for the next free job, in the order of submission."""
        return self._waiting.submit(work, *arguments)

    def make(self, verb: str, config: Config, name: str) -> None:
        """Run a step in the calling job's process; its log lines begin with ``name``."""
        with self._lock:
            if self._stopping:
                raise UserError("stopped")
            process: _Process | None = getattr(self._local, "process", None)
            if process is None or not process.alive():
                process = self._local.process = _Process(max(1, len(os.sched_getaffinity(0)) // self.count))
                self._processes.append(process)
        process.make(verb, config, name)

    def __enter__(self) -> "Jobs":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            self._stopping = True
        if kind is not None:
            print_on_rank_0("stopping: what can be saved is saved; once more stops at once")
        try:
            self._waiting.shutdown(wait=False, cancel_futures=True)
            for process in self._processes:
                process.stop()
            for process in self._processes:
                process.wait()
        except KeyboardInterrupt:
            for process in self._processes:
                process.kill()
            raise
        self._waiting.shutdown()


class _Process:
    """Process of ``amrg.experiments.worker`` in its own session, so that Ctrl-C reaches it through ``Jobs`` only."""

    def __init__(self, threads: int) -> None:
        self._name = ""
        self._process = subprocess.Popen(
            [sys.executable, "-m", "amrg.experiments.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env={**os.environ, **dict.fromkeys(_THREADS, str(threads))},
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._requests, self._answers = self._process.stdin, self._process.stdout
        self._log = threading.Thread(target=self._pass_on, daemon=True)
        self._log.start()

    def make(self, verb: str, config: Config, name: str) -> None:
        self._name = name
        try:
            self._requests.write(json.dumps({"verb": verb, "config": config_to_dict(config)}) + "\n")
            self._requests.flush()
            answer = self._answers.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            code = self._process.wait()
            how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
            raise UserError(f"{name}: the process that made {verb} ended with {how}: is there memory for fewer --jobs?")
        if error := json.loads(answer)["error"]:
            raise UserError(error)

    def alive(self) -> bool:
        return self._process.poll() is None

    def stop(self) -> None:
        with contextlib.suppress(BrokenPipeError):  # the process has ended
            self._requests.close()

    def wait(self) -> None:
        self._process.wait()
        self._log.join()

    def kill(self) -> None:
        self._process.kill()

    def _pass_on(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            print_on_rank_0(f"[{self._name}] {line.rstrip()}")
