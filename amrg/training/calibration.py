"""Models of stage 1's output that are fitted after stage 2, when its weights are final.

These are the calibration of the findings that generation names (``amrg.models.finding_calibration``), and the distance
of a study from the training films (``amrg.models.training_distance``).
"""

from collections.abc import Sequence
from pathlib import Path

import torch

from amrg import distributed
from amrg.config import Config
from amrg.data.labels import FINDINGS
from amrg.data.stream import num_split_studies
from amrg.data.text.outline import positive_findings
from amrg.models.finding_calibration import Certainty, calibration_features
from amrg.models.report_generator import ReportGenerator
from amrg.models.training_distance import TrainingDistance
from amrg.training.vision_cache import VisionCache

#: Folder of a stage 2 artefact with the calibration for each split.
CALIBRATION = "calibration"
#: With fewer validation studies, train studies are added; these are biased, as stage 1 was trained on them.
ENOUGH = 4096
#: Most studies of a split that the distance is fitted on.
DISTANCE_STUDIES = 20_000
_BATCH = 1024


def calibrate_reports(config: Config, model: ReportGenerator, data: Path, folder: Path, scratch: Path) -> None:
    """Write the calibrations for test and for validation reports; the latter is not fitted on validation reports.

    Every rank must call this.

    Args:
        config: ``stage2.dtype`` is read.
        model: the trained generator.
        data: a data artefact with a train and a validation split.
        folder: the stage 2 artefact.
        scratch: folder of the vision caches of these splits, which are filled if incomplete.
    """
    few = num_split_studies(data, "val") < ENOUGH
    for target, splits in (("test", ("val", "train") if few else ("val",)), ("val", ("train",))):
        certainty = _fit(config, model, data, splits, scratch)
        if distributed.global_rank() == 0:
            certainty.save(folder / CALIBRATION / target)
    distributed.barrier()


def fit_training_distance(config: Config, model: ReportGenerator, data: Path, folder: Path, scratch: Path) -> None:
    """Fit the distance from the training films and write it into ``folder``; every rank must call this.

    Args:
        config, model, data, folder, scratch: as for ``calibrate_reports``.
    """
    features = []
    for split in ("train", "val"):
        cache = VisionCache(model, data, split, scratch, config.stage2.dtype)
        rows = torch.arange(min(len(cache), DISTANCE_STUDIES))
        features.append(torch.cat([cache[part].film_BD.cpu() for part in rows.split(_BATCH)]))
    if distributed.global_rank() == 0:
        TrainingDistance.fit(*features).save(folder)
    distributed.barrier()


def _fit(config: Config, model: ReportGenerator, data: Path, splits: Sequence[str], scratch: Path) -> Certainty:
    features, truth = [], []
    for split in splits:
        cache = VisionCache(model, data, split, scratch, config.stage2.dtype)
        rows = torch.arange(min(len(cache), ENOUGH))
        features += [calibration_features(cache[part]) for part in rows.split(_BATCH)]
        reports = [set(positive_findings(cache.studies[row].report)) for row in rows.tolist()]
        truth.append(torch.tensor([[finding in one for finding in FINDINGS] for one in reports]))
    return Certainty.fit(torch.cat(features), torch.cat(truth))
