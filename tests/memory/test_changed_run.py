"""A changed memory in the pipeline, behind the server and in the viewer; the tests of its rows are beside this one."""

import json
import logging
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from amrg.artifacts import Artifact, open_artifact
from amrg.banks.bank import REPORTS, VISUAL, MemoryBank, patient_group_id
from amrg.commands import bank as command
from amrg.commands import serve, view
from amrg.config import Config
from amrg.data.stream import iter_split_samples
from amrg.errors import UserError
from amrg.inference.run import LoadedRun
from amrg.inference.run_artifacts import find_run_artifacts
from amrg.memory.changes import mix_bank_folders
from amrg.pipeline import artifact_root, run_pipeline_step, step_recipe
from tests.made_films import chest_film, encoded
from tests.memory.other_hospital import WORDS, prepare_other_hospital
from tests.webapp.tiny_run import make_run, run_config

GONE = "other-101"
Ask = Callable[[TestClient], Any]


@dataclass(frozen=True)
class Hospital:
    """A run, and banks of another hospital's studies beside its own."""

    runs: Path
    own: Artifact
    alone: Artifact
    data: Artifact

    @property
    def run(self) -> Path:
        return self.own.path.parent

    def copy(self, runs: Path) -> "Hospital":
        """The same in another folder, for what leaves reports behind."""
        shutil.copytree(self.run, runs / self.run.name)
        parts = (self.own, self.alone, self.data)
        return Hospital(runs, *(open_artifact(runs / self.run.name / one.path.name, one.kind) for one in parts))


@pytest.fixture(scope="module")
def hospital(tmp_path_factory: pytest.TempPathFactory) -> Hospital:
    runs = tmp_path_factory.mktemp("runs")
    own = make_run(runs)["banks"]
    data = prepare_other_hospital(own.path.parent)
    command.main(["add", str(own.path.parent), str(data.path), "--alone"])
    (alone,) = {*own.path.parent.glob("banks-*")} - {own.path}
    return Hospital(runs, own, open_artifact(alone, "banks"), data)


def with_setting(runs: Path, banks: Path) -> Config:
    config = run_config(runs)
    return replace(config, generate=replace(config.generate, banks=str(banks)))


def lines_of(reports: Artifact) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (reports.path / "reports.jsonl").read_text().splitlines()]


def weights_of(line: dict[str, Any], memory: str) -> dict[int, float]:
    return {row["row"]: row["weight"] for row in line["memory"][memory]}


def test_the_pipeline_writes_and_scores_with_the_banks_that_are_named(hospital: Hospital, tmp_path: Path) -> None:
    hospital = hospital.copy(tmp_path)
    chain = find_run_artifacts(hospital.run)
    mixed = mix_bank_folders(chain, [hospital.own, hospital.alone])
    films = {sample.study.key: sample.views for sample in iter_split_samples(chain.data.path, "test")}
    made = set()
    for banks in (hospital.alone, mixed):
        config = with_setting(hospital.runs, banks.path)
        reports, scores = run_pipeline_step("generate", config), run_pipeline_step("evaluate", config)
        made |= {reports.path, scores.path, step_recipe("generate", config).path(artifact_root(config))}
        assert {one.manifest["inputs"]["banks"]["hash"] for one in (reports, scores)} == {banks.hash}
        assert scores.manifest["inputs"]["reports"]["hash"] == reports.hash
        loaded, rows = LoadedRun(replace(chain, banks=banks)), len(MemoryBank.open(banks.path / REPORTS))
        for line in lines_of(reports):
            (alike,) = loaded.generate_records([films[line["key"]]])
            assert line["generated"] == alike["generated"]
            for memory in ("visual", "report"):
                found, expected = (
                    {row["row"]: row["weight"] for row in one["memory"][memory]} for one in (line, alike)
                )
                assert found == pytest.approx(expected, abs=2e-3)  # batches of three, and of one
            assert all(row["row"] < rows for row in line["memory"]["report"])
    assert len(made) == 4
    assert step_recipe("generate", run_config(hospital.runs)).path(hospital.run) not in made

    strange = shutil.copytree(hospital.alone.path, tmp_path / "elsewhere" / hospital.alone.path.name)
    with pytest.raises(UserError, match="`amrg bank swap` copies it there") as refused:
        run_pipeline_step("generate", with_setting(hospital.runs, strange))
    assert "\n" not in str(refused.value)


def answer(monkeypatch: pytest.MonkeyPatch, main: Callable[[list[str]], None], arguments: list[str], ask: Ask) -> Any:
    """What the application of a command answers: its server is asked in place of listening."""
    answers = []

    def run(server: Any, sockets: Any) -> None:
        with TestClient(server.config.app, base_url="http://127.0.0.1") as client:
            answers.append(ask(client))

    monkeypatch.setattr("uvicorn.Server.run", run)
    monkeypatch.setattr(logging.getLogger("pydicom"), "level", logging.CRITICAL)  # restored: the command sets it
    main([*arguments, "--port", "0"])
    return answers[0]


def test_the_server_answers_from_the_banks_that_it_is_given(
    hospital: Hospital, monkeypatch: pytest.MonkeyPatch
) -> None:
    film = chest_film([3, 3])
    arguments = [str(hospital.run), "--bank", str(hospital.alone.path), "--seconds", "300"]
    record = answer(
        monkeypatch,
        serve.main,
        arguments,
        lambda client: client.post("/v1/reports", files=[("film", ("a.png", encoded(film)))]).json(),
    )
    chain = find_run_artifacts(hospital.run)
    assert record["model"] == f"{chain.model}+{hospital.alone.path.name}"
    (expected,) = LoadedRun(replace(chain, banks=hospital.alone)).generate_records([[film]])
    (own,) = LoadedRun(chain).generate_records([[film]])
    assert (record["generated"], record["memory"]) == (expected["generated"], expected["memory"])
    assert record["memory"] != own["memory"]


def test_the_viewer_shows_rows_of_the_banks_that_it_is_given(
    hospital: Hospital, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ask(client: TestClient) -> tuple[list[str], list[int]]:
        written = client.get("/api/looks/test/test-0/report").text
        rows = [int(row) for row in re.findall(r'"row": ?([0-9]+)', written)]
        return [client.get(f"/api/banks/report/{row}").json()["text"] for row in range(3)], rows

    texts, rows = answer(monkeypatch, view.main, [str(hospital.run), "--bank", str(hospital.alone.path)], ask)
    bank = MemoryBank.open(hospital.alone.path / REPORTS)
    assert texts == [row["text"] for row in bank.provenance.to_pylist()[:3]]
    assert any(text.startswith(WORDS) for text in texts)
    assert rows
    assert max(rows) < max(len(bank), len(MemoryBank.open(hospital.alone.path / VISUAL)))


def test_a_strangers_banks_are_refused_before_anything_listens(hospital: Hospital, tmp_path: Path) -> None:
    strange = shutil.copytree(hospital.alone.path, tmp_path / "banks-0")
    manifest = json.loads((strange / "manifest.json").read_text())
    manifest["inputs"]["stage1"]["hash"] = "0" * 64
    (strange / "manifest.json").write_text(json.dumps(manifest))
    for main in (serve.main, view.main):
        with pytest.raises(UserError, match=r"another stage 1 \(000000000000\)"):
            main([str(hospital.run), "--bank", str(strange), "--port", "0"])


def test_the_pipeline_after_forgetting_writes_as_before_what_never_retrieved_the_patient(
    hospital: Hospital, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hospital = hospital.copy(tmp_path)
    run = hospital.run
    command.main(["add", str(run), str(hospital.data.path)])
    chain = find_run_artifacts(run)
    config = with_setting(tmp_path, chain.banks.path)
    kept = {
        name: [n for n, row in enumerate(MemoryBank.open(chain.banks.path / name).provenance.to_pylist())
               if row["group"] != GONE]
        for name in (VISUAL, REPORTS)
    }  # fmt: skip
    with monkeypatch.context() as patch:
        # The patient's rows are invisible to all films, as they are to its own.
        patch.setattr("amrg.inference.generate.patient_group_id", lambda group: patient_group_id(GONE))
        before, scores = run_pipeline_step("generate", config), run_pipeline_step("evaluate", config)
        lines, scored = lines_of(before), (scores.path / "scores.json").read_text()
    (tmp_path / "key").write_bytes(bytes(range(32)))
    command.main(["forget", str(run), "--patient", GONE, "--key", str(tmp_path / "key")])
    assert not before.path.exists()
    assert not scores.path.exists()

    after, scores = run_pipeline_step("generate", config), run_pipeline_step("evaluate", config)
    for line, again in zip(lines, lines_of(after), strict=True):
        assert (again["key"], again["generated"]) == (line["key"], line["generated"])
        for memory, name in (("visual", VISUAL), ("report", REPORTS)):
            found = {kept[name][row]: weight for row, weight in weights_of(again, memory).items()}
            assert found == pytest.approx(weights_of(line, memory), abs=1e-5)
    assert scores.manifest["inputs"]["banks"]["hash"] == find_run_artifacts(run).banks.hash != chain.banks.hash
    assert json.loads((scores.path / "scores.json").read_text()).keys() == json.loads(scored).keys()
    # What was made anew does not bring the patient back.
    words = re.compile(rb"(?<![\w-])(" + b"|".join([GONE.encode(), b"train-101", b"Nummer 101"]) + rb")(?![\w-])")
    assert not [path for path in run.rglob("*") if path.is_file() and words.search(path.read_bytes())]
