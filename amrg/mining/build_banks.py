"""The ``banks`` step: the visual bank from mined regions, the report bank from encoded reports."""

from pathlib import Path

from amrg.artifacts import MapFn, set_warning
from amrg.banks.bank import REPORTS, TRAIN, VISUAL
from amrg.config import Config
from amrg.mining.regions import mine_regions
from amrg.mining.reports import build_report_bank


def build_banks(config: Config, data: Path, stage1: Path, folder: Path, each: MapFn = map) -> None:
    """Build both banks from ``banks.splits``; what an interrupted run finished is kept.

    Args:
        config: ``banks`` and ``seed`` are read.
        data: a data artefact.
        stage1: a stage 1 artefact: its classifier mines the regions.
        folder: receives ``visual/`` and ``reports/``.
        each: does the parts, here or elsewhere; they are kept in ``scratch/`` while the work goes on.
    """
    scratch = folder / "scratch"
    mine_regions(config, data, stage1, folder / VISUAL, scratch, each)
    build_report_bank(config.banks, data, folder / REPORTS, config.seed, scratch, each)
    held_out = [split for split in config.banks.splits if split != TRAIN]
    if held_out:
        set_warning(folder, f"the banks hold rows of {' and '.join(held_out)} studies: scores on those mean nothing")
