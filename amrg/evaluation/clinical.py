"""Clinical efficacy: agreement of generated and reference reports on the findings that they state.

The same rule labeler reads both texts. Blank counts as absent. Uncertain counts as absent (the R2Gen convention, the
default) or as present.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from amrg.data.labels import FINDINGS, LABELS
from amrg.data.text.labeler import label_report

Uncertain = Literal["absent", "present"]

#: The five findings of the CheXpert competition (Irvin et al., 2019).
CHEXPERT_5 = ("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Pleural Effusion")

#: Labels of each average. The headline excludes "No Finding".
LABEL_SETS: dict[str, tuple[str, ...]] = {"13": FINDINGS, "14": LABELS, "5": CHEXPERT_5}


def label_matrix_of_texts(texts: Sequence[str]) -> np.ndarray:
    """Return the labels of reports, float64 [S, 14]: 1, 0, -1, and NaN for blank."""
    rows = [[np.nan if v is None else v for v in label_report(t).values()] for t in texts]
    return np.array(rows, dtype=np.float64).reshape(-1, len(LABELS))


def binarize_labels(labels_SK: np.ndarray, uncertain: Uncertain = "absent") -> np.ndarray:
    """Return whether each label counts as stated, bool of the same shape."""
    return (labels_SK == 1) | ((labels_SK == -1) & (uncertain == "present"))


@dataclass(frozen=True)
class ClinicalScores:
    """True positives, false positives and false negatives per study and label, bool [S, 14] each."""

    tp: np.ndarray
    fp: np.ndarray
    fn: np.ndarray

    @classmethod
    def from_labels(cls, truth_SK: np.ndarray, predicted_SK: np.ndarray) -> "ClinicalScores":
        """Compare the labels stated in the reference and in the generated reports, bool [S, 14] each."""
        return cls(truth_SK & predicted_SK, ~truth_SK & predicted_SK, truth_SK & ~predicted_SK)

    def micro(self, labels: Sequence[str], weights_BS: np.ndarray | None = None) -> np.ndarray:
        """Return precision, recall and F1 over the pooled studies and labels, [B, 3]."""
        columns = [LABELS.index(name) for name in labels]
        counts = np.stack([c[:, columns].sum(1) for c in (self.tp, self.fp, self.fn)], axis=1)  # [S, 3]
        return _rates(_summed(counts, weights_BS))

    def per_label(self, weights_BS: np.ndarray | None = None) -> np.ndarray:
        """Return precision, recall and F1 per label, [B, 14, 3]."""
        counts = np.stack([self.tp, self.fp, self.fn], axis=2).reshape(len(self.tp), -1)
        return _rates(_summed(counts, weights_BS).reshape(-1, len(LABELS), 3))

    def macro(self, labels: Sequence[str], weights_BS: np.ndarray | None = None) -> np.ndarray:
        """Return mean precision, recall and F1 over the labels that some reference states, [B, 3]."""
        support = (self.tp | self.fn).any(0)
        columns = [i for i in map(LABELS.index, labels) if support[i]]
        rates = self.per_label(weights_BS)
        return rates[:, columns].mean(1) if columns else np.zeros((len(rates), 3))

    def example_based(self, labels: Sequence[str], weights_BS: np.ndarray | None = None) -> np.ndarray:
        """Return precision, recall and F1 averaged over studies, [B, 3]; 1 where neither report states a label."""
        columns = [LABELS.index(name) for name in labels]
        counts = np.stack([c[:, columns].sum(1) for c in (self.tp, self.fp, self.fn)], axis=1)
        rates = _rates(counts)
        rates[counts.sum(1) == 0] = 1.0
        weights = np.ones((1, len(rates))) if weights_BS is None else weights_BS
        return weights @ rates / weights.sum(1, keepdims=True)

    def averages(self, weights_BS: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """Return precision, recall and F1, [B, 3], for each of ``micro_13``, ``macro_13``, … ``example_5``."""
        return {
            f"{kind}_{name}": average(labels, weights_BS)
            for name, labels in LABEL_SETS.items()
            for kind, average in (("micro", self.micro), ("macro", self.macro), ("example", self.example_based))
        }

    def concat(self, other: "ClinicalScores") -> "ClinicalScores":
        """Concatenate the studies of both."""
        pairs = ((self.tp, other.tp), (self.fp, other.fp), (self.fn, other.fn))
        return ClinicalScores(*(np.concatenate(pair) for pair in pairs))

    def summary(self) -> dict[str, dict]:
        """Return all averages and the per-label table, ready for JSON."""
        averages = {name: _named(value[0]) for name, value in self.averages().items()}
        support, generated = (self.tp | self.fn).sum(0), (self.tp | self.fp).sum(0)
        table = self.per_label()[0]
        per_label = {
            name: {**_named(table[i]), "reference": int(support[i]), "generated": int(generated[i])}
            for i, name in enumerate(LABELS)
        }
        return {**averages, "per_label": per_label}


def _summed(counts_SC: np.ndarray, weights_BS: np.ndarray | None) -> np.ndarray:
    return counts_SC.sum(0, keepdims=True) if weights_BS is None else weights_BS @ counts_SC.astype(np.float64)


def _rates(counts: np.ndarray) -> np.ndarray:
    """Turn (tp, fp, fn) in the last axis into (precision, recall, F1); 0 for a zero denominator, as in scikit-learn."""
    tp, fp, fn = np.moveaxis(np.asarray(counts, dtype=np.float64), -1, 0)
    safe = [np.where(d > 0, d, 1) for d in (tp + fp, tp + fn, 2 * tp + fp + fn)]
    return np.stack([tp / safe[0], tp / safe[1], 2 * tp / safe[2]], axis=-1)


def _named(rates: np.ndarray) -> dict[str, float]:
    return dict(zip(("precision", "recall", "f1"), map(float, rates), strict=True))
