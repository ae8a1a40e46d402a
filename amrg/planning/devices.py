"""What devices can do. Datasheet peaks are named as such; the CPU at hand is measured."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from amrg.memory.traffic import NET_RATE, NODE_RANKS, NODE_RATE


@dataclass(frozen=True)
class Device:
    """Peak rates of one device; each transfer rate in one direction.

    Attributes:
        name: as shown.
        memory: bytes, as they are sold (1 GB = 1e9).
        flops: operations a second by dtype, dense.
        memory_rate: bytes a second of its own memory.
        node_rate: bytes a second to the devices of its node.
        net_rate: bytes a second between nodes; an assumption about the cluster, not a property of the device.
        host_rate: bytes a second to the memory of the host.
        node_ranks: devices of a node.
        source: where the numbers come from.
    """

    name: str
    memory: float
    flops: dict[str, float]
    memory_rate: float
    node_rate: float
    net_rate: float
    host_rate: float
    node_ranks: int = NODE_RANKS
    source: str = "datasheet peaks; the network is an assumption"


#: NVIDIA's datasheets of the SXM modules; float32 without TF32, as torch computes it unless told otherwise.
DEVICES = {
    "a100": Device("A100 SXM 80 GB", 80e9, {"bfloat16": 312e12, "float32": 19.5e12}, 2.039e12, 300e9, 25e9, 32e9),
    "h100": Device(
        "H100 SXM 80 GB", 80e9, {"bfloat16": 989.4e12, "float32": 67e12}, 3.35e12, NODE_RATE, NET_RATE, 64e9
    ),
    "h200": Device(
        "H200 SXM 141 GB", 141e9, {"bfloat16": 989.4e12, "float32": 67e12}, 4.8e12, NODE_RATE, NET_RATE, 64e9
    ),
}

_SIDE = 1024  # of the matrices multiplied
_COPIED = 64 * 2**20  # bytes: more than the caches hold


def this_cpu() -> Device:
    """The CPU at hand, measured in about a second with the threads that torch uses now.

    Transfers between processes and to "the host" are memory copies here: they take the rate of the memory.
    """
    flops = {}
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        left, right = (torch.ones(_SIDE, _SIDE, dtype=dtype) for _ in range(2))
        flops[name] = 2 * _SIDE**3 / best(lambda left=left, right=right: left @ right)  # type: ignore[misc]
    source, target = torch.zeros(_COPIED, dtype=torch.uint8), torch.zeros(_COPIED, dtype=torch.uint8)
    rate = 2 * _COPIED / best(lambda: target.copy_(source))
    return Device("this CPU", 0.0, flops, rate, rate / 2, rate / 2, rate / 2, source="measured now")


def best(action: Callable[[], object], tries: int = 5) -> float:
    """The least seconds that some tries took, after one that warms up."""
    action()
    least = float("inf")
    for _ in range(tries):
        began = time.perf_counter()
        action()
        least = min(least, time.perf_counter() - began)
    return least
