"""Readers of data sets: each turns a user's copy of a data set into studies.

A reader is a module with three functions. ``open_source(config, seed)`` opens it, ``needs(config)`` returns one check
per file and folder it reads, and ``counted(config)`` returns the numbers of studies and films per split in its tables,
or None without a table.
"""

from importlib import import_module
from typing import Any

from amrg.config import DataConfig
from amrg.data.studies import Source
from amrg.errors import UserError, collect_errors

#: Module of each reader, imported on use: some need packages that others do not.
SOURCES = {
    "openi_drr": "amrg.data.sources.openi_drr",
    "mimic_cxr": "amrg.data.sources.mimic_cxr",
    "chexpert_plus": "amrg.data.sources.chexpert_plus",
    "iu_xray": "amrg.data.sources.r2gen",
    "openi": "amrg.data.sources.openi",
}


def open_source(config: DataConfig, seed: int) -> Source:
    """Open the reader named by ``config.source``.

    Raises:
        UserError: the reader is unknown, or does not find its data.
    """
    source: Source = _reader(config).open_source(config, seed)
    return source


def source_faults(config: DataConfig) -> list[str]:
    """Return an error text per missing file or folder of the reader; only names are checked, so this is fast."""
    try:
        return collect_errors(*_reader(config).needs(config))
    except UserError as error:  # no such reader, or not even the folder
        return [str(error)]


def source_size(config: DataConfig) -> tuple[int, int] | None:
    """Return the largest numbers of studies and films to prepare; None without a table and limits.

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
    kept = studies if limit is None else min(studies, limit)
    return kept, films * kept // max(studies, 1)


def tables_size(config: DataConfig) -> dict[str, tuple[int, int]] | None:
    """Return the numbers of studies and films per published split, without limits; None if no table has them.

    Raises:
        UserError: a table cannot be read.
    """
    size: dict[str, tuple[int, int]] | None = _reader(config).counted(config)
    return size


def _reader(config: DataConfig) -> Any:
    if config.source not in SOURCES:
        raise UserError(f"unknown data source `{config.source}`: data.source is one of {', '.join(SOURCES)}")
    return import_module(SOURCES[config.source])
