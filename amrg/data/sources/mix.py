"""Several data sets as one (``data.mix``): each is read as its own settings say, then keys and names are told apart."""

import re
from collections import defaultdict
from dataclasses import fields, replace
from functools import partial

from amrg.config import DataConfig, MixPart
from amrg.data import sources
from amrg.data.sources.tables import Need
from amrg.data.splits import hash_patient_group
from amrg.data.studies import Source, Study, StudyImages
from amrg.errors import UserError


def open_source(config: DataConfig, seed: int) -> "Mix":
    """Open the data sets of ``data.mix``."""
    return Mix(config, seed)


def required_files(config: DataConfig) -> list[Need]:
    """Return one check per file or folder that a data set needs."""
    return [partial(_check, part, name) for name, part in mixed_data_configs(config).items()]


def published_counts(config: DataConfig) -> dict[str, tuple[int, int]] | None:
    """Return the numbers of studies and films per split, if the tables of all data sets tell them."""
    found = [sources.published_source_size(part) for part in mixed_data_configs(config).values()]
    total: dict[str, tuple[int, int]] = {}
    for one in found:
        if one is None:
            return None
        for split, (studies, films) in one.items():
            before = total.get(split, (0, 0))
            total[split] = before[0] + studies, before[1] + films
    return total


def mixed_data_configs(config: DataConfig) -> dict[str, DataConfig]:
    """Return the settings of each data set of ``data.mix`` by its name.

    Raises:
        UserError: there are none, one of them is a mix or the embedded data set, or two have one name.
    """
    if not config.mix:
        raise UserError("data.source mix needs data.mix, a list of data sets with source and path")
    found: dict[str, DataConfig] = {}
    for part in config.mix:
        name = part.label
        if part.source in ("mix", "openi_drr"):
            raise UserError(f"data.mix: {part.source} cannot be one of its data sets, which have real films")
        if name in found or not re.fullmatch(r"[\w-]+", name, re.ASCII):
            raise UserError(f"data.mix: the name {name!r} is given twice or has more than letters, digits, - and _")
        found[name] = _settings(config, part)
    return found


class Mix:
    """Studies of several data sets. Implements ``amrg.data.studies.Source``.

    Keys begin with the name of the data set. Patients of a ``table`` are that table's own; those of published data sets
    are the same patients in every copy, so that a patient in two splits is noticed.

    Raises:
        UserError: a data set cannot be read, or a patient is in different splits of two of them.
    """

    def __init__(self, config: DataConfig, seed: int) -> None:
        self._sources: dict[str, Source] = {}
        self._studies: list[Study] = []
        self._original: dict[str, Study] = {}
        self.left_out: dict[str, int] = {}
        splits: dict[str, set[str]] = defaultdict(set)
        for name, part in mixed_data_configs(config).items():
            source = self._sources[name] = sources.open_mixed_source(part, seed)
            for study in source.studies():
                group = hash_patient_group(f"{name} {study.group}") if part.source == "table" else study.group
                prior = f"{name}-{study.prior}" if study.prior else ""
                mixed = replace(study, key=f"{name}-{study.key}", group=group, prior=prior, dataset=name)
                splits[group].add(study.split)
                self._original[mixed.key] = study
                self._studies.append(mixed)
            self.left_out |= {f"{lack} ({name})": count for lack, count in getattr(source, "left_out", {}).items()}
        torn = sum(len(found) > 1 for found in splits.values())
        if torn:
            raise UserError(
                f"data.mix: {torn} patients are in different splits of two data sets: their reports would leak"
            )

    def studies(self) -> list[Study]:
        """Return the studies of all data sets, one after the other."""
        return list(self._studies)

    def films(self, study: Study) -> StudyImages:
        """Load the films of one study."""
        return self._sources[study.dataset].films(self._original[study.key])


def _settings(config: DataConfig, part: MixPart) -> DataConfig:
    """Return the settings of ``data`` with those that the part has."""
    own = {field.name: getattr(part, field.name) for field in fields(part) if field.name not in ("name", "weight")}
    return replace(
        config, mix=(), **{name: value for name, value in own.items() if value is not None or name == "path"}
    )


def _check(part: DataConfig, name: str) -> None:
    faults = sources.source_faults(part)
    if faults:
        raise UserError("\n".join(f"{name}: {fault}" for fault in faults))
