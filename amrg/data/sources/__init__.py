"""Readers of data sets: each turns what a user has on disk into studies.

A reader is a module with ``open_source(config, seed)``, ``needs(config)``: a check for each file and folder it reads,
and ``counted(config)``: studies and films of each split that its tables name, None where no table tells.
"""

from importlib import import_module
from typing import Any

from amrg.config import DataConfig
from amrg.data.studies import Source
from amrg.errors import UserError, collect_errors

#: The module of each reader. It is imported when it is asked for: some need packages that others do without.
SOURCES = {
    "openi_drr": "amrg.data.sources.openi_drr",
    "mimic_cxr": "amrg.data.sources.mimic_cxr",
    "chexpert_plus": "amrg.data.sources.chexpert_plus",
    "iu_xray": "amrg.data.sources.r2gen",
    "openi": "amrg.data.sources.openi",
}


def open_source(config: DataConfig, seed: int) -> Source:
    """The reader named by ``config.source``.

    Raises:
        UserError: there is no reader of that name, or it does not find its data.
    """
    source: Source = _reader(config).open_source(config, seed)
    return source


def source_faults(config: DataConfig) -> list[str]:
    """Which files and folders the reader will not find, told in a moment: nothing but their names is looked at."""
    try:
        return collect_errors(*_reader(config).needs(config))
    except UserError as error:  # no such reader, or not even the folder
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
        if limit is not None:  # each render of a train study is a sample
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
    size: dict[str, tuple[int, int]] | None = _reader(config).counted(config)
    return size


def _reader(config: DataConfig) -> Any:
    if config.source not in SOURCES:
        raise UserError(f"unknown data source `{config.source}`: data.source is one of {', '.join(SOURCES)}")
    return import_module(SOURCES[config.source])
