"""Stage 2 as the pipeline runs it on a cluster: python stage2_worker.py RUNS [--section.key VALUE ...]"""

import sys

from amrg.cli import parse_config_arguments, run_command_line
from amrg.cluster.pipeline import open_ray_session
from amrg.cluster.readers import start_readers
from amrg.cluster.workers import train_with_ray
from amrg.config import CONFIGS

TINY = CONFIGS / "tiny.yaml"
#: Vision is trained, so that films are streamed; checkpoints every four steps of 24.
SETTINGS = """
--stage2.train-vision --stage2.batch-size 4 --stage2.epochs 6 --stage2.dtype float32 --stage2.ds-config zero2.json
--cluster.reader-resource reader --cluster.node-timeout 30
"""


def run(runs: str, *changes: str) -> None:
    config = parse_config_arguments([str(TINY), *SETTINGS.split(), "--runs", runs, *changes], "stage2_worker.py")
    with open_ray_session(config):
        train_with_ray("stage2", config, config.stage2.batch_size, start_readers(config.cluster))


if __name__ == "__main__":
    run_command_line(lambda: run(*sys.argv[1:]))
