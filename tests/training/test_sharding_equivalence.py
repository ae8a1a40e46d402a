"""How the ranks hold the banks changes nothing that is learned, written or attributed."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from amrg.models.vision_output import MEMORIES
from tests.processes import finish, start_ranks


def start(ranks: int, *arguments: Path | str, script: str = "sharding_equivalence_worker") -> None:
    """Run a module of this folder on as many ranks, and wait for them."""
    finish(start_ranks(ranks, f"tests.training.{script}", *arguments))


WATCHED = ("perplexity", "least_perplexity")  # not `alike`: rows that weigh about the same may change places
RUNS = ("replicate-0", "replicate-1", "replicate-2", "replicate-3", "gather-3", "ring-3")


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_way_and_zero_stage_on_two_ranks_equals_one_rank(artefacts: Any, tmp_path: Path) -> None:
    runs = artefacts.data.parent.parent
    one, two = tmp_path / "one", tmp_path / "two"
    start(1, runs, one, "auto-1")
    start(2, runs, two, *RUNS)
    curves, steps = (lines(one / "auto-1" / "stage2" / name) for name in ("curves.jsonl", "logs/steps.jsonl"))
    reports = lines(one / "auto-1" / "reports.jsonl")
    files = ("model.safetensors", "decoder/model.safetensors")
    weights = [load_file(one / "auto-1" / "stage2" / "model" / file) for file in files]
    assert len(steps) == 20
    for name in RUNS:
        found = lines(two / name / "stage2" / "logs" / "steps.jsonl")
        assert [row["loss"] for row in found] == pytest.approx([row["loss"] for row in steps], rel=1e-5), name
        for row, expected in zip(lines(two / name / "stage2" / "curves.jsonl"), curves, strict=True):
            for key in ("val_loss", "query_cosine", *(f"{memory}_{key}" for memory in MEMORIES for key in WATCHED)):
                assert row[key] == pytest.approx(expected[key], rel=1e-4), (name, key)
        for file, truth in zip(files, weights, strict=True):
            for key, value in load_file(two / name / "stage2" / "model" / file).items():
                torch.testing.assert_close(value, truth[key], rtol=1e-3, atol=2e-5, msg=f"{name} {key}")
        for line, expected in zip(lines(two / name / "reports.jsonl"), reports, strict=True):
            assert line["generated"] == expected["generated"]
            for bank in ("visual", "report"):
                mine, theirs = line["memory"][bank], expected["memory"][bank]
                assert [row["weight"] for row in mine] == pytest.approx([row["weight"] for row in theirs], abs=2e-4)
                assert len({row["row"] for row in mine} & {row["row"] for row in theirs}) >= len(theirs) - 1
