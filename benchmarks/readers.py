"""Studies a second through 1, 2, … readers, when reading is all there is to do: python -m benchmarks.readers.

A study is a stored film of 512 pixels, decoded and letterboxed to the 224 that stage 1 trains on. ``--wait`` adds
seconds for each study, as remote storage would.
"""

import argparse
import logging
import tempfile
import time
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

import ray

from amrg.cluster.metrics import WorkerMetrics
from amrg.cluster.ray_internals import init_on_loopback
from amrg.cluster.readers import PrefetchingFetch, start_readers
from amrg.config import ClusterConfig, DataConfig, Stage1Config
from amrg.data.shards import prepare_shards
from amrg.data.stream import Sample, Stream, use_shard_fetcher
from amrg.training.collate import Stage1Collator
from benchmarks.data import STORED, SyntheticSource

SIZE = 224  # of the model's images


@dataclass(frozen=True)
class Packer:
    """Stage 1's packer, after a wait."""

    wait: float

    def __call__(self, samples: list[Sample]) -> dict[str, Any]:
        """Wait, then collate for stage 1."""
        time.sleep(self.wait * len(samples))
        return Stage1Collator(SIZE, Stage1Config())(samples)


def rate(data: Path, readers: int, batch: int, steps: int, wait: float) -> float:
    """Studies a second of one worker, from the second batch on."""
    settings = ClusterConfig(prefetch=2 * readers)
    actors = start_readers(ClusterConfig(readers=readers))
    ray.get([actor.ping.remote() for actor in actors])
    ahead = PrefetchingFetch(actors, settings, 0, 1, WorkerMetrics("benchmark", 0))
    with use_shard_fetcher(ahead):
        batches = Stream(data, "train", batch, seed=0, collate=Packer(wait)).epoch(0)
        next(batches)
        began = time.monotonic()
        read = sum(len(batch["films"]) for batch in islice(batches, steps))
        seconds = time.monotonic() - began
    for actor in actors:
        ray.kill(actor)
    return read / seconds


def main() -> None:
    """Time readers, interleaved."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--studies", type=int, default=600)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--readers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--wait", type=float, default=0.0)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    init_on_loopback(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    steps = arguments.studies // arguments.batch - 1
    with tempfile.TemporaryDirectory() as folder:
        prepare_shards(SyntheticSource(arguments.studies), DataConfig(image_size=STORED, workers=2), Path(folder), 0)
        rates: dict[int, list[float]] = {readers: [] for readers in arguments.readers}
        for number in range(arguments.rounds):  # every round measures all, in turn from either end: load hits all alike
            for readers in arguments.readers[:: -1 if number % 2 else 1]:
                rates[readers].append(rate(Path(folder), readers, arguments.batch, steps, arguments.wait))
    print(
        "| readers | studies/s, median | spread | beside the first, median of rounds | spread |\n|---|---|---|---|---|"
    )
    for readers, found in rates.items():
        ratios = [value / first for value, first in zip(found, rates[arguments.readers[0]], strict=True)]
        print(f"| {readers} | {_summary(found, '.0f')} | {_summary(ratios, '.2f')} |")


def _summary(values: list[float], form: str) -> str:
    """Median and range as two cells."""
    return f"{median(values):{form}} | {min(values):{form}}–{max(values):{form}}"


if __name__ == "__main__":
    main()
