"""The chain of steps on a Ray cluster: the one this runs in, or one of this machine alone."""

import dataclasses
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray

from amrg.artifacts import Artifact, find_artifact, open_artifact
from amrg.cluster.ray_internals import init_on_loopback, recorded_address
from amrg.cluster.readers import start_readers
from amrg.cluster.task_map import map_over_ray_tasks
from amrg.cluster.workers import train_with_ray, worker_resources
from amrg.cluster.writers import write_shards_on_ray
from amrg.config import Config
from amrg.data.shards import prepare_shards
from amrg.data.sources import open_data_source
from amrg.errors import UserError
from amrg.launcher import is_port_answering
from amrg.pipeline import (
    ALL_STEPS,
    STEPS,
    StepFunction,
    artifact_root,
    check_before_start,
    refuse_failures,
    run_pipeline_step,
    step_recipe,
    verbs_up_to,
)
from amrg.progress import print_on_rank_0
from amrg.training.deepspeed_json import tensor_parallel_size

#: Steps that run on workers, and the batch they share.
_WORKER_STEPS: dict[str, Callable[[Config], int]] = {
    "stage1": lambda config: config.stage1.batch_size,
    "stage2": lambda config: config.stage2.batch_size,
    "generate": lambda config: config.generate.batch_size,
}


def run_on_ray(config: Config, strict: bool = False) -> Artifact:
    """The whole chain; what was made before is kept, and what was begun goes on where it was.

    Args:
        config: of the run; ``runs`` must be a folder that all nodes share.
        strict: end with the first step whose training has failed.

    Raises:
        TrainingFailure: with ``strict``, an artefact has failures; it is kept.
        UserError: a step's own mistakes, or machines that were lost and could not be replaced.
    """
    config = dataclasses.replace(config, runs=str(Path(config.runs).absolute()))
    if tensor_parallel_size(config.stage2.ds_config) > 1:
        raise UserError(
            f"{config.stage2.ds_config}: workers of a Ray cluster do not share a language model: take zero3.json, or "
            "start launchers/stage2.py with torchrun"
        )
    check_before_start(verbs_up_to(config), config, config.cluster.workers)
    with open_ray_session(config):
        readers = start_readers(config.cluster)
        for verb in verbs_up_to(config):
            made = find_artifact(artifact_root(config), step_recipe(verb, config))
            if made:
                print_on_rank_0(f"{verb}: already made, nothing to do: {made.path}")
            elif verb in _WORKER_STEPS:
                train_with_ray(verb, config, _WORKER_STEPS[verb](config), readers)
            else:
                run_pipeline_step(verb, config, _TASK_STEPS.get(verb))
            artifact = open_artifact(step_recipe(verb, config).path(artifact_root(config)), ALL_STEPS[verb].kind)
            if strict:
                refuse_failures(verb, artifact)
    return artifact


def _prepare(config: Config, inputs: dict[str, Path], folder: Path) -> None:
    prepare_shards(open_data_source(config.data, config.seed), config.data, folder, config.seed, write_shards_on_ray)


def _banks(config: Config, inputs: dict[str, Path], folder: Path) -> None:
    from amrg.mining.build_banks import build_memory_banks

    build_memory_banks(
        config, inputs["data"], inputs["stage1"], folder, map_over_ray_tasks(worker_resources(config.cluster))
    )


def _evaluate(config: Config, inputs: dict[str, Path], folder: Path) -> None:
    from amrg.evaluation.evaluate import evaluate_reports

    data, stage1, banks, stage2, reports = (inputs[kind] for kind in STEPS["evaluate"].inputs)
    evaluate_reports(
        config, data, stage1, banks, stage2, reports, folder, map_over_ray_tasks(worker_resources(config.cluster))
    )


#: Steps whose parts are tasks, however many workers there are.
_TASK_STEPS: dict[str, StepFunction] = {"prepare": _prepare, "banks": _banks, "evaluate": _evaluate}


def cluster_address() -> str | None:
    """Return the address of the cluster to join: RAY_ADDRESS, or what ``ray start`` made on this machine; else None.

    Ray's own ``auto`` also finds a cluster that another run has started for itself. The second run would wait for
    processors that the first has reserved, and lose its cluster when the first ends.

    Raises:
        UserError: nobody answers at RAY_ADDRESS.
    """
    given = os.environ.get("RAY_ADDRESS", "")
    if given == "local":
        return None
    address = given if given not in ("", "auto") else recorded_address()
    if address is None:
        return None
    host, _, port = address.removeprefix("ray://").rpartition(":")
    host = host.strip("[]")
    try:
        reached = port.isdecimal() and bool(host) and is_port_answering(host, int(port))
    except OSError:  # a name that nobody knows
        reached = False
    if reached:
        return address
    if address == given:
        raise UserError(
            f"RAY_ADDRESS is {given}, but no Ray cluster answers there: start it (`ray start --head`), or "
            "`unset RAY_ADDRESS` for this machine alone"
        )
    return None  # of a cluster that has ended


def _join(address: str, common: dict[str, Any]) -> None:
    try:
        ray.init(address=address, **common)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise UserError(f"cannot join the Ray cluster at {address}: {' '.join(str(error).split())[:200]}") from None


@contextmanager
def open_ray_session(config: Config, local: bool = False) -> Iterator[None]:
    """Join the cluster of this machine; if there is none, or if ``local``, start one on its loopback for the run."""
    os.environ["RAY_CHDIR_TO_TRIAL_DIR"] = "0"  # relative paths of the configuration are those of the driver
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")  # a lost node is noticed without it
    common: dict[str, Any] = {"logging_level": logging.WARNING, "log_to_driver": True}
    address = None if local else cluster_address()
    if address is not None:
        _join(address, common)
    else:
        cpus = max(os.cpu_count() or 1, round(config.cluster.workers * config.cluster.worker_cpus))
        init_on_loopback(address="local", num_cpus=cpus, **common)
    nodes = [node for node in ray.nodes() if node["Alive"]]
    has = ray.cluster_resources()
    print_on_rank_0(f"Ray: {len(nodes)} nodes, {has.get('CPU', 0):.0f} CPUs, {has.get('GPU', 0):.0f} GPUs")
    try:
        yield
    finally:
        ray.shutdown()
