"""Readers of data sets: each turns what a user has on disk into studies."""

from amrg.config import DataConfig
from amrg.data.studies import Source
from amrg.errors import UserError

SOURCES: tuple[str, ...] = ("openi_drr", "mimic_cxr", "chexpert_plus", "iu_xray", "openi")


def open_source(config: DataConfig, seed: int) -> Source:
    """The reader named by ``config.source``.

    Raises:
        UserError: there is no reader of that name, or it does not find its data.
    """
    if config.source == "openi_drr":
        from amrg.data.sources.openi_drr import OpeniDrr

        return OpeniDrr(config, seed)
    if config.source == "mimic_cxr":
        from amrg.data.sources.mimic_cxr import open_mimic_cxr

        return open_mimic_cxr(config, seed)
    if config.source == "chexpert_plus":
        from amrg.data.sources.chexpert_plus import ChexpertPlus

        return ChexpertPlus(config, seed)
    if config.source == "iu_xray":
        from amrg.data.sources.r2gen import R2Gen

        return R2Gen(config, seed, "iu_xray")
    if config.source == "openi":
        from amrg.data.sources.openi import Openi

        return Openi(config, seed)
    raise UserError(f"unknown data source `{config.source}`: data.source is one of {', '.join(SOURCES)}")
