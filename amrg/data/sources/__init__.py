"""Readers of data sets: each turns what a user has on disk into studies."""

from amrg.config import DataConfig
from amrg.data.studies import Source
from amrg.errors import UserError, gathered

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
    raise _unknown(config)


def source_faults(config: DataConfig) -> list[str]:
    """Which files and folders the reader will not find, told in a moment: nothing but their names is looked at."""
    if config.source == "openi_drr":
        from amrg.data.sources.openi_drr.reports import needs
    elif config.source == "mimic_cxr":
        from amrg.data.sources.mimic_cxr import needs
    elif config.source == "chexpert_plus":
        from amrg.data.sources.chexpert_plus import needs
    elif config.source == "iu_xray":
        from amrg.data.sources.r2gen import needs
    elif config.source == "openi":
        from amrg.data.sources.openi import needs
    else:
        return [str(_unknown(config))]
    try:
        return gathered(*needs(config))
    except UserError as error:  # not even the folder
        return [str(error)]


def source_size(config: DataConfig) -> tuple[int, int] | None:
    """Studies and films that will be prepared, at most; None where no table tells and no limits are set.

    Raises:
        UserError: a table cannot be read.
    """
    limits = (config.train_studies, config.val_studies, config.test_studies)
    limit = None if None in limits else sum(filter(None, limits))
    tables = tables_size(config)
    if tables is None:
        if limit is not None and config.source == "openi_drr":  # each render of a train study is a sample
            limit += (config.train_studies or 0) * (config.renders_per_study - 1)
        return None if limit is None else (limit, limit)
    studies, films = (sum(counts) for counts in zip(*tables.values(), strict=True))
    fewer = studies if limit is None else min(studies, limit)
    return fewer, films * fewer // max(studies, 1)


def tables_size(config: DataConfig) -> dict[str, tuple[int, int]] | None:
    """Studies and films of each published split by the tables of ``data.path``, limits aside; None: no table tells.

    Raises:
        UserError: a table cannot be read.
    """
    if config.source == "mimic_cxr":
        from amrg.data.sources.mimic_cxr import counted
    elif config.source == "iu_xray":
        from amrg.data.sources.r2gen import counted
    else:
        return None
    return counted(config)


def _unknown(config: DataConfig) -> UserError:
    return UserError(f"unknown data source `{config.source}`: data.source is one of {', '.join(SOURCES)}")
