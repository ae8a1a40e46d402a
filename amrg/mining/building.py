"""The ``banks`` step: the visual bank from mined regions, the report bank from encoded reports."""

from pathlib import Path

from amrg.config import Config
from amrg.memory.bank import REPORTS, VISUAL
from amrg.memory.reports import encode_reports
from amrg.mining.regions import mine_regions


def build_banks(config: Config, data: Path, stage1: Path, folder: Path) -> None:
    """Build both banks from the train split; a bank that an interrupted run finished is kept.

    Args:
        config: ``banks`` and ``seed`` are read.
        data: a data artefact.
        stage1: a stage 1 artefact: its classifier mines the regions.
        folder: receives ``visual/`` and ``reports/``.
    """
    mine_regions(config, data, stage1, folder / VISUAL)
    encode_reports(config.banks.reports, data, folder / REPORTS, config.seed)
