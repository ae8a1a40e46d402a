import dataclasses
import json
import math

import numpy as np
import pytest
import torch

from amrg.data.labels import FINDINGS, LABELS
from amrg.data.shards import prepare_shards
from amrg.data.stream import iter_split_samples, num_split_studies
from amrg.errors import UserError
from amrg.models.classifier import DiseaseClassifier, query_cosines
from amrg.models.vision import films_to_tensor
from amrg.training import checkpoint
from amrg.training.multilabel import binary_auroc
from amrg.training.stage1 import _CachedFilms, _StreamedFilms, train_stage1
from tests.conftest import RandomSource
from tests.processes import finish, start_ranks
from tests.synthetic_dataset import CONFIG, FINDING, SIZES, Squares, prepare_squares

K = LABELS.index(FINDING)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return prepare_squares(tmp_path_factory.mktemp("data"))


def changed(**stage1):
    return dataclasses.replace(CONFIG, stage1=dataclasses.replace(CONFIG.stage1, **stage1))


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("stage1")
    train_stage1(changed(epochs=6, lr=1e-3), data, folder)
    return folder


def test_what_it_leaves(trained):
    assert {path.name for path in trained.iterdir()} == {
        "model",
        "thresholds.json",
        "scores.json",
        "curves.jsonl",
        "checkpoints",
        "logs",
    }
    rows = [json.loads(line) for line in (trained / "curves.jsonl").read_text().splitlines()]
    assert len(rows) == 6
    assert rows[-1]["train_loss"] < rows[0]["train_loss"]
    assert rows[-1]["train_loss"] == pytest.approx(rows[-1]["train_query_loss"] + rows[-1]["train_cam_loss"], rel=1e-5)


def test_the_diversity_loss_keeps_queries_apart_in_training(trained, data, tmp_path):
    train_stage1(changed(epochs=6, lr=1e-3, query_diversity_weight=10.0), data, tmp_path)
    row = json.loads((tmp_path / "curves.jsonl").read_text().splitlines()[-1])
    parts = row["train_query_loss"] + row["train_cam_loss"] + 10 * row["train_diversity_loss"]
    assert row["train_loss"] == pytest.approx(parts, rel=1e-5)
    images = films_to_tensor(next(iter(iter_split_samples(data, "val"))).views, 64)
    with torch.no_grad():
        models = [DiseaseClassifier.from_pretrained(folder / "model") for folder in (tmp_path, trained)]
        apart, alike = (float(query_cosines(model(images).queries_BQD).square().mean()) for model in models)
    assert apart < alike / 2


def test_it_learns_and_its_scores_are_those_of_the_saved_model(trained, data):
    model = DiseaseClassifier.from_pretrained(trained / "model")
    scores, thresholds = (json.loads((trained / f"{name}.json").read_text()) for name in ("scores", "thresholds"))
    assert list(thresholds) == list(LABELS)
    assert thresholds["Edema"] == 1.0  # no positive to choose by: never called
    for split in ("val", "test"):
        samples = list(iter_split_samples(data, split))
        with torch.no_grad():
            found_N = np.array([model(films_to_tensor(s.views, 64)).scores_BK[:, K].mean().sigmoid() for s in samples])
        positive_N = np.array([s.study.labels[FINDING] == 1 for s in samples])
        row = scores[split]["per_label"][FINDING]
        assert row["positives"] == row["negatives"] == SIZES[split] / 2
        assert row["auroc"] == pytest.approx(
            binary_auroc(found_N, positive_N), abs=0.05
        )  # bfloat16 there, float32 here
        assert row["auroc"] > 0.9
        assert scores[split]["mean_auroc"] is None  # fewer than 10 positives
        assert all(scores[split]["per_label"][name]["auroc"] is None for name in FINDINGS if name != FINDING)


def test_interrupted_and_resumed_it_ends_in_the_same_bits(data, tmp_path, monkeypatch):
    train_stage1(CONFIG, data, tmp_path / "whole")
    save = checkpoint.AsyncCheckpointWriter.save

    def save_and_die(writer, *arguments):
        save(writer, *arguments)
        writer.wait()
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint.AsyncCheckpointWriter, "save", save_and_die)
    with pytest.raises(KeyboardInterrupt):
        train_stage1(CONFIG, data, tmp_path / "cut")
    monkeypatch.undo()
    train_stage1(CONFIG, data, tmp_path / "cut")
    for name in ("model/model.safetensors", "scores.json", "thresholds.json", "curves.jsonl"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


@pytest.mark.parametrize("norm", ["post", "pre"])
def test_two_ranks_under_zero_3_learn_what_one_learns(data, tmp_path, norm):
    config = changed(dtype="float32")
    vision = dataclasses.replace(config.vision, qformer_norm=norm)
    train_stage1(dataclasses.replace(config, vision=vision), data, tmp_path / "alone")
    finish(start_ranks(2, "tests.training.stage1_worker", data, tmp_path / "two", "zero3.json", norm))
    alone, two = (
        [json.loads(line) for line in (tmp_path / name / "curves.jsonl").read_text().splitlines()]
        for name in ("alone", "two")
    )
    assert two == [pytest.approx(row, rel=1e-4) for row in alone]


def test_an_encoder_without_a_frozen_stem_streams_its_films(data, tmp_path):
    vision = dataclasses.replace(CONFIG.vision, encoder="resnet18", pretrained=False)
    train_stage1(dataclasses.replace(changed(epochs=1), vision=vision), data, tmp_path)
    model = DiseaseClassifier.from_pretrained(tmp_path / "model")
    assert model.config == vision
    assert json.loads((tmp_path / "scores.json").read_text())["test"]["per_label"][FINDING]["auroc"] is not None


def test_a_batch_larger_than_the_split(data, tmp_path):
    with pytest.raises(UserError, match="24 studies, less than one batch of 32"):
        train_stage1(changed(batch_size=32), data, tmp_path)


class Rare(Squares):
    """One of four studies has the finding: 6 of 24 train studies."""

    def studies(self):
        studies = super().studies()
        negative = studies[1].labels
        return [s if i % 4 == 0 else dataclasses.replace(s, labels=negative) for i, s in enumerate(studies)]


def test_class_weighting_can_be_switched_off(tmp_path):
    """Practically without learning: weighted, 6 positives of weight 3 balance 18 negatives."""
    prepare_shards(Rare(), CONFIG.data, tmp_path / "data", 0)
    losses = {}
    for weighting, bias in ((True, math.log(19 / 19)), (False, math.log(7 / 19))):
        folder = tmp_path / str(weighting)
        train_stage1(changed(epochs=1, lr=1e-9, class_weighting=weighting), tmp_path / "data", folder)
        model = DiseaseClassifier.from_pretrained(folder / "model")
        for bias_K in (model.query_bias_K, model.cam_head.linear.bias):
            assert bias_K[K].item() == pytest.approx(bias, abs=1e-5)
        losses[weighting] = json.loads((folder / "curves.jsonl").read_text())["train_query_loss"]
    assert losses[False] < losses[True]  # the entropy of 1/4 is below 3/2 ln 2


class HalfMute(RandomSource):
    """Every second study has no report."""

    def studies(self):
        return [dataclasses.replace(s, report=s.report * (n % 2)) for n, s in enumerate(super().studies())]


@pytest.mark.parametrize("kind", [_CachedFilms, _StreamedFilms])
def test_studies_without_a_report_train_too(tmp_path, kind):
    prepare_shards(HalfMute(), dataclasses.replace(CONFIG.data, workers=1), tmp_path / "data", 0)
    assert num_split_studies(tmp_path / "data", "train") == 8
    model = DiseaseClassifier(CONFIG.vision, pretrained=False)
    films = kind(changed(batch_size=4), tmp_path / "data", tmp_path, model)
    assert {split: len(rows) for split, rows in films.targets.items()} == {"train": 16, "val": 3, "test": 5}
    assert films.steps_per_epoch == 4
    seen = [key for batch in films.batches(0, 0) for key in batch["study"]]
    assert len(set(seen)) == 16
    assert sum(len(inputs.views) for inputs in films.inputs("test")) == 5
