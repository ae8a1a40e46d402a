"""Scores of change, by hand."""

import numpy as np
import pytest

from amrg.evaluation.temporal import CHANCE, INVENTED, TEMPORAL, TemporalScores, count_true_changes, stated_changes
from amrg.pages.score_table import temporal_rows

WORSE, STABLE = "The left pleural effusion has increased.", "Cardiomegaly is unchanged."
BETTER, NEW, PLAIN = "Left pleural effusion has decreased.", "New right pneumothorax.", "Heart size is normal."


def test_the_changes_that_texts_state() -> None:
    assert stated_changes(f"{WORSE} {STABLE}") == {("Pleural Effusion", "worse"), ("Cardiomegaly", "unchanged")}
    assert stated_changes(NEW) == {("Pneumothorax", "new")}
    assert stated_changes("Resolved interstitial edema.") == {("Edema", "improved")}
    assert stated_changes("No new consolidation.") == stated_changes(PLAIN) == frozenset()


def test_f1_chance_and_inventions_by_hand() -> None:
    """Of 4 studies: pairs (reference | generated) effusion worse | effusion worse; heart unchanged | none;
    none | heart unchanged; pneumothorax new | effusion improved.

    Hits 1, stated 3 + 3: F1 2/6. By chance Σ n·m/S over equal pairs: effusion worse 1·1/4 and heart 1·1/4, so 2·0.5/6.
    """
    references = [WORSE, STABLE, PLAIN, NEW]
    generated = [WORSE, PLAIN, STABLE, BETTER]
    scores = TemporalScores.of(references, generated, [True, True, False, False])
    found = {name: float(value[0]) for name, value in scores.scores().items()}
    assert found[TEMPORAL] == pytest.approx(2 / 6)
    assert found[CHANCE] == pytest.approx(1 / 6)
    assert found["temporal F1 worse"] == 1.0
    assert found["temporal F1 unchanged"] == found["temporal F1 new"] == found["temporal F1 improved"] == 0.0
    assert found[INVENTED] == 1.0  # both of the studies without a prior
    assert count_true_changes(generated, [{"Pleural Effusion": "improved"}, {}, {"Cardiomegaly": "unchanged"}, {}]) == {
        "stated": 2, "true": 1,
    }  # fmt: skip


def test_chance_is_the_mean_over_all_pairings() -> None:
    """Independent of the formula: F1 averaged over many random orders of the generated reports."""
    texts = [WORSE, STABLE, f"{WORSE} {STABLE}", NEW, PLAIN, STABLE, BETTER]
    generated = [STABLE, STABLE, WORSE, PLAIN, NEW, f"{BETTER} {STABLE}", PLAIN]
    expected = float(TemporalScores.of(texts, generated, [True] * 7).scores()[CHANCE][0])
    generator = np.random.default_rng(0)
    drawn = [
        float(
            TemporalScores.of(texts, [generated[i] for i in generator.permutation(7)], [True] * 7).scores()[TEMPORAL][0]
        )
        for _ in range(800)
    ]
    assert np.mean(drawn) == pytest.approx(expected, abs=0.02)


def test_resamples_and_two_runs() -> None:
    scores = TemporalScores.of([WORSE, STABLE], [WORSE, PLAIN], [True, False])
    weights = np.array([[2.0, 0.0], [0.0, 2.0]])
    assert scores.scores(weights)[TEMPORAL].tolist() == [1.0, 0.0]
    assert scores.scores(weights)[INVENTED].tolist() == pytest.approx([np.nan, 0.0], nan_ok=True)
    both = scores.concat(scores)
    assert both.scores()[TEMPORAL] == scores.scores()[TEMPORAL]
    summary = scores.summary(weights)
    assert summary[TEMPORAL]["cases"] == 2
    assert summary["temporal F1 worse"]["cases"] == summary[INVENTED]["cases"] == 1
    assert summary["temporal F1 new"] == {"value": None, "interval": None, "cases": 0}


def test_the_table_of_the_page() -> None:
    """A score without a case has no row; F1 has the pairs of the references beside it."""
    scores = TemporalScores.of([WORSE, STABLE], [WORSE, PLAIN], [True, False])
    weights = np.ones((3, 2))
    found = {"given": 1, "all": {**scores.summary(weights), "truth": {"stated": 1, "true": 1}}}
    heads, rows = temporal_rows({"temporal": found})
    assert heads == ["", "all studies"]
    assert rows[0] == ["temporal F1", "0.667 [0.667–0.667] of 2"]
    assert [row[0] for row in rows if "F1" in row[0]] == [
        "temporal F1", "temporal F1 by chance", "temporal F1 worse", "temporal F1 unchanged",
    ]  # fmt: skip
    assert rows[-2:] == [
        ["invented comparisons", "0.000 [0.000–0.000] of 1"],
        ["generated changes that are true", "1 of 1"],
    ]
    assert temporal_rows({}) == ([""], [])
