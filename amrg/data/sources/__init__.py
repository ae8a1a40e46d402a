"""Readers of data sets: each turns a user's copy of a data set into studies.

A reader is a module with three functions. ``open_source(config, seed)`` opens it, ``required_files(config)`` returns
one check per file and folder it reads, and ``published_counts(config)`` returns the numbers of studies and films per
split in its tables, or None without a table. Readers that ``amrg doctor`` checks by reading have
``recognize_folder(root)``, which tells whether a folder holds their data set.
"""

from importlib import import_module
from pathlib import Path
from typing import Any

from amrg.config import ColumnsConfig, DataConfig
from amrg.data.studies import SPLITS, Source
from amrg.errors import UserError, collect_errors
from amrg.progress import print_on_rank_0

#: Module of each reader, imported on use: some need packages that others do not. A folder is recognised by the first:
#: Open-i's reports may lie at any depth, and a table may be of any data set.
SOURCES = {
    "openi_drr": "amrg.data.sources.openi_drr",
    "mimic_cxr": "amrg.data.sources.mimic_cxr",
    "chexpert_plus": "amrg.data.sources.chexpert_plus",
    "iu_xray": "amrg.data.sources.r2gen",
    "iu_kaggle": "amrg.data.sources.iu_kaggle",
    "rexgradient": "amrg.data.sources.rexgradient",
    "padchest": "amrg.data.sources.padchest",
    "padchest_gr": "amrg.data.sources.padchest_gr",
    "vindr_cxr": "amrg.data.sources.vindr_cxr",
    "openi": "amrg.data.sources.openi",
    "table": "amrg.data.sources.table",
    "mix": "amrg.data.sources.mix",
}


def open_data_source(config: DataConfig, seed: int) -> Source:
    """Open the reader named by ``config.source``.

    Raises:
        UserError: the reader is unknown, does not find its data, or a split has no study with a text; in a data set of
            labels alone, no study.
    """
    source: Source = open_mixed_source(config, seed)
    studies = source.studies()
    wordless = not any(study.report for study in studies)
    patients = len({study.group for study in studies})
    for split in SPLITS:
        if not any(study.split == split and (study.report or wordless) for study in studies):
            raise UserError(
                f"the split `{split}` has no studies{'' if wordless else ' with text'}: data.splits patient draws all "
                f"three if there are patients enough (here {patients}; another seed draws others)"
            )
    if wordless:
        print_on_rank_0(f"{config.source}: no study has a text, so stage 1 alone can use them")
    return source


def open_mixed_source(config: DataConfig, seed: int) -> Source:
    """Open a reader that may lack a split, as a part of ``data.mix``.

    Raises:
        UserError: the reader is unknown, or does not find its data.
    """
    source: Source = _reader(config).open_source(config, seed)
    return source


def source_faults(config: DataConfig) -> list[str]:
    """Return an error text per missing file or folder of the reader; only names are checked, so this is fast."""
    try:
        return collect_errors(*_reader(config).required_files(config))
    except UserError as error:  # no such reader, or not even the folder
        return [str(error)]


def configured_source_size(config: DataConfig) -> tuple[int, int] | None:
    """Return the largest numbers of studies and films to prepare; None without a table and limits.

    Raises:
        UserError: a table cannot be read.
    """
    if config.mix:  # a limit is of each data set
        sizes = [
            configured_source_size(part) for part in import_module(SOURCES["mix"]).mixed_data_configs(config).values()
        ]
        known = [size for size in sizes if size is not None]
        return (sum(size[0] for size in known), sum(size[1] for size in known)) if len(known) == len(sizes) else None
    limits = (config.train_studies, config.val_studies, config.test_studies)
    limit = None if None in limits else sum(filter(None, limits))
    tables = published_source_size(config)
    if tables is None:
        if limit is not None:  # each render of a train study is a sample
            limit += (config.train_studies or 0) * (config.renders_per_study - 1)
        return None if limit is None else (limit, limit)
    studies, films = (sum(counts) for counts in zip(*tables.values(), strict=True))
    kept = studies if limit is None else min(studies, limit)
    return kept, films * kept // max(studies, 1)


def published_source_size(config: DataConfig) -> dict[str, tuple[int, int]] | None:
    """Return the numbers of studies and films per published split, without limits; None if no table has them.

    Raises:
        UserError: a table cannot be read.
    """
    size: dict[str, tuple[int, int]] | None = _reader(config).published_counts(config)
    return size


def recognize_source(root: Path) -> str | None:
    """Return the source whose data set a folder holds, among those that ``amrg doctor`` checks by reading."""
    checks = {name: getattr(import_module(module), "recognize_folder", None) for name, module in SOURCES.items()}
    return next((name for name, check in checks.items() if check is not None and check(root)), None)


def _reader(config: DataConfig) -> Any:
    if config.source not in SOURCES:
        raise UserError(f"unknown data source `{config.source}`: data.source is one of {', '.join(SOURCES)}")
    for setting, source, given in (("mix", "mix", config.mix), ("columns", "table", config.columns != ColumnsConfig())):
        if given and config.source != source:
            raise UserError(f"data.{setting} is of the source {source}, not {config.source}: set data.source {source}")
    return import_module(SOURCES[config.source])
