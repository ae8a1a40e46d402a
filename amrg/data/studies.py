"""Types that all data sets share: a study, its images, and the interface of a source."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from amrg.data.context import NO_CONTEXT, Context
from amrg.data.labels import FINDINGS, LABELS, POSITIVE
from amrg.data.text.sections import findings_section

SPLITS: tuple[str, ...] = ("train", "val", "test")


@dataclass(frozen=True)
class Study:
    """One report with its labels; pixels are loaded separately.

    Attributes:
        key: unique in the data set and safe as a WebDataset key (letters, digits, ``-`` and ``_``).
        group: hashed patient; rows of its own group are hidden from a study.
        split: one of ``SPLITS``.
        report: the cleaned target text; empty if the report lacks the chosen section. A study without text has labels
            and is used by stage 1 only.
        labels: the 14 labels by name: 1.0 positive, 0.0 negative, -1.0 uncertain, None not mentioned.
        views: projection of each film (PA, AP, LATERAL …), if the data set gives it.
        prior: key of the same patient's previous study, or empty.
        load_error: error text if the study's entry in the tables is damaged; ``prepare`` leaves such a study out.
        unlabelled: labels of which the data set says nothing: unknown in training and scores, never counted as absent.
        dataset: name of the study's data set where several are mixed, else empty.
        context: what is known before the films are read; never a text of the report.
        prior_days: days since the study ``prior``; None where the data set tells no dates.
        prior_report: what is to be read as the report of ``prior``; empty: that study's own ``report``.
        changes: true change of findings since ``prior`` (``amrg.data.prior.CHANGES``) where the data set knows it.
        impression: the impression, with which ``report`` ends, if the data keep the sections apart (``data.sections
            separate``) and the report has both; else empty.
    """

    key: str
    group: str
    split: str
    report: str
    labels: dict[str, float | None]
    views: tuple[str, ...] = ()
    prior: str = ""
    load_error: str = ""
    unlabelled: tuple[str, ...] = ()
    dataset: str = ""
    context: Context = NO_CONTEXT
    prior_days: int | None = None
    prior_report: str = ""
    changes: Mapping[str, str] = field(default_factory=dict)
    impression: str = ""

    def __post_init__(self) -> None:
        assert self.split in SPLITS, self.split
        assert self.report.endswith(self.impression), "an impression that the report does not end with"
        assert tuple(self.labels) == LABELS

    @property
    def sections(self) -> dict[str, str]:
        """``findings`` and ``impression``, the latter empty if it is not known apart."""
        return {"findings": findings_section(self.report, self.impression), "impression": self.impression}

    @property
    def positive_findings(self) -> list[str]:
        """Findings that the study's own labels state as present, in the order of ``FINDINGS``."""
        return [finding for finding in FINDINGS if self.labels[finding] == POSITIVE]


@dataclass(frozen=True)
class StudyImages:
    """The pixels of one study.

    Attributes:
        views: one or more grey films, uint8 [H, W].
        masks: true lesion extent of each finding on the first view, bool [H, W]; empty if the data set has none.
        order: place of each film in the study's ``views``, if ``amrg.data.projection`` put them in order; else empty.
        predicted: numbers of films whose view is not told that look frontal, and lateral.
        context: age and sex that DICOM films tell.
    """

    views: list[np.ndarray]
    masks: dict[str, np.ndarray] = field(default_factory=dict)
    order: tuple[int, ...] = ()
    predicted: tuple[int, int] = (0, 0)
    context: Context = NO_CONTEXT


class Source(Protocol):
    """A data set on disk. Instances are picklable: worker processes call ``films``."""

    def studies(self) -> list[Study]:
        """Return all studies in a fixed order."""
        ...

    def films(self, study: Study) -> StudyImages:
        """Load the films of one study; they depend on the study and the config's seed only."""
        ...
