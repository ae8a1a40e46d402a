"""The whole chain on a few real studies, as a user starts it; and killed at random moments, as a cluster would."""

import json
import random
import shutil
import subprocess
import sys

import pytest

from amrg.artifacts import MANIFEST, folder_content_hash
from amrg.config import CONFIGS, Config, GenerateConfig
from amrg.pipeline import STEPS
from tests import processes

TINY = CONFIGS / "tiny.yaml"
KINDS = {"data", "stage1", "banks", "stage2", "reports", "scores"}


def start(root, *arguments):
    return processes.start("amrg.cli", *arguments, "--runs", root, output=root / "said.txt")


def finish(root, *arguments, code=0):
    process = start(root, *arguments)
    process.join()
    output = (root / "said.txt").read_text()
    assert process.exitcode == code, output
    return output


def artefacts(root):
    return {path.parent.name: json.loads(path.read_text()) for path in sorted((root / "tiny").glob(f"*/{MANIFEST}"))}


def reports_of(root):
    return next(path.read_text() for path in (root / "tiny").glob("reports-*/reports.jsonl"))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    root = tmp_path_factory.mktemp("undisturbed")
    command = [sys.executable, "-m", "amrg.cli", "run", str(TINY), "--runs", str(root)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, done.stdout
    return root, done.stdout


def test_the_chain_makes_every_artefact_and_says_where(undisturbed):
    root, output = undisturbed
    made = artefacts(root)
    assert {manifest["kind"] for manifest in made.values()} == KINDS
    for name, manifest in made.items():
        assert manifest["content_hash"] == folder_content_hash(root / "tiny" / name)
        assert str(root) not in json.dumps(manifest)
    assert not list((root / "tiny").glob("*.partial"))
    assert "index.html" in output


def test_each_test_study_is_reported_once_and_none_in_the_output(undisturbed):
    root, output = undisturbed
    rows = [json.loads(line) for line in reports_of(root).splitlines()]
    assert len({row["key"] for row in rows}) == len(rows) == 8
    assert [row["key"] for row in rows] == sorted(row["key"] for row in rows)
    for row in rows:
        assert row["reference"]
        assert row["reference"] not in output


def test_done_again_nothing_is_done(undisturbed):
    root, _ = undisturbed
    before = {path: path.stat().st_mtime_ns for path in (root / "tiny").rglob("*")}
    output = finish(root, "run", str(TINY))
    assert output.count("already made") == len(KINDS)
    assert {path: path.stat().st_mtime_ns for path in (root / "tiny").rglob("*")} == before


def test_a_changed_setting_reuses_what_it_does_not_touch(undisturbed):
    root, _ = undisturbed
    output = finish(root, "run", str(TINY), "--dry-run", "--generate.num-beams", "1")
    states = [line.split(": ")[1] for line in output.splitlines()]
    assert states == ["is there"] * 4 + ["would make", "would make a scores artefact, but not yet"]


def test_a_report_without_abstention_keeps_the_identity_it_had_before_there_was_any():
    settings = STEPS["generate"].settings
    assert "abstain" not in settings(Config())
    assert settings(Config(generate=GenerateConfig(abstain=0.5)))["abstain"] == 0.5


def test_inspect_and_verify(undisturbed, tmp_path):
    root, _ = undisturbed
    for path in sorted((root / "tiny").iterdir()):
        shown = tmp_path / path.name
        processes.finish([processes.start("amrg.cli", "inspect", path, "--verify", output=shown)])
        assert "content hash verified" in shown.read_text()
        for row in reports_of(root).splitlines():
            assert json.loads(row)["reference"] not in shown.read_text()


def test_banks_with_held_out_rows_are_refused_and_marked_to_the_end(undisturbed, tmp_path):
    root = shutil.copytree(undisturbed[0], tmp_path / "runs")
    leaky = ["--banks.splits", "train", "test"]
    finish(root, "banks", str(TINY), *leaky)
    said = finish(root, "stage2", str(TINY), *leaky, code=2)
    assert "holds rows of test studies" in said.splitlines()[-1]
    finish(root, "run", str(TINY), *leaky, "--stage2.allow-held-out-bank-rows")
    marks = {
        manifest["kind"]: manifest.get("mark", "") for manifest in artefacts(root).values() if manifest.get("mark")
    }
    assert set(marks) == {"banks", "stage2", "reports", "scores"}
    assert all("test studies" in mark for mark in marks.values())
    scores = [json.loads(path.read_text())["marks"] for path in (root / "tiny").glob("scores-*/scores.json")]
    assert sorted(map(len, scores)) == [0, 1]


def test_killed_at_random_moments_it_ends_in_the_same_hashes(undisturbed, tmp_path):
    root, _ = undisturbed
    chance = random.Random(0)
    for attempt in range(40):
        process = start(tmp_path, "run", str(TINY))
        # Films take longest. Longer and longer: a busy machine may need more to come to the first step.
        latest = 7 if list((tmp_path / "tiny").glob("data-*[0-9a-f]")) else 20
        process.join(chance.uniform(1, latest) * (1 + attempt / 8))
        if process.exitcode is not None:
            break
        process.kill()
        process.join()
    assert process.exitcode == 0
    wanted = {name: manifest["content_hash"] for name, manifest in artefacts(root).items()}
    assert {name: manifest["content_hash"] for name, manifest in artefacts(tmp_path).items()} == wanted
