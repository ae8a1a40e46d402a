"""Artefacts of the first three steps, made in a second from random films: for tests of what reads them."""

import json
import pickle
import shutil
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from amrg.artifacts import build_artifact
from amrg.banks.bank import REPORTS, VISUAL
from amrg.banks.writer import BankWriter
from amrg.config import CONFIGS, Config, DataConfig
from amrg.config_files import load_config
from amrg.data import shards, stream
from amrg.data.context import Context
from amrg.data.labels import LABELS
from amrg.data.shards import Shard, ShardExecutor, SubmitShard, prepare_shards
from amrg.data.stream import load_split_studies, num_films_by_study
from amrg.data.studies import Source, Study, StudyImages
from amrg.mining.reports import build_report_bank
from amrg.models.classifier import DiseaseClassifier
from amrg.pipeline import artifact_root, step_recipe
from tests.made_films import chest_film
from tests.scheduling import pytest_collection_finish, pytest_collection_modifyitems, pytest_xdist_make_scheduler

__all__ = ["pytest_collection_finish", "pytest_collection_modifyitems", "pytest_xdist_make_scheduler"]  # hooks

TINY = CONFIGS / "tiny.yaml"
SIZES = {"train": 16, "val": 3, "test": 5}


class RandomSource:
    """Noise with a report; every third study has two films."""

    def studies(self) -> list[Study]:
        return [
            Study(f"{split}-{number}", f"patient-{split}-{number}", split, report(number), dict.fromkeys(LABELS))
            for split, size in SIZES.items()
            for number in range(size)
        ]

    def films(self, study: Study) -> StudyImages:
        number = int(study.key.split("-")[1])
        generator = np.random.default_rng([len(study.split), number])
        return StudyImages([generator.integers(0, 256, (224, 224), np.uint8) for _ in range(1 + (number % 3 == 0))])


class ChestSource(RandomSource):
    """The same studies with films that pass the checks of a user's own films."""

    def films(self, study: Study) -> StudyImages:
        number = int(study.key.split("-")[1])
        return StudyImages([chest_film([len(study.split), number, view]) for view in range(1 + (number % 3 == 0))])


class InformedSource(ChestSource):
    """The same studies; those with even numbers have an indication, and one study an age and a sex."""

    def studies(self) -> list[Study]:
        cough = Context("Cough.")
        informed = [replace(s, context=Context() if int(s.key[-1]) % 2 else cough) for s in super().studies()]
        return [replace(s, context=Context("", "", "", 63, "male")) if s.key == "train-15" else s for s in informed]


class VisitedSource(ChestSource):
    """The same studies; each odd one is of the patient of the one before it, 30 days later."""

    def studies(self) -> list[Study]:
        found = []
        for study in super().studies():
            split, number = study.key.split("-")
            study = replace(study, group=f"patient-{split}-{int(number) // 2}")
            later = {"prior": f"{split}-{int(number) - 1}", "prior_days": 30} if int(number) % 2 else {}
            found.append(replace(study, **later))
        return found


def report(number: int) -> str:
    lungs = ("The lungs are clear.", "There is a small left pleural effusion.", "Mild bibasilar atelectasis.")
    return f"{lungs[number % 3]} Heart size is {'normal' if number % 2 else 'enlarged'}. No pneumothorax."


@dataclass(frozen=True)
class Artefacts:
    """The folders and the configuration they were made with."""

    config: Config
    data: Path
    stage1: Path
    banks: Path

    def linked(self, runs: Path) -> "Artefacts":
        """The same artefacts in a folder for runs of a test's own, where later steps may be made."""
        run = runs / self.config.name
        run.mkdir(parents=True)
        places = [run / path.name for path in (self.data, self.stage1, self.banks)]
        for place, path in zip(places, (self.data, self.stage1, self.banks), strict=True):
            place.symlink_to(path)
        return Artefacts(replace(self.config, runs=str(runs)), *places)


def make_data(folder: Path, source: Source | None = None) -> tuple[Config, Path]:
    """The configuration and data of the tiny pipeline, at the place where it looks for them; of noise if no source."""
    config = replace(load_config(str(TINY)), runs=str(folder))
    plan = step_recipe("prepare", config)
    with build_artifact(artifact_root(config), plan) as partial:
        prepare_shards(source or RandomSource(), DataConfig(shard_size=4), partial, 0, write_shards_here)
    return config, plan.path(artifact_root(config))


def make_artefacts(folder: Path, source: Source | None = None) -> Artefacts:
    """The three artefacts at the places where the pipeline looks for them; of noise if there is no source."""
    config, data = make_data(folder, source)
    made = {}
    for verb, make in (("stage1", _stage1), ("banks", _banks)):
        plan = step_recipe(verb, config)
        with build_artifact(artifact_root(config), plan) as partial:
            make(config, data, partial)
        made[verb] = plan.path(artifact_root(config))
    return Artefacts(config, data, **made)


def _stage1(config: Config, data: Path, partial: Path) -> None:
    torch.manual_seed(0)
    DiseaseClassifier(config.vision, pretrained=False).save_pretrained(partial / "model")
    (partial / "thresholds.json").write_text(json.dumps(dict.fromkeys(LABELS, 0.5)))
    scores = {"mean_auroc": None, "per_label": {label: {"auroc": 0.5, "f1": 0.5} for label in LABELS}}
    (partial / "scores.json").write_text(json.dumps({"val": scores, "test": scores}))
    (partial / "curves.jsonl").write_text('{"epoch": 1, "train_loss": 1.0}\n')


def _banks(config: Config, data: Path, partial: Path) -> None:
    """Random regions; the reports as the text encoder sees them."""
    generator = torch.Generator().manual_seed(0)
    train = load_split_studies(data, "train")
    region = {"source": "region", "findings": ["Edema"], "box": [3, 3, 4, 4]}  # on the last film of each study
    about = {"method": config.banks.mining.method, "scales": dict.fromkeys(LABELS, 1.0)}
    with BankWriter(partial / VISUAL, config.vision.query_dim, encoder_info=about) as writer:
        origins = [
            {"key": s.key, "group": s.group, "split": s.split, "context": s.context.known()}
            | region
            | {"view": films - 1}
            for s, films in zip(train, num_films_by_study(data, "train"), strict=True)
        ]
        writer.add(torch.randn(len(train), config.vision.query_dim, generator=generator), origins)
    build_report_bank(config.banks, data, partial / REPORTS, config.seed, partial / "scratch")
    shutil.rmtree(partial / "scratch")


@contextmanager
def write_shards_here(source: Source, config: DataConfig, folder: Path) -> Iterator[SubmitShard]:
    """Write each shard at once in this process, from a source that went through a pickle as it does to a process."""
    shards.init_shard_writer(pickle.loads(pickle.dumps(source)), config.image_size, folder)

    def submit(shard: Shard) -> "Future[None]":
        done: Future[None] = Future()
        try:
            done.set_result(shards.write_shard_files(shard))
        except Exception as error:
            done.set_exception(error)
        return done

    yield submit


@pytest.fixture(scope="session", autouse=True)
def writer_processes() -> Iterator[ShardExecutor]:
    """What ``prepare_shards`` writes with outside of tests. Each process imports torch, so few tests use them."""
    processes = shards._processes
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "_processes", write_shards_here)
        yield processes


@pytest.fixture(scope="session", autouse=True)
def readers_come_from_the_server_of_the_tests() -> Iterator[None]:
    """A process has one server to fork from; the first that asks decides what it has imported."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stream, "READER_IMPORTS", ["tests.preloaded"])
        yield


@pytest.fixture(scope="session")
def artefacts(tmp_path_factory: pytest.TempPathFactory) -> Artefacts:
    return make_artefacts(tmp_path_factory.mktemp("artefacts"))


@pytest.fixture(autouse=True)
def artefacts_are_not_added_to(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that makes steps in the folder that all tests share: `Artefacts.linked` is for those."""
    shared = request.getfixturevalue("artefacts") if "artefacts" in request.fixturenames else None
    yield
    if isinstance(shared, Artefacts):
        expected = {path.name for path in (shared.data, shared.stage1, shared.banks)}
        assert {path.name for path in shared.data.parent.iterdir()} == expected
