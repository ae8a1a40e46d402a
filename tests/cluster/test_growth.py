"""A training that has begun with fewer workers takes all as soon as there is room (real Ray, on the loopback)."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

from tests.conftest import make_artefacts

SCRIPT = Path(__file__).with_name("growth_worker.py")
ROOT = Path(__file__).parents[2]


def test_a_training_takes_all_workers_when_there_is_room_and_repeats_no_step(tmp_path: Path) -> None:
    make_artefacts(tmp_path)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    environment["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = "300"  # a busy machine needs more than Ray's 60
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
