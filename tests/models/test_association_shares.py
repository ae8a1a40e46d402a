"""What is recorded of associations, beside values by hand."""

from pathlib import Path
from typing import Any

import pytest
import torch

from amrg.banks.bank import MemoryBank
from amrg.banks.writer import BankWriter
from amrg.data.labels import FINDINGS, LABELS
from amrg.models.association_shares import RowLabels, heaviest_rows

GRID = 14
EDEMA, FRACTURE, HEART = (LABELS.index(f) for f in ("Edema", "Fracture", "Cardiomegaly"))

#: Findings and box (x0, y0, x1, y1) of each row: edema on the patient's right, left and left; no place; both findings.
ROWS: list[tuple[list[str], list[int] | None]] = [
    (["Edema"], [0, 5, 4, 9]),
    (["Edema"], [9, 5, 13, 9]),
    (["Edema"], [7, 0, 8, 1]),
    (["Edema"], None),
    (["Edema", "Fracture"], [6, 0, 8, 1]),
    ([], None),
]


@pytest.fixture
def bank(tmp_path: Path) -> MemoryBank:
    origins = [
        {"key": f"s{i}", "group": f"p{i}", "split": "train", "source": "region", "findings": findings, "box": box}
        for i, (findings, box) in enumerate(ROWS)
    ]
    with BankWriter(tmp_path, 4) as writer:
        writer.add(torch.randn(len(ROWS), 4, generator=torch.Generator().manual_seed(0)), origins)
    return MemoryBank.open(tmp_path)


def record(bank: MemoryBank, query: int, pairs: list[tuple[int, float]]) -> dict[str, Any]:
    """Of one query's association; the others retrieve nothing."""
    weights, rows = torch.zeros(len(LABELS), len(pairs)), torch.full((len(LABELS), len(pairs)), -1)
    weights[query] = torch.tensor([weight for _, weight in pairs])
    rows[query] = torch.tensor([row for row, _ in pairs])
    return {name: values[query] for name, values in RowLabels(bank, GRID).record(weights, rows).items()}


def test_shares_sides_and_the_heaviest_row_by_hand(bank: MemoryBank) -> None:
    pairs = [(5, 0.4), (1, 0.25), (0, 0.15), (3, 0.1), (2, 0.05), (4, 0.05)]
    found = record(bank, EDEMA, pairs)
    assert found["share"] == pytest.approx(0.6)
    assert found["top_row"] == 5
    # of 0.5 with a place, 0.3 has its middle in the right half of the image; row 4 lies in the middle, not left of it
    assert found["side"] == pytest.approx(0.3 / 0.5)
    other = record(bank, FRACTURE, pairs)
    assert other == {"share": pytest.approx(0.05), "top_row": 5, "side": 0.0}
    assert record(bank, HEART, pairs) == {"share": 0.0, "top_row": 5, "side": None}
    assert record(bank, EDEMA, [(3, 1.0)]) == {"share": 1.0, "top_row": 3, "side": None}


def test_a_row_that_is_none_counts_nothing(bank: MemoryBank) -> None:
    """−1 is no row: it must not be read as the last one."""
    assert record(bank, FRACTURE, [(-1, 0.7), (4, 0.3)])["share"] == pytest.approx(0.3)
    assert record(bank, FRACTURE, [(-1, 0.7), (4, 0.3)])["top_row"] == 4
    assert record(bank, EDEMA, [(-1, 0.0), (-1, 0.0)]) == {"share": 0.0, "top_row": -1, "side": None}


def test_there_is_a_value_for_each_finding(bank: MemoryBank) -> None:
    weights, rows = torch.full((len(LABELS), 2), 0.5), torch.tensor([[0, 1]]).expand(len(LABELS), -1)
    found = RowLabels(bank, GRID).record(weights, rows)
    assert {name: len(values) for name, values in found.items()} == dict.fromkeys(("share", "top_row", "side"), 13)
    assert found["share"] == [1.0 if finding == "Edema" else 0.0 for finding in FINDINGS]


def test_heaviest_rows_are_those_of_the_mean_over_queries() -> None:
    weights = torch.tensor([[0.6, 0.4, 0.0], [0.5, 0.3, 0.2]])
    rows = torch.tensor([[7, 2, -1], [2, 9, 7]])
    found = heaviest_rows(weights, rows, 2)
    assert [one["row"] for one in found] == [2, 7]
    assert [one["weight"] for one in found] == pytest.approx([0.45, 0.4])
    assert [one["row"] for one in heaviest_rows(weights, rows, 9)] == [2, 7, 9]
    assert heaviest_rows(torch.zeros(2, 1), torch.full((2, 1), -1), 5) == []
    assert heaviest_rows(torch.zeros(0, 3), torch.zeros(0, 3, dtype=torch.long), 5) == []
