"""Studies added to the memory of a trained run, and banks exchanged: rows, provenance, and what is written then."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch

from amrg.artifacts import Artifact, open_artifact
from amrg.banks.bank import NO_GROUP, REPORTS, VISUAL, MemoryBank
from amrg.commands import bank as command
from amrg.commands import write
from amrg.data.labels import LABELS, NO_FINDING
from amrg.data.stream import iter_split_samples, load_split_studies
from amrg.errors import UserError
from amrg.inference.run import LoadedRun, open_generator
from amrg.inference.run_artifacts import find_run_artifacts
from amrg.models.composer import ROWS
from amrg.models.vision import films_to_tensor
from tests.made_films import chest_film, encoded
from tests.memory.other_hospital import WORDS, prepare_other_hospital
from tests.webapp.tiny_run import make_run


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return prepare_other_hospital(tmp_path_factory.mktemp("other"))


def rows_of(banks: Path, name: str) -> MemoryBank:
    return MemoryBank.open(banks / name)


def test_added_studies_follow_the_rows_that_were_there_and_are_retrieved(
    tmp_path: Path, other: Artifact, capsys: pytest.CaptureFixture[str]
) -> None:
    made = make_run(tmp_path)
    run = made["stage2"].path.parent
    command.main(["add", str(run), str(other.path)])
    assert "from now on" in capsys.readouterr().out
    chain = find_run_artifacts(run)
    assert chain.banks.path != made["banks"].path
    assert {name: chain.banks.manifest["inputs"][name]["hash"] for name in ("made_from", "added", "stage1")} == {
        "made_from": made["banks"].hash, "added": other.hash, "stage1": made["stage1"].hash,
    }  # fmt: skip
    assert chain.reports is not None
    assert chain.reports.manifest["inputs"]["banks"]["hash"] == chain.banks.hash
    keys = {one.key for one in load_split_studies(other.path, "train")}
    for name in (VISUAL, REPORTS):
        before, after = rows_of(made["banks"].path, name), rows_of(chain.banks.path, name)
        after.verify()
        assert after.rows(0, len(before)).equal(before.load())
        assert after.provenance_rows(0, len(before)).equals(before.provenance)
        added = after.provenance_rows(len(before), len(after)).to_pylist()
        assert {row["key"] for row in added} == keys
        assert {row["split"] for row in added} == {"train"}
    texts = [row["text"] for row in rows_of(chain.banks.path, REPORTS).provenance.to_pylist()]
    assert texts.count(f"{WORDS} und symmetrisch.") == 2  # as often as in a bank that is made at once
    assert texts.count("No pneumothorax.") == 2

    # The film of an added study finds its own region, whose state is the same.
    sample = next(iter_split_samples(other.path, "train"))
    model, _, _ = open_generator(chain, 1)
    with torch.no_grad():
        vision = model.encode_images(films_to_tensor(sample.views, model.stage1.image_size), [1])
        found = model.associations(vision, torch.tensor([NO_GROUP]), ROWS)["visual"]
    normal = LABELS.index(NO_FINDING)
    heaviest = int(found.rows_BQJ[0, normal, int(found.weights_BQJ[0, normal].argmax())])
    (origin,) = rows_of(chain.banks.path, VISUAL).provenance_rows(heaviest, heaviest + 1).to_pylist()
    assert origin["key"] == sample.study.key
    (line,) = LoadedRun(chain).generate_records([sample.views])  # the next report retrieves the added rows
    assert any(row["row"] >= len(rows_of(made["banks"].path, VISUAL)) for row in line["memory"]["visual"])

    with pytest.raises(UserError, match="holds all 4 studies"):
        command.main(["add", str(run), str(other.path)])


def test_held_out_studies_leave_a_mark(tmp_path: Path, other: Artifact) -> None:
    run = make_run(tmp_path)["stage2"].path.parent
    command.main(["add", str(run), str(other.path), "--splits", "train", "test"])
    assert any("rows of test studies" in warning for warning in find_run_artifacts(run).warnings)
    own = next(run.glob("data-*"))
    run = make_run(tmp_path / "again")["stage2"].path.parent
    command.main(["add", str(run), str(own), "--splits", "val"])
    assert any("rows of val studies" in warning for warning in find_run_artifacts(run).warnings)


def test_banks_of_the_added_studies_alone_are_swapped_in_and_out(tmp_path: Path, other: Artifact) -> None:
    made = make_run(tmp_path)
    run = made["stage2"].path.parent
    command.main(["add", str(run), str(other.path), "--alone"])
    assert find_run_artifacts(run).banks.path == made["banks"].path
    (alone,) = {path.resolve() for path in run.glob("banks-*")} - {made["banks"].path.resolve()}
    assert {row["key"] for row in rows_of(alone, REPORTS).provenance.to_pylist()} == {
        one.key for one in load_split_studies(other.path, "train")
    }
    elsewhere = tmp_path / "elsewhere" / alone.name
    shutil.copytree(alone, elsewhere)
    shutil.rmtree(alone)
    command.main(["swap", str(run), str(elsewhere)])
    swapped = find_run_artifacts(run)
    assert swapped.banks.path.resolve() == alone
    assert swapped.banks.hash == open_artifact(elsewhere, "banks").hash
    sample = next(iter_split_samples(made["data"].path, "test"))
    (line,) = LoadedRun(swapped).generate_records([sample.views])
    assert all(row["row"] < len(rows_of(alone, REPORTS)) for row in line["memory"]["report"])
    command.main(["swap", str(run), str(made["banks"].path)])
    assert find_run_artifacts(run).banks.path == made["banks"].path
    command.main(["swap", str(run), str(elsewhere)])  # the same head is the newest again
    assert find_run_artifacts(run).banks.path.resolve() == alone


def test_banks_of_another_stage_1_or_width_are_refused_in_one_line(tmp_path: Path) -> None:
    made = make_run(tmp_path)
    run = made["stage2"].path.parent
    strange = tmp_path / "strange" / "banks-0"
    shutil.copytree(made["banks"].path, strange)
    manifest = json.loads((strange / "manifest.json").read_text())
    manifest["inputs"]["stage1"]["hash"] = "0" * 64
    (strange / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"another stage 1 \(000000000000\)") as refused:
        command.main(["swap", str(run), str(strange)])
    assert "\n" not in str(refused.value)
    manifest["inputs"]["stage1"]["hash"] = made["stage1"].hash
    (strange / "manifest.json").write_text(json.dumps(manifest))
    shutil.rmtree(strange / VISUAL)
    shutil.copytree(made["banks"].path / REPORTS, strange / VISUAL)
    width = rows_of(strange, VISUAL).dim
    assert width != rows_of(made["banks"].path, VISUAL).dim
    with pytest.raises(UserError, match=re.escape(f"rows of width {width}")):
        command.main(["swap", str(run), str(strange)])


def test_each_study_reads_the_banks_that_its_table_names(
    tmp_path: Path, other: Artifact, capsys: pytest.CaptureFixture[str]
) -> None:
    made = make_run(tmp_path)
    run = made["stage2"].path.parent
    command.main(["add", str(run), str(other.path), "--alone"])
    (alone,) = {path.resolve() for path in run.glob("banks-*")} - {made["banks"].path.resolve()}
    (tmp_path / "film.png").write_bytes(encoded(chest_film([3, 3])))
    table = tmp_path / "studies.csv"
    table.write_text("study,film,bank\na,film.png,own\nb,film.png,other\nc,film.png,own+other\nd,film.png,\n")
    capsys.readouterr()
    banks = ["--bank", f"own={made['banks'].path}", "--bank", f"other={alone}"]
    write.main([str(run), str(table), "--json", *banks])
    lines = {line["study"]: line for line in map(json.loads, capsys.readouterr().out.splitlines())}
    assert len({line["model"] for line in lines.values()}) == 3
    assert {**lines["c"], "study": "d"} == lines["d"]  # without a name all are mixed
    (mixed,) = {path.resolve() for path in run.glob("banks-*")} - {alone, made["banks"].path.resolve()}
    for name in (VISUAL, REPORTS):
        parts = [rows_of(one, name) for one in (made["banks"].path, alone)]
        assert rows_of(mixed, name).load().equal(torch.cat([part.load() for part in parts]))
    assert {row["row"] for row in lines["b"]["memory"]["report"]} <= set(range(len(rows_of(alone, REPORTS))))
    write.main([str(run), str(tmp_path / "film.png"), "--json", "--bank", f"b={alone}"])
    (line,) = map(json.loads, capsys.readouterr().out.splitlines())
    assert line["generated"] == lines["b"]["generated"]
    table.write_text("study,film,bank\na,film.png,elsewhere\n")
    with pytest.raises(UserError, match=r"bank elsewhere is none of --bank own"):
        write.main([str(run), str(table), *banks[:2]])
