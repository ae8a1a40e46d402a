"""launchers/slurm.sh without SLURM: what it asks of scontrol and srun, and whether ranks meet by what it sets."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "launchers" / "slurm.sh"

#: Stands where srun does: keeps its options, starts the tasks node by node and waits for all of them.
SRUN = """#!/bin/bash
while [[ $1 == --* ]]; do echo "$1" >> "$SRUN_TOLD"; shift; done
for (( task = 0; task < SLURM_NTASKS; task++ )); do
    SLURM_PROCID=$task SLURM_LOCALID=$(( task % SLURM_NTASKS_PER_NODE )) "$@" & tasks+=($!)
done
status=0
for task in "${tasks[@]}"; do wait "$task" || status=$?; done
exit $status
"""
SCONTROL = """#!/bin/bash
[[ "$*" == "show hostnames node[1-2]" ]] && printf '127.0.0.1\\nnode2\\n'
"""
SHOW = "import json, os; open(os.environ['RANK'], 'w').write(json.dumps(dict(os.environ)))"
MEET = """
import torch
from amrg import distributed
distributed.init_process_group()
total = torch.tensor([float(distributed.global_rank() + 1)])
torch.distributed.all_reduce(total)
rank = distributed.global_rank()
open(f"met-{rank}", "w").write(f"{distributed.all_gather_list([rank])} {total.item()}")
"""


def submit(folder: Path, tasks: int, node_tasks: int, *command: str) -> subprocess.CompletedProcess[str]:
    """The script as sbatch would start it, with the stand-ins first on PATH."""
    tools = folder / "bin"
    tools.mkdir()
    for name, text in {"srun": SRUN, "scontrol": SCONTROL}.items():
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    given = {
        "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(ROOT), "SRUN_TOLD": str(folder / "told"),
        "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "LOCAL_WORLD_SIZE": str(node_tasks),
        "SLURM_JOB_ID": "12345678", "SLURM_JOB_NODELIST": "node[1-2]", "SLURM_CPUS_PER_TASK": "6",
        "SLURM_NTASKS": str(tasks), "SLURM_NTASKS_PER_NODE": str(node_tasks),
    }  # fmt: skip
    return subprocess.run(
        ["bash", str(SCRIPT), *command], cwd=folder, env=os.environ | given, capture_output=True, text=True, timeout=240
    )


def test_each_task_is_a_rank_of_one_run(tmp_path: Path) -> None:
    done = submit(tmp_path, 4, 2, sys.executable, "-c", SHOW)
    assert done.returncode == 0, done.stderr
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    seen = [json.loads((tmp_path / str(rank)).read_text()) for rank in range(4)]
    assert [tuple(one[name] for name in names) for one in seen] == [
        ("0", "0", "4", "127.0.0.1", "29678"),
        ("1", "1", "4", "127.0.0.1", "29678"),
        ("2", "0", "4", "127.0.0.1", "29678"),
        ("3", "1", "4", "127.0.0.1", "29678"),
    ]
    assert not any("LOCAL_WORLD_SIZE" in one for one in seen)
    told = (tmp_path / "told").read_text().split()
    assert told == ["--kill-on-bad-exit=1", "--distribution=block", "--cpus-per-task=6"]


def test_two_ranks_meet_at_the_address_that_it_sets(tmp_path: Path) -> None:
    """Over gloo on the loopback."""
    done = submit(tmp_path, 2, 2, sys.executable, "-c", MEET)
    assert done.returncode == 0, done.stderr
    assert [(tmp_path / f"met-{rank}").read_text() for rank in range(2)] == ["[0, 1] 3.0"] * 2


def test_a_failed_task_is_the_status_of_the_job(tmp_path: Path) -> None:
    assert submit(tmp_path, 2, 1, "bash", "-c", "exit $((RANK * 7))").returncode == 7


@pytest.mark.parametrize("arguments", [["-n"], []], ids=["syntax", "no command"])
def test_it_is_bash_and_wants_a_command(arguments: list[str]) -> None:
    done = subprocess.run(["bash", *arguments, str(SCRIPT)], capture_output=True, text=True)
    assert done.returncode == (0 if arguments else 2)
    assert arguments or done.stderr.startswith("usage: sbatch")
