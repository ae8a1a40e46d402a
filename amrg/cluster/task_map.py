"""The parts of a step as Ray tasks, as many at a time as the cluster has room for."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from amrg.artifacts import MapFn
from amrg.errors import UserError

#: Times a task is done again after its machine was lost.
_RETRIES = 5
#: Tasks for each place in the cluster: few, as a task that has a GPU starts a process; several, as some take longer.
_TASKS_PER_SLOT = 4


@ray.remote(max_retries=_RETRIES)
def _run_items(function: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
    return [function(item) for item in items]


def map_over_ray_tasks(resources: dict[str, float]) -> MapFn:
    """An ``Each`` whose items are done by tasks that reserve ``room`` (CPU and GPU).

    Raises:
        UserError: what an item raised, or the processes of a task died again and again.
    """
    task = _run_items.options(num_cpus=resources["CPU"], num_gpus=resources.get("GPU", 0))

    def each(function: Callable[[Any], Any], items: Sequence[Any]) -> Iterator[Any]:
        there = ray.cluster_resources()
        places = max(1, min(int(there.get(name, 0) / amount) for name, amount in resources.items()))
        chunk = -(-len(items) // (_TASKS_PER_SLOT * places))
        shared = ray.put(function)
        refs = [task.remote(shared, items[start : start + chunk]) for start in range(0, len(items), chunk or 1)]
        try:
            for ref in refs:
                yield from ray.get(ref)
        except RayTaskError as error:
            raise UserError(str(error.cause)) if isinstance(error.cause, UserError) else error from None
        except RayError as error:
            raise UserError(
                f"the processes of one task died {_RETRIES + 1} times ({type(error).__name__}; out of memory?): the "
                "same command goes on from the finished parts"
            ) from None
        finally:
            cancel_ray_tasks(refs)

    return each


def cancel_ray_tasks(refs: Sequence[Any]) -> None:
    """Cancel the tasks that are not done; Ray 2.60 ends the driver when one that is just done is cancelled."""
    if refs:
        _, away = ray.wait(list(refs), num_returns=len(refs), timeout=0)
        for ref in away:
            ray.cancel(ref)
