"""How the ranks hold the banks changes nothing that is learned, written or attributed."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).with_name("ways_run.py")


def start(ranks: int, runs: Path, folder: Path, *ways: str) -> None:
    shared = os.environ | {
        "OMP_NUM_THREADS": "1", "WORLD_SIZE": str(ranks), "LOCAL_SIZE": str(ranks), "MASTER_PORT": folder.name,
    }  # fmt: skip
    processes = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), str(runs), str(folder), *ways],
            env=shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(ranks)
    ]
    assert [process.wait(timeout=200) for process in processes] == [0] * ranks


def test_every_way_under_zero_3_equals_one_rank(artefacts: Any, tmp_path: Path) -> None:
    runs = artefacts.data.parent.parent
    one, two = tmp_path / "one", tmp_path / "two"
    start(1, runs, one, "auto")
    start(2, runs, two, "replicate", "gather", "ring")
    truth = [json.loads(line) for line in (one / "auto" / "stage2" / "curves.jsonl").read_text().splitlines()]
    reports = [json.loads(line) for line in (one / "auto" / "reports.jsonl").read_text().splitlines()]
    for way in ("replicate", "gather", "ring"):
        curves = [json.loads(line) for line in (two / way / "stage2" / "curves.jsonl").read_text().splitlines()]
        for row, expected in zip(curves, truth, strict=True):
            for name in ("train_loss", "val_loss", "visual_perplexity", "report_perplexity"):
                assert row[name] == pytest.approx(expected[name], rel=1e-4), (way, name)
        written = [json.loads(line) for line in (two / way / "reports.jsonl").read_text().splitlines()]
        for line, expected in zip(written, reports, strict=True):
            assert line["generated"] == expected["generated"]
            for bank in ("visual", "report"):
                mine, theirs = line["memory"][bank], expected["memory"][bank]
                assert [row["weight"] for row in mine] == pytest.approx([row["weight"] for row in theirs], abs=2e-4)
                assert len({row["row"] for row in mine} & {row["row"] for row in theirs}) >= len(theirs) - 1
