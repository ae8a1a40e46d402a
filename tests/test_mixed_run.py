"""Three tiny data sets go through the whole chain as one, and each has its scores."""

import contextlib
import io
import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from amrg.config import ColumnsConfig, Config, DataConfig, MixPart, VisionConfig
from amrg.config_files import load_config
from amrg.data.stream import load_split_studies
from amrg.evaluation.clinical import binarize_labels, label_matrix_of_texts
from amrg.pipeline import artifact_root, run_pipeline
from tests.data.dataset_fixtures import save_csv
from tests.data.test_image_io import dicom
from tests.data.test_layouts import VINDR, make_kaggle

SIDE = 64
OURS = ColumnsConfig(images="file", findings="text", patient="id", study="id", split="part", labels="")


def shadowed(number: int) -> np.ndarray:
    """A noisy film, with a bright square for every second number."""
    generator = np.random.default_rng(number)
    film = generator.normal(90, 12, (SIDE, SIDE))
    if number % 2:
        y, x = generator.integers(0, 4, 2) * 16
        film[y : y + 16, x : x + 16] += 110
    return film.clip(0, 255).astype(np.uint8)


def words(number: int) -> str:
    return f"{'There is a consolidation. ' if number % 2 else ''}Heart size is normal. No pneumothorax."


def part_of(number: int) -> str:
    return "train" if number < 12 else "val" if number < 16 else "test"


def make_parts(folder: Path) -> tuple[MixPart, ...]:
    """A table with splits and one label, Kaggle's layout, and films with labels alone."""
    heads = ("id", "file", "text", "part", "Consolidation")
    rows = [(str(n), f"{n}.png", words(n), part_of(n), str(float(n % 2))) for n in range(20)]
    (folder / "ours").mkdir(parents=True)
    save_csv(folder / "ours" / "ours.csv", heads, [dict(zip(heads, row, strict=True)) for row in rows], list)
    films = [(str(n), f"{n}_IM-0001-1001.dcm.png", "Frontal") for n in range(24)]
    kaggle = make_kaggle(folder / "kaggle", [(str(n), words(n), "") for n in range(24)], films)
    (kaggle / "images" / "images_normalized").mkdir(parents=True)
    for n in range(24):
        Image.fromarray(shadowed(n)).save(folder / "ours" / f"{n}.png")
        Image.fromarray(shadowed(100 + n)).save(kaggle / "images" / "images_normalized" / films[n][1])
    for split, numbers in (("train", range(200, 208)), ("test", range(208, 212))):
        marks = [
            dict.fromkeys(VINDR, "0") | {"image_id": str(n), ("Consolidation" if n % 2 else "No finding"): "1"}
            for n in numbers
        ]
        (folder / "vindr" / split).mkdir(parents=True)
        save_csv(folder / "vindr" / f"image_labels_{split}.csv", ("image_id", *VINDR), marks, list)
        for n in numbers:
            dicom(folder / "vindr" / split / f"{n}.dicom", shadowed(n))
    return (
        MixPart("table", str(folder / "ours"), "ours", weight=1.5, columns=OURS),
        MixPart("iu_kaggle", str(kaggle)),
        MixPart("vindr_cxr", str(folder / "vindr"), "vindr"),
    )


@dataclass(frozen=True)
class Done:
    """A finished run."""

    config: Config
    scores: Path
    said: str


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Done:
    folder = tmp_path_factory.mktemp("mixed")
    tiny = load_config("tiny")
    config = replace(
        tiny,
        runs=str(folder / "runs"),
        data=DataConfig(source="mix", mix=make_parts(folder), image_size=SIDE, shard_size=8, workers=1),
        vision=VisionConfig(
            image_size=SIDE, embed_dim=32, depths=(1, 1), query_dim=32, qformer_layers=1, qformer_heads=2
        ),
    )
    said = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(said):
        patch.setenv("COLUMNS", "160")
        scores = run_pipeline(config)
    return Done(config, scores.path, said.getvalue())


def test_each_data_set_has_its_scores(done: Done) -> None:
    (data,) = artifact_root(done.config).glob("data-*")
    studies = load_split_studies(data, "test")
    (lines,) = artifact_root(done.config).glob("reports-*/reports.jsonl")
    reports = {row["key"]: row for row in map(json.loads, lines.read_text().splitlines())}
    scores = json.loads((done.scores / "scores.json").read_text())
    assert set(scores["data_sets"]) == {"ours", "iu_kaggle", "vindr"}
    for name, found in scores["data_sets"].items():
        own = [study for study in studies if study.dataset == name]
        assert (found["studies"], found["patients"]) == (len(own), len({study.group for study in own}))
        if own:
            truth, said = (
                binarize_labels(label_matrix_of_texts([reports[study.key][kind] for study in own]))[:, :13]
                for kind in ("reference", "generated")
            )
            hits, total = (truth & said).sum(), truth.sum() + said.sum()
            clinical = found["systems"]["model"]["clinical"]["micro_13"]
            assert clinical["f1"] == pytest.approx(2 * hits / total if total else 0)
    assert scores["data_sets"]["vindr"]["systems"] == {}  # no reports
    assert scores["data_sets"]["vindr"]["classifier"]["studies"] == 4
    assert sum(one["studies"] for one in scores["data_sets"].values()) == scores["studies"] == len(studies)
    assert "By data set" in (done.scores / "index.html").read_text()
    printed = done.said[done.said.index("by data set") :].splitlines()
    for name, found in scores["data_sets"].items():
        (line,) = [line.split() for line in printed if line.split()[:1] == [name]]
        assert line[1] == str(found["studies"])
