"""The simulation against closed forms, an event-by-event reference, and properties it must have."""

import dataclasses
import heapq
import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from amrg.planning.simulation import SimulatedCluster, failure_times, simulate_training

BASE = SimulatedCluster(
    workers=3, samples=5, compute=0.7, read=0.02, exchange=0.11, checkpoint_interval=4, copy=0.3, write=0.9
)


def change(**values: object) -> SimulatedCluster:
    return dataclasses.replace(BASE, **values)  # type: ignore[arg-type]


@pytest.mark.parametrize("workers", [1, 2, 4096])
def test_reading_in_between_takes_the_sum_of_all_parts(workers: int) -> None:
    found = simulate_training(change(workers=workers), 14)
    assert found.seconds == pytest.approx(14 * (5 * 0.02 + 0.7 + 0.11) + 3 * 0.3)
    assert found.rate == pytest.approx(14 * 5 * workers / found.seconds)
    assert found.bottleneck == "compute"


def test_readers_that_keep_up_cost_the_first_batch_only() -> None:
    assert simulate_training(change(readers=1), 14).seconds == pytest.approx(0.1 + 14 * (0.7 + 0.11) + 3 * 0.3)


@pytest.mark.parametrize("readers", [1, 2, 3])
def test_slow_readers_set_the_pace(readers: int) -> None:
    found = simulate_training(change(read=1.0, readers=readers, copy=0.0), 12)
    assert found.seconds == pytest.approx(12 / readers * 5 + (0.81 * readers))  # the last batches come together
    assert found.bottleneck == "data"


def test_a_checkpoint_waits_for_the_one_before_it() -> None:
    found = simulate_training(change(checkpoint_interval=1, write=2.0), 3)
    assert found.seconds == pytest.approx(0.91 + 0.3 + 2 * (2.0 + 0.3))


def test_a_failure_costs_what_was_not_on_disk() -> None:
    """Checkpoint of step 4 at 3.94 s, whole at 4.84 s; a failure before that starts from nothing, one after from 4."""
    step = 0.91
    early = simulate_training(change(restart=10.0), 6, [4.8])
    assert early.seconds == pytest.approx(4.8 + 10 + 6 * step + 0.3)
    assert (early.failures, early.repeated) == (1, 4 * 15)
    late = simulate_training(change(restart=10.0), 6, [5.0])
    assert late.seconds == pytest.approx(5.0 + 10 + 2 * step)
    assert (late.repeated, late.trained) == (15, 6 * 15)


def test_failures_while_it_comes_back_hold_it_up() -> None:
    assert simulate_training(change(restart=10.0), 1, [0.5, 3.0, 12.0]).seconds == pytest.approx(22.0 + 0.91)


def test_noise_makes_the_slowest_of_many_workers_slow() -> None:
    rates = [simulate_training(change(workers=w, noise=0.1), 50, seed=2).rate / w for w in (1, 16, 256)]
    assert rates[0] > rates[1] > rates[2]
    again = [simulate_training(change(noise=0.1), 50, seed=s).seconds for s in (2, 2, 3)]
    assert again[0] == again[1] != again[2]


def test_failures_come_at_their_mean_rate_and_by_seed() -> None:
    times = list(itertools.islice(failure_times(100, 50.0, 7), 4000))
    assert times[-1] / 4000 == pytest.approx(1800, rel=0.05)
    assert times[:5] == list(itertools.islice(failure_times(100, 50.0, 7), 5))
    assert not list(failure_times(100, None, 7))


CLUSTERS = st.builds(
    SimulatedCluster,
    workers=st.integers(1, 3),
    samples=st.integers(1, 3),
    compute=st.floats(0.1, 2),
    read=st.floats(0.01, 2),
    readers=st.integers(0, 3),
    prefetch=st.integers(1, 3),
    exchange=st.floats(0, 0.5),
    checkpoint_interval=st.integers(1, 5),
    copy=st.floats(0, 0.5),
    write=st.floats(0, 4),
    restart=st.floats(0, 5),
)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(CLUSTERS, st.lists(st.floats(0.1, 40), max_size=4), st.floats(0.1, 40), st.sampled_from([0.0, 0.3]))
def test_one_more_failure_never_helps(
    cluster: SimulatedCluster, times: list[float], extra: float, noise: float
) -> None:
    cluster = dataclasses.replace(cluster, noise=noise)
    few, more = (simulate_training(cluster, 13, sorted(t), seed=1) for t in (times, [*times, extra]))
    assert more.seconds >= few.seconds - 1e-9
    for found in (few, more):
        assert sum(found.spent.values()) == pytest.approx(found.seconds)
        assert found.trained == 13 * cluster.samples * cluster.workers


@settings(max_examples=60, deadline=None, derandomize=True)
@given(CLUSTERS, st.lists(st.floats(0.1, 40), max_size=3))
def test_it_is_what_events_one_by_one_give(cluster: SimulatedCluster, times: list[float]) -> None:
    """Time and samples, counted one by one: what is read is what is trained on, repeated or dropped."""
    found = simulate_training(cluster, 11, sorted(times))
    reference = Reference(cluster, 11, sorted(times))
    reference.run()
    assert found.seconds == pytest.approx(reference.now)
    assert found.read == reference.produced
    assert found.trained + found.repeated == reference.consumed


class Reference:
    """One worker stands for all (without noise they are alike); a heap of events, a queue, and counters."""

    def __init__(self, cluster: SimulatedCluster, steps: int, failures: list[float]) -> None:
        self.c, self.steps, self.failures = cluster, steps, failures
        self.now, self.step, self.produced, self.consumed = 0.0, 0, 0, 0
        self.saved, self.writes = 0, []  # type: ignore[var-annotated]

    def run(self) -> None:
        starts, failures = 0.0, list(self.failures)
        while True:
            failing = failures.pop(0) if failures else math.inf
            while failing <= starts and self.now:
                starts = failing + self.c.restart
                failing = failures.pop(0) if failures else math.inf
            if self.life(starts, failing):
                return
            self.saved = max([self.saved, *(step for when, step in self.writes if when <= failing)])
            self.writes, self.step = [], self.saved
            starts = failing + self.c.restart

    def life(self, now: float, failing: float) -> bool:
        """From a start to the end of training (True) or to a failure."""
        c, batch = self.c, self.c.samples * self.c.workers
        readers = max(c.readers, 1)
        queue: set[int] = set()
        coming, room = self.step, c.readers * c.prefetch
        events: list[tuple[float, int, str, int]] = []
        busy, state, disk = [False] * readers, "idle", now
        while True:
            inline = not c.readers and state == "idle" and not queue
            for number in range(readers):
                free = not busy[number] and coming < self.steps and coming % readers == number % readers
                if free and (room > 0 if c.readers else inline and coming == self.step):
                    heapq.heappush(events, (now + c.samples * c.read, 0, "read", coming))
                    busy[number], coming, room = True, coming + 1, room - 1
                    break
            else:
                if state == "idle" and self.step in queue:
                    queue.remove(self.step)
                    room += 1
                    state = "busy"
                    end = now + c.compute + c.exchange
                    if (self.step + 1) % c.checkpoint_interval == 0:
                        end = max(end, disk) + c.copy
                        disk = end + c.write
                    heapq.heappush(events, (end, 1, "step", self.step))
                    continue
                now, _, kind, number = heapq.heappop(events)
                if now > failing:
                    return False
                self.now = now
                if kind == "read":
                    busy[number % readers] = False
                    queue.add(number)
                    self.produced += batch
                else:
                    self.consumed += batch
                    self.step, state = number + 1, "idle"
                    if self.step % c.checkpoint_interval == 0:
                        self.writes.append((disk, self.step))
                    if self.step == self.steps:
                        return True
