"""Studies of another hospital, which words its reports in its own way."""

from dataclasses import replace
from pathlib import Path

from amrg.artifacts import Artifact, Recipe, build_artifact, open_artifact
from amrg.config import DataConfig
from amrg.data.shards import prepare_shards
from amrg.data.studies import Study, StudyImages
from tests.conftest import ChestSource
from tests.made_films import chest_film

FIRST = 100  # number of its first study
WORDS = "Lungenfelder frei belüftet"


class OtherHospital(ChestSource):
    """Four train studies and one of each other split; two patients word one sentence alike."""

    def studies(self) -> list[Study]:
        chosen = [one for one in super().studies() if int(one.key.split("-")[1]) < (4 if one.split == "train" else 1)]
        return [_study(one, number + FIRST) for number, one in enumerate(chosen)]

    def films(self, study: Study) -> StudyImages:
        return StudyImages([chest_film([7, int(study.key.split("-")[1])])])


def _study(study: Study, number: int) -> Study:
    report = f"{WORDS}, Nummer {number}. {WORDS} und symmetrisch. No pneumothorax."
    return replace(study, key=f"{study.split}-{number}", group=f"other-{number}", report=report)


def prepare_other_hospital(folder: Path) -> Artifact:
    """The data artefact of these studies in a folder of its own."""
    plan = Recipe("data", 3, {"source": "table"}, {}, 0)
    with build_artifact(folder, plan) as partial:
        prepare_shards(OtherHospital(), DataConfig(shard_size=2, workers=1), partial, 0)
    return open_artifact(plan.path(folder), "data")
