"""Private names of Ray that the package uses, as read in Ray 2.60.0."""

import os
from typing import Any

import ray
from ray._private import ray_constants
from ray._private.utils import read_ray_address
from ray.exceptions import RayError
from ray.train.v2._internal.exceptions import RayTrainError

#: What stands for a worker that ended or no longer answers; what a worker raised stands for itself.
LOSSES = (RayError, RayTrainError)


def recorded_address() -> str | None:
    """Return the address that ``ray start`` has recorded on this machine; its cluster may have ended since."""
    return read_ray_address() or None


def init_on_loopback(**options: Any) -> None:
    """Start a cluster of this machine alone, on its loopback address; ``options`` are those of ``ray.init``."""
    # Without both, for its own processes and for this one, Ray takes another address than the one it is given.
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    ray_constants.ENABLE_RAY_CLUSTER = False
    ray.init(_node_ip_address="127.0.0.1", **options)
