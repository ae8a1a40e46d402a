"""A training that failed says so in the terminal, in its artefact and on the page; --strict ends with exit code 3."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from amrg.artifacts import Artifact, build_artifact, open_artifact
from amrg.cli import main
from amrg.config import Config
from amrg.config_files import config_to_dict
from amrg.data.labels import LABELS, NO_FINDING
from amrg.data.shards import prepare_shards
from amrg.data.studies import Study, StudyImages
from amrg.evaluation.evaluate import no_better_than_constant
from amrg.inference.generate import collapsed_reports
from amrg.pipeline import artifact_root, refuse_failures, step_recipe
from tests.synthetic_dataset import CONFIG, FINDING, Squares


class ShuffledLabels(Squares):
    """Squares, more of them for validation, whose labels say nothing of the films."""

    def studies(self) -> list[Study]:
        films = super().studies()
        more = [replace(study, key=f"{study.key}-{n}", group=f"{study.group}-{n}") for study in films for n in range(4)]
        studies = [study for study in films if study.split != "val"] + [study for study in more if study.split == "val"]
        present = np.random.default_rng(0).random(len(studies)) < 0.5
        return [
            replace(study, labels=dict.fromkeys(LABELS) | {FINDING if shown else NO_FINDING: 1.0})
            for study, shown in zip(studies, present, strict=True)
        ]

    def films(self, study: Study) -> StudyImages:
        square = 1.0 if int(study.key.split("-")[1]) % 2 == 0 else None
        return StudyImages(super().films(replace(study, labels=dict.fromkeys(LABELS) | {FINDING: square})).views)


@pytest.fixture(scope="module")
def shuffled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Config]:
    """A configuration with its prepared data."""
    folder = tmp_path_factory.mktemp("shuffled")
    config = replace(CONFIG, name="shuffled", runs=str(folder / "runs"), stage1=replace(CONFIG.stage1, epochs=1))
    (folder / "shuffled.yaml").write_text(yaml.safe_dump(config_to_dict(config)))
    with build_artifact(artifact_root(config), step_recipe("prepare", config)) as partial:
        prepare_shards(ShuffledLabels(), config.data, partial, seed=0)
    return folder / "shuffled.yaml", config


def test_stage_1_on_shuffled_labels_warns_and_with_strict_ends_with_3(shuffled: Any, capfd: Any) -> None:
    path, config = shuffled
    main(["stage1", str(path)])
    output = capfd.readouterr().err
    assert output.count("WARNING: stage 1 is at chance on validation: the interval of its mean AUROC") == 1
    artifact = open_artifact(step_recipe("stage1", config).path(artifact_root(config)), "stage1")
    (failure,) = artifact.failures
    assert failure in " ".join(output.split())
    with pytest.raises(SystemExit) as stop:
        main(["stage1", str(path), "--strict"])
    assert stop.value.code == 3
    assert f"amrg: stage1: {failure}" in capfd.readouterr().err.splitlines()


def test_reports_have_collapsed_if_one_text_is_most_of_them_and_the_references_are_not_so() -> None:
    varied = [f"Finding {n}." for n in range(20)]
    assert collapsed_reports(["Clear."] * 11 + varied[:9], varied) == (
        "the reports have collapsed: 55% of 20 are one text, and 10 texts differ (of the references 5% and 20); see "
        "the curves of stage 2, or give it more epochs or studies"
    )
    assert collapsed_reports(["Clear."] * 10 + varied[:10], varied) is None
    assert collapsed_reports(["Clear."] * 12 + varied[:8], ["Normal."] * 12 + varied[:8]) is None
    assert collapsed_reports(["Clear."] * 18 + varied[:1], varied[:19]) is None


def test_few_reports_have_collapsed_if_all_are_one_text() -> None:
    varied = [f"Finding {n}." for n in range(8)]
    failure = collapsed_reports(["Clear."] * 8, varied)
    assert failure is not None
    assert "100% of 8 are one text, and 1 texts differ (of the references 12% and 8)" in failure
    assert collapsed_reports(["Clear."] * 3, varied[:3]) is not None
    assert collapsed_reports(["Clear."] * 2, varied[:2]) is None
    assert collapsed_reports(["Clear."] * 8, ["Normal."] * 8) is None


@pytest.mark.parametrize(
    ("interval", "studies", "failed"),
    [
        ((0.01, 0.2), 273, False),
        ((-0.01, 0.2), 273, True),
        ((0.0, 0.2), 20, True),
        ((-0.1, 0.0), 19, False),
        ((-0.5, -0.1), 8, True),
    ],
)
def test_a_model_must_be_above_the_best_constant_report(
    interval: tuple[float, float], studies: int, failed: bool
) -> None:
    systems = {"best constant": {"model_minus_this": {"value": 0.05, "interval": interval}}}
    failure = no_better_than_constant(systems, studies)
    assert (failure is not None) is failed
    if failure:
        assert f"the difference in clinical F1 is +0.050 [{interval[0]:+.3f}, {interval[1]:+.3f}]" in failure


@pytest.mark.parametrize(("studies", "told"), [(8, True), (20, False)])
def test_strict_says_that_there_are_too_few_studies_to_judge(
    tmp_path: Path, capfd: Any, studies: int, told: bool
) -> None:
    (tmp_path / "scores.json").write_text(json.dumps({"studies": studies}))
    refuse_failures("evaluate", Artifact(tmp_path, {}))
    assert ("8 studies are too few to judge" in " ".join(capfd.readouterr().err.split())) is told
