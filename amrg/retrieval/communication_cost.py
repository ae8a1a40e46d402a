"""Communication cost of the sharding strategies: formulas, the choice of the cheapest, and tables of predictions.

``python -m amrg.retrieval.communication_cost`` prints the tables of ``docs/memory-banks.md``. Bytes are as counted by
``amrg.retrieval.collectives.CommGroup``. Predicted times are bytes divided by the bandwidths below, without latency,
computation or overlap.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from amrg.config import ShardingStrategy
from amrg.retrieval.collectives import TensorSpec, padded_message_bytes

COUNT = 8  # bytes of an integer in a header


@dataclass(frozen=True)
class BankShape:
    """Sizes of a bank and of the queries to it.

    Attributes:
        rows: N.
        dim: D.
        element: bytes per stored number: 4, 2, or 1 for int8, which adds 4 bytes of scale per row.
        grouped: whether rows and queries have patient groups, 8 bytes each.
        query: bytes per number of a query.
        entropy: whether the entropy is returned.
        top_k: number of attributed rows that are returned.
    """

    rows: int
    dim: int
    element: int = 2
    grouped: bool = True
    query: int = 4
    entropy: bool = False
    top_k: int = 0

    def row_bytes(self, rows: int) -> int:
        """Return the bytes of a message with this many rows."""
        parts: list[TensorSpec] = [((rows, self.dim), _DTYPES[self.element])]
        parts += [((rows,), torch.float32)] if self.element == 1 else []
        parts += [((rows,), torch.int64)] if self.grouped else []
        return sum(map(padded_message_bytes, parts))

    def query_bytes(self, queries: int) -> int:
        """Return the bytes of a message with this many queries."""
        group = padded_message_bytes(((queries,), torch.int64)) if self.grouped else 0
        return padded_message_bytes(((queries, self.dim), _DTYPES[self.query])) + group

    def result_bytes(self, queries: int) -> int:
        """Return the bytes of a partial result: retrieved, lse, mass, and entropy and attribution if requested."""
        parts: list[TensorSpec] = [((queries, self.dim), torch.float32)]
        parts += [((queries,), torch.float32)] * (3 if self.entropy else 2)
        parts += [((queries, self.top_k), torch.float32), ((queries, self.top_k), torch.int64)] if self.top_k else []
        return sum(map(padded_message_bytes, parts))

    def backward_stats_bytes(self, queries: int) -> int:
        """Return the bytes that the backward dispatches: do, lse, delta, dmass."""
        return padded_message_bytes(((queries, self.dim), _DTYPES[self.query])) + 3 * padded_message_bytes(
            ((queries,), torch.float32)
        )

    def query_grad_bytes(self, queries: int) -> int:
        """Return the bytes of the gradient of the queries."""
        return padded_message_bytes(((queries, self.dim), _DTYPES[self.query]))


_DTYPES = {4: torch.float32, 2: torch.bfloat16, 1: torch.int8}


def gather_traffic_bytes(banks: Sequence[BankShape], queries: Sequence[int], rank: int) -> tuple[int, int]:
    """Return the bytes (forward, backward) that a rank sends in one ``gather`` retrieval without levels.

    Args:
        banks: the banks of one batched retrieval.
        queries: number of queries M_r of each rank r, the same for every bank.
        rank: the sending rank.
    """
    others = len(queries) - 1
    rest = [count for r, count in enumerate(queries) if r != rank]
    forward = others * COUNT * len(banks) + others * max(sum(b.query_bytes(m) for b in banks) for m in queries)
    forward += sum(b.result_bytes(m) for m in rest for b in banks)
    backward = others * max(sum(b.backward_stats_bytes(m) for b in banks) for m in queries)
    return forward, backward + sum(b.query_grad_bytes(m) for m in rest for b in banks)


def two_level_bytes(banks: Sequence[BankShape], queries: int, nodes: int, ranks_per_node: int) -> tuple[int, int, int]:
    """Return the bytes that a rank sends (between nodes, inside the node, headers), forward plus backward.

    ``queries`` is the number per rank.
    """
    dispatched = [sum(b.query_bytes(m) + b.backward_stats_bytes(m) for b in banks) for m in (queries, nodes * queries)]
    combined = [sum(b.result_bytes(m) + b.query_grad_bytes(m) for b in banks) for m in (queries, nodes * queries)]
    between, inside = nodes - 1, ranks_per_node - 1
    header = (between + inside) * COUNT * len(banks)
    return between * (dispatched[0] + combined[0]), inside * (dispatched[1] + combined[1]), header


def ring_traffic_bytes(banks: Sequence[BankShape], spans: Sequence[Sequence[tuple[int, int]]], rank: int) -> int:
    """Return the bytes that a rank sends in one pass of ``ring``: every shard but the next rank's.

    Forward and backward are one pass each.

    Args:
        banks: the banks of one batched retrieval.
        spans: [bank][rank] rows [start, stop) of each shard.
        rank: the sending rank.
    """
    following = (rank + 1) % len(spans[0])
    return sum(
        bank.row_bytes(stop - start)
        for bank, shards in zip(banks, spans, strict=True)
        for owner, (start, stop) in enumerate(shards)
        if owner != following
    )


def cheapest_strategy(
    rows: int, dim: int, ranks: int, queries: int, element: int, replicate_below_bytes: int
) -> ShardingStrategy:
    """Return ``replicate`` if the bank fits in ``replicate_below_bytes``, else the strategy that sends fewer bytes.

    ``queries`` is the number per rank per step.
    """
    bank = BankShape(rows, dim, element)
    if ranks == 1 or bank.row_bytes(rows) <= replicate_below_bytes:
        return "replicate"
    spans = [[(rows * r // ranks, rows * (r + 1) // ranks) for r in range(ranks)]]
    return (
        "gather"
        if sum(gather_traffic_bytes([bank], [queries] * ranks, 0)) <= 2 * ring_traffic_bytes([bank], spans, 0)
        else "ring"
    )


#: Bandwidths that the predictions assume, in bytes per second per GPU in one direction.
NODE_RATE = 450e9  # NVLink 4 inside a node of eight
NET_RATE = 50e9  # one 400 Gbit/s adapter per GPU between nodes
NODE_RANKS = 8


def communication_table(bank: BankShape, queries: int, ranks: Sequence[int]) -> list[str]:
    """Return the Markdown table of predictions, one line per number of GPUs and strategy."""
    lines = [
        "| GPUs | way | rows held per GPU | sent per GPU per step | predicted transfer |",
        "|---|---|---|---|---|",
    ]
    for size in ranks:
        shard = bank.row_bytes(-(-bank.rows // size))
        spans = [[(bank.rows * r // size, bank.rows * (r + 1) // size) for r in range(size)]]
        flat, ring = sum(gather_traffic_bytes([bank], [queries] * size, 0)), 2 * ring_traffic_bytes([bank], spans, 0)
        rate = NODE_RATE if size <= NODE_RANKS else NET_RATE
        entries = [("replicate", bank.row_bytes(bank.rows), 0, 0.0), ("gather", shard, flat, flat / rate)]
        if size > NODE_RANKS:
            between, inside, _ = two_level_bytes([bank], queries, size // NODE_RANKS, NODE_RANKS)
            entries.append(("gather, two levels", shard, between + inside, between / NET_RATE + inside / NODE_RATE))
            own = sum(gather_traffic_bytes([bank], [queries] * NODE_RANKS, 0))
            held = bank.row_bytes(-(-bank.rows // NODE_RANKS))
            entries.append(("gather, a copy a node", held, own, own / NODE_RATE))
        entries.append(("ring", shard, ring, ring / rate))
        for strategy, held, sent, seconds in entries:
            lines.append(f"| {size:,} | {strategy} | {_size(held)} | {_size(sent)} | {_time(seconds)} |")
    return lines


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def _time(seconds: float) -> str:
    return "0" if seconds == 0 else f"{seconds * 1000:.3g} ms"


#: (heading, bank, queries per GPU per step: batch · 14 · heads)
EXAMPLES = (
    ("The paper's banks: 14,000 × 768, bfloat16; 6 studies per GPU, 6 heads", BankShape(14_000, 768), 6 * 14 * 6),
    ("Every patch of MIMIC-CXR: 74,000,000 × 768, bfloat16; the same queries", BankShape(74_000_000, 768), 6 * 14 * 6),
    ("The same, int8", BankShape(74_000_000, 768, element=1), 6 * 14 * 6),
)


def main() -> None:
    """Print the predicted traffic of three banks as Markdown tables."""
    argparse.ArgumentParser(description="Predicted traffic of sharded retrieval.").parse_args()
    for heading, bank, queries in EXAMPLES:
        print(f"**{heading}**\n")
        print("\n".join(communication_table(bank, queries, (8, 64, 1024))), end="\n\n")


if __name__ == "__main__":
    main()
