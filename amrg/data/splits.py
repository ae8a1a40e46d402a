"""Assignment of studies to splits: as published, by patient or by time, with an optional limit per split."""

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

from amrg.config import DataConfig
from amrg.data.studies import SPLITS, Study
from amrg.errors import UserError

#: First words of the names that the sources hash.
FAMILIES = ("mimic", "chexpert", "iu", "padchest", "vindr", "rexgradient", "table")

TRAIN_SHARE, VAL_SHARE = 0.7, 0.1  # of patients; the rest is test


def hash_patient_group(name: str) -> str:
    """Hash a patient to the group of its studies, which does not reveal the patient in shards, banks or logs."""
    return hashlib.sha256(name.encode()).hexdigest()[:16]


def patient_groups(patient: str) -> set[str]:
    """Return the groups that a patient may have in any source, by the data set's own number or by the group itself."""
    return {patient, hash_patient_group(patient), *(hash_patient_group(f"{family} {patient}") for family in FAMILIES)}


def uniform_from_hash(seed: int, purpose: str, name: str) -> float:
    """Return a number in [0, 1) that depends on the arguments only."""
    digest = hashlib.sha256(f"{seed}/{purpose}/{name}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def assign_splits(studies: Sequence[Study], config: DataConfig, seed: int) -> list[Study]:
    """Assign the splits of ``data.splits`` and keep at most the configured number of studies per split.

    Args:
        studies: the studies of each patient in order of time; ``split`` is the published split.
        config: ``splits`` and the limits are read.
        seed: seed of the split by patient and of the studies kept under a limit.

    Raises:
        UserError: a patient is in two published splits.
    """
    chosen = {"official": _official, "patient": _by_patient, "temporal": _by_time}[config.splits](studies, seed)
    limits = dict(zip(SPLITS, (config.train_studies, config.val_studies, config.test_studies), strict=True))
    kept = []
    for split in SPLITS:
        members = [study for study in chosen if study.split == split]
        # Studies without a text come last, so they do not change which others are kept.
        order = sorted(members, key=lambda study: (not study.report, uniform_from_hash(seed, "order", study.key)))
        first = order[: limits[split]]
        keys = {study.key for study in first}
        kept += [study for study in members if study.key in keys]
    return kept


def _official(studies: Sequence[Study], seed: int) -> list[Study]:
    patient_splits: dict[str, set[str]] = defaultdict(set)
    for study in studies:
        patient_splits[study.group].add(study.split)
    in_several = sum(len(splits) > 1 for splits in patient_splits.values())
    if in_several:
        raise UserError(
            f"{in_several} patients are in more than one of the published splits: their reports would leak. "
            "Use data.splits patient"
        )
    return list(studies)


def _by_patient(studies: Sequence[Study], seed: int) -> list[Study]:
    def draw_split(group: str) -> str:
        drawn = uniform_from_hash(seed, "split", group)
        return "train" if drawn < TRAIN_SHARE else "val" if drawn < TRAIN_SHARE + VAL_SHARE else "test"

    return [replace(study, split=draw_split(study.group)) for study in studies]


def _by_time(studies: Sequence[Study], seed: int) -> list[Study]:
    """Assign each patient's last study to test and the one before to val; shifted dates keep only the order.

    A patient's only study is train. Retrieval never returns a patient's own earlier reports (groups). Studies without
    a text are not counted: they take the split of the study before them, or train if there is none.
    """
    number: dict[str, int] = defaultdict(int)
    total: dict[str, int] = defaultdict(int)
    for study in studies:
        total[study.group] += bool(study.report)
    result = []
    for study in studies:
        number[study.group] += bool(study.report)
        from_end = total[study.group] - number[study.group]
        alone = total[study.group] == 1 or not number[study.group]
        split = "train" if alone else ("test", "val")[from_end] if from_end < 2 else "train"
        result.append(replace(study, split=split))
    return result
