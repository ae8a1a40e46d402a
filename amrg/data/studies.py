"""What a study is, whatever data set it came from, and what a source must offer."""

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from amrg.data.labels import FINDINGS, LABELS, POSITIVE

SPLITS: tuple[str, ...] = ("train", "val", "test")


@dataclass(frozen=True)
class Study:
    """One report with its labels; pixels are loaded separately.

    Attributes:
        key: unique in the data set and safe as a WebDataset key (letters, digits, ``-`` and ``_``).
        group: hashed patient; memory rows of a study's own group are invisible to it.
        split: one of ``SPLITS``.
        report: the cleaned text that the model should write; empty where the report lacks the chosen section: such a
            study has labels, trains stage 1 and is seen by no other step.
        labels: the 14 labels by name: 1.0 positive, 0.0 negative, -1.0 uncertain, None not mentioned.
        views: projection of each film (PA, AP, LATERAL …) where the data set tells.
        prior: key of the same patient's study before this one, or empty.
        load_error: why it cannot be used, if its entry in the tables is damaged; ``prepare`` leaves it out.
    """

    key: str
    group: str
    split: str
    report: str
    labels: dict[str, float | None]
    views: tuple[str, ...] = ()
    prior: str = ""
    load_error: str = ""

    def __post_init__(self) -> None:
        assert self.split in SPLITS, self.split
        assert tuple(self.labels) == LABELS

    @property
    def positive_findings(self) -> list[str]:
        """Findings that the study's own labels state as present, in the order of ``FINDINGS``."""
        return [finding for finding in FINDINGS if self.labels[finding] == POSITIVE]


@dataclass(frozen=True)
class StudyImages:
    """The pixels of one study.

    Attributes:
        views: one or more grey films, uint8 [H, W].
        masks: true lesion extent on the first view by finding, bool [H, W]; empty where the data set has none.
    """

    views: list[np.ndarray]
    masks: dict[str, np.ndarray] = field(default_factory=dict)


class Source(Protocol):
    """A data set on disk. Instances are picklable: worker processes call ``films``."""

    def studies(self) -> list[Study]:
        """All studies in a fixed order."""
        ...

    def films(self, study: Study) -> StudyImages:
        """The films of one study: a function of the study (and the config's seed) alone."""
        ...
