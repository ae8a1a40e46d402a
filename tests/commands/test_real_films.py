"""The three real studies of Open-i that lie beside the checkout, in Open-i's layout and in Kaggle's.

They are not part of the repository: ``AMRG_OPENI3`` names their folder.
"""

import csv
import json
import os
import re
import shutil
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

from amrg.artifacts import Artifact
from amrg.cli import main
from amrg.data.stream import iter_split_samples

REAL = Path(os.environ.get("AMRG_OPENI3", Path(__file__).parents[3] / "shared" / "data" / "openi3"))
pytestmark = pytest.mark.skipif(not REAL.is_dir(), reason="the three real studies are not here")

#: Films of the studies that are there; the lateral one of CXR25 is not.
FILMS = {"CXR25": 1, "CXR54": 2, "CXR303": 1}
#: A seed by which the three patients are in three splits.
SEED = "3"


def as_kaggle(root: Path) -> Path:
    """Write the studies in the layout of Kaggle's copy, films that are not there included in its table."""
    (root / "images" / "images_normalized").mkdir(parents=True)
    reports, projections = [], []
    for path in sorted((REAL / "ecgen-radiology").glob("*.xml")):
        content = ET.parse(path).getroot()
        text = {node.get("Label"): node.text or "" for node in content.iter("AbstractText")}
        reports.append((path.stem, text.get("FINDINGS", ""), text.get("IMPRESSION", "")))
        for image in content.iter("parentImage"):
            name = f"{image.get('id', '').removeprefix('CXR')}.dcm.png"
            projections.append((path.stem, name, "Lateral" if name.endswith("2001.dcm.png") else "Frontal"))
            film = REAL / "NLMCXR_png" / f"{image.get('id')}.png"
            if film.exists():
                shutil.copy(film, root / "images" / "images_normalized" / name)
    for name, heads, rows in (
        ("indiana_reports.csv", ("uid", "findings", "impression"), reports),
        ("indiana_projections.csv", ("uid", "filename", "projection"), projections),
    ):
        with (root / name).open("w", newline="") as file:
            csv.writer(file).writerows([heads, *rows])
    return root


@pytest.fixture(params=["openi", "iu_kaggle"])
def copy(request: Any, tmp_path: Path) -> tuple[str, Path]:
    """The source and the folder of the studies."""
    return request.param, REAL if request.param == "openi" else as_kaggle(tmp_path / "kaggle")


def test_doctor_knows_them_and_finds_them_whole(copy: Any, capsys: pytest.CaptureFixture[str]) -> None:
    source, root = copy
    main(["doctor", str(root)])
    said = capsys.readouterr().out
    assert said.split("\n")[0].endswith(f": {source}")
    assert "all is fine" in said
    assert re.search(r"all of a sample of [34]\b", said)  # the table may end the line there


def test_prepare_reads_all_films(copy: Any, tmp_path: Path) -> None:
    source, root = copy
    settings = ["--data.source", source, "--data.path", str(root), "--data.splits", "patient", "--seed", SEED]
    main(["prepare", "tiny", *settings, "--runs", str(tmp_path / "runs")])
    (data,) = (tmp_path / "runs" / "tiny").glob("data-*")
    samples = {one.study.key: one for split in ("train", "val", "test") for one in iter_split_samples(data, split)}
    assert {key: len(sample.views) for key, sample in samples.items()} == FILMS
    assert all(sample.study.report for sample in samples.values())
    for sample in samples.values():
        assert all(view.std() > 20 for view in sample.views)  # neither black nor white


def test_write_tells_the_studies_of_the_folder_of_films_apart(
    copy: Any, run: dict[str, Artifact], capfd: pytest.CaptureFixture[str]
) -> None:
    source, root = copy
    films = root / ("NLMCXR_png" if source == "openi" else "images/images_normalized")
    main(["write", str(run["reports"].path), str(films), "--json"])
    lines = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert sorted(Path(line["study"]).name for line in lines) == sorted(FILMS)
    assert all(line["generated"] for line in lines)
