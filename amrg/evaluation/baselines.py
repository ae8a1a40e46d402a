"""Baseline reports made without a generator. Generated reports must score higher."""

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from amrg.data.labels import FINDINGS, LABELS, NO_FINDING
from amrg.data.text.cleaning import normalize_for_dedup, split_sentences
from amrg.errors import UserError
from amrg.evaluation.clinical import binarize_labels, label_matrix_of_texts


def most_frequent_normal(train_reports: Sequence[str]) -> str:
    """Return the most frequent report of normal train studies.

    If texts are unique (a deduplicated data set), it is the report made of the most frequent sentences.

    Raises:
        UserError: the labeler finds no normal report.
    """
    texts = Counter(train_reports)
    distinct = sorted(texts)
    normal = [
        t
        for t, row in zip(distinct, label_matrix_of_texts(distinct), strict=True)
        if row[LABELS.index(NO_FINDING)] == 1
    ]
    if not normal:
        raise UserError("no train report is normal: the baseline 'most frequent normal report' cannot be formed")
    return _most_typical(normal, texts)


def best_constant(train_reports: Sequence[str], val_reports: Sequence[str]) -> str:
    """Return the train report, normal or not, with the highest clinical micro-F1 if written for every study.

    Ties go to the most frequent report, then to the one made of the most frequent sentences among the tied reports.

    Args:
        train_reports: candidates, at least one.
        val_reports: references to score the candidates against.
    """
    texts = Counter(train_reports)
    distinct = sorted(texts)
    columns = [LABELS.index(finding) for finding in FINDINGS]
    stated_MK = binarize_labels(label_matrix_of_texts(distinct))[:, columns]
    truth_SK = binarize_labels(label_matrix_of_texts(val_reports))[:, columns]
    # F1 = 2 TP / (stated in the references + stated in the copies)
    hits_M, all_M = stated_MK @ truth_SK.sum(0), truth_SK.sum() + len(truth_SK) * stated_MK.sum(1)
    f1_M = 2 * hits_M / np.maximum(all_M, 1)
    return _most_typical([text for text, f1 in zip(distinct, f1_M, strict=True) if f1 == f1_M.max()], texts)


def _most_typical(some: Sequence[str], counts: Mapping[str, int]) -> str:
    """Return the most frequent text; ties go to the one whose sentences are most frequent among all of ``some``."""
    sentences = Counter(s for t in some for s in set(_sentences(t)) for _ in range(counts[t]))

    def typical(text: str) -> tuple[float, float]:
        parts = _sentences(text)
        return counts[text], sum(sentences[s] for s in parts) / max(len(parts), 1)

    return max(some, key=typical)


def nearest_neighbor(
    query_ND: np.ndarray, train_MD: np.ndarray, query_groups: Sequence[str], train_groups: Sequence[str]
) -> np.ndarray:
    """Return the train study of another patient with the highest cosine similarity of image features, int64 [N].

    Args:
        query_ND, train_MD: pooled stage-1 features.
        query_groups, train_groups: patient group per row.
    """
    similarity = _normalize(query_ND) @ _normalize(train_MD).T
    similarity[np.asarray(query_groups)[:, None] == np.asarray(train_groups)[None]] = -np.inf
    return similarity.argmax(1)


def draw_train_studies(count: int, train_count: int, seed: int) -> np.ndarray:
    """Draw a train study at random for each of ``count`` studies, int64 [count]."""
    return np.random.default_rng(seed).integers(train_count, size=count)


def _sentences(text: str) -> list[str]:
    return [normalize_for_dedup(sentence) for sentence in split_sentences(text)]


def _normalize(rows: np.ndarray) -> np.ndarray:
    rows = np.asarray(rows, dtype=np.float64)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
