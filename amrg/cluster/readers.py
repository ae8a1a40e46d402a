"""Readers: Ray actors that read and decode parts of batches ahead of the workers that train on them.

A part is a function of its step (``amrg.data.stream``), so a reader has no state that could be lost: what one does not
deliver, the next one reads, and the batches are those of the stream without Ray, in the same order.
"""

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import ray
import torch
from ray.exceptions import GetTimeoutError, RayActorError, RayError, RayTaskError

from amrg.cluster.metrics import ReaderMetrics, WorkerMetrics
from amrg.config import ClusterConfig
from amrg.data.stream import RankBatch, RankBatches
from amrg.errors import UserError
from amrg.torch_internals import pin_memory

logger = logging.getLogger(__name__)

#: Seconds between two lines about data that does not come.
WARN_INTERVAL = 60.0
#: Seconds that a reader may keep silent before another one gets its order.
READER_TIMEOUT = 2.0
#: Seconds between two questions whether a reader is back.
POLL_INTERVAL = 0.2


class Reader:
    """Reads what it is asked for, one part at a time."""

    def __init__(self, number: int) -> None:
        torch.set_num_threads(1)
        self._metrics = ReaderMetrics(number)

    @ray.method(concurrency_group="answers")
    def ping(self) -> None:
        """Answers while the reader reads, too."""

    def part(self, parts: RankBatches, step: int) -> RankBatch:
        """One worker's part of the batch ``step``; the same whenever and wherever it is asked for."""
        began = time.monotonic()
        part = parts[step]
        self._metrics.read(parts.samples, time.monotonic() - began)
        return part


def start_readers(settings: ClusterConfig) -> list[Any]:
    """The readers of a run; they end with the driver, and start again by themselves when they die."""
    resources = {settings.reader_resource: 1.0} if settings.reader_resource else {}
    reader = ray.remote(concurrency_groups={"answers": 1})(Reader).options(  # type: ignore[call-overload]
        num_cpus=settings.reader_cpus,
        resources=resources,
        max_restarts=-1,
        max_task_retries=0,
        scheduling_strategy="SPREAD",
    )
    return [reader.remote(number) for number in range(settings.readers)]


class PrefetchingFetch:
    """One worker's orders to the readers. A ``Fetch`` of ``amrg.data.stream``.

    At most ``prefetch`` parts are ordered and not yet taken, which bounds the object store. Readers take turns over
    the parts of all workers: where their numbers divide, a reader serves always the same workers, hence lanes.

    Args:
        readers: actors, at least one.
        settings: ``prefetch``, ``max_failures`` and ``data_timeout`` are read.
        rank, world: of the worker.
        metrics: of the worker.
    """

    def __init__(
        self, readers: list[Any], settings: ClusterConfig, rank: int, world: int, metrics: WorkerMetrics
    ) -> None:
        self._readers, self._settings, self._rank, self._world, self._metrics = readers, settings, rank, world, metrics
        self._unresponsive: dict[
            int, Any
        ] = {}  # readers that were lost or silent, and the answer that each of them owes

    def __call__(self, parts: RankBatches, steps: range) -> Iterator[RankBatch]:
        """Yield this rank's batch of every step, in order, whichever reader reads it."""
        shared = ray.put(parts)
        orders: deque[_Order] = deque()
        ahead = iter(steps)
        for _ in steps:
            while len(orders) < self._settings.prefetch and (step := next(ahead, None)) is not None:
                orders.append(self._order(shared, step, self._is_here))
            ready, _ = ray.wait([order.part for order in orders], num_returns=len(orders), timeout=0)
            began = time.monotonic()
            part = self._receive(shared, orders.popleft())
            self._metrics.waited(time.monotonic() - began, len(ready))
            yield pin_memory(part) if torch.cuda.is_available() else part  # as torch's own loader does

    def _order(self, shared: Any, step: int, fit: Callable[[int], bool]) -> "_Order":
        """Order a part from the reader whose turn it is, or from the next one that is ``fit``."""
        turns = [(step * self._world + self._rank + shift) % len(self._readers) for shift in range(len(self._readers))]
        reader = next((number for number in turns if fit(number)), turns[0])
        return _Order(step, reader, self._readers[reader].part.remote(shared, step))

    def _receive(self, shared: Any, order: "_Order") -> RankBatch:
        """The part that was ordered, from another reader where the first is lost."""
        patience = _Deadline(order.step, self._settings.data_timeout)
        lost = 0
        while True:
            try:
                return ray.get(order.part, timeout=READER_TIMEOUT)
            except GetTimeoutError:
                if not self._answers(order.reader) and len(self._unresponsive) < len(self._readers):
                    order = self._order(shared, order.step, self._answers)
            except RayTaskError as error:
                raise UserError(str(error.cause)) if isinstance(error.cause, UserError) else error from None
            except RayError as error:
                lost += 1
                self._lost(order, lost, error)
                # A reader that is not back yet would fail this order at once, and one death would count as many.
                while not any(map(self._answers, range(len(self._readers)))):
                    patience.check()
                    time.sleep(POLL_INTERVAL)
                order = self._order(shared, order.step, self._answers)
            patience.check()

    def _lost(self, order: "_Order", times: int, error: RayError) -> None:
        """Note that a reader did not deliver; enough is enough for one part."""
        self._unresponsive[order.reader] = self._readers[order.reader].ping.remote()
        self._metrics.lost()
        logger.warning("batch %d was lost with its reader (%s): ordered again", order.step, type(error).__name__)
        if times > self._settings.max_failures:
            raise UserError(
                f"readers died {times} times over batch {order.step}: out of memory, or a film that kills them (their "
                "logs say more: `ray logs cluster`); take fewer readers on a node, or cluster.readers 0"
            ) from None

    def _answers(self, number: int) -> bool:
        """Whether a reader answers now; a busy one does."""
        answer = self._readers[number].ping.remote()
        self._unresponsive[number] = answer
        ray.wait([answer], timeout=READER_TIMEOUT)
        return self._is_here(number)

    def _is_here(self, number: int) -> bool:
        """Whether a reader owes no answer, as far as is known."""
        if number in self._unresponsive:
            answered, _ = ray.wait([self._unresponsive[number]], timeout=0)
            if not answered:
                return False
            try:
                ray.get(self._unresponsive.pop(number))
            except RayActorError:
                self._unresponsive[number] = self._readers[number].ping.remote()
                return False
        return True


class _Deadline:
    """A wait for a batch, told of now and then, that ends."""

    def __init__(self, step: int, timeout: float) -> None:
        self._step, self._timeout = step, timeout
        self._began = self._noticed = time.monotonic()

    def check(self) -> None:
        """Raises UserError once the time is over."""
        now = time.monotonic()
        waited = now - self._began
        if now - self._noticed > WARN_INTERVAL:
            self._noticed = now
            logger.warning("no data for %.0f s (batch %d): are the readers' nodes there?", waited, self._step)
        if waited > self._timeout:
            raise UserError(
                f"no reader delivered batch {self._step} within cluster.data_timeout {self._timeout:.0f} s: look at "
                "the readers' nodes with `ray status`; the same command goes on from the last checkpoint"
            )


@dataclass(frozen=True)
class _Order:
    """A part that reader number ``reader`` is to deliver."""

    step: int
    reader: int
    part: Any
