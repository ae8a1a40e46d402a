"""Shards written by Ray tasks: python writers_worker.py FOLDER. A writer is killed on the way."""

import os
import signal
import sys
import threading
import time
from pathlib import Path

import ray

from amrg.cluster.writers import write_shards_on_ray
from amrg.config import DataConfig
from amrg.data.shards import prepare_shards
from tests.cluster.fault_injection import processes
from tests.data.test_shards import TinySource

CONFIG = DataConfig(image_size=8, shard_size=3, workers=2)
SIZES = (29, 4, 5)


def kill_one() -> None:
    while not (found := processes("ray::_write")):
        time.sleep(0.01)
    os.kill(found[0], signal.SIGKILL)


if __name__ == "__main__":
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    threading.Thread(target=kill_one, daemon=True).start()
    prepare_shards(TinySource(*SIZES, delay=0.05), CONFIG, Path(sys.argv[1]), 0, write_shards_on_ray)
