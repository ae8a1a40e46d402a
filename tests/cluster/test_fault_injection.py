"""A reader, a worker, a machine, the driver: what is lost changes nothing in what is trained (real Ray, real kills)."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.cluster import linux_namespaces
from tests.conftest import make_artefacts

SCRIPT = Path(__file__).with_name("fault_injection.py")
RUNS = ("nothing", "reader+worker", "node+driver+patience")
#: Weights that overflow at the first step, whoever reads the films.
DIVERGING = "nothing --stage2.lr 1e30 --stage2.warmup-fraction 0 --cluster.readers 0"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("losses")
    make_artefacts(folder / "runs")
    done = linux_namespaces.run(
        folder, str(SCRIPT), str(folder / "runs"), str(folder / "result.jsonl"), *RUNS, DIVERGING, timeout=1500
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [json.loads(line) for line in (folder / "result.jsonl").read_text().splitlines()]
    return dict(zip((*RUNS, DIVERGING), rows, strict=True))


@pytest.mark.parametrize("losses", RUNS)
def test_every_run_finishes_and_leaves_nothing_behind(runs: dict[str, Any], losses: str) -> None:
    run = runs[losses]
    assert run["code"] == 0, run["said"]
    assert run["left"] == []
    print(f"{losses}: training again after {run['back']} s")


@pytest.mark.parametrize("losses", RUNS[1:])
def test_the_weights_are_those_of_the_undisturbed_run(runs: dict[str, Any], losses: str) -> None:
    assert runs[losses]["hashes"] == runs["nothing"]["hashes"]


def test_a_lost_worker_costs_the_steps_since_the_checkpoint_and_a_lost_reader_none(runs: dict[str, Any]) -> None:
    assert runs["nothing"]["steps"] == list(range(1, 25))
    assert runs["reader+worker"]["steps"] == list(range(1, 25))  # those that are done again are told once
    said = runs["reader+worker"]["said"]
    assert re.search("lost the worker of rank|lost a peer", said)
    assert "going on from step 8" in said


def test_what_a_user_can_put_right_ends_the_run_at_once_in_one_line(runs: dict[str, Any]) -> None:
    run = runs[DIVERGING]
    assert run["code"] == 2
    assert re.search("^amrg: stage2: the loss is nan at step 2 .*: lower stage2.lr", run["said"], re.MULTILINE)
    assert "starting again" not in run["said"]
