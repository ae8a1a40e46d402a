"""The stream through readers, in namespaces of its own: python readers_worker.py DATA RESULT"""

import json
import os
import re
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import ray

from amrg.cluster.metrics import WorkerMetrics
from amrg.cluster.readers import PrefetchingFetch, start_readers
from amrg.config import ClusterConfig
from amrg.data.stream import RankBatch, Sample, Stream, fetch_sequentially, use_shard_fetcher
from amrg.errors import UserError

BATCH, SEED = 4, 3
COUNTERS = {"ray_amrg_reader_samples_total", "ray_amrg_data_wait_seconds_total"}
#: Readers and prefetch: one, as many as ranks, more than lanes.
SIZES = ((1, 2), (2, 4), (5, 3))


class Slow:
    """Parts that take their time, and one that ends its reader; with a ``mark`` on disk, but once."""

    samples = 1

    def __init__(self, seconds: float, deadly: int | None = None, mark: Path | None = None) -> None:
        self.seconds, self.deadly, self.mark = seconds, deadly, mark

    def __getitem__(self, step: int) -> RankBatch:
        if self.seconds:
            time.sleep(self.seconds)
        if step == self.deadly and not (self.mark and self.mark.exists()):
            if self.mark:
                self.mark.touch()
            os._exit(1)
        if step == 5:
            raise UserError("the shard of step 5 is not there")
        return [None], {step: "read"}


def digest(samples: list[Sample]) -> list[Any]:
    return [(s.study.key, [int(view.astype(np.int64).sum()) for view in s.views]) for s in samples]


def batches(data: Path, world: int, fetch: Callable[[int], Any]) -> list[list[Any]]:
    """What every rank sees in epochs 0, from batch 1 on, and 1."""
    found = []
    for rank in range(world):
        with use_shard_fetcher(fetch(rank)):
            stream = Stream(data, "train", BATCH, SEED, rank, world)
            found += [digest(s) for epoch, start in ((0, 1), (1, 0)) for s in stream.epoch(epoch, start)]
    return found


def orders(readers: list[Any], parts: Slow, steps: range, **changes: Any) -> list[Any]:
    """The steps that come, or why none did."""
    ours = ClusterConfig(**{"prefetch": 3, "max_failures": 1} | changes)
    ahead = PrefetchingFetch(readers, ours, 0, 1, WorkerMetrics("stage2", 0))
    found: list[Any] = []
    try:
        for _, bad in ahead(parts, steps):
            found += bad
    except UserError as error:
        found.append(str(error))
    return found


def exported() -> list[str]:
    """Names of our metrics as Prometheus gets them from this node; gauges only come and go."""
    node = ray.nodes()[0]
    address = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    found: set[str] = set()
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and len(COUNTERS & found) < len(COUNTERS):
        with urllib.request.urlopen(address) as answer:
            found = set(re.findall(r"^(ray_amrg_\w+)\{", answer.read().decode(), re.MULTILINE))
        time.sleep(0.5)
    return sorted(found)


def main(data: Path, mark: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for world in (1, 2):
        found[f"alone {world}"] = batches(data, world, lambda rank: fetch_sequentially)
    actors = start_readers(ClusterConfig(readers=max(readers for readers, _ in SIZES)))
    for readers, prefetch in SIZES:
        ours = ClusterConfig(prefetch=prefetch)
        for world in (1, 2):
            fetches = [
                PrefetchingFetch(actors[:readers], ours, r, world, WorkerMetrics("stage2", r)) for r in range(world)
            ]
            found[f"{readers} readers {world}"] = batches(data, world, fetches.__getitem__)
    found["metrics"] = exported()
    for actor in actors[1:]:
        ray.kill(actor)
    found["slow"] = orders(actors, Slow(2.5), range(2))  # the others are gone for ever
    found["missing"] = orders(actors[:1], Slow(0.0), range(3, 8))
    found["deadly"] = orders(actors[:1], Slow(0.0, deadly=2), range(4))
    found["after that"] = orders(actors[:1], Slow(0.0), range(2))
    found["once"] = orders(actors[:1], Slow(0.0, deadly=2, mark=mark), range(4))
    found["late"] = orders(actors[:1], Slow(6.0), range(4), data_timeout=3.0)
    return found


if __name__ == "__main__":
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    Path(sys.argv[2]).write_text(json.dumps(main(Path(sys.argv[1]), Path(sys.argv[2]).with_name("died"))))
