"""The formulas by hand, and that the document prints what they give (what is really sent: ``test_sharding.py``)."""

from pathlib import Path

import pytest
import torch

from amrg.retrieval.collectives import padded_message_bytes
from amrg.retrieval.communication_cost import (
    EXAMPLES,
    BankShape,
    cheapest_strategy,
    communication_table,
    gather_traffic_bytes,
    ring_traffic_bytes,
    two_level_bytes,
)

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "memory-banks.md"


@pytest.mark.parametrize(("ranks", "queries", "dim"), [(2, 12, 12), (8, 504, 768)])
def test_the_documented_formula(ranks: int, queries: int, dim: int) -> None:
    """Sizes at which no tensor is padded."""
    bank = BankShape(1024, dim, element=4)
    total = sum(gather_traffic_bytes([bank], [queries] * ranks, 1))
    assert total == (ranks - 1) * (queries * (16 * dim + 28) + 8)
    spans = [[(1024 * r // ranks, 1024 * (r + 1) // ranks) for r in range(ranks)]]
    assert ring_traffic_bytes([bank], spans, 0) == (ranks - 1) * 1024 // ranks * (4 * dim + 8)


def test_tensors_are_padded_to_the_loads_of_the_kernels() -> None:
    assert padded_message_bytes((torch.Size((3, 5)), torch.bfloat16)) == 32


def test_two_levels_send_as_much_but_little_of_it_between_nodes() -> None:
    bank = BankShape(1000, 768, element=4)
    between, inside, header = two_level_bytes([bank], 504, nodes=8, ranks_per_node=8)
    flat = sum(gather_traffic_bytes([bank], [504] * 64, 0))
    assert between + inside == flat - 63 * 8
    assert between == 7 * 504 * (16 * 768 + 28)
    assert header == 14 * 8


def test_what_auto_takes() -> None:
    assert cheapest_strategy(14_000, 768, 8, 504, 2, 2**30) == "replicate"
    assert cheapest_strategy(74_000_000, 768, 1, 504, 2, 2**30) == "replicate"
    assert cheapest_strategy(74_000_000, 768, 8, 504, 2, 2**30) == "gather"
    assert cheapest_strategy(14_000, 768, 64, 504, 2, 0) == "ring"


def test_the_document_has_the_tables() -> None:
    text = DOCUMENT.read_text()
    for heading, bank, queries in EXAMPLES:
        assert f"**{heading}**\n\n" + "\n".join(communication_table(bank, queries, (8, 64, 1024))) in text
