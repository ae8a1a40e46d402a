"""The banks, here and by Ray tasks of which one is killed on the way: python bank_tasks_worker.py DATA STAGE1 FOLDER"""

import dataclasses
import os
import signal
import sys
import threading
import time
from pathlib import Path

import ray

from amrg.cluster.task_map import map_over_ray_tasks
from amrg.mining import regions, reports
from amrg.mining.build_banks import build_memory_banks
from tests.cluster.fault_injection import processes
from tests.synthetic_dataset import CONFIG

#: More than one part has room for.
MINING = dataclasses.replace(CONFIG.banks.mining, regions_per_finding=70)
BANKS = dataclasses.replace(CONFIG, banks=dataclasses.replace(CONFIG.banks, mining=MINING))


def kill_one() -> None:
    while not (found := processes("ray::_do")):
        time.sleep(0.01)
    os.kill(found[0], signal.SIGKILL)


def main(data: Path, stage1: Path, folder: Path) -> None:
    build_memory_banks(BANKS, data, stage1, folder / "whole")
    regions.STUDIES_PER_PART = reports.TEXTS_PER_PART = 32  # of one batch each; who asks for parts cuts them
    build_memory_banks(BANKS, data, stage1, folder / "parts")
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    threading.Thread(target=kill_one, daemon=True).start()
    build_memory_banks(BANKS, data, stage1, folder / "tasks", map_over_ray_tasks({"CPU": 1.0}))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
