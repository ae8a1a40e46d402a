"""Encoders as they are published, tiny: each through stage 1, mining, stage 2, `generate`, `write` and the viewer."""

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from amrg.artifacts import build_artifact
from amrg.banks.bank import VISUAL, MemoryBank
from amrg.config import Config, VisionConfig
from amrg.config_files import load_config
from amrg.data.shards import prepare_shards
from amrg.data.stream import iter_split_samples
from amrg.data.studies import Study
from amrg.inference.run import load_run
from amrg.inference.run_artifacts import find_run_artifacts
from amrg.models.classifier import DiseaseClassifier
from amrg.pipeline import artifact_root, run_pipeline_step, step_recipe
from amrg.webapp.session import InferenceSession
from tests.encoder_folders import FOLDERS, make_folder
from tests.synthetic_dataset import CONFIG, Squares


class FewSquares(Squares):
    """Some of each split: seven films of train with the finding, of which two are of one study."""

    def studies(self) -> list[Study]:
        kept = {"train": 12, "val": 4, "test": 3}
        return [study for study in super().studies() if int(study.key.split("-")[1]) < kept[study.split]]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """Of a run whose data are made; one epoch of each training, and four tokens a report."""
    tiny = load_config("tiny")
    config = replace(
        tiny,
        runs=str(tmp_path_factory.mktemp("runs")),
        data=CONFIG.data,
        stage1=replace(tiny.stage1, epochs=1),
        stage2=replace(tiny.stage2, epochs=1, num_sample_reports=0),
        generate=replace(tiny.generate, num_beams=1, max_new_tokens=4),
    )
    with build_artifact(artifact_root(config), step_recipe("prepare", config)) as partial:
        prepare_shards(FewSquares(), config.data, partial, 0)
    return config


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.mark.parametrize(
    ("name", "tuning"),
    [
        ("rad_dino", "frozen"),
        ("vit", "lora"),
        ("timm_vit_registers", "full"),
        ("timm_convnext", "full"),
        ("swin", "lora"),
    ],
)
def test_an_encoder_goes_through_the_chain(
    name: str, tuning: Literal["frozen", "lora", "full"], config: Config, tmp_path: Path
) -> None:
    folder, (_, size, (grid, coarse), _) = make_folder(name, tmp_path / "models" / name), FOLDERS[name]
    vision = VisionConfig(
        encoder=str(folder), tuning=tuning, lora_rank=2, query_dim=32, qformer_layers=1, qformer_heads=2
    )
    config = replace(config, vision=vision)
    made: dict[str, Any] = {verb: run_pipeline_step(verb, config) for verb in ("stage1", "banks", "stage2", "generate")}
    folder.rename(tmp_path / "away")  # what was made needs the folder no longer

    classifier = DiseaseClassifier.from_pretrained(made["stage1"].path / "model")
    assert (classifier.image_size, classifier.encoder.grid, classifier.encoder.coarse_grid) == (size, grid, coarse)
    rows = MemoryBank.open(made["banks"].path / VISUAL).provenance.to_pylist()
    boxes = np.array([row["box"] for row in rows if row["source"] == "region"])
    assert len(boxes) >= 12
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, 2:] <= grid).all()
    assert (boxes[:, :2] < boxes[:, 2:]).all()

    films = [list(sample.views) for sample in iter_split_samples(made["stage1"].path.parent / data_of(config), "test")]
    texts = load_run(made["generate"].path).generate(films, force=True)
    lines = (made["generate"].path / "reports.jsonl").read_text().splitlines()
    assert len(texts) == len(lines) == 3

    session = InferenceSession(find_run_artifacts(made["generate"].path))
    analysis = session.analyze(films[0], 0)
    assert session.grid == grid
    assert analysis.maps_MKHW.shape == (len(films[0]), 14, grid, grid)
    tokens = session.model.vision_shape[0]
    assert tokens == 4  # decoder.max_visual_tokens
    assert session.model.vision_output_shapes[0] == (tokens, 32)


def data_of(config: Config) -> str:
    return step_recipe("prepare", config).path(artifact_root(config)).name
