"""A training with fewer workers, from its begin or since a loss, takes all as soon as there is room (real Ray)."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cluster import linux_namespaces
from tests.conftest import make_artefacts

SCRIPT = Path(__file__).with_name("growth_worker.py")
LOSSES = Path(__file__).with_name("fault_injection.py")
ROOT = Path(__file__).parents[2]
#: Seconds for a group of workers to start: a busy machine needs more than Ray's 60.
START_TIMEOUT = "300"
#: Steps between checkpoints (``stage2_worker.TINY``).
SAVED_EVERY = 4
#: Frozen vision, films read by none; more epochs than a machine takes to come back, then Ctrl-C.
BACK = """room+back+stop
--stage2.no-train-vision --cluster.readers 0 --cluster.node-timeout 2 --stage2.epochs 2000
--stage2.num-sample-reports 0 --telemetry.tensorboard false
"""


def test_a_training_takes_all_workers_when_there_is_room_and_repeats_no_step(tmp_path: Path) -> None:
    make_artefacts(tmp_path)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    environment["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = START_TIMEOUT
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(tmp_path)], env=environment, capture_output=True, text=True, timeout=600
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    assert said.index("room for 1 of 2 workers") < said.index("has room for all 2 workers again")
    (made,) = (tmp_path / "tiny").glob("stage2-*[0-9a-f]")
    steps = [json.loads(line)["step"] for line in (made / "logs" / "steps.jsonl").read_text().splitlines()]
    assert steps == list(range(1, 4 * 30 + 1))
    (left,), (again,) = (re.findall(f"{words} ([0-9]+)", said) for words in ("left at step", "going on from step"))
    assert int(left) <= int(again) < steps[-1]


def test_a_machine_that_is_lost_and_comes_back_is_used_again_within_the_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_artefacts(tmp_path / "runs")
    monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", START_TIMEOUT)
    result = tmp_path / "result.jsonl"
    done = linux_namespaces.run(tmp_path, str(LOSSES), str(tmp_path / "runs"), str(result), BACK, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    run = json.loads(result.read_text())
    said = run["said"]
    assert run["code"] == 130, said
    lost, fewer, again = (
        re.search(line, said).start()  # type: ignore[union-attr]
        for line in ("lost the worker of rank|lost a peer", "room for 1 of 2 workers", "room for all 2 workers again")
    )
    assert lost < fewer < again
    after_loss, after_growth = map(int, re.findall("going on from step ([0-9]+)", said))
    assert after_loss % SAVED_EVERY == 0  # the last checkpoint before the loss, which came at this step or soon after
    assert after_loss >= run["before"]["room"] // SAVED_EVERY * SAVED_EVERY
    assert after_growth >= run["before"]["all"] >= run["before"]["back"]  # the growth costs no step
    assert run["steps"] == list(range(1, len(run["steps"]) + 1))
    assert len(run["steps"]) >= after_growth + 2
    assert [Path(name).suffix for name in run["left"]] == [".partial"]
