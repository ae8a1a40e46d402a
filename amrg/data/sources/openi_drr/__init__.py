"""The embedded data set: real Open-i reports, and films rendered from one real CT with the annotated lesions added.

Scores on it have no clinical meaning: see ``docs/embedded-data.md``.
"""

from amrg.config import DataConfig
from amrg.data.sources.openi_drr.reports import required_files
from amrg.data.sources.openi_drr.source import OpeniDrr

__all__ = ["OpeniDrr", "published_counts", "required_files", "open_source"]


def open_source(config: DataConfig, seed: int) -> OpeniDrr:
    """Open the reader; its data are in installed packages."""
    return OpeniDrr(config, seed)


def published_counts(config: DataConfig) -> None:
    """Return None: there is no table."""
