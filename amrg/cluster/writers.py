"""The shards of a data set written by Ray tasks, as many at a time as the cluster has CPUs."""

from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from amrg.cluster.task_map import cancel_ray_tasks
from amrg.config import DataConfig
from amrg.data.shards import Shard, SubmitShard, init_shard_writer, write_shard_files
from amrg.data.studies import Source
from amrg.errors import UserError

#: Bytes must not depend on how many threads summed something (as in ``amrg.data.shards``).
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
#: Times a shard is written again after its machine was lost.
_RETRIES = 5

_written_for = ""  # the run whose source this process has open


@ray.remote(num_cpus=1, max_retries=_RETRIES, runtime_env={"env_vars": _ONE_THREAD})
def _write(run: str, source: list[Any], image_size: int, folder: Path, shard: Shard) -> None:
    global _written_for
    if _written_for != run:
        init_shard_writer(ray.get(source[0]), image_size, folder)
        _written_for = run
    write_shard_files(shard)


@contextmanager
def write_shards_on_ray(source: Source, config: DataConfig, folder: Path) -> Iterator[SubmitShard]:
    """``Writers`` for ``prepare``; ``folder`` must lie on storage that all nodes share.

    Raises:
        UserError: a shard's writers died again and again.
    """
    shared = ray.put(source)
    refs: list[Any] = []

    def submit(shard: Shard) -> "Future[None]":
        # In a list, the source is fetched by the processes that have not got it yet, and by no others.
        refs.append(_write.remote(shared.hex(), [shared], config.image_size, folder, shard))
        return refs[-1].future()

    try:
        yield submit
    except RayTaskError:  # what the writing itself raised
        raise
    except RayError as error:
        raise UserError(
            f"the writers of a shard died {_RETRIES + 1} times ({type(error).__name__}; out of memory?): start again, "
            "finished shards are kept; smaller shards (data.shard_size) need less memory"
        ) from None
    finally:
        cancel_ray_tasks(refs)
