"""A discrete-event model of synchronous training: readers, workers, exchange, checkpoints and failures.

Events of one kind are vectors over the workers, so that 4,096 workers cost about as much as one. Times obey

    read_i  = max(read_{i-r}, taken_{i-ra}) + reading     r readers per worker, each at most `a` batches ahead
    start_i = max(end_{i-1}, read_i)                      a worker waits for its batch
    end_i   = max over workers(start_i + computing) + exchange

A failure of any worker stops all: they restart after `restart` seconds from the last checkpoint that was complete on
disk, with nothing read. The noise belongs to the step: a repeated step takes as long as before.
"""

import math
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class SimulatedCluster:
    """Parameters of a simulated cluster; times in seconds.

    Attributes:
        workers: number of workers.
        samples: samples per worker and step.
        compute: a worker's step.
        read: one sample, by one reader.
        readers: processes per worker that read ahead; 0 reads a batch when it is needed.
        prefetch: batches that one reader may be ahead.
        exchange: the communication of a step.
        checkpoint_interval: steps between two checkpoints.
        copy, write: the part of a checkpoint for which all wait, and the part in the background.
        restart: time from a failure to the first step after it.
        noise: standard deviation of the logarithm of a worker's times; their means do not change.
    """

    workers: int
    samples: int
    compute: float
    read: float
    readers: int = 0
    prefetch: int = 2
    exchange: float = 0.0
    checkpoint_interval: int = 200
    copy: float = 0.0
    write: float = 0.0
    restart: float = 0.0
    noise: float = 0.0


@dataclass
class Outcome:
    """Result of a simulated run.

    Attributes:
        seconds: time until the last step ended.
        steps: distinct steps.
        read, trained, repeated, dropped: samples read; trained on and kept; trained on and lost; read and lost.
        failures: number of failures that stopped the run.
        spent: seconds by part, which sum to ``seconds``: data, compute, stragglers, exchange, checkpoints, failures.
    """

    seconds: float = 0.0
    steps: int = 0
    read: int = 0
    trained: int = 0
    repeated: int = 0
    dropped: int = 0
    failures: int = 0
    spent: dict[str, float] = field(default_factory=dict)

    @property
    def rate(self) -> float:
        """Samples per second that were kept."""
        return self.trained / self.seconds

    @property
    def bottleneck(self) -> str:
        """The part that took most of the time."""
        return max(self.spent, key=lambda name: self.spent[name])


PARTS = ("data", "compute", "stragglers", "exchange", "checkpoints", "failures")


def failure_times(workers: int, mean_hours: float | None, seed: int) -> Iterator[float]:
    """Seconds at which any worker fails, each once in ``mean_hours`` on average, independently; none for None."""
    if mean_hours is None:
        return
    generator, now = np.random.default_rng(seed), 0.0
    while True:
        now += generator.exponential(mean_hours * 3600 / workers)
        yield now


def simulate_training(
    cluster: SimulatedCluster, steps: int, failures: Iterable[float] = (), seed: int = 0, limit: float = math.inf
) -> Outcome:
    """Run until ``steps`` steps are done, or until ``limit`` seconds have passed where failures let it get nowhere.

    Args:
        cluster: what is simulated.
        steps: to be done.
        failures: rising times at which a worker fails; those while the run comes back hold it up anew.
        seed: of the noise.
        limit: seconds.
    """
    run = _Run(cluster, steps, seed)
    coming = iter(failures)
    failing = next(coming, math.inf)
    while run.step < steps and run.now < limit:
        end = run.attempt()
        if end <= failing:
            run.commit(end)
            continue
        run.fail(failing)
        failing = next(coming, math.inf)
        while failing <= run.now:
            run.spent["failures"] += failing + cluster.restart - run.now
            run.now, run.failures = failing + cluster.restart, run.failures + 1
            failing = next(coming, math.inf)
        run.begin()
    return run.outcome()


class _Run:
    """A run at the end of a step."""

    def __init__(self, cluster: SimulatedCluster, steps: int, seed: int) -> None:
        self.cluster, self.steps, self.seed = cluster, steps, seed
        self.now, self.step = 0.0, 0
        self.spent = dict.fromkeys(PARTS, 0.0)
        self.failures = self.repeated = self.dropped = 0
        self.saved, self.saving, self.written = 0, 0, 0.0  # step on disk; step being written, and when it is whole
        self.since: list[dict[str, float]] = []  # what each step since ``saved`` took
        self.begin()

    def begin(self) -> None:
        """All workers start together, with nothing read."""
        self.first = self.now
        self.reads: deque[np.ndarray] = deque()  # when each batch is read, from that of the next step on
        self.last: deque[np.ndarray] = deque(maxlen=max(self.cluster.readers, 1))  # when each reader has read its last
        for ahead in range(self.cluster.readers * self.cluster.prefetch):
            self._read(self.step + ahead, np.full(self.cluster.workers, self.now))

    def _times(self, kind: int, step: int, mean: float) -> np.ndarray:
        """Seconds of every worker for something of one step."""
        c = self.cluster
        if not c.noise:
            return np.full(c.workers, mean)
        drawn = np.random.default_rng([self.seed, kind, step]).standard_normal(c.workers)
        return mean * np.exp(c.noise * drawn - c.noise**2 / 2)

    def _read(self, step: int, room: np.ndarray) -> None:
        """A reader begins the batch of a step once it is free and there is room."""
        if step < self.steps:
            free = self.last[0] if len(self.last) == self.last.maxlen else np.full(self.cluster.workers, self.first)
            read = np.maximum(free, room) + self._times(0, step, self.cluster.samples * self.cluster.read)
            self.reads.append(read)
            self.last.append(read)

    def attempt(self) -> float:
        """When the next step, with its checkpoint if it has one, would end."""
        c = self.cluster
        if not c.readers and not self.reads:
            self._read(self.step, np.full(c.workers, self.now))
        start = np.maximum(self.now, self.reads[0])
        computed = start + self._times(1, self.step, c.compute)
        slowest = int(computed.argmax())
        waited, usual = float(start[slowest]) - self.now, float((computed - start).mean())
        parts = dict.fromkeys(PARTS, 0.0) | {
            "data": waited,
            "compute": usual,
            "stragglers": float(computed[slowest]) - self.now - waited - usual,
            "exchange": c.exchange,
        }
        end = float(computed[slowest]) + c.exchange
        if (self.step + 1) % c.checkpoint_interval == 0:
            parts["checkpoints"] = max(self.written - end, 0.0) + c.copy
        self._next = (start, parts)
        return end + parts["checkpoints"]

    def commit(self, end: float) -> None:
        """The step was done."""
        c = self.cluster
        start, parts = self._next
        self.reads.popleft()
        if c.readers:
            self._read(self.step + c.readers * c.prefetch, start)
        self.now, self.step = end, self.step + 1
        for name, value in parts.items():
            self.spent[name] += value
        self.since.append(parts)
        self._settle(end)
        if self.step % c.checkpoint_interval == 0:
            self.saving, self.written = self.step, end + c.write

    def _settle(self, now: float) -> None:
        """What was being written may be whole by now."""
        if self.saving > self.saved and self.written <= now:
            del self.since[: self.saving - self.saved]
            self.saved = self.saving

    def fail(self, when: float) -> None:
        """Go back to the last checkpoint that was whole."""
        c = self.cluster
        self._settle(when)
        self.failures += 1
        start, _ = self._next
        if c.readers:  # the readers went on while the step was under way
            self._read(self.step + c.readers * c.prefetch, np.where(start <= when, start, np.inf))
        self.repeated += (self.step - self.saved) * c.samples * c.workers
        self.dropped += self._waiting(when)
        for parts in self.since:
            for name, value in parts.items():
                self.spent[name] -= value
                self.spent["failures"] += value
        self.since.clear()
        self.spent["failures"] += when - self.now + c.restart
        self.now, self.step = when + c.restart, self.saved
        self.saving, self.written = self.saved, 0.0  # what was half written is lost

    def _waiting(self, now: float) -> int:
        """Samples that are read and not trained on."""
        return self.cluster.samples * sum(int((read <= now).sum()) for read in self.reads)

    def outcome(self) -> Outcome:
        trained = self.step * self.cluster.samples * self.cluster.workers
        read = trained + self.repeated + self.dropped + self._waiting(self.now)
        return Outcome(self.now, self.step, read, trained, self.repeated, self.dropped, self.failures, self.spent)
