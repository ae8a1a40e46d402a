"""The parts of a step as Ray tasks, as many at a time as the cluster has room for."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from amrg.artifacts import Each
from amrg.errors import UserError

#: Times a part is done again after its machine was lost.
_RETRIES = 5

_held: tuple[str, Any] = ("", None)  # what this process does, and the work it belongs to


@ray.remote(max_retries=_RETRIES, max_calls=0)
def _do(work: str, shared: list[Any], item: Any) -> Any:
    global _held
    if _held[0] != work:  # a model, once loaded, serves all parts that this process does
        _held = (work, ray.get(shared[0]))
    return _held[1](item)


def by_tasks(room: dict[str, float]) -> Each:
    """An ``Each`` whose items are tasks that reserve ``room`` (CPU and GPU).

    Raises:
        UserError: what an item raised, or the processes of one died again and again.
    """
    task = _do.options(num_cpus=room["CPU"], num_gpus=room.get("GPU", 0))

    def each(function: Callable[[Any], Any], items: Sequence[Any]) -> Iterator[Any]:
        shared = ray.put(function)
        # In a list, the function is fetched by the processes that have not got it yet, and by no others.
        refs = [task.remote(shared.hex(), [shared], item) for item in items]
        try:
            for ref in refs:
                yield ray.get(ref)
        except RayTaskError as error:
            raise UserError(str(error.cause)) if isinstance(error.cause, UserError) else error from None
        except RayError as error:
            raise UserError(
                f"the processes of one part died {_RETRIES + 1} times ({type(error).__name__}; out of memory?): the "
                "same command goes on from the finished parts"
            ) from None
        finally:
            for ref in refs:
                ray.cancel(ref)

    return each
