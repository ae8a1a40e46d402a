"""Readers of data sets: each turns what a user has on disk into studies."""

from amrg.config import DataConfig
from amrg.data.studies import Source
from amrg.errors import UserError

SOURCES: tuple[str, ...] = ("openi_drr",)


def open_source(config: DataConfig, seed: int) -> Source:
    """The reader named by ``config.source``.

    Raises:
        UserError: there is no reader of that name.
    """
    if config.source == "openi_drr":
        from amrg.data.sources.openi_drr import OpeniDrr

        return OpeniDrr(config, seed)
    raise UserError(f"unknown data source `{config.source}`: data.source is one of {', '.join(SOURCES)}")
