"""Throughput for any number of workers from measured or predicted rates; the batch per worker is fixed."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from amrg.config import Config
from amrg.data.stream import reader_processes
from amrg.planning.measured_rates import MeasuredRates
from amrg.planning.simulation import Outcome, SimulatedCluster, failure_times, simulate_training
from amrg.planning.stage_estimate import (
    Assumptions,
    bank_estimates,
    build_skeleton,
    estimate_split_size,
    estimate_stage,
)
from amrg.planning.step_time import StepBytes, predict_step_bytes, roofline_step_time
from amrg.planning.zero_memory import ZeroSettings

SIZES = tuple(2**i for i in range(13))  # 1 … 4,096
_STEPS = 400  # of an undisturbed run
_INTERVALS = 20_000  # between checkpoints, of a run that is disturbed


@dataclass(frozen=True)
class Point:
    """One number of workers.

    Attributes:
        cluster: the simulated cluster.
        steady: a run without failures.
        goodput_share: throughput with failures, as a share of that without.
        failures: number of failures in the run with failures.
    """

    cluster: SimulatedCluster
    steady: Outcome
    goodput_share: float
    failures: int


def scaling_curve(clusters: Sequence[SimulatedCluster], mean_hours: float | None, seed: int) -> list[Point]:
    """Simulate each cluster; a worker fails once per ``mean_hours`` on average."""
    return [_point(cluster, mean_hours, seed) for cluster in clusters]


def _point(cluster: SimulatedCluster, mean_hours: float | None, seed: int) -> Point:
    # Whole intervals between checkpoints, so that no share of a checkpoint is missing.
    steps = max(_STEPS // cluster.checkpoint_interval, 2) * cluster.checkpoint_interval
    steady = simulate_training(cluster, steps, seed=seed)
    # A failure goes back to a checkpoint, so the steps between two of them may be one: the time is the same.
    interval = steady.seconds / steps * cluster.checkpoint_interval
    coarse = SimulatedCluster(
        1, cluster.samples * cluster.workers * cluster.checkpoint_interval, interval - cluster.copy, 0.0,
        checkpoint_interval=1, copy=cluster.copy, write=cluster.write, restart=cluster.restart,
    )  # fmt: skip
    failures = failure_times(cluster.workers, mean_hours, seed)
    disturbed = simulate_training(coarse, _INTERVALS, failures, limit=2 * _INTERVALS * interval)
    return Point(cluster, steady, disturbed.rate / (coarse.samples / interval), disturbed.failures)


def clusters_like_measured(
    rates: MeasuredRates, config: Config, restart: float, sizes: Sequence[int] = SIZES
) -> list[SimulatedCluster]:
    """Clusters whose workers and transfers are as fast as the measured ones."""
    readers = reader_processes(config.data.loader_workers)
    return [
        SimulatedCluster(
            size, rates.samples, rates.compute, rates.read, readers, exchange=rates.exchange(size),
            checkpoint_interval=config.checkpoint.interval, copy=rates.checkpoint_gather_time(size), write=rates.write,
            restart=restart, noise=rates.noise,
        )
        for size in sizes
    ]  # fmt: skip


def predict_two_workers(rates: MeasuredRates, two: SimulatedCluster) -> float:
    """Predict samples per second of two workers that contend for the measured machine."""
    crowded = replace(two, compute=two.compute * rates.contention, read=two.read * rates.contention)
    return simulate_training(
        crowded, _STEPS // two.checkpoint_interval * two.checkpoint_interval or two.checkpoint_interval
    ).rate


def clusters_on_gpus(
    rates: MeasuredRates, config: Config, given: Assumptions, micro: int, noise: float, storage: float, restart: float,
    sizes: Sequence[int] = SIZES,
) -> list[SimulatedCluster]:  # fmt: skip
    """Clusters of GPUs with the rates of `amrg plan`; the rate of reading is the measured one.

    Args:
        rates: measured.
        config: of stage 2.
        given: device, efficiency and bandwidth.
        micro: studies per GPU and step.
        noise: standard deviation of the logarithm of a worker's times.
        storage: bytes per second at which checkpoints are written.
        restart: seconds from a failure to the next step.
        sizes: numbers of GPUs.
    """
    alone = replace(given, gpus=1)
    one = replace(config, stage2=replace(config.stage2, batch_size=micro))
    found = estimate_stage(one, "stage2", alone)
    skeleton = build_skeleton(one, "stage2", estimate_split_size(one, alone))
    kept = found.parts["activations"].device
    compute = max(found.seconds.arithmetic, found.seconds.memory)
    saved = 12 * found.weights.trainable
    clusters = []
    for size in sizes:
        there = replace(given, gpus=size)
        banks = bank_estimates(
            replace(one, stage2=replace(one.stage2, batch_size=micro * size)), skeleton, there, micro
        )
        zero: ZeroSettings = found.zero
        traffic = predict_step_bytes(
            found.weights, zero, size, kept, (banks.near, banks.far), one.stage2.activation_checkpointing
        )
        spent = roofline_step_time(
            0.0, traffic, given.device, one.stage2.dtype, size, given.efficiency, given.bandwidth
        )
        exchange = spent.communication + spent.banks + spent.host
        collected = StepBytes(2 * (size - 1) / size * saved, 0.0, 0.0, 0.0, saved, 0.0)
        waited = roofline_step_time(
            0.0, collected, given.device, one.stage2.dtype, size, given.efficiency, given.bandwidth
        )
        clusters.append(
            SimulatedCluster(
                size, micro, compute, rates.read, reader_processes(config.data.loader_workers), exchange=exchange,
                checkpoint_interval=config.checkpoint.interval,
                copy=waited.communication + waited.host, write=saved / storage, restart=restart, noise=noise,
            )
        )  # fmt: skip
    return clusters
