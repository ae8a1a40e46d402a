"""docs/mimic-from-zero.md from its first command to its last, on a look-alike of the data and of the models."""

import json
import re
import shlex
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests import processes
from tests.data.test_image_io import dicom
from tests.lookalike import make_data, make_models
from tests.made_films import chest_film
from tests.test_documented_commands import PAGE, commands

#: How a line of the page begins that is not run here, and why.
SKIPPED = (
    ("git ", "the clone is there"), ("cd ", "the clone is there"), ("python3 -m venv", "it is there"),
    ("source ", "it is there"), ("pip ", "all is installed"),
    ("wget ", "credentialed: the look-alike lies where it would put the files"),
    ("hf ", "gated: stand-ins lie where it would put the files"),
    ("deepspeed ", "tests/launchers/test_launchers.py"), ("torchrun ", "tests/training/test_zero3_loading.py"),
    ("sbatch ", "tests/launchers/test_slurm.py"), ("scancel ", "tests/launchers/test_slurm.py"),
    ("ray ", "tests/cluster"), ("amrg fetch-metrics ", "needs a network: tests/evaluation/test_fetch_metrics.py"),
    ("amrg view ", "serves until it is stopped: tests/app"),
    ("amrg compare ", "needs a second run: tests/evaluation/test_comparison.py"),
)  # fmt: skip

ARCHIVE = "mimic-cxr-reports.zip"
#: Put behind the page's SET, as the stand-ins are small and know nothing: a convolutional net for Swin-L that learns
#: in a minute, films of its size, batches and numbers of steps for 72 studies. Memories and banks are the page's.
SMALL = (
    "--vision.encoder test_resnet --vision.image-size 64 --data.image-size 64 "
    "--stage1.epochs 24 --stage1.batch-size 8 --stage1.lr 2e-3 --stage1.dtype float32 "
    "--stage2.dtype float32 --stage2.epochs 9 --stage2.batch-size 8 "
    "--generate.max-new-tokens 40 --evaluate.bootstrap_samples 50"
)


def lines_of_page() -> list[str]:
    """The page's commands in their order, but for ``SKIPPED``; ``-A`` stands for an artefact's hash."""
    given = re.search(r'^SET="(.*)"$', PAGE.read_text(), re.MULTILINE)
    assert given is not None
    lines = [line.replace(given[1], f"{given[1]} {SMALL}") for line in commands(PAGE.read_text())]
    kept = [line for line in lines if not line.startswith(tuple(start for start, _ in SKIPPED))]
    return [re.sub(r"(runs/mimic_cxr/\w+)-A\b", r"\1-*", line) for line in kept]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the commands were given in."""
    site = tmp_path_factory.mktemp("site")
    films, reports = (site / "physionet.org" / "files" / name / "2.1.0" for name in ("mimic-cxr-jpg", "mimic-cxr"))
    texts = make_data(films)
    reports.mkdir(parents=True)
    (films / ARCHIVE).rename(reports / ARCHIVE)
    make_models(site / "models", texts, "test_resnet")
    dicom(site / "film.dcm", chest_film(0))
    (site / "commands.json").write_text(json.dumps(lines_of_page()))
    said = site / "said.txt"
    run = processes.start("tests.documented_run", "commands.json", "said.json", folder=site, output=said)
    run.join()
    assert run.exitcode == 0, said.read_text()
    return site


def made(site: Path, name: str) -> list[Any]:
    """The lines of a file of the run's one artefact that has it."""
    (path,) = (site / "runs" / "mimic_cxr").glob(name)
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_kind_of_command_was_run_and_said_what_the_page_tells(site: Path) -> None:
    said = {
        " ".join(shlex.split(line)[:2]): text for line, text in json.loads((site / "said.json").read_text()).items()
    }
    steps = ("prepare", "stage1", "banks", "stage2", "generate", "evaluate")
    others = ("doctor", "plan", "run", "write", "export")
    assert said.keys() >= {f"amrg {verb}" for verb in (*steps, *others)}
    assert said["amrg doctor"].splitlines()[-1] == "all is fine"
    for step in steps[1:]:
        assert said["amrg run"].count(f"{step}: making runs/mimic_cxr/") == 1
        assert said[f"amrg {step}"].startswith(f"{step}: already made, nothing to do: runs/mimic_cxr/")
    assert json.loads(said["amrg write"][said["amrg write"].index("{") :])["generated"]
    assert json.loads((site / "rexrank.json").read_text())


def test_what_is_skipped_is_on_the_page() -> None:
    for start, _ in SKIPPED:
        assert any(line.startswith(start) for line in commands(PAGE.read_text())), start


def test_no_library_speaks_between_our_lines(site: Path) -> None:
    for line, text in json.loads((site / "said.json").read_text()).items():
        for noise in ("Warning", "[transformers]", "nexpected", "UNEXPECTED"):
            assert noise not in text, (line, text)


def test_the_report_memory_spreads_and_half_of_the_films_have_their_own_five_rows(site: Path) -> None:
    kept = [epoch for epoch in made(site, "stage2-*/curves.jsonl") if epoch["best"]][-1]
    lines = made(site, "reports-*/reports.jsonl")
    fives = [frozenset(row["row"] for row in line["memory"]["report"]) for line in lines]
    assert {len(five) for five in fives} == {5}
    own = sum(count == 1 for count in Counter(fives).values())
    assert kept["report_perplexity"] > 10
    assert own >= len(lines) / 2
    # Of what a finding that the film has retrieves: on rows of that finding, which are about a tenth of the bank.
    assert kept["report_relevance"] > 0.2
