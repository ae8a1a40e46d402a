"""Change since an earlier study: is what a report says of it what the reference says, or the truth, or invented?

A report's changes are pairs of a finding and ``new``, ``worse``, ``unchanged`` or ``improved``
(``amrg.data.text.statements``). F1 is micro-averaged over the pairs of all studies, as temporal F1 elsewhere (Libra,
arXiv:2411.19378, compares the set of words of change instead).

Shape legend: S studies, B resamples, C the four changes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from amrg.data.labels import FINDINGS, NEGATIVE
from amrg.data.prior import CHANGES
from amrg.data.text.repetition import mentions_prior
from amrg.data.text.statements import find_statements
from amrg.evaluation.statistics import percentile_interval

TEMPORAL, CHANCE = "temporal F1", "temporal F1 by chance"
INVENTED = "invented comparisons"


@lru_cache(maxsize=65536)
def stated_changes(text: str) -> frozenset[tuple[str, str]]:
    """Return the findings whose change a text states, with the change.

    A finding that is denied has changed only if it has gone ("has resolved"): "no new opacity" states no change.
    """
    return frozenset(
        (one.finding, one.change)
        for one in find_statements(text)
        if one.change and (one.presence != NEGATIVE or one.change == "improved")
    )


@dataclass(frozen=True)
class TemporalScores:
    """Counts per study, which determine the scores of any resample.

    Attributes:
        expected, predicted: bool [S, F·C], pairs that the reference, and the generated report, state.
        invents: bool [S], whether the generated report compares although no earlier study was given.
        alone: bool [S], whether no earlier study was given.
    """

    expected: np.ndarray
    predicted: np.ndarray
    invents: np.ndarray
    alone: np.ndarray

    @classmethod
    def of(cls, references: Sequence[str], generated: Sequence[str], given: Sequence[bool]) -> "TemporalScores":
        """Compare both texts of each study.

        Args:
            references, generated: texts, [S] each.
            given: whether the generator was given an earlier study, [S].
        """
        alone = ~np.array(given, dtype=bool)
        compares = np.array([mentions_prior(text) for text in generated], dtype=bool)
        return cls(
            _pairs(map(stated_changes, references)), _pairs(map(stated_changes, generated)), compares & alone, alone
        )

    def scores(self, weights_BS: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """Return the scores by name, [B] each; NaN where the resample has no case.

        ``CHANCE`` is the expected F1 if each generated report belonged to a study drawn at random.
        """
        weights = np.ones((1, len(self.alone))) if weights_BS is None else weights_BS
        stated = weights @ self.expected + weights @ self.predicted  # [B, F·C]
        hits = weights @ (self.expected & self.predicted)
        by_chance = (weights @ self.expected) * (weights @ self.predicted) / weights.sum(1, keepdims=True)
        by_change = {
            f"temporal F1 {change}": _f1(hits[:, place :: len(CHANGES)], stated[:, place :: len(CHANGES)])
            for place, change in enumerate(CHANGES)
        }
        return {
            TEMPORAL: _f1(hits, stated),
            CHANCE: _f1(by_chance, stated),
            **by_change,
            INVENTED: _quotient(weights @ self.invents, weights @ self.alone),
        }

    def summary(self, weights_BS: np.ndarray) -> dict[str, dict[str, Any]]:
        """Return ``value``, bootstrap ``interval`` and ``cases`` per score; None without any case.

        The cases of F1 are the pairs that references state, those of ``INVENTED`` the studies without a prior.
        """
        resampled, observed = self.scores(weights_BS), self.scores()
        found = {}
        for name, value in observed.items():
            known = bool(np.isfinite(value[0]))
            column = next((i for i, change in enumerate(CHANGES) if name.endswith(f" {change}")), None)
            pairs = self.expected if column is None else self.expected[:, column :: len(CHANGES)]
            found[name] = {
                "value": float(value[0]) if known else None,
                "interval": list(percentile_interval(resampled[name])) if known else None,
                "cases": int(self.alone.sum() if name == INVENTED else pairs.sum()),
            }
        return found

    def concat(self, other: "TemporalScores") -> "TemporalScores":
        """Concatenate the studies of both."""
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return TemporalScores(*(np.concatenate(pair) for pair in pairs))


def count_true_changes(generated: Sequence[str], truths: Sequence[Mapping[str, str]]) -> dict[str, int]:
    """Count generated statements of change about findings whose true change is known, and those that are true.

    Args:
        generated: texts, [S].
        truths: true change by finding of each study; empty if it is not known.
    """
    both = zip(generated, truths, strict=True)
    stated = [(truth[f], change) for text, truth in both for f, change in stated_changes(text) if f in truth]
    return {"stated": len(stated), "true": sum(true == change for true, change in stated)}


def _pairs(found: Any) -> np.ndarray:
    """Return whether each study has each pair, bool [S, F·C]; the change is the faster index."""
    columns = {pair: i for i, pair in enumerate((f, c) for f in FINDINGS for c in CHANGES)}
    rows = [[pair in one for pair in columns] for one in found]
    return np.array(rows, dtype=bool).reshape(-1, len(columns))


def _f1(hits_BX: np.ndarray, stated_BX: np.ndarray) -> np.ndarray:
    return _quotient(2 * hits_BX.sum(1), stated_BX.sum(1))


def _quotient(part_B: np.ndarray, total_B: np.ndarray) -> np.ndarray:
    return np.where(total_B > 0, part_B / np.where(total_B > 0, total_B, 1), np.nan)
