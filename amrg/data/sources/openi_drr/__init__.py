"""The embedded data set: real Open-i reports, films rendered from one real CT with the annotated lesions painted in.

Scores on it say nothing clinical: see ``docs/embedded-data.md``.
"""

from amrg.config import DataConfig
from amrg.data.sources.openi_drr.reports import needs
from amrg.data.sources.openi_drr.source import OpeniDrr

__all__ = ["OpeniDrr", "counted", "needs", "open_source"]


def open_source(config: DataConfig, seed: int) -> OpeniDrr:
    """The reader; its data are in installed packages."""
    return OpeniDrr(config, seed)


def counted(config: DataConfig) -> None:
    """None: there is no table."""
