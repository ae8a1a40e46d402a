"""Bytes moved by a training step, and its time on a roofline; all figures are predictions."""

from collections.abc import Sequence
from dataclasses import dataclass

from amrg.config import ShardingConfig, ShardingStrategy
from amrg.planning.devices import Device
from amrg.planning.zero_memory import ParameterCounts, ZeroSettings
from amrg.retrieval.communication_cost import (
    BankShape,
    cheapest_strategy,
    gather_traffic_bytes,
    ring_traffic_bytes,
    two_level_bytes,
)


@dataclass(frozen=True)
class StepBytes:
    """Bytes that one device sends or reads in one optimiser step.

    Attributes:
        gradients: reductions between the ranks.
        weights: gathering of what is partitioned.
        banks_near, banks_far: retrieval from sharded banks, inside the node and between nodes.
        host: to and from the memory of the host (offloading).
        memory: to and from the device's own memory.
    """

    gradients: float
    weights: float
    banks_near: float
    banks_far: float
    host: float
    memory: float


def predict_step_bytes(
    weights: ParameterCounts,
    zero: ZeroSettings,
    ranks: int,
    kept: float,
    banks: tuple[float, float],
    checkpointing: bool,
) -> StepBytes:
    """Predict the bytes of a step.

    Args:
        weights, zero, ranks: as for ``zero_memory_per_rank``.
        kept: bytes that autograd keeps of a micro-batch: written once, read once.
        banks: bytes of one micro-batch's retrieval, inside a node and between nodes.
        checkpointing: weights are read (and gathered) once more.
    """
    p, rounds, passes = zero.element, zero.accumulation, 3 if checkpointing else 2
    others = (ranks - 1) / ranks
    trained = weights.trainable * p
    everything = trained + sum(weights.frozen) * weights.frozen_size(p)
    share = weights.trainable / (ranks if zero.stage else 1)
    reduced = {0: 2 * trained, 1: trained}.get(zero.stage, rounds * trained) * others
    gathered = {0: 0.0, 3: rounds * passes * everything}.get(zero.stage, trained) * others
    host = share * p * (1 + rounds) if zero.offload_optimizer else 0.0
    host += rounds * passes * everything / ranks if zero.offload_weights else 0.0
    update = 0.0 if zero.offload_optimizer else 7 * 4 * share  # weight, gradient, two moments read; all but one written
    memory = rounds * (passes * everything + 2 * kept) + update
    return StepBytes(reduced, gathered, rounds * banks[0], rounds * banks[1], host, memory)


@dataclass(frozen=True)
class BankPlacement:
    """How the ranks hold the banks.

    Attributes:
        strategies: strategy of each bank.
        held: bytes per rank.
        remote_query_bytes: bytes of other ranks' queries, kept until the backward.
        near, far: bytes sent for one micro-batch, inside the node and between nodes.
    """

    strategies: tuple[ShardingStrategy, ...]
    held: float
    remote_query_bytes: float
    near: float
    far: float


def place_banks_on_ranks(
    banks: Sequence[BankShape],
    settings: ShardingConfig,
    search: str,
    ranks: int,
    queries: int,
    expected: int,
    node: int,
) -> BankPlacement:
    """Place the banks by ``sharding``, with the formulas of ``amrg.retrieval.communication_cost``.

    Args:
        banks: shapes of the banks.
        settings: ``sharding`` of the configuration.
        search: ``memory.index``; an index needs the full bank.
        ranks: number of ranks.
        queries: queries per rank, micro-batch and bank.
        expected: queries for ``strategy: auto``, counted as in training.
        node: ranks per node.
    """
    size = settings.ranks_per_replica or ranks
    strategies: list[ShardingStrategy] = []
    for bank in banks:
        strategy = "replicate" if search != "exact" or ranks == 1 else settings.strategy
        if strategy == "auto":
            strategy = cheapest_strategy(
                bank.rows, bank.dim, size, expected, bank.element, settings.replicate_below_bytes
            )
        strategies.append(strategy)
    held = sum(
        b.row_bytes(b.rows if strategy == "replicate" else -(-b.rows // size))
        for b, strategy in zip(banks, strategies, strict=True)
    )
    gathered = [b for b, strategy in zip(banks, strategies, strict=True) if strategy == "gather"]
    passed = [b for b, strategy in zip(banks, strategies, strict=True) if strategy == "ring"]
    near = far = 0.0
    if gathered and settings.ranks_per_node and size > settings.ranks_per_node:
        far, inside, header = two_level_bytes(
            gathered, queries, size // settings.ranks_per_node, settings.ranks_per_node
        )
        near = inside + header
    elif gathered:
        flat = sum(gather_traffic_bytes(gathered, [queries] * size, 0))
        near, far = (flat, 0.0) if size <= node else (0.0, flat)
    if passed:
        spans = [[(b.rows * r // size, b.rows * (r + 1) // size) for r in range(size)] for b in passed]
        ring = 2.0 * ring_traffic_bytes(passed, spans, 0)
        near, far = (near + ring, far) if size <= node else (near, far + ring)
    query_bytes = size * sum(b.query_bytes(queries) for b in gathered)
    return BankPlacement(tuple(strategies), held, query_bytes, near, far)


@dataclass(frozen=True)
class StepTime:
    """Predicted parts of an optimiser step; only arithmetic and the device's own memory overlap."""

    arithmetic: float
    memory: float
    communication: float
    banks: float
    host: float

    @property
    def step(self) -> float:
        """Seconds of one step: the slower of arithmetic and memory, and what does not overlap with them."""
        return max(self.arithmetic, self.memory) + self.communication + self.banks + self.host

    @property
    def bound(self) -> str:
        """The part that takes longest."""
        return max(vars(self), key=lambda name: getattr(self, name))


def roofline_step_time(
    flops: float, moved: StepBytes, device: Device, dtype: str, ranks: int, efficiency: float, bandwidth: float
) -> StepTime:
    """Compute the roofline of one step.

    Args:
        flops: operations per device and step.
        moved: bytes per device and step.
        device, dtype: select the peaks.
        ranks: number of ranks; beyond one node, reductions and gathers take the network's rate.
        efficiency, bandwidth: share of the peak arithmetic, and of all bandwidths, that is reached.
    """
    link = (device.node_rate if ranks <= device.ranks_per_node else device.net_rate) * bandwidth
    return StepTime(
        flops / (device.flops[dtype] * efficiency),
        moved.memory / (device.memory_rate * bandwidth),
        (moved.gradients + moved.weights) / link,
        moved.banks_near / (device.node_rate * bandwidth) + moved.banks_far / (device.net_rate * bandwidth),
        moved.host / (device.host_rate * bandwidth),
    )
