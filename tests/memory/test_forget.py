"""A forgotten patient is nowhere in the folder of the run, the others' rows stay, and no half is ever left."""

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file

from amrg.artifacts import Artifact, folder_content_hash
from amrg.banks.bank import REPORTS, VISUAL, MemoryBank, patient_group_id
from amrg.commands import bank as command
from amrg.config import GenerateConfig
from amrg.config_files import read_config_section
from amrg.data.stream import iter_split_samples, load_split_studies
from amrg.errors import UserError
from amrg.inference.run import LoadedRun
from amrg.inference.run_artifacts import find_run_artifacts, holds_no_reports
from amrg.memory import forget as forgetting
from amrg.pipeline import STEPS
from tests.memory.other_hospital import WORDS, prepare_other_hospital
from tests.processes import finish, start_ranks
from tests.webapp.tiny_run import make_run

GONE, KEY = "other-101", "train-101"
SENTENCE = f"{WORDS}, Nummer 101."


@pytest.fixture(scope="module")
def extended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose memory also holds another hospital's studies, with what else quotes the patient."""
    run = make_run(tmp_path_factory.mktemp("run"))["stage2"].path.parent
    other = prepare_other_hospital(run)
    command.main(["add", str(run), str(other.path)])
    chain = find_run_artifacts(run)
    (chain.stage2.path / "logs").mkdir(exist_ok=True)
    (chain.stage2.path / "logs" / "samples.jsonl").write_text(json.dumps({"reference": SENTENCE}) + "\n")
    (run / "experiments" / "seen").mkdir(parents=True)
    (run / "experiments" / "seen" / "features").write_bytes(bytes(8))
    (run / "experiments" / "page.html").write_text(f"<p>{KEY}</p>")
    (run / "experiments" / "other.html").write_text("<p>train-1010</p>")  # another key that begins alike
    rows = MemoryBank.open(chain.banks.path / VISUAL).load().numpy()
    index = run / ".indexes" / f"{chain.banks.path.name}-visual-ivf"
    index.mkdir(parents=True)
    (index / "index.faiss").write_bytes(rows.tobytes())
    return run


@pytest.fixture
def run(extended: Path, tmp_path: Path) -> Path:
    return shutil.copytree(extended, tmp_path / "tiny")


@pytest.fixture
def key(tmp_path: Path) -> Path:
    (tmp_path / "key").write_bytes(bytes(range(32)))
    return tmp_path / "key"


def forget(run: Path, key: Path, *which: str) -> None:
    command.main(["forget", str(run), *(which or ("--patient", GONE)), "--key", str(key)])


def removed_bytes(run: Path) -> list[bytes]:
    """Vectors of the patient's rows, as they are stored, and one film."""
    found = []
    for name in (VISUAL, REPORTS):
        folder = find_run_artifacts(run).banks.path / name
        table = pq.read_table(folder / "provenance.parquet").to_pylist()
        rows = load_file(folder / "rows-00000.safetensors")["rows"]
        own = [number for number, row in enumerate(table) if row["group"] == GONE]
        others = {rows[number].tobytes() for number in range(len(rows)) if number not in own}
        found += [rows[number].tobytes() for number in own if rows[number].tobytes() not in others]
    tars = b"".join(path.read_bytes() for path in sorted(run.glob("data-*/shards/*.tar")))
    start = tars.index(f"{KEY}.0.jpg".encode())
    return [*found, tars[start + 2000 : start + 2200]]


def everything(run: Path) -> dict[str, bytes]:
    """All bytes below a folder, with the decoded values of tables."""
    found = {}
    for path in sorted(run.rglob("*")):
        if path.is_file():
            content = path.read_bytes()
            if path.suffix == ".parquet":
                content += repr(pq.read_table(path).to_pylist()).encode()
            found[path.relative_to(run).as_posix()] = content
    return found


def test_nothing_of_the_patient_is_left(
    run: Path, key: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = find_run_artifacts(run)
    banks = {name: MemoryBank.open(before.banks.path / name) for name in (VISUAL, REPORTS)}
    kept = {
        name: [n for n, row in enumerate(bank.provenance.to_pylist()) if row["group"] != GONE]
        for name, bank in banks.items()
    }
    rows = {name: bank.load()[kept[name]] for name, bank in banks.items()}
    assert all(len(kept[name]) < len(bank) for name, bank in banks.items())
    vectors = removed_bytes(run)
    assert len(vectors) >= 3
    patterns = [SENTENCE.encode(), json.dumps(SENTENCE)[1:-1].encode(), GONE.encode(), *vectors]
    whole = b"".join(everything(run).values())
    assert all(pattern in whole for pattern in patterns)
    films = [sample.views for sample in iter_split_samples(before.data.path, "test")]
    monkeypatch.setattr(
        "amrg.inference.run.NO_GROUP", patient_group_id(GONE)
    )  # the patient's rows are invisible to all films
    lines = LoadedRun(before).generate_records(films)
    scored = [path.name for kind in ("scores", "reports") for path in run.glob(f"{kind}-*")]

    forget(run, key)

    for name, content in everything(run).items():
        assert not any(pattern in content for pattern in patterns), name
        assert not re.search(rb"(?<![\w-])" + KEY.encode() + rb"(?![\w-])", content), name
    assert not (run / ".forget").exists()
    assert not list(run.glob(".indexes/*"))
    assert [path.name for path in (run / "experiments").iterdir()] == ["other.html"]
    chain = find_run_artifacts(run)
    assert chain.reports is not None and holds_no_reports(chain.reports.path)  # noqa: PT018
    # Reports and scores that were made without the patient's rows stay.
    assert {path.name for kind in ("scores", "reports") for path in run.glob(f"{kind}-*")} == set(scored)
    for path in run.glob("*/manifest.json"):
        manifest = json.loads(path.read_text())
        assert folder_content_hash(path.parent) == manifest["content_hash"], path
    for name in (VISUAL, REPORTS):
        bank = MemoryBank.open(chain.banks.path / name)
        bank.verify()
        assert bank.load().equal(rows[name])
    # A sentence that another patient shares stays as that patient's row.
    texts = [row["text"] for row in MemoryBank.open(chain.banks.path / REPORTS).provenance.to_pylist()]
    assert texts.count(f"{WORDS} und symmetrisch.") == 1
    other = next(path for path in run.glob("data-*") if len(load_split_studies(path, "train")) == 3)
    assert [sample.study.key for sample in iter_split_samples(other, "train")]
    assert "train-101" not in capsys.readouterr().out

    # What never retrieved the rows is written as before, from the same rows with the same weights.
    for line, again in zip(lines, LoadedRun(chain).generate_records(films), strict=True):
        assert again["generated"] == line["generated"]
        for memory, name in (("visual", VISUAL), ("report", REPORTS)):
            renumbered = {row["row"]: row["weight"] for row in line["memory"][memory]}
            found = {kept[name][row["row"]]: row["weight"] for row in again["memory"][memory]}
            assert found == pytest.approx(renumbered, abs=1e-5)


def test_every_way_to_hold_the_banks_agrees_afterwards(run: Path, key: Path) -> None:
    """Exact, and with indexes that propose all rows; those of before are gone, and new ones are made."""
    shutil.rmtree(run / ".indexes")
    banks = find_run_artifacts(run).banks.path
    finish(start_ranks(2, "tests.memory.ways_worker", banks))
    saved = {path.relative_to(run) for path in (run / ".indexes").rglob("index.faiss")}
    assert len(saved) == 2 * 2 * (2 + 2)  # memories, kinds, and shards or ranks with a copy
    vectors = removed_bytes(run)[:-1]
    assert any(vector in (run / path).read_bytes() for path in saved for vector in vectors)
    forget(run, key)
    assert not list((run / ".indexes").iterdir())
    finish(start_ranks(2, "tests.memory.ways_worker", banks))
    again = {path.relative_to(run) for path in (run / ".indexes").rglob("index.faiss")}
    assert len(again) == len(saved)
    assert not any(vector in (run / path).read_bytes() for path in again for vector in vectors)


@pytest.mark.parametrize("renames", [0, 1, 4])
def test_an_interrupted_call_is_finished_by_the_next(
    run: Path, key: Path, renames: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[Any] = []
    rename = os.rename

    def stop(source: Path, target: Path) -> None:
        if ".forget" in str(source) + str(target):
            if len(done) == renames and ".partial" not in str(source):
                raise KeyboardInterrupt
            done.extend([source] if ".partial" not in str(source) else [])
        rename(source, target)

    monkeypatch.setattr(forgetting.os, "rename", stop)
    with pytest.raises(KeyboardInterrupt):
        forget(run, key)
    monkeypatch.undo()
    with pytest.raises(UserError, match="give the same command again"):
        find_run_artifacts(run)
    forget(run, key)
    assert not any(SENTENCE.encode() in content for content in everything(run).values())
    assert len((run / "forgotten.jsonl").read_text().splitlines()) == 1
    assert find_run_artifacts(run).banks.hash


def test_what_was_trained_keeps_its_place_in_the_pipeline(run: Path, key: Path) -> None:
    """`amrg run` finds the cleaned artefacts under their names, and trains nothing."""
    named = {kind: {path.name for path in run.glob(f"{kind}-*")} for kind in ("data", "stage1", "banks", "stage2")}
    before = find_run_artifacts(run).data.hash
    forget(run, key, "--study", "train-3")
    assert {kind: {path.name for path in run.glob(f"{kind}-*")} for kind in named} == named
    chain = find_run_artifacts(run)
    assert chain.data.hash != before
    assert chain.data.identity_hash == before
    assert chain.stage1.manifest["inputs"]["data"]["hash"] == chain.data.hash
    assert STEPS["stage1"].kind == chain.stage1.kind


def test_reports_with_a_forgotten_row_are_deleted_and_their_settings_kept(key: Path, tmp_path: Path) -> None:
    made = make_run(tmp_path)
    run = made["stage2"].path.parent
    forget(run, key, "--study", "train-3")
    assert not list(run.glob("scores-*"))
    chain = find_run_artifacts(run)
    assert chain.reports is not None
    assert holds_no_reports(chain.reports.path)
    assert chain.config.generate == open_config(made["reports"])
    assert chain.banks.path.name == made["banks"].path.name
    assert chain.banks.hash != made["banks"].hash
    assert not any(
        name == b"train-3" for content in everything(run).values() for name in re.findall(rb"[\w-]+", content)
    )


def open_config(reports: Artifact) -> GenerateConfig:
    return read_config_section(GenerateConfig, reports.manifest["config"], "generate")


def test_the_record_is_signed_and_names_no_patient(run: Path, key: Path, capsys: pytest.CaptureFixture[str]) -> None:
    forget(run, key)
    forget(run, key, "--where", "key=train-10[23]")
    record = (run / "forgotten.jsonl").read_text()
    assert GONE not in record
    capsys.readouterr()
    command.main(["record", str(run), "--key", str(key), "--patient", GONE])
    assert capsys.readouterr().out.startswith("1 lines")
    (run / "forgotten.jsonl").write_text(record.splitlines()[1] + "\n")  # the first line is missing
    with pytest.raises(UserError, match="line 1 was changed, follows a missing line"):
        command.main(["record", str(run), "--key", str(key)])
    (run / "forgotten.jsonl").write_text(record.replace('"studies": 1', '"studies": 0', 1))
    with pytest.raises(UserError, match="line 1"):
        command.main(["record", str(run), "--key", str(key)])


def test_mistakes_are_one_line_and_change_nothing(run: Path, key: Path, tmp_path: Path) -> None:
    before = everything(run)
    for which, message in (
        (("--patient", "nobody"), "holds no such study"),
        (("--where", "age=3"), "COLUMN=PATTERN"),
    ):
        with pytest.raises(UserError, match=message) as refused:
            forget(run, key, *which)
        assert "nobody" not in str(refused.value)
    short = tmp_path / "short"
    short.write_bytes(b"abc")
    with pytest.raises(UserError, match="3 bytes"):
        forget(run, short)
    (run / "notes.txt").write_text(SENTENCE)
    with pytest.raises(UserError, match=r"notes\.txt holds something"):
        forget(run, key)
    (run / "notes.txt").unlink()
    assert everything(run) == before
    (run / "stage2-0.partial").mkdir()
    with pytest.raises(UserError, match="unfinished step"):
        forget(run, key)
