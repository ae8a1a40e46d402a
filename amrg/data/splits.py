"""Which study is in which split: as published, by patient, or by time; and fewer of them."""

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

from amrg.config import DataConfig
from amrg.data.studies import SPLITS, Study
from amrg.errors import UserError

TRAIN_SHARE, VAL_SHARE = 0.7, 0.1  # of patients; the rest is test


def hash_patient(name: str) -> str:
    """A patient as the group that studies carry: not to be read back from shards, banks or logs."""
    return hashlib.sha256(name.encode()).hexdigest()[:16]


def hash_uniform(seed: int, purpose: str, name: str) -> float:
    """A number in [0, 1) that depends on nothing but its arguments."""
    digest = hashlib.sha256(f"{seed}/{purpose}/{name}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def assign_splits(studies: Sequence[Study], config: DataConfig, seed: int) -> list[Study]:
    """The studies with the splits that ``data.splits`` asks for, at most as many of each as configured.

    Args:
        studies: each patient's in the order of time (a study's ``split`` is the published one).
        config: ``splits`` and the limits are read.
        seed: of the split by patient and of who is kept under a limit.

    Raises:
        UserError: a patient is in two published splits, or a split stays without a text.
    """
    chosen = {"official": _official, "patient": _by_patient, "temporal": _by_time}[config.splits](studies, seed)
    limits = dict(zip(SPLITS, (config.train_studies, config.val_studies, config.test_studies), strict=True))
    kept = []
    for split in SPLITS:
        members = [study for study in chosen if study.split == split]
        if not any(study.report for study in members):
            raise UserError(f"the split `{split}` has no studies: data.splits patient makes all three")
        # Those without a text come last: which others are kept does not depend on them.
        order = sorted(members, key=lambda study: (not study.report, hash_uniform(seed, "order", study.key)))
        first = order[: limits[split]]
        keys = {study.key for study in first}
        kept += [study for study in members if study.key in keys]
    return kept


def _official(studies: Sequence[Study], seed: int) -> list[Study]:
    of_patient: dict[str, set[str]] = defaultdict(set)
    for study in studies:
        of_patient[study.group].add(study.split)
    torn = sum(len(splits) > 1 for splits in of_patient.values())
    if torn:
        raise UserError(
            f"{torn} patients are in more than one of the published splits: their reports would leak. "
            "Use data.splits patient"
        )
    return list(studies)


def _by_patient(studies: Sequence[Study], seed: int) -> list[Study]:
    def place(group: str) -> str:
        drawn = hash_uniform(seed, "split", group)
        return "train" if drawn < TRAIN_SHARE else "val" if drawn < TRAIN_SHARE + VAL_SHARE else "test"

    return [replace(study, split=place(study.group)) for study in studies]


def _by_time(studies: Sequence[Study], seed: int) -> list[Study]:
    """Each patient's last study is test, the one before validation: of shifted dates only the order means something.

    A patient with one study is train. A patient's own earlier reports stay invisible to the later ones (groups).
    Studies without a text do not count: they go with the study before them, those before all others to train.
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
