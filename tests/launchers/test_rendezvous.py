"""Where ranks meet: by what the launcher says, with processes between it and the ranks, and again after failures."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from amrg import pipeline
from amrg.config import Config
from amrg.errors import UserError
from amrg.launcher import first_slurm_host, local_rank_variables
from tests.launchers.test_launchers import BIN, ENVIRONMENT, ROOT, below, wait_for
from tests.launchers.test_slurm import MEET
from tests.training.test_loop import STEPS, steps

TOY = ROOT / "tests" / "training" / "toy_training_worker.py"
BARE = {name: value for name, value in ENVIRONMENT.items() if name not in ("RANK", "WORLD_SIZE", "MASTER_ADDR")} | {
    "PYTHONPATH": str(ROOT)
}


def torchrun(*arguments: str) -> list[str]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    return [str(BIN / "torchrun"), "--master-addr", "127.0.0.1", "--master-port", str(port), *arguments]


def test_ranks_meet_though_a_wrapper_stands_between_them_and_the_launcher(tmp_path: Path) -> None:
    """As `numactl` and `nsys` do: each rank has a parent of its own."""
    wrapper = tmp_path / "wrapper.sh"
    wrapper.write_text(f'#!/bin/bash\n{sys.executable} "$@"\nexit $?\n')
    wrapper.chmod(0o755)
    (tmp_path / "meet.py").write_text(MEET)
    command = torchrun("--nproc-per-node", "2", "--no-python", str(wrapper), "meet.py")
    subprocess.run(command, cwd=tmp_path, env=BARE | {"TMPDIR": str(tmp_path)}, check=True, timeout=300)
    assert [(tmp_path / f"met-{rank}").read_text() for rank in range(2)] == ["[0, 1] 3.0"] * 2
    assert not list(tmp_path.glob("amrg-*"))


def test_a_launcher_that_starts_ranks_again_goes_on_from_the_checkpoint(tmp_path: Path) -> None:
    """Two restarts: one rank is killed, then the other."""
    command = torchrun("--nproc-per-node", "2", "--max-restarts", "2", str(TOY), str(tmp_path), "0.5", "zero1.json")
    launcher = subprocess.Popen(command, env=BARE, stderr=subprocess.PIPE, text=True)
    run = tmp_path / "zero1.json"
    for last in (3, 6):
        wait_for(lambda last=last: bool(steps(run)) and steps(run)[-1]["step"] >= last, 300)  # type: ignore[misc]
        ranks = [one for one in below(launcher.pid) if str(TOY).encode() in Path(f"/proc/{one}/cmdline").read_bytes()]
        os.kill(ranks[last // 6], signal.SIGKILL)
        before = len(steps(run))
        wait_for(lambda before=before: len(steps(run)) != before, 300)  # type: ignore[misc]
    said = launcher.communicate(timeout=300)[1]
    assert launcher.returncode == 0, said
    assert said.count("going on from step") >= 2
    assert [row["step"] for row in steps(run)] == list(range(1, STEPS + 1))


def meet(folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    script = f"from amrg.cli import run_command_line\nrun_command_line(lambda: exec({MEET!r}))"
    environment = BARE | {"AMRG_RENDEZVOUS_TIMEOUT": "2"} | variables
    return subprocess.run(
        [sys.executable, "-c", script], cwd=folder, env=environment, capture_output=True, text=True, timeout=120
    )


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}, "nobody listens there"),
        ({**local_rank_variables(2), "RANK": "0"}, "the other ranks did not come within 2 s"),
        ({"WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "no-such-host.invalid"}, "cannot meet the others"),
    ],
)  # fmt: skip
def test_ranks_that_do_not_come_are_one_line(variables: dict[str, str], said: str, tmp_path: Path) -> None:
    done = meet(tmp_path, **variables)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("amrg: ")
    assert said in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_port_that_accepts_and_never_answers_is_one_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = str(silent.getsockname()[1])
        done = meet(tmp_path, WORLD_SIZE="2", RANK="1", MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    assert done.returncode == 2, done.stderr
    assert "who listens there does not answer within 2 s" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"WORLD_SIZE": "2", "RANK": "0"}, "no MASTER_ADDR"),
        ({"RANK": "1"}, "RANK 1 of WORLD_SIZE 1"),
        ({"RANK": "2", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}, "RANK 2 of WORLD_SIZE 2"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE is `two`"),
        ({"WORLD_SIZE": "1", "MASTER_PORT": "http"}, "MASTER_PORT is `http`"),
    ],
)
def test_what_another_job_has_left_in_the_environment_is_one_line(
    variables: dict[str, str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, variables.get(name, ""))
        if name not in variables:
            monkeypatch.delenv(name)
    with pytest.raises(UserError) as error:
        pipeline.check_before_start((), Config())  # what each command does first
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_a_port_that_another_run_has_is_one_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        done = meet(tmp_path, RANK="0", WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    assert done.returncode == 2
    assert "Address already in use" in done.stderr
    assert done.stderr.count("\n") == 1


def test_tasks_of_srun_are_ranks_without_a_script(tmp_path: Path) -> None:
    """As `srun` and `deepspeed --launcher slurm` start them; outside of a step nothing is taken from SLURM."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    shared = BARE | {
        "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NODELIST": "127.0.0.1", "SLURM_JOB_ID": "7", "MASTER_PORT": port,
        "GLOO_SOCKET_IFNAME": "lo",
    }  # fmt: skip
    tasks = [
        subprocess.Popen(
            [sys.executable, "-c", MEET], cwd=tmp_path, env=shared | {"SLURM_PROCID": task, "SLURM_LOCALID": task}
        )
        for task in "01"
    ]
    assert [task.wait(120) for task in tasks] == [0, 0]
    assert [(tmp_path / f"met-{rank}").read_text() for rank in range(2)] == ["[0, 1] 3.0"] * 2
    assert meet(tmp_path, SLURM_PROCID="0", SLURM_NTASKS="2").returncode == 0


@pytest.mark.parametrize(
    ("nodes", "first"),
    [("node1", "node1"), ("gpu[003-005,9],cpu1", "gpu003"), ("a,b[1-2]", "a"), ("r[1-2]n[07,9]-ib", "r1n07-ib")],
)
def test_the_first_host_of_a_node_list(nodes: str, first: str) -> None:
    assert first_slurm_host(nodes) == first
