"""What stage 2 leaves for writing: how likely a report states each finding (``amrg.models.finding_calibration``)."""

from collections.abc import Sequence
from pathlib import Path

import torch

from amrg import distributed
from amrg.config import Config
from amrg.data.labels import FINDINGS
from amrg.data.stream import num_studies
from amrg.data.text.outline import positive_findings
from amrg.models.finding_calibration import Certainty, features_of
from amrg.models.report_generator import ReportGenerator
from amrg.training.vision_cache import VisionCache

#: Where the calibration for reports of a split lies, in a stage 2 artefact.
CALIBRATION = "calibration"
#: Train studies join those of validation where these are fewer: stage 1 learned from them, so they are second choice.
ENOUGH = 4096
_TOGETHER = 1024


def calibrate(config: Config, model: ReportGenerator, data: Path, folder: Path, scratch: Path) -> None:
    """Write the calibrations for test and for validation reports; the latter never reads validation reports.

    Every rank must call this.

    Args:
        config: ``stage2.dtype`` is read.
        model: trained.
        data: a data artefact with a train and a validation split.
        folder: of the stage 2 artefact.
        scratch: with what stage 1 sees of these splits, or to be filled.
    """
    few = num_studies(data, "val") < ENOUGH
    for target, splits in (("test", ("val", "train") if few else ("val",)), ("val", ("train",))):
        certainty = _fit(config, model, data, splits, scratch)
        if distributed.rank() == 0:
            certainty.save(folder / CALIBRATION / target)
    distributed.barrier()


def _fit(config: Config, model: ReportGenerator, data: Path, splits: Sequence[str], scratch: Path) -> Certainty:
    features, truth = [], []
    for split in splits:
        seen = VisionCache(model, data, split, scratch, config.stage2.dtype)
        rows = torch.arange(min(len(seen), ENOUGH))
        features += [features_of(seen[part]) for part in rows.split(_TOGETHER)]
        reports = [set(positive_findings(seen.studies[row].report)) for row in rows.tolist()]
        truth.append(torch.tensor([[finding in one for finding in FINDINGS] for one in reports]))
    return Certainty.fit(torch.cat(features), torch.cat(truth))
