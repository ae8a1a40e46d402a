"""Stage 2 with room for one of two workers, until another actor gives its processor back; argument: RUNS.

Prints the number of steps at which it did.
"""

import sys
import threading
import time
from pathlib import Path

import ray

from amrg.cli import parse_config_arguments, run_command_line
from amrg.cluster.pipeline import open_ray_session
from amrg.cluster.workers import train_with_ray
from tests.cluster.stage2_worker import TINY

SETTINGS = """
--stage2.batch-size 4 --stage2.epochs 30 --stage2.dtype float32 --stage2.num-sample-reports 0
--telemetry.tensorboard false --cluster.workers 2 --cluster.worker-cpus 1 --cluster.readers 0 --cluster.node-timeout 2
"""


@ray.remote(num_cpus=1)
class Occupant:
    """Holds a processor."""

    def here(self) -> None:
        """Answer when it does."""


def leave(occupant: object, runs: Path) -> None:
    """End the actor after some steps."""
    steps = 0
    while steps < 6:
        time.sleep(0.1)
        steps = sum(len(path.read_text().splitlines()) for path in runs.glob("tiny/stage2-*/logs/steps.jsonl"))
    ray.kill(occupant)  # type: ignore[arg-type]
    print(f"left at step {steps}", flush=True)


def run(runs: str) -> None:
    config = parse_config_arguments([str(TINY), *SETTINGS.split(), "--runs", runs], "growth_worker.py")
    with open_ray_session(config, local=True):
        spare = int(ray.cluster_resources()["CPU"]) - 1
        occupant = Occupant.options(num_cpus=spare).remote()  # type: ignore[attr-defined]
        ray.get(occupant.here.remote())
        threading.Thread(target=leave, args=(occupant, Path(runs)), daemon=True).start()
        train_with_ray("stage2", config, config.stage2.batch_size, [])


if __name__ == "__main__":
    run_command_line(lambda: run(sys.argv[1]))
