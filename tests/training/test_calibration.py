"""What stage 2 leaves for writing: fitted on the right studies, and told from what stage 1 sees of them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from amrg.data import stream
from amrg.data.labels import FINDINGS
from amrg.data.text.outline import positive_findings
from amrg.models.finding_calibration import FEATURES, FILE, Certainty
from amrg.models.training_distance import TrainingDistance
from amrg.models.vision_output import VisionOutput
from amrg.training import calibration
from amrg.training.calibration import CALIBRATION, calibrate_reports
from amrg.training.stage2 import build_generator
from amrg.training.vision_cache import VisionCache
from tests.models.vision_outputs import sight_of

#: What the reports of each split say.
SAID = {"train": ["Cardiomegaly.", "Edema.", "Clear lungs."], "val": ["Fracture.", "Cardiomegaly."], "test": ["Edema."]}


class Study:
    def __init__(self, report: str) -> None:
        self.report = report


class MadeUp:
    """Stands for ``Seen``: stage 1 is as sure of a finding as the number of its study says."""

    asked: list[str]

    def __init__(self, model: None, data: None, split: str, folder: Path, dtype: str) -> None:
        self.asked.append(split)
        self.studies = [Study(report) for report in SAID[split]]
        self.split = split

    def __len__(self) -> int:
        return len(self.studies)

    def __getitem__(self, rows: torch.Tensor) -> VisionOutput:
        return sight_of(*({finding: float(row) + len(self.split) for finding in FINDINGS} for row in rows.tolist()))


@pytest.fixture
def fitted(monkeypatch: pytest.MonkeyPatch) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """What ``Certainty.fit`` is given, call by call; the calibration says how many studies those were."""
    given: list[tuple[torch.Tensor, torch.Tensor]] = []

    def fit(features_NFX: torch.Tensor, stated_NF: torch.Tensor) -> Certainty:
        given.append((features_NFX, stated_NF))
        return Certainty(((1.0, 1.0, 0.0),) * len(FINDINGS), (0.0,) * len(FINDINGS), float(len(features_NFX)))

    monkeypatch.setattr(calibration.Certainty, "fit", fit)
    monkeypatch.setattr(calibration, "VisionCache", MadeUp)
    monkeypatch.setattr(calibration, "num_split_studies", lambda data, split: len(SAID[split]))
    MadeUp.asked = []
    return given


def run(folder: Path, config: Any) -> None:
    calibrate_reports(config, None, None, folder, folder / "scratch")  # type: ignore[arg-type]


def truth_of(splits: Sequence[str]) -> list[list[bool]]:
    return [
        [finding in positive_findings(report) for finding in FINDINGS] for split in splits for report in SAID[split]
    ]


def test_validation_reports_never_calibrate_validation_reports(fitted: Any, tmp_path: Path, artefacts: Any) -> None:
    run(tmp_path, artefacts.config)
    assert "test" not in MadeUp.asked
    (for_test, stated_test), (for_val, stated_val) = fitted
    assert stated_test.tolist() == truth_of(["val", "train"])
    assert stated_val.tolist() == truth_of(["train"])
    for features, splits in ((for_test, ("val", "train")), (for_val, ("train",))):
        logits = [row + len(split) for split in splits for row in range(len(SAID[split]))]
        assert features.shape == (len(logits), len(FINDINGS), FEATURES)
        assert features[:, 0, :2].sum(-1).tolist() == pytest.approx(logits)  # ln p − ln (1 − p)
    assert Certainty.load(tmp_path / CALIBRATION / "test").threshold == 5
    assert Certainty.load(tmp_path / CALIBRATION / "val").threshold == 3


def test_enough_validation_studies_calibrate_alone_and_no_more_than_enough(
    fitted: Any, tmp_path: Path, artefacts: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibration, "ENOUGH", 2)
    run(tmp_path, artefacts.config)
    (_, for_test), (_, for_val) = fitted
    assert for_test.tolist() == truth_of(["val"])
    assert for_val.tolist() == truth_of(["train"])[:2]


def test_only_the_first_rank_writes(
    fitted: Any, tmp_path: Path, artefacts: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibration.distributed, "global_rank", lambda: 1)
    run(tmp_path, artefacts.config)
    assert not (tmp_path / CALIBRATION).exists()


def test_of_real_films_it_is_the_calibration_of_what_stage_1_sees(artefacts: Any, tmp_path: Path) -> None:
    """And it does not change with the reports of the split that it is for, or with those of test."""
    model = build_generator(artefacts.config, artefacts.data, artefacts.stage1, artefacts.banks)
    calibrate_reports(artefacts.config, model, artefacts.data, tmp_path, tmp_path / "scratch")
    seen = VisionCache(model, artefacts.data, "train", tmp_path / "scratch", artefacts.config.stage2.dtype)
    features = calibration.calibration_features(seen[torch.arange(len(seen))])
    reports = [study.report for study in stream.load_split_studies(artefacts.data, "train")]
    truth = torch.tensor([[finding in positive_findings(report) for finding in FINDINGS] for report in reports])
    assert Certainty.load(tmp_path / CALIBRATION / "val") == Certainty.fit(features, truth)
    written = json.loads((tmp_path / CALIBRATION / "test" / FILE).read_text())
    assert written != json.loads((tmp_path / CALIBRATION / "val" / FILE).read_text())
    assert not (tmp_path / "scratch" / "test").exists()


def test_the_distance_from_the_training_films_is_fitted_on_train_and_validation(artefacts: Any, tmp_path: Path) -> None:
    config, data, scratch = artefacts.config, artefacts.data, tmp_path / "scratch"
    model = build_generator(config, data, artefacts.stage1, artefacts.banks)
    calibration.fit_training_distance(config, model, data, tmp_path, scratch)
    train, validation = (VisionCache(model, data, split, scratch, config.stage2.dtype) for split in ("train", "val"))
    features = [cache[torch.arange(len(cache))].film_BD for cache in (train, validation)]
    found, expected = TrainingDistance.load(tmp_path), TrainingDistance.fit(*features)
    assert found is not None
    seen = validation[torch.arange(len(validation))]
    assert found.records(seen) == expected.records(seen)
    assert not any(record["unlike_training"] for record in found.records(seen))
    assert not (scratch / "test").exists()
