"""The launchers as a user calls them: two ranks under DeepSpeed, one under plain Python."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from amrg.artifacts import open_artifact
from amrg.models.generator import ReportGenerator
from amrg.training.stage2 import open_banks

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent


def call(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=200)


def test_deepspeed_with_two_ranks_under_zero_3(artefacts: Any, tmp_path: Path) -> None:
    """The call of the documentation, from a foreign folder, with the JSON by its bare name; the banks are missing."""
    script, config = str(ROOT / "launchers" / "stage2.py"), str(ROOT / "tests" / "tiny.yaml")
    made_before = shutil.copytree(artefacts.data.parent, tmp_path / "runs" / "tiny")
    shutil.rmtree(next(made_before.glob("banks-*")))
    runs = str(tmp_path / "runs")
    done = call(
        tmp_path, "deepspeed", "--num_accelerators", "2", script, config, "--ds_config", "zero3.json", "--runs", runs
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (made,), (banks,) = (made_before.glob(f"{kind}-*") for kind in ("stage2", "banks"))
    assert (done.stdout + done.stderr).count("banks: making") == 1
    manifest = open_artifact(made, "stage2").manifest
    assert manifest["config"]["stage2"]["ds_config"]["zero_optimization"]["stage"] == 3
    model = ReportGenerator.from_pretrained(made / "model", open_banks(artefacts.config, banks, 8))
    assert all(parameter.numel() and parameter.isfinite().all() for parameter in model.parameters())
    again = call(tmp_path, sys.executable, script, config, "--ds_config", "zero3.json", "--runs", runs)
    assert again.returncode == 0, again.stderr
    assert "already made" in again.stderr


@pytest.mark.parametrize("arguments", [("--ds_config", "zero9.json"), ("--stage2.no-such-setting", "1")])
def test_a_users_mistake_is_one_line_and_exit_2(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    done = call(tmp_path, sys.executable, str(ROOT / "launchers" / "stage2.py"), *arguments, "--runs", str(tmp_path))
    assert done.returncode == 2
    assert done.stderr.startswith("amrg: ")
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())
