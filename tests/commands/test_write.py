"""``amrg write``: reports of films that are in no data set."""

import errno
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from amrg.artifacts import Artifact
from amrg.cli import main
from amrg.data.labels import FINDINGS
from amrg.data.stream import iter_split_samples
from amrg.inference.generate import generate_reports_file
from amrg.inference.run_artifacts import RunArtifacts, find_run_artifacts
from amrg.models.training_distance import TrainingDistance
from tests.data.test_image_io import dicom
from tests.made_films import chest_film, encoded
from tests.webapp.tiny_run import make_run

STUDIES = 5


@pytest.fixture(scope="module", params=["decoder", "retrieved"])
def run(request: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Path], list[dict[str, Any]]]:
    """A run, its test films as files, and what ``amrg generate`` writes of them."""
    folder = tmp_path_factory.mktemp("run")
    found = make_run(folder, request.param)
    data, stage1, banks, stage2 = (found[kind].path for kind in ("data", "stage1", "banks", "stage2"))
    chain = find_run_artifacts(found["reports"].path)
    (folder / "again").mkdir()
    generate_reports_file(chain.config, data, stage1, banks, stage2, folder / "again")
    expected = [json.loads(line) for line in (folder / "again" / "reports.jsonl").read_text().splitlines()]
    paths = []
    for sample in iter_split_samples(data, "test"):
        paths.append(folder / "films" / sample.study.key)
        paths[-1].mkdir(parents=True)
        for number, view in enumerate(sample.views):
            Image.fromarray(view).save(paths[-1] / f"{number}.png")
    assert len(paths) == STUDIES
    return found["reports"].path, paths, expected


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_reports_are_those_of_generate(run: Any, capfd: pytest.CaptureFixture[str]) -> None:
    folder, paths, expected = run
    main(["write", str(folder), *map(str, paths), "--json"])
    told = capfd.readouterr()
    found = lines(told.out)
    assert [line["study"] for line in found] == list(map(str, paths))
    assert told.err.startswith("Research software. Not for clinical use.")
    for line in found:
        assert list(line["findings"]) == list(FINDINGS)
        assert all(0 <= p <= 1 for p in line["findings"].values())
    assert {bool(line["recalled"]) for line in found} == {bool(line["recalled"]) for line in expected}
    by_key = {line["key"]: line for line in expected}
    assert by_key.keys() == {path.name for path in paths}
    for line, path in zip(found, paths, strict=True):
        wanted = by_key[path.name]
        assert line["generated"] == wanted["generated"]
        assert line["unlike_training"] is wanted["unlike_training"] is False
        assert 0 < line["training_distance"] <= line["training_distance_threshold"]
        assert line["training_distance"] == pytest.approx(wanted["training_distance"], abs=0.02)
        assert line["recalled"] == wanted["recalled"]
        assert [said["text"] for said in line["sentences"]] == [said["text"] for said in wanted["sentences"]]
        assert list(line["association"]) == list(wanted["association"])
        for bank, rows in line["memory"].items():
            assert [row["row"] for row in rows] == [row["row"] for row in wanted["memory"][bank]]
            weights = [row["weight"] for row in wanted["memory"][bank]]
            assert [row["weight"] for row in rows] == pytest.approx(weights, abs=1e-4)


def test_what_is_not_probable_enough_is_listed_as_unsure(run: Any, capfd: pytest.CaptureFixture[str]) -> None:
    """The recalled findings have a probability of 0.73; no report without the setting has the field."""
    folder, paths, expected = run
    assert not any("unsure" in line for line in expected)
    if not any(line["recalled"] for line in expected):
        return  # the decoder decides: no probabilities
    manifest = folder / "manifest.json"
    before = manifest.read_text()
    content = json.loads(before)
    content["config"]["abstain"] = 0.8
    manifest.write_text(json.dumps(content))
    try:
        main(["write", str(folder), *map(str, paths), "--json"])
        records = lines(capfd.readouterr().out)
        main(["write", str(folder), str(paths[0])])
    finally:
        manifest.write_text(before)
    assert capfd.readouterr().out.endswith(f" [Not sure: {' '.join(one['text'] for one in records[0]['unsure'])}]\n")
    stated = {label for line in expected for said in line["sentences"] for label in said["labels"]} - {"No Finding"}
    for line in records:
        assert not any(said["probabilities"] for said in line["sentences"])
        assert stated <= {label for one in line["unsure"] for label in one["labels"]}
        assert {one["probability"] for one in line["unsure"]} == {0.7311}  # 1 / (1 + 1/e)


def test_what_cannot_be_read_is_named_and_the_rest_is_written(run: Any, capfd: Any, tmp_path: Path) -> None:
    folder, paths, _ = run
    (tmp_path / "text.png").write_text("no film")
    (tmp_path / "empty").mkdir()
    with pytest.raises(SystemExit) as stop:
        main(["write", str(folder), str(tmp_path / "text.png"), str(paths[0]), str(tmp_path / "empty"), "missing.png"])
    told = capfd.readouterr()
    assert stop.value.code == 2
    assert told.out.startswith(f"{paths[0]}: ")
    assert len(told.out.splitlines()) == 1
    for name in ("text.png is left out: not a readable image", "the folder holds no film", "missing.png is left out"):
        assert name in told.err
    assert told.err.endswith("3 of 4 studies could not be read or are refused (named above) and have no report\n")


def test_one_film_alone_is_its_report_alone(run: Any, capfd: Any) -> None:
    folder, paths, expected = run
    film = next(path for path in paths if len(list(path.iterdir())) == 1)
    main(["write", str(folder), str(film / "0.png")])
    out = capfd.readouterr().out
    assert out.count("\n") == 1
    assert out.strip() == next(line["generated"] for line in expected if line["key"] == film.name)


#: Tests of which studies are written need one run only.
one_run = pytest.mark.parametrize("run", ["decoder"], indirect=True)
NOISE = np.random.default_rng(0).integers(0, 256, (224, 224), np.uint8)


def generator(run: Any) -> str:
    """The stage 2 artefact: without reports it writes 32 studies at a time."""
    return str(next(run[0].parent.glob("stage2-*")))


def write(*arguments: Any) -> int:
    """Run ``amrg write``; returns the exit code."""
    try:
        main(["write", *map(str, arguments)])
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def save(folder: Path, *names: str, seed: int = 0) -> Path:
    """A folder with films of these names; returns it."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names):
        (folder / name).write_bytes(encoded(chest_film([seed, number], 80, 96)))
    return folder


@one_run
def test_of_a_folder_of_200_studies_ten_are_bad(run: Any, capfd: Any, tmp_path: Path) -> None:
    """190 reports are written and the ten are named; what is repaired is written by the same command."""
    films, noise = [encoded(chest_film(seed, 64, 64)) for seed in range(4)], encoded(NOISE)
    bad = {f"study-{number:03}": (b"no film", films[0][:200], noise)[number % 3] for number in range(7, 200, 20)}
    for number in range(200):
        study = tmp_path / "all" / f"study-{number:03}"
        study.mkdir(parents=True)
        (study / "film.png").write_bytes(bad.get(study.name, films[number % 4]))
    (tmp_path / "all" / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
    (tmp_path / "all" / "study-003" / "Thumbs.db").write_bytes(b"thumbs")
    out = tmp_path / "reports.jsonl"
    assert len(bad) == 10
    assert write(generator(run), tmp_path / "all", "--out", out) == 2
    told = capfd.readouterr()
    assert told.out == ""
    named = [line.split("/")[-1] for line in told.err.splitlines() if " is left out: film.png: " in line]
    assert [line.partition(" ")[0] for line in named] == sorted(bad)
    assert "files that are no films are skipped: 2 (.DS_Store, Thumbs.db)\n" in told.err
    assert told.err.endswith("10 of 200 studies could not be read or are refused (named above) and have no report\n")
    studies = [Path(line["study"]).name for line in lines(out.read_text())]
    assert studies == [f"study-{number:03}" for number in range(200) if f"study-{number:03}" not in bad]
    assert all(line["generated"] for line in lines(out.read_text()))

    for name in bad:
        (tmp_path / "all" / name / "film.png").write_bytes(films[0])
    with out.open("a") as file:
        file.write('{"study": "cut')
    assert write(generator(run), tmp_path / "all", "--out", out) == 0
    assert f"190 of 200 studies are already in {out}" in capfd.readouterr().err.replace("\n", " ")
    assert [Path(line["study"]).name for line in lines(out.read_text())[190:]] == sorted(bad)
    whole = out.read_bytes()
    assert write(generator(run), tmp_path / "all", "--out", out) == 0
    assert out.read_bytes() == whole


@one_run
def test_out_holds_the_lines_of_json(run: Any, capfd: Any, tmp_path: Path) -> None:
    folder, paths, _ = run
    write(folder, *paths, "--json")
    printed = capfd.readouterr().out
    assert write(folder, *paths, "--out", tmp_path / "out.jsonl") == 0
    assert (tmp_path / "out.jsonl").read_text() == printed


@one_run
@pytest.mark.parametrize(
    "content", ["a page of text\n", "a line without an end", '{"key": "no line of ours"}\n', "[1]\n", '[1]\n{"study": ']
)
def test_another_file_is_not_appended_to(run: Any, capfd: Any, tmp_path: Path, content: str) -> None:
    (tmp_path / "other").write_text(content)
    assert write(generator(run), run[1][0], "--out", tmp_path / "other") == 2
    assert "does not hold lines of `amrg write`" in capfd.readouterr().err
    assert (tmp_path / "other").read_text() == content
    assert write(generator(run), run[1][0], "--out", tmp_path / "missing" / "out.jsonl") == 2
    assert "No such file or directory" in capfd.readouterr().err


@one_run
def test_reports_of_two_models_are_in_two_files(run: Any, capfd: Any, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    assert write(run[0], run[1][0], "--out", out) == 0
    before = out.read_text()
    assert lines(before)[0]["model"] == run[0].name
    assert write(generator(run), *run[1], "--out", out) == 2
    reason = f"holds reports of {run[0].name}, not of {Path(generator(run)).name}: give another file to --out"
    assert reason in " ".join(capfd.readouterr().err.split())
    assert out.read_text() == before


@one_run
def test_files_that_cannot_be_reached_are_named(
    run: Any, capfd: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A link to nothing and a folder without permission are studies without a report; links to folders are counted."""
    root = tmp_path / "root"
    save(root / "a", "1.png")
    (root / "a" / "notes").symlink_to("missing")
    (root / "b").mkdir()
    (root / "b" / "1.png").symlink_to("missing.png")
    save(root / "c", "1.png")
    (root / "d").symlink_to(root)
    scandir, locked = os.scandir, str(root / "c")

    def without_permission(path: Any) -> Any:  # the permissions of files do not stop a root user
        if str(path) == locked:
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", without_permission)
    assert write(generator(run), root, "--json") == 2
    told = capfd.readouterr()
    assert [line["study"] for line in lines(told.out)] == [f"{root}/a"]
    assert "files that are no films are skipped: 2 (d/ (a link), notes)\n" in told.err
    assert f"{root}/b is left out: 1.png: No such file or directory\n" in told.err
    assert f"{root}/c is left out: Permission denied\n" in told.err
    assert told.err.endswith("2 of 3 studies could not be read or are refused (named above) and have no report\n")


@one_run
def test_a_file_without_permission_is_named(
    run: Any, capfd: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path / "study", "1.png")

    def without_permission(real: Callable[..., Any]) -> Callable[..., Any]:  # as in a folder that may only be listed
        def method(path: Path, **options: Any) -> Any:
            if path.suffix == ".png":
                raise PermissionError(errno.EACCES, "Permission denied", path)
            return real(path, **options)

        return method

    for name in ("stat", "read_bytes"):
        monkeypatch.setattr(Path, name, without_permission(getattr(Path, name)))
    assert write(generator(run), tmp_path / "study") == 2
    assert "study is left out: 1.png: Permission denied\n" in capfd.readouterr().err


@one_run
def test_a_name_that_is_not_utf_8_is_written(run: Any, tmp_path: Path) -> None:
    folder = save(tmp_path / os.fsdecode(b"Gr\xfc\xdfe"), "1.png")
    assert write(generator(run), folder, "--out", tmp_path / "out.jsonl") == 0
    before = (tmp_path / "out.jsonl").read_text(encoding="utf-8")
    assert lines(before)[0]["study"] == f"{tmp_path}/Gr\\xfc\\xdfe"
    assert write(generator(run), folder, "--out", tmp_path / "out.jsonl") == 0
    assert (tmp_path / "out.jsonl").read_text(encoding="utf-8") == before


@one_run
def test_a_table_and_a_list_name_studies(run: Any, capfd: Any, tmp_path: Path) -> None:
    save(tmp_path / "films", "a.png", "b.png", "c.png")
    save(tmp_path / "d", "1.png", "2.png")
    (tmp_path / "table.csv").write_text(
        "\ufeffnumber,study,film\n1,first,films/a.png\n2,second,films/b.png\n3,first,films/c.png\n"
    )
    (tmp_path / "list.txt").write_text("films/a.png\n\nd\nfilms/missing.png\n")
    assert write(generator(run), tmp_path / "table.csv", tmp_path / "list.txt", "--json") == 2
    told = capfd.readouterr()
    names = ["first", "second", str(tmp_path / "films/a.png"), str(tmp_path / "d")]
    assert [line["study"] for line in lines(told.out)] == names
    assert "films/missing.png is left out: No such file or directory" in told.err
    folder = save(tmp_path / "first")
    for name in ("a.png", "c.png"):
        (folder / name).write_bytes((tmp_path / "films" / name).read_bytes())
    write(generator(run), folder, "--json")
    (alone,) = lines(capfd.readouterr().out)
    first = lines(told.out)[0]
    assert alone["generated"] == first["generated"]
    assert list(alone["findings"].values()) == pytest.approx(list(first["findings"].values()), abs=2e-3)

    (tmp_path / "bare.csv").write_text("films/a.png\n")
    (tmp_path / "semicolons.csv").write_text("study;film\nfirst;films/a.png\n")
    (tmp_path / "header.csv").write_text("study,film\n")
    (tmp_path / "empty.txt").write_text("\n \n")
    (tmp_path / "open.csv").write_text('study,film\nfirst,"films/a.png\n' + 20_000 * "more,a.png\n")
    (tmp_path / "short.csv").write_text("study,film\nfirst,films/a.png\nsecond\n")
    for name, reason in (
        ("bare.csv", "bare.csv has no columns study and film: its first line must name them"),
        (
            "semicolons.csv",
            "semicolons.csv has no columns study and film: its first line must name them, separated by a",
        ),
        ("header.csv", "header.csv names no study"),
        ("empty.txt", "empty.txt names no film or folder"),
        ("open.csv", "field larger than field limit"),
        ("short.csv", "short.csv, line 3: study and film expected"),
        ("none.csv", "none.csv: No such file"),
        ("none.txt", "none.txt: No such file"),
    ):
        assert write(generator(run), tmp_path / name) == 2
        assert reason in capfd.readouterr().err


@one_run
def test_what_is_a_study_in_a_folder(run: Any, capfd: Any, tmp_path: Path) -> None:
    """Folders at any depth; films without a suffix; hidden and other files are skipped."""
    root = tmp_path / "root"
    save(root / "p1" / "s1", "1.png", "._1.png")
    save(root / "p1" / "s2", "1.2.840.7")
    save(root / "__MACOSX", "1.png")
    save(root / ".hidden", "1.png")
    (root / "p1" / "s1" / "README").write_text("no film")
    (root / "p1" / "list.csv").write_text("study,film\n")
    dicom(save(root / "p2") / "IM0001", chest_film(0))
    assert write(generator(run), root, "--json") == 0
    told = capfd.readouterr()
    assert [line["study"] for line in lines(told.out)] == [f"{root}/p1/s1", f"{root}/p1/s2", f"{root}/p2"]
    assert "files that are no films are skipped: 3 (._1.png, README, list.csv)\n" in told.err


@one_run
def test_a_flat_folder_of_many_films_is_no_study(run: Any, capfd: Any, tmp_path: Path) -> None:
    folder = save(tmp_path / "flat", *(f"{number}.png" for number in range(9)))
    assert write(generator(run), folder) == 2
    told = capfd.readouterr()
    assert told.out == ""
    assert "flat is left out: 9 films, more than a study has: give each film, or a folder per study; if" in told.err
    assert write(generator(run), folder, "--one-study") == 0
    assert capfd.readouterr().out.count("\n") == 1
    (folder / "8.png").unlink()
    assert write(generator(run), folder) == 0


@one_run
def test_what_is_forced_says_so(run: Any, capfd: Any, tmp_path: Path) -> None:
    (tmp_path / "noise.png").write_bytes(encoded(NOISE))
    (save(tmp_path / "study", "0.png") / "1.png").write_bytes(encoded(NOISE))
    arguments = (generator(run), tmp_path / "noise.png", tmp_path / "study", run[1][0], "--json")
    assert write(*arguments) == 2
    told = capfd.readouterr()
    assert [line["study"] for line in lines(told.out)] == [str(run[1][0])]
    assert "noise.png is left out: noise or text, no radiograph\n" in told.err
    assert "study is left out: 1.png: noise or text, no radiograph\n" in told.err
    assert write(*arguments, "--force") == 0
    told = capfd.readouterr()
    reasons = ["noise or text, no radiograph", "1.png: noise or text, no radiograph", None]
    assert [line.get("forced") for line in lines(told.out)] == reasons
    assert told.err.count("noise.png is forced: noise or text, no radiograph\n") == 1
    assert told.err.count("study is forced: 1.png: noise or text, no radiograph\n") == 1
    (tmp_path / "text.png").write_text("no film")
    assert write(generator(run), tmp_path / "text.png", "--force") == 2  # nothing to be forced


@one_run
def test_a_lateral_film_is_used_as_one(run: Any, capfd: Any, tmp_path: Path, monkeypatch: Any) -> None:
    """A run of frontal films leaves it out and says so; for another one it comes after the frontal films."""
    study, alone, frontal = (tmp_path / name for name in ("study", "alone", "frontal"))
    for folder in (study, alone, frontal):
        folder.mkdir()
    for folder in (study, alone):
        dicom(folder / "a.dcm", chest_film(1), ViewPosition="LL")
    for folder in (study, frontal):
        dicom(folder / "b.dcm", chest_film(2), ViewPosition="PA")
    assert write(generator(run), study, alone, frontal, "--json") == 2
    told = capfd.readouterr()
    used, expected = lines(told.out)
    assert used["findings"] == expected["findings"]
    reason = "a.dcm: a lateral film, and this model has seen frontal ones only"
    assert f"study: a film is left out: {reason}\n" in told.err
    assert f"alone is left out: {reason}\n" in told.err
    assert write(generator(run), alone, "--json", "--force") == 0
    assert lines(capfd.readouterr().out)[0]["forced"] == reason

    monkeypatch.setattr(RunArtifacts, "frontal_only", False)
    ordered = save(tmp_path / "ordered")
    dicom(ordered / "1.dcm", chest_film(2))
    dicom(ordered / "2.dcm", chest_film(1))
    assert write(generator(run), study, ordered, "--json") == 0
    first, second = lines(capfd.readouterr().out)
    assert first["findings"] == second["findings"]


@one_run
@pytest.mark.parametrize(
    ("settings", "frontal_only"),
    [
        ({"source": "openi_drr"}, True),
        ({"source": "mimic_cxr"}, False),
        ({"source": "mimic_cxr", "views": ["PA", "AP"]}, True),
        ({"source": "mimic_cxr", "views": ["PA", "LATERAL"]}, False),
    ],
)
def test_which_runs_have_frontal_films_only(run: Any, settings: dict[str, Any], frontal_only: bool) -> None:
    chain = find_run_artifacts(run[0])
    data = Artifact(chain.data.path, {**chain.data.manifest, "config": settings})
    assert replace(chain, data=data).frontal_only is frontal_only


def test_films_unlike_the_training_films_are_told(run: Any, capfd: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, paths, _ = run
    flags = {"unlike_training": True, "training_distance": 24.04, "training_distance_threshold": 10.56}
    monkeypatch.setattr(TrainingDistance, "records", lambda _, vision: [flags] * len(vision.film_BD))
    main(["write", str(folder), str(paths[0]), "--json"])
    output = capfd.readouterr()
    assert (
        f"{paths[0]}: unlike the films that this model was trained on (distance 24.0, threshold 10.6): do not rely on "
        "its report" in output.err.splitlines()
    )
    assert json.loads(output.out)["unlike_training"] is True
