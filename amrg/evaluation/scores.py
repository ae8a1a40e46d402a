"""Scores of the model and its baselines on the same studies."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from amrg.data.labels import FINDINGS, LABELS
from amrg.evaluation.clinical import ClinicalScores, binarize_labels, label_matrix_of_texts
from amrg.evaluation.details import DetailScores
from amrg.evaluation.language import NO_CIDER, LanguageScores, run_meteor_jar, score_language
from amrg.evaluation.statistics import bootstrap_counts, contingency_table, percentile_interval
from amrg.evaluation.text_statistics import text_statistics

MODEL = "model"


def score_systems(
    references: Sequence[str],
    systems: Mapping[str, Sequence[str]],
    groups: Sequence[str],
    samples: int,
    seed: int,
    meteor_timeout: float | None,
    masks: Sequence[Mapping[str, np.ndarray]] | None = None,
) -> dict[str, dict[str, Any]]:
    """Compute language, clinical and detail scores of each system, with bootstrap intervals by patient.

    Args:
        references: full reference reports, [S].
        systems: reports for the same studies by system. The first is the model; every other system receives
            ``model_minus_this``, the paired difference in the headline clinical F1 with its interval.
        groups: patient of each study.
        samples, seed: number of bootstrap resamples, and their seed.
        meteor_timeout: seconds; None leaves METEOR out.
        masks: true lesions per study by finding, bool [H, W]; None if unknown.
    """
    weights = bootstrap_counts(groups, samples, seed)
    truth = label_matrix_of_texts(references)
    meteor_scores: dict[str, float] | str = "unavailable: turned off in the configuration"
    if meteor_timeout is not None:
        meteor_scores = run_meteor_jar(references, systems, meteor_timeout)
    scores: dict[str, dict[str, Any]] = {}
    headline: dict[str, tuple[float, np.ndarray]] = {}
    for name, texts in systems.items():
        language = score_language(_keyed(references), _keyed(texts))
        predicted = label_matrix_of_texts(texts)
        strict, lenient = (
            ClinicalScores.from_labels(binarize_labels(truth, p), binarize_labels(predicted, p))
            for p in ("absent", "present")
        )
        scores[name] = {
            "language": _with_intervals(language, weights),
            "wording": text_statistics(texts),
            "clinical": strict.summary() | {"intervals": _clinical_intervals(strict, weights)},
            "clinical_uncertain_as_present": lenient.summary() | {"intervals": _clinical_intervals(lenient, weights)},
        }
        details = DetailScores.of(references, texts, masks)
        scores[name]["details"] = details.summary(weights)
        scores[name]["details_per_finding"] = details.per_finding()
        scores[name]["language"]["METEOR"] = meteor_scores if isinstance(meteor_scores, str) else meteor_scores[name]
        headline[name] = float(strict.micro(FINDINGS)[0, 2]), strict.micro(FINDINGS, weights)[:, 2]
    judged, *baselines = systems
    for name in baselines:
        difference = headline[judged][1] - headline[name][1]
        scores[name]["model_minus_this"] = {
            "value": headline[judged][0] - headline[name][0],
            "interval": list(percentile_interval(difference)),
        }
    return scores


def mention_tables(
    present_SK: np.ndarray, generated: Sequence[str], known_SK: np.ndarray | None = None
) -> dict[str, dict[str, Any]]:
    """Return ``contingency_table`` of presence and mention, per finding that some studies have and some lack.

    Args:
        present_SK: bool [S, 14], the studies' own labels.
        generated: generated reports, [S].
        known_SK: bool [S, 14], labels that the study's data set has; others are left out. None: all.
    """
    mentioned = binarize_labels(label_matrix_of_texts(generated))
    tables = {}
    for finding in FINDINGS:
        k = LABELS.index(finding)
        known = slice(None) if known_SK is None else known_SK[:, k]
        present = present_SK[known, k]
        if 0 < present.sum() < len(present):
            tables[finding] = contingency_table(present, mentioned[known, k])
    return tables


def _with_intervals(language: LanguageScores, weights: np.ndarray) -> dict[str, Any]:
    resampled = language.corpus(weights)
    return {
        name: {"value": float(value[0]), "interval": list(percentile_interval(resampled[name]))}
        if np.isfinite(value[0])
        else {"value": None, "interval": None, "reason": NO_CIDER}
        for name, value in language.corpus().items()
    }


def _clinical_intervals(scores: ClinicalScores, weights: np.ndarray) -> dict[str, list[float]]:
    """Return the intervals of F1 by average."""
    return {name: list(percentile_interval(values[:, 2])) for name, values in scores.averages(weights).items()}


def _keyed(texts: Sequence[str]) -> dict[str, str]:
    return {f"{i:08d}": text for i, text in enumerate(texts)}
