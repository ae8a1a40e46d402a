"""Confidence: are the probabilities of stated findings right, and which errors would leaving out the least sure avoid?

A stated finding is one that a composed sentence of the report states with a probability. It is right if the reference
states it, by the labeler. A finding of several sentences of a report counts once.

Shape legend: S studies, N stated findings, K bins, B resamples.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from amrg.data.labels import LABELS
from amrg.evaluation.clinical import binarize_labels, label_matrix_of_texts
from amrg.evaluation.reports import GeneratedReport
from amrg.evaluation.statistics import percentile_interval

#: Bins of equal width of the expected calibration error (Guo et al., 2017).
BINS = 10
#: Points of the risk-coverage curve, at equal distances.
POINTS = 20


@dataclass(frozen=True)
class StatedFindings:
    """Findings that composed sentences state.

    Attributes:
        probability_N: probability that the reference states the finding.
        right_N: bool, whether it does.
        study_N: number of the study.
    """

    probability_N: np.ndarray
    right_N: np.ndarray
    study_N: np.ndarray

    @classmethod
    def of(cls, reports: Sequence[GeneratedReport], references: Sequence[str]) -> Self:
        """Collect the stated findings of one report per reference."""
        truth_SK = binarize_labels(label_matrix_of_texts(references))
        stated: dict[tuple[int, str], float] = {}
        for study, report in enumerate(reports):
            for sentence in report.sentences:
                for label, probability in sentence.probabilities.items():
                    stated[study, label] = probability
        return cls(
            np.array(list(stated.values()), dtype=np.float64),
            np.array([truth_SK[study, LABELS.index(label)] for study, label in stated], dtype=bool),
            np.array([study for study, _ in stated], dtype=np.int64),
        )

    def summary(self, weights_BS: np.ndarray, seed: int) -> dict[str, Any] | None:
        """Return the scores for JSON; None without any stated finding.

        Args:
            weights_BS: count of each study in each resample.
            seed: of the outcomes that are drawn for ``calibrated``.

        Returns:
            ``findings``, their number; ``probability``, their mean probability; ``right``, the share that is right;
            ``ece``, the expected calibration error: the mean distance of the mean probability of a bin from its share
            of right findings, weighted by findings; ``calibrated``, the error that calibrated probabilities would show
            on as many findings by chance (mean, and an interval over drawn outcomes); ``bins``, those with a finding;
            ``aurc``, the area under the risk-coverage curve, and ``risk_coverage``, its points: the ``coverage`` most
            probable findings, of which the least has ``probability``, and the share ``wrong`` of them.
        """
        if not len(self.right_N):
            return None
        count = len(self.right_N)
        draws = np.random.default_rng(seed).random((len(weights_BS), count)) < self.probability_N
        chance = _calibration_error(self._bin_N, draws - self.probability_N, np.ones((1, count)))
        weights_BN = weights_BS[:, self.study_N]
        missing_N = self.right_N - self.probability_N
        total_B = weights_BN.sum(1)
        right_B = np.where(total_B > 0, weights_BN @ self.right_N / np.maximum(total_B, 1), np.nan)
        risks = [selective_risks(self.probability_N, ~self.right_N, weights_N) for weights_N in weights_BN]
        aurc_B = np.array([risk.mean() if len(risk) else np.nan for risk in risks])
        observed = selective_risks(self.probability_N, ~self.right_N)
        return {
            "findings": count,
            "probability": float(self.probability_N.mean()),
            "right": {"value": float(self.right_N.mean()), "interval": list(percentile_interval(right_B))},
            "ece": {
                "value": float(_calibration_error(self._bin_N, missing_N[None], np.ones((1, count)))[0]),
                "interval": list(percentile_interval(_calibration_error(self._bin_N, missing_N[None], weights_BN))),
            },
            "calibrated": {"value": float(chance.mean()), "interval": list(percentile_interval(chance))},
            "bins": self._bins(),
            "aurc": {"value": float(observed.mean()), "interval": list(percentile_interval(aurc_B))},
            "risk_coverage": self._curve(observed),
        }

    @property
    def _bin_N(self) -> np.ndarray:
        return np.minimum((self.probability_N * BINS).astype(np.int64), BINS - 1)

    def _bins(self) -> list[dict[str, Any]]:
        found = []
        for k in np.unique(self._bin_N):
            inside = self._bin_N == k
            found.append(
                {
                    "from": k / BINS,
                    "to": (k + 1) / BINS,
                    "findings": int(inside.sum()),
                    "probability": float(self.probability_N[inside].mean()),
                    "right": float(self.right_N[inside].mean()),
                }
            )
        return found

    def _curve(self, risk_N: np.ndarray) -> list[dict[str, float]]:
        ordered = np.sort(self.probability_N)[::-1]
        kept = dict.fromkeys(-(-len(ordered) * i // POINTS) for i in range(1, POINTS + 1))
        return [
            {"coverage": n / len(ordered), "probability": float(ordered[n - 1]), "wrong": float(risk_N[n - 1])}
            for n in kept
        ]


def selective_risks(probability_N: np.ndarray, wrong_N: np.ndarray, weights_N: np.ndarray | None = None) -> np.ndarray:
    """Return the share that is wrong of the n most probable findings, for n from 1 to their number.

    Findings of equal probability have no order: the share is its mean over all orders of them.

    Args:
        probability_N, wrong_N: the findings.
        weights_N: how often each counts; None: once.
    """
    if weights_N is not None:
        probability_N, wrong_N = np.repeat(probability_N, weights_N), np.repeat(wrong_N, weights_N)
    _, group_N, size = np.unique(-probability_N, return_inverse=True, return_counts=True)
    mean = np.bincount(group_N, weights=wrong_N, minlength=len(size)) / size
    return np.cumsum(np.repeat(mean, size)) / np.arange(1, len(wrong_N) + 1)


def _calibration_error(bin_N: np.ndarray, missing_RN: np.ndarray, weights_BN: np.ndarray) -> np.ndarray:
    """Return the expected calibration error, [B] or [R] (the other is 1); NaN for a resample without a finding.

    Args:
        bin_N: bin of each finding.
        missing_RN: 1 or 0 for right or wrong, minus the probability.
        weights_BN: how often each finding counts.
    """
    gaps = sum(np.abs((weights_BN * missing_RN)[:, bin_N == k].sum(1)) for k in range(BINS))
    total = weights_BN.sum(1)
    return np.where(total > 0, gaps / np.maximum(total, 1), np.nan)
