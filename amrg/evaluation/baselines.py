"""Reports one gets without a model that writes: what a generated report must beat."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from amrg.data.labels import LABELS, NO_FINDING
from amrg.errors import UserError
from amrg.evaluation.clinical import label_matrix


def most_frequent_normal(train_reports: Sequence[str]) -> str:
    """The report that most normal train studies share.

    Where texts are unique (a data set that was deduplicated), the one made of the most frequent sentences.

    Raises:
        UserError: the labeler finds no normal report.
    """
    texts = Counter(train_reports)
    distinct = sorted(texts)
    normal = [t for t, row in zip(distinct, label_matrix(distinct), strict=True) if row[LABELS.index(NO_FINDING)] == 1]
    if not normal:
        raise UserError("no train report is normal: the baseline 'most frequent normal report' cannot be formed")
    sentences = Counter(s for t in normal for s in set(_sentences(t)) for _ in range(texts[t]))

    def typical(text: str) -> tuple[float, float]:
        parts = _sentences(text)
        return texts[text], sum(sentences[s] for s in parts) / max(len(parts), 1)

    return max(normal, key=typical)


def nearest_neighbour(
    query_ND: np.ndarray, train_MD: np.ndarray, query_groups: Sequence[str], train_groups: Sequence[str]
) -> np.ndarray:
    """The train study whose image features are nearest by cosine and which is another patient's, int64 [N].

    Args:
        query_ND, train_MD: pooled stage-1 features.
        query_groups, train_groups: patient group of each row.
    """
    similarity = _normalised(query_ND) @ _normalised(train_MD).T
    similarity[np.asarray(query_groups)[:, None] == np.asarray(train_groups)[None]] = -np.inf
    return similarity.argmax(1)


def random_train(count: int, train_count: int, seed: int) -> np.ndarray:
    """A random train study for each of ``count`` studies, int64 [count]."""
    return np.random.default_rng(seed).integers(train_count, size=count)


def _sentences(text: str) -> list[str]:
    return [s.strip() for s in text.lower().split(".") if s.strip()]


def _normalised(rows: np.ndarray) -> np.ndarray:
    rows = np.asarray(rows, dtype=np.float64)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
