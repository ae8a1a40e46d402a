"""Bootstrap confidence intervals by patient group, and 2×2 tables."""

from collections.abc import Sequence

import numpy as np
from scipy import stats

#: Coverage of every interval.
CONFIDENCE = 0.95


def bootstrap_counts(groups: Sequence[str], samples: int, seed: int) -> np.ndarray:
    """Draw the count of each study in each bootstrap sample, int64 [samples, S].

    Groups are drawn with replacement, so the studies of one patient stay together.
    """
    names, index = np.unique(np.asarray(groups), return_inverse=True)
    drawn = np.random.default_rng(seed).multinomial(len(names), np.full(len(names), 1 / len(names)), size=samples)
    return drawn[:, index]


def percentile_interval(values_B: np.ndarray) -> tuple[float, float]:
    """Return the percentile interval of bootstrap values, ignoring NaN (a resample without positives)."""
    values_B = values_B[np.isfinite(values_B)]
    if not len(values_B):
        return float("nan"), float("nan")
    low, high = np.quantile(values_B, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def contingency_table(present: np.ndarray, mentioned: np.ndarray) -> dict[str, float | list[float] | None]:
    """Test whether reports of studies with a finding mention it more often than reports of studies without it.

    Args:
        present, mentioned: bool [S].

    Returns:
        Four counts, both rates of mention, the odds ratio with 0.5 added to each cell (Haldane, 1956; Anscombe,
        1956) with its Woolf interval, and the two-sided p of Fisher's exact test. With an empty cell the odds ratio
        of the counts is 0, infinite or undefined, and a finite one would come from the added halves alone: it and its
        interval are None.
    """
    a, b = int((present & mentioned).sum()), int((present & ~mentioned).sum())
    c, d = int((~present & mentioned).sum()), int((~present & ~mentioned).sum())
    cells = np.array([a, b, c, d]) + 0.5
    log_odds = np.log(cells[0] * cells[3] / (cells[1] * cells[2]))
    half = stats.norm.ppf((1 + CONFIDENCE) / 2) * np.sqrt((1 / cells).sum())
    known = all((a, b, c, d))
    return {
        "present_mentioned": a,
        "present_not_mentioned": b,
        "absent_mentioned": c,
        "absent_not_mentioned": d,
        "rate_present": a / max(a + b, 1),
        "rate_absent": c / max(c + d, 1),
        "odds_ratio": float(np.exp(log_odds)) if known else None,
        "interval": [float(np.exp(log_odds - half)), float(np.exp(log_odds + half))] if known else None,
        "p": float(stats.fisher_exact([[a, b], [c, d]]).pvalue),
    }
