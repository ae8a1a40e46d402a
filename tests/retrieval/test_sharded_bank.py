"""Sharded retrieval equals retrieval from the whole bank: real processes, every way."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.processes import ROOT, finish, start_ranks

WORKER = "tests.retrieval.sharded_bank_worker"


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_every_way_equals_the_whole_bank(ranks: int, tmp_path: Path) -> None:
    finish(start_ranks(ranks, WORKER, tmp_path))


def test_the_triton_back_ends_agree_under_autocast(tmp_path: Path) -> None:
    """In processes that import Triton anew, as it then decides whether to interpret."""
    shared = os.environ | {"WORLD_SIZE": "2", "OMP_NUM_THREADS": "1", "TRITON_INTERPRET": "1"}
    ranks = [
        subprocess.Popen([sys.executable, "-m", WORKER, str(tmp_path)], cwd=ROOT, env=shared | {"RANK": rank})
        for rank in "01"
    ]
    assert [rank.wait(timeout=300) for rank in ranks] == [0, 0]
