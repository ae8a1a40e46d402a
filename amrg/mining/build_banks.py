"""The ``banks`` step: the visual bank from mined regions, the report bank from encoded reports."""

from pathlib import Path

from amrg.artifacts import MapFn, add_artifact_warning
from amrg.banks.bank import REPORTS, TRAIN, VISUAL
from amrg.config import Config
from amrg.mining.regions import build_visual_bank
from amrg.mining.reports import build_report_bank


def build_memory_banks(config: Config, data: Path, stage1: Path, folder: Path, each: MapFn = map) -> None:
    """Build both banks from ``banks.splits``; finished parts of an interrupted run are kept.

    Args:
        config: ``banks`` and ``seed`` are read.
        data: data artefact.
        stage1: stage 1 artefact, whose classifier finds the regions.
        folder: receives ``visual/`` and ``reports/``, and ``scratch/`` for finished parts.
        each: maps a function over the parts, in this process or elsewhere.
    """
    scratch = folder / "scratch"
    build_visual_bank(config, data, stage1, folder / VISUAL, scratch, each)
    build_report_bank(config.banks, data, folder / REPORTS, config.seed, scratch, each)
    held_out = [split for split in config.banks.splits if split != TRAIN]
    if held_out:
        add_artifact_warning(
            folder, f"the banks hold rows of {' and '.join(held_out)} studies: scores on those mean nothing"
        )
