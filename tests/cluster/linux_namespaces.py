"""Commands in namespaces of their own: no network but the loopback, no process but theirs, none that outlives them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

#: In its own process namespace the first process is the only parent there is, and its end is everybody's.
_UNSHARE = ["unshare", *([] if os.geteuid() == 0 else ["-r"]), "-n", "-p", "-f", "--mount-proc", "--kill-child"]
_UP = 'ip link set lo up && exec "$@"'
ROOT = Path(__file__).resolve().parents[2]


def command(*arguments: str, before: str = "true") -> list[str]:
    """A command and what a shell does before it, in namespaces of their own, of what is mounted, too."""
    return [*_UNSHARE, "bash", "-c", f"{before} && {_UP}", "_", *arguments]


def environment(home: Path) -> dict[str, str]:
    """Ray with few waits, one numerical thread, and a home of its own for what it writes there."""
    ours = {
        "HOME": str(home),
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "RAY_AUTH_MODE": "disabled",
        "RAY_metrics_report_interval_ms": "1000",
        "RAY_worker_niceness": "0",  # else its workers starve beside other work
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
        "RAY_health_check_period_ms": "500",  # a raylet that is gone is missed after five of these
    }
    return os.environ | ours


def run(home: Path, *arguments: str, timeout: float = 600, before: str = "true") -> subprocess.CompletedProcess[str]:
    """``python ARGUMENTS`` to its end; skips the test where namespaces, or what is done before, are not allowed."""
    probe = subprocess.run(command("true", before=before), capture_output=True, text=True)
    if probe.returncode:
        pytest.skip(f"no namespaces here: {probe.stderr.strip()}")
    return subprocess.run(
        command(sys.executable, *arguments, before=before),
        env=environment(home),
        capture_output=True,
        text=True,
        timeout=timeout,
    )
