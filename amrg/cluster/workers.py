"""Workers: Ray Train runs a step on as many ranks as the cluster has room for, and again when some of them are lost.

What a step has done lies in its artefact's folder, on storage that all nodes share: checkpoints of training, finished
parts of what is generated. A new group of workers goes on from there, of the same size if the nodes come back, else of
the next smaller one that divides the batch. When there is room for all again, a training stops after its step, saves,
and goes on with all.

Ray Train's own elastic workers (``num_workers=(least, most)``) are not used: they take any number between, also those
that do not divide the batch, and are killed for a change at whatever moment, so that steps are lost.
"""

import logging
import os
import re
import shutil
import signal
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import ray
from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig, TrainingFailedError
from ray.train.torch import TorchConfig, TorchTrainer
from ray.util import placement_group, remove_placement_group

from amrg.artifacts import ArtifactLocked, find_artifact
from amrg.cluster.metrics import WorkerMetrics
from amrg.cluster.ray_internals import LOSSES
from amrg.cluster.readers import PrefetchingFetch
from amrg.config import ClusterConfig, Config
from amrg.config_files import config_from_dict, config_to_dict
from amrg.data.stream import MAX_LANES, num_batch_lanes, use_shard_fetcher
from amrg.errors import UserError
from amrg.pipeline import artifact_root, run_pipeline_step, step_recipe
from amrg.progress import print_on_rank_0
from amrg.training.interruption import GracefulStop, stopping_when
from amrg.training.telemetry import listening_to_steps

logger = logging.getLogger(__name__)

#: Ray Train's own files of a run, below the artefacts; removed with the run.
RAY_FILES = ".ray"
#: Seconds for a lost worker's lock to be released (shared storage takes its time).
LOCK_TIMEOUT = 120.0
#: Seconds in which a smaller group must find room once a larger one has not.
SMALLER_GROUP_TIMEOUT = 10.0
#: Suffix of the file that says that a group has begun.
BEGUN = ".begun"
#: Seconds between two looks whether a smaller group can become whole again.
MACHINES_INTERVAL = 2.0
#: What the exceptions of ranks say whose peer is gone.
_PEERS = re.compile("gloo|nccl|c10d|connection|socket|timed out", re.IGNORECASE)
#: Ray Train tries once: how often, and with how many, is decided here.
_ONCE: dict[str, Any] = {"max_failures": 0, "max_preemption_failures": 0, "controller_failure_limit": 3}


def train_with_ray(verb: str, config: Config, batch_size: int, readers: list[Any]) -> None:
    """Run a step on the workers; a loss starts them again, as often as there is progress in between.

    Args:
        verb: the step.
        config: of the run; ``runs`` must be a folder that all nodes share.
        batch_size: that the ranks must share evenly.
        readers: of films (``start_readers``); with none, workers read for themselves.

    Raises:
        UserError: the step's own mistakes, too many losses in a row, or no room for the workers.
    """
    settings = config.cluster
    files = artifact_root(config).absolute() / RAY_FILES
    failures, progress, lost_at = 0, _progress(verb, config), None
    try:
        while find_artifact(artifact_root(config), step_recipe(verb, config)) is None:
            world = _fitting_world_size(settings, batch_size)
            grow = files / f"grow-{uuid.uuid4().hex[:8]}"
            task = {
                "verb": verb,
                "config": config_to_dict(config),
                "readers": readers,
                "lost_at": lost_at,
                "grow": str(grow),
            }
            try:
                with _watching_for_machines(settings, world, grow):
                    _run_group(task, world, settings, files)
                if grow.exists():
                    print_on_rank_0(f"{verb}: the cluster has room for all {settings.workers} workers again")
                    lost_at = time.time()
            except TrainingFailedError as error:
                lost_at = time.time()
                what, accident = _diagnose_loss(error)
                if not accident:
                    logger.error("%s", error)
                before, progress = progress, _progress(verb, config)
                failures = 1 if progress != before else failures + 1
                if failures > (settings.max_failures if accident else min(settings.max_failures, 1)):
                    raise UserError(
                        f"{verb}: the workers failed {failures} times in a row without progress, at last with: {what}; "
                        "the same command goes on from the last checkpoint"
                    ) from None
                print_on_rank_0(f"{verb}: {what}; starting again from the last checkpoint")
    finally:
        shutil.rmtree(files, ignore_errors=True)


def _run_group(task: dict[str, Any], world: int, settings: ClusterConfig, files: Path) -> None:
    """One group of workers, to its end."""
    trainer = TorchTrainer(
        _work,
        train_loop_config=task,
        scaling_config=scaling_config(world, worker_resources(settings)),
        run_config=RunConfig(
            name=f"{task['verb']}-{uuid.uuid4().hex[:8]}",
            storage_path=str(files),
            failure_config=FailureConfig(**_ONCE),
            logging_config=LoggingConfig(log_level="CRITICAL"),  # type: ignore[call-arg]  # mypy sees Train V1
        ),
        torch_config=TorchConfig(timeout_s=1800),
    )
    before = signal.getsignal(signal.SIGINT)
    try:
        trainer.fit()
    except SystemExit:  # Ray Train's way of ending on Ctrl-C, once it has stopped the workers
        raise KeyboardInterrupt from None
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def _watching_for_machines(settings: ClusterConfig, world: int, grow: Path) -> Iterator[None]:
    """Within the block, make the file ``grow`` once the cluster has room for the workers that a group lacks.

    From the group's start on they are reserved, which asks an autoscaler for machines.
    """
    lacking = settings.workers - world
    if not lacking:
        yield
        return
    ended = threading.Event()

    def watch() -> None:
        # Not before the group has its own room, which would be taken away from it.
        while not grow.with_suffix(BEGUN).exists():
            if ended.wait(MACHINES_INTERVAL):
                return
        group = placement_group([worker_resources(settings)] * lacking, strategy="PACK")
        try:
            while not ended.is_set():
                if group.wait(MACHINES_INTERVAL):
                    grow.touch()
                    ended.wait()
        finally:
            remove_placement_group(group)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def scaling_config(world: int, each: dict[str, float]) -> ScalingConfig:
    """Ray's description of a group; it refuses a GPU among the resources unless it is told to use GPUs."""
    return ScalingConfig(num_workers=world, resources_per_worker=each, use_gpu="GPU" in each)


def worker_resources(settings: ClusterConfig) -> dict[str, float]:
    """What one worker reserves."""
    gpus = settings.worker_gpus
    if gpus is None:
        gpus = int(ray.cluster_resources().get("GPU", 0) > 0)
    return {"CPU": settings.worker_cpus} | ({"GPU": float(gpus)} if gpus else {})


def _fitting_world_size(settings: ClusterConfig, batch_size: int) -> int:
    """The largest number of workers that the cluster has room for; waits for nodes, which may be on their way."""
    smaller = range(settings.workers - 1, settings.min_workers - 1, -1)
    sizes = [settings.workers, *(size for size in smaller if divides_batch(batch_size, size))]
    each = worker_resources(settings)
    for size in sizes:
        wait = settings.node_timeout if size == sizes[0] else SMALLER_GROUP_TIMEOUT
        group = placement_group([each] * size, strategy="PACK")
        try:
            if group.wait(wait):
                if size < sizes[0]:
                    print_on_rank_0(f"the cluster has room for {size} of {sizes[0]} workers: going on with these")
                return size
        finally:
            remove_placement_group(group)
    raise UserError(
        f"the cluster has no room for {sizes[-1]} workers with {each} each within cluster.node_timeout "
        f"{settings.node_timeout:.0f} s (it has {ray.available_resources()}): add nodes, or lower cluster.workers"
    )


def divides_batch(batch_size: int, workers: int) -> bool:
    """Whether so many ranks can share a global batch, streamed or not."""
    return batch_size % workers == 0 and (workers > MAX_LANES or num_batch_lanes(batch_size) % workers == 0)


def _progress(verb: str, config: Config) -> set[str]:
    """What a step has finished so far, by name: another set is progress."""
    plan = step_recipe(verb, config)
    partial = Path(f"{plan.path(artifact_root(config))}.partial")
    return {path.name for pattern in ("checkpoints/*", "scratch/**/*") for path in partial.glob(pattern)}


def _diagnose_loss(error: TrainingFailedError) -> tuple[str, bool]:
    """What happened in one line, and whether a process or its connections were lost (else our code failed).

    Raises:
        UserError: of a worker, raised here, where nobody will try again.
    """
    failures: dict[int, Exception] = getattr(error, "worker_failures", {})
    raised = {rank: failure for rank, failure in failures.items() if not isinstance(failure, LOSSES)}
    for failure in raised.values():
        if isinstance(failure, UserError):
            raise failure from None
    lost = sorted(failures.keys() - raised.keys())
    if lost:
        return f"lost the worker of rank {', '.join(map(str, lost))}", True
    for rank, failure in raised.items():
        if not _PEERS.search(str(failure)):
            return f"rank {rank} failed: {type(failure).__name__}: {_last_line(str(failure))}", False
    if raised:
        return f"rank {min(raised)} lost a peer", True
    return f"the workers did not start: {_last_line(str(error))}", True


def _last_line(text: str) -> str:
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "no message")


# ---- in the worker processes ----


class _StepFilter(logging.Filter):
    """Gives log records the rank and the step they were written at."""

    step = 0

    def filter(self, record: logging.LogRecord) -> bool:
        record.step = self.step
        return True


def _work(task: dict[str, Any]) -> None:
    """One rank of a step. Ray Train has joined it with the others by now."""
    config = config_from_dict(task["config"], "the configuration of the run")
    verb, rank, world = task["verb"], int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if not artifact_root(config).is_dir():
        raise UserError(
            f"node {ray.util.get_node_ip_address()} does not see {artifact_root(config)}: `runs` must be a folder on "
            "storage that all nodes share, under the same path"
        )
    place = _log_with_rank_and_step(rank)
    metrics = WorkerMetrics(verb, rank)
    lost_at = task["lost_at"]

    def watch(step: int, row: dict[str, float]) -> None:
        nonlocal lost_at
        place.step = step
        metrics.trained(step, row)
        if lost_at is not None:
            print_on_rank_0(
                f"{verb}: training again at step {step}, {time.time() - lost_at:.1f} s after the loss was noticed"
            )
            lost_at = None

    grow = Path(task["grow"])
    if rank == 0:
        grow.parent.mkdir(parents=True, exist_ok=True)
        grow.with_suffix(BEGUN).touch()
    with ExitStack() as stack:
        stack.enter_context(listening_to_steps(watch))
        stack.enter_context(stopping_when(lambda: rank == 0 and grow.exists()))
        stack.enter_context(suppress(GracefulStop))  # the driver alone asks for it, and starts more workers
        if task["readers"]:
            stack.enter_context(
                use_shard_fetcher(PrefetchingFetch(task["readers"], config.cluster, rank, world, metrics))
            )
        _run(verb, config)


def _run(verb: str, config: Config) -> None:
    """The step, once the lock of a worker that was lost is free."""
    deadline = time.monotonic() + LOCK_TIMEOUT
    while True:
        try:
            run_pipeline_step(verb, config)
            return
        except UserError as error:
            if not isinstance(error, ArtifactLocked) or time.monotonic() > deadline:
                raise
            time.sleep(1.0)


def _log_with_rank_and_step(rank: int) -> _StepFilter:
    place = _StepFilter()
    handler = logging.StreamHandler()
    handler.addFilter(place)
    handler.setFormatter(logging.Formatter(f"%(levelname)s rank {rank} step %(step)d: %(message)s"))
    logger = logging.getLogger("amrg")
    logger.handlers[:], logger.propagate = [handler], False
    logging.getLogger("amrg.kernels").setLevel(logging.INFO)  # which back end retrieves on this rank's GPU
    return place
