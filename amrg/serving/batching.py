"""Studies that wait, written in batches by one worker thread."""

import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from amrg.data.context import Context
from amrg.data.own_studies import GivenPrior
from amrg.errors import UserError
from amrg.progress import print_on_rank_0

#: Films, uint8 [H, W] each, clinical context, the earlier study, and views of the films.
Study = tuple[list[np.ndarray], Context, GivenPrior | None, tuple[str, ...]]
Record = dict[str, Any]

#: Seconds before a model that could not be opened again is opened once more: doubled after each failure.
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0


class WorkerFailed(Exception):
    """The worker failed while a study waited for it or was written."""


@dataclass(frozen=True)
class OpenModel:
    """A model that is ready to write.

    Attributes:
        write: writes the records of a batch of studies (``LoadedRun.generate_records``).
        image_size: side of the model's input, in pixels.
    """

    write: Callable[[list[Study]], list[Record]]
    image_size: int


def error_place(error: BaseException) -> str:
    """Return the type of an error and where it was raised, without its message: that could quote a film or a report."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__} in {Path(last.filename).name}, line {last.lineno} ({last.name})"


class Batcher:
    """Queue of studies, and the thread that writes them.

    If ``write`` raises, every study that is being written or waits fails with ``WorkerFailed``; the model is closed and
    opened again.

    Args:
        open_model: opens the model; entered and left in the thread.
        batch_size: most studies that are written at once.
        on_batch: called with the number of studies and the seconds of each batch.

    Attributes:
        image_size: of the model.
        ready: whether a model is open.
        failures: how often the worker has failed.

    Raises:
        UserError: the model cannot be opened the first time.
    """

    def __init__(
        self,
        open_model: Callable[[], AbstractContextManager[OpenModel]],
        batch_size: int,
        on_batch: Callable[[int, float], None] = lambda size, seconds: None,
    ) -> None:
        self._open, self.batch_size, self._on_batch = open_model, batch_size, on_batch
        self._waiting: deque[tuple[Study, Future[Record]]] = deque()
        self._batch: list[tuple[Study, Future[Record]]] = []  # which is being written
        self._changed = threading.Condition()
        self._closed = False
        self._seconds = 1.0  # of the last batch
        self.ready, self.failures = False, 0
        opened: Future[int] = Future()
        self._thread = threading.Thread(target=self._run, args=(opened,), name="amrg-batches", daemon=True)
        self._thread.start()
        self.image_size = opened.result()

    def __len__(self) -> int:
        """Return how many studies wait; those that are being written are not counted."""
        return len(self._waiting)

    @property
    def wait(self) -> float:
        """Seconds after which a study that comes now should be written, by the last batch."""
        return self._seconds * (1 + len(self) / self.batch_size)

    def submit(self, study: Study) -> Future[Record]:
        """Add a study to the queue."""
        future: Future[Record] = Future()
        with self._changed:
            self._waiting.append((study, future))
            self._changed.notify()
        return future

    def position(self, future: Future[Record]) -> int | None:
        """Return how many studies wait before one; None if it does not wait any more."""
        with self._changed:
            waiting = [one[1] for one in self._waiting]
        return waiting.index(future) if future in waiting else None

    def cancel(self, future: Future[Record]) -> None:
        """Take a study from the queue if it is still there."""
        with self._changed:
            future.cancel()
            self._waiting = deque(one for one in self._waiting if one[1] is not future)

    def close(self) -> None:
        """Stop the thread after the batch that it writes; what waits fails."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _run(self, opened: Future[int]) -> None:
        pause = FIRST_PAUSE
        while not self._closed:
            try:
                with self._open() as model:
                    self.ready, pause = True, FIRST_PAUSE
                    if not opened.done():
                        opened.set_result(model.image_size)
                    while self._take():
                        self._write(model)
            except BaseException as error:  # whatever it was, the next studies need a worker
                if not opened.done():
                    opened.set_exception(error)
                    return
                self.failures += 1
                reason = str(error) if isinstance(error, UserError) else error_place(error)
                print_on_rank_0(f"the worker failed ({reason}) and is started again")
            was_ready, self.ready = self.ready, False
            self._fail()
            if not was_ready:
                with self._changed:
                    self._changed.wait_for(lambda: self._closed, pause)
                pause = min(2 * pause, LONGEST_PAUSE)

    def _take(self) -> bool:
        """Wait for studies and take at most ``batch_size``; False when the queue is closed."""
        with self._changed:
            while not self._closed:
                taken = [self._waiting.popleft() for _ in range(min(len(self._waiting), self.batch_size))]
                if batch := [one for one in taken if one[1].set_running_or_notify_cancel()]:
                    self._batch = batch
                    return True
                self._changed.wait_for(lambda: self._waiting or self._closed)
        return False

    def _write(self, model: OpenModel) -> None:
        start = time.monotonic()
        records = model.write([study for study, _ in self._batch])
        self._seconds = time.monotonic() - start
        self._on_batch(len(self._batch), self._seconds)
        for (_, future), record in zip(self._batch, records, strict=True):
            future.set_result(record)
        self._batch = []

    def _fail(self) -> None:
        """Fail what is being written and what waits."""
        with self._changed:
            failed = [*self._batch, *(one for one in self._waiting if one[1].set_running_or_notify_cancel())]
            self._batch = []
            self._waiting.clear()
        for _, future in failed:
            if not future.done():
                future.set_exception(WorkerFailed())
