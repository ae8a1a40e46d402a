"""``amrg write``: reports of films that are in no data set."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from amrg.cli import main
from amrg.data.labels import FINDINGS
from amrg.data.stream import iter_samples
from amrg.inference.generate import generate
from amrg.inference.run import open_run
from tests.webapp.tiny_run import make_run

STUDIES = 5


@pytest.fixture(scope="module", params=["decoder", "retrieved"])
def run(request: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Path], list[dict[str, Any]]]:
    """A run, its test films as files, and what ``amrg generate`` writes of them."""
    folder = tmp_path_factory.mktemp("run")
    found = make_run(folder, request.param)
    data, stage1, banks, stage2 = (found[kind].path for kind in ("data", "stage1", "banks", "stage2"))
    chain = open_run(found["reports"].path)
    (folder / "again").mkdir()
    generate(chain.config, data, stage1, banks, stage2, folder / "again")
    expected = [json.loads(line) for line in (folder / "again" / "reports.jsonl").read_text().splitlines()]
    paths = []
    for sample in iter_samples(data, "test"):
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
    finally:
        manifest.write_text(before)
    stated = {label for line in expected for said in line["sentences"] for label in said["labels"]} - {"No Finding"}
    for line in lines(capfd.readouterr().out):
        assert not any(said["probability"] for said in line["sentences"])
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
    assert told.err.endswith("3 of 4 studies could not be read (named above) and have no report\n")


def test_one_film_alone_is_its_report_alone(run: Any, capfd: Any) -> None:
    folder, paths, expected = run
    film = next(path for path in paths if len(list(path.iterdir())) == 1)
    main(["write", str(folder), str(film / "0.png")])
    out = capfd.readouterr().out
    assert out.count("\n") == 1
    assert out.strip() == next(line["generated"] for line in expected if line["key"] == film.name)
