"""Sharded retrieval equals retrieval from the whole bank: real processes, every way."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

RUN = Path(__file__).with_name("sharded_bank_worker.py")


def start(script: Path, ranks: int, *arguments: object, **environment: str) -> list[subprocess.CompletedProcess[str]]:
    """Run a script as so many ranks on the loopback and wait for all."""
    shared = os.environ | {
        "WORLD_SIZE": str(ranks), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo",
        "PYTHONPATH": str(RUN.parent.parent.parent),
    } | environment  # fmt: skip
    processes = [
        subprocess.Popen(
            [sys.executable, str(script), *map(str, arguments)],
            env=shared | {"RANK": str(rank)},
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        for rank in range(ranks)
    ]
    outputs = [process.communicate(timeout=300)[0] for process in processes]
    return [
        subprocess.CompletedProcess([], process.returncode, output)
        for process, output in zip(processes, outputs, strict=True)
    ]


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_every_way_equals_the_whole_bank(ranks: int, tmp_path: Path) -> None:
    for rank, ended in enumerate(start(RUN, ranks, tmp_path)):
        assert ended.returncode == 0, f"rank {rank}: {ended.stdout[-3000:]}"


def test_the_triton_back_ends_agree_under_autocast(tmp_path: Path) -> None:
    for rank, ended in enumerate(start(RUN, 2, tmp_path, TRITON_INTERPRET="1")):
        assert ended.returncode == 0, f"rank {rank}: {ended.stdout[-3000:]}"
