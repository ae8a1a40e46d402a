"""Readers: Ray actors that read and decode parts of batches ahead of the workers that train on them.

A part is a function of its step (``amrg.data.stream``), so a reader has no state that could be lost: what one does not
deliver, the next one reads, and the batches are those of the stream without Ray, in the same order.
"""

import logging
import time
from collections import deque
from collections.abc import Iterator
from typing import Any

import ray
import torch
from ray.exceptions import GetTimeoutError, RayActorError, RayError, RayTaskError

from amrg.cluster.metrics import ReaderMetrics, WorkerMetrics
from amrg.config import ClusterConfig
from amrg.data.stream import Part, Parts
from amrg.errors import UserError

logger = logging.getLogger(__name__)

#: Seconds between two lines about data that does not come, and before an order is given again.
PATIENCE = 60.0
PAUSE = 0.5


class Reader:
    """Reads what it is asked for, one part at a time."""

    def __init__(self, number: int) -> None:
        torch.set_num_threads(1)
        self._metrics = ReaderMetrics(number)

    def ping(self) -> None:
        """Answers when the reader is there."""

    def part(self, parts: Parts, step: int) -> Part:
        """One worker's part of the batch ``step``; the same whenever and wherever it is asked for."""
        began = time.monotonic()
        part = parts(step)
        self._metrics.read(len(part[0]), time.monotonic() - began)
        return part


def start_readers(ours: ClusterConfig) -> list[Any]:
    """The readers of a run; they end with the driver, and start again by themselves when they die."""
    resources = {ours.reader_resource: 1.0} if ours.reader_resource else {}
    reader = ray.remote(Reader).options(
        num_cpus=ours.reader_cpus,
        resources=resources,
        max_restarts=-1,
        max_task_retries=0,
        scheduling_strategy="SPREAD",
    )
    return [reader.remote(number) for number in range(ours.readers)]


class ReadAhead:
    """One worker's orders to the readers. A ``Fetch`` of ``amrg.data.stream``.

    At most ``prefetch`` parts are ordered and not yet taken, which bounds the object store. Readers take turns over
    the parts of all workers: where their numbers divide, a reader serves always the same workers, hence lanes.

    Args:
        readers: actors, at least one.
        ours: ``prefetch``, ``max_failures`` and ``data_timeout`` are read.
        rank, world: of the worker.
        metrics: of the worker.
    """

    def __init__(self, readers: list[Any], ours: ClusterConfig, rank: int, world: int, metrics: WorkerMetrics) -> None:
        self._readers, self._ours, self._rank, self._world, self._metrics = readers, ours, rank, world, metrics

    def __call__(self, parts: Parts, steps: range) -> Iterator[Part]:
        shared = ray.put(parts)
        ordered: deque[tuple[int, Any]] = deque()
        ahead = iter(steps)
        for _ in steps:
            while len(ordered) < self._ours.prefetch and (step := next(ahead, None)) is not None:
                ordered.append((step, self._order(self._reader(step), shared, step)))
            ready, _ = ray.wait([order for _, order in ordered], num_returns=len(ordered), timeout=0)
            step, order = ordered.popleft()
            began = time.monotonic()
            part = self._take(shared, step, order)
            self._metrics.waited(time.monotonic() - began, len(ready))
            yield part

    def _reader(self, step: int, shift: int = 0) -> Any:
        return self._readers[(step * self._world + self._rank + shift) % len(self._readers)]

    def _order(self, reader: Any, shared: Any, step: int) -> Any:
        return reader.part.remote(shared, step)

    def _take(self, shared: Any, step: int, order: Any) -> Part:
        """The part that was ordered, from another reader where the first was lost."""
        began = warned = time.monotonic()
        lost = 0
        while True:
            try:
                if order is not None:
                    return ray.get(order, timeout=PAUSE)
                reader = self._alive(step)
                order = reader and self._order(reader, shared, step)
            except GetTimeoutError:
                pass
            except RayTaskError as error:
                raise UserError(str(error.cause)) if isinstance(error.cause, UserError) else error from None
            except RayError as error:
                order, lost = None, lost + 1
                self._metrics.lost()
                logger.warning("batch %d was lost with its reader (%s): ordered again", step, type(error).__name__)
                if lost > self._ours.max_failures:
                    raise UserError(
                        f"readers died {lost} times over batch {step}: out of memory, or a film that kills them "
                        "(their logs say more: `ray logs cluster`); fewer readers on a node, or cluster.readers 0"
                    ) from None
            now = time.monotonic()
            if now - warned > PATIENCE:
                warned = now
                logger.warning(
                    "no data since %.0f s (batch %d): are the nodes of the readers there?", now - began, step
                )
            if now - began > self._ours.data_timeout:
                raise UserError(
                    f"no reader delivered batch {step} within cluster.data_timeout {self._ours.data_timeout:.0f} s: "
                    "look at the readers' nodes with `ray status`; the same command goes on from the last checkpoint"
                )

    def _alive(self, step: int) -> Any:
        """A reader that can be given an order, or None after a pause."""
        for shift in range(len(self._readers)):
            reader = self._reader(step, shift)
            try:
                ray.get(reader.ping.remote(), timeout=PAUSE)
            except GetTimeoutError:
                return reader  # busy
            except RayActorError:
                continue  # starting again, or waiting for a node
            return reader
        time.sleep(PAUSE)
        return None
