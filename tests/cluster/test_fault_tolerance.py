"""Counts of a training with failures, and the simulation calibrated on them (real failures: fault_injection.py)."""

import dataclasses

import pytest

from amrg.config import Config
from amrg.config_files import load_config
from amrg.planning.simulation import simulate_training
from benchmarks.fault_tolerance import Step, Trace, calibrated, on_average
from tests.conftest import TINY


def steps(began: float, first: int, last: int) -> list[Step]:
    """One step a second."""
    return [Step(number, began + number - first, began + number - first + 1) for number in range(first, last + 1)]


def saving_every(steps: int) -> Config:
    config = load_config(str(TINY))
    return dataclasses.replace(config, checkpoint=dataclasses.replace(config.checkpoint, interval=steps))


#: A checkpoint every 4 steps, whole 0.5 s later: killed in step 7, and in the first step after that.
DISTURBED = Trace(
    (*steps(100.0, 1, 6), *steps(110.0, 5, 6), *steps(120.0, 5, 12)), (106.5, 112.5, 113.5), writes=(0.4, 0.5, 0.6)
)


def test_what_was_lost_is_counted() -> None:
    assert DISTURBED.seconds == 28.0
    assert DISTURBED.repeated_steps == 4
    assert DISTURBED.failures == [6.5, 12.5, 13.5]
    assert DISTURBED.recoveries == [4.5, 7.5]  # the second kill while it came back counts, the first does not


def test_the_simulation_of_what_it_was_calibrated_on_is_what_was_seen() -> None:
    calm = Trace(tuple(steps(0.0, 1, 12)), writes=(0.4, 0.5, 0.6))
    hit = Trace((*steps(0.0, 1, 6), *steps(20.0, 5, 12)), (6.5,), (0.5,))
    config = saving_every(4)
    cluster = calibrated(config, calm, hit)
    assert cluster.workers * cluster.samples == config.stage2.batch_size
    again = simulate_training(cluster, 12, hit.failures)
    assert (again.seconds, again.repeated) == (pytest.approx(hit.seconds), 2 * config.stage2.batch_size)
    assert simulate_training(cluster, 12).seconds == pytest.approx(calm.seconds)


def test_on_average_failures_cost_what_they_cost_and_come_as_often_as_was_said() -> None:
    """Failures a second of the whole time are one in ``between``; a step is short, so what is lost is the restart."""
    config = saving_every(1)
    calm = Trace(tuple(steps(0.0, 1, 400)), writes=(0.0,))
    hit = Trace((*steps(0.0, 1, 6), *steps(16.5, 7, 400)), (6.5,), (0.0,))
    killed, seconds, again = on_average(calibrated(config, calm, hit), 400, 50.0)
    assert killed == pytest.approx(seconds / 50, rel=0.05)
    assert seconds == pytest.approx(400 + killed * 10.5, rel=0.05)
    assert again == 0
