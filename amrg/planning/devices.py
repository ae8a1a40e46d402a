"""Peak rates of devices from NVIDIA's datasheets; none was measured."""

from dataclasses import dataclass

from amrg.retrieval.communication_cost import NET_RATE, NODE_RANKS, NODE_RATE


@dataclass(frozen=True)
class Device:
    """Peak rates of one device; each transfer rate in one direction.

    Attributes:
        name: as shown.
        memory: bytes, as they are sold (1 GB = 1e9).
        flops: operations per second by dtype, dense.
        memory_rate: bytes per second of its own memory.
        node_rate: bytes per second to the devices of its node.
        net_rate: bytes per second between nodes; an assumption about the cluster, not a property of the device.
        host_rate: bytes per second to the memory of the host.
        ranks_per_node: devices of a node.
    """

    name: str
    memory: float
    flops: dict[str, float]
    memory_rate: float
    node_rate: float
    net_rate: float
    host_rate: float
    ranks_per_node: int = NODE_RANKS


#: NVIDIA's datasheets of the SXM modules; float32 without TF32, as torch computes it unless told otherwise.
DEVICES = {
    "a100": Device("A100 SXM", 80e9, {"bfloat16": 312e12, "float32": 19.5e12}, 2.039e12, 300e9, 25e9, 32e9),
    "h100": Device("H100 SXM", 80e9, {"bfloat16": 989.4e12, "float32": 67e12}, 3.35e12, NODE_RATE, NET_RATE, 64e9),
    "h200": Device("H200 SXM", 141e9, {"bfloat16": 989.4e12, "float32": 67e12}, 4.8e12, NODE_RATE, NET_RATE, 64e9),
}
