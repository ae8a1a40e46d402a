"""The launchers as a user calls them: two ranks under DeepSpeed, one under plain Python."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from amrg.artifacts import open_artifact
from amrg.models.open_banks import open_memory_banks
from amrg.models.report_generator import ReportGenerator
from amrg.training import checkpoint

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
#: 80 steps of 16 studies, with few validations.
LONG = (
    "--stage2.epochs", "10", "--stage2.batch-size", "2", "--stage2.num-sample-reports", "0",
    "--stage2.dtype", "float32",
)  # fmt: skip


ENVIRONMENT = {**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}


def call(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, timeout=400)


def below(process: int) -> list[int]:
    """Process ids of all descendants."""
    children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    return [found for child in children for found in (int(child), *below(int(child)))]


def running(process: int) -> bool:
    stat = Path(f"/proc/{process}/stat")
    return stat.exists() and stat.read_text().rsplit(")", 1)[1].split()[0] != "Z"


def wait_for(condition: Callable[[], bool], seconds: float = 150) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def steps_of(run: Path) -> list[int]:
    """Those of stage 2 that are logged."""
    logs = run.glob("stage2-*/logs/steps.jsonl")
    return [json.loads(line)["step"] for log in logs for line in log.read_text().splitlines()]


def saved_step(run: Path) -> int:
    saved = checkpoint.find_latest_valid(next(run.glob("stage2-*.partial")) / "checkpoints")
    assert saved is not None
    return saved.state["step"]


def test_a_signal_to_plain_python_saves_and_ends_with_130(artefacts: Any, tmp_path: Path) -> None:
    made = shutil.copytree(artefacts.data.parent, tmp_path / "runs" / "tiny")
    command = [sys.executable, str(ROOT / "launchers" / "stage2.py"), "tiny"]
    command += ["--runs", str(tmp_path / "runs"), *LONG]
    one = subprocess.Popen(command, cwd=tmp_path, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: len(steps_of(made)) >= 5)
    one.send_signal(signal.SIGTERM)
    said = one.communicate(timeout=60)[1]
    assert one.returncode == 130
    step = saved_step(made)
    assert 5 <= step == len(steps_of(made)) < 80
    assert said.splitlines()[-1].startswith(f"amrg: stopped as asked after step {step}, which is saved")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_a_signal_to_the_deepspeed_command_saves_and_leaves_nobody(
    artefacts: Any, tmp_path: Path, number: signal.Signals
) -> None:
    """The command passes nothing on: its ranks notice that it is gone. Then the run goes on, here on one rank."""
    made = shutil.copytree(artefacts.data.parent, tmp_path / "runs" / "tiny")
    script, config = str(ROOT / "launchers" / "stage2.py"), "tiny"
    arguments = [script, config, "--runs", str(tmp_path / "runs"), *LONG]
    command = ["deepspeed", "--num_accelerators", "2", *arguments, "--ds_config", "zero2.json"]
    runner = subprocess.Popen(
        command,
        cwd=tmp_path,
        env=ENVIRONMENT,
        stderr=subprocess.DEVNULL,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )
    wait_for(lambda: len(steps_of(made)) >= 5)
    others = below(runner.pid)
    assert len(others) >= 3  # the launcher and two ranks
    runner.send_signal(number)
    assert runner.wait(60) == -number  # a shell calls it 143 for SIGTERM, 130 for SIGINT
    wait_for(lambda: not any(map(running, others)), 60)
    step = saved_step(made)
    assert 5 <= step == len(steps_of(made)) < 80
    if number == signal.SIGTERM:
        done = call(tmp_path, sys.executable, *arguments, "--ds_config", "zero2.json")
        assert done.returncode == 0, done.stderr
        assert f"going on from step {step}" in done.stderr
        assert steps_of(made) == list(range(1, 81))


def test_deepspeed_with_two_ranks_under_zero_3(artefacts: Any, tmp_path: Path) -> None:
    """The call of the documentation, from a foreign folder, with the JSON by its bare name; the banks are missing."""
    script, config = str(ROOT / "launchers" / "stage2.py"), "tiny"
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
    model = ReportGenerator.from_pretrained(made / "model", open_memory_banks(artefacts.config, banks, 8))
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
