"""Verdicts of the paired tests as sentences, generated from their numbers."""

from collections.abc import Mapping, Sequence

from amrg.evaluation.comparison import Difference
from amrg.experiments.aggregate import Row, Score
from amrg.experiments.registry import DETAILED, HEADLINE

#: Significance level for corrected p.
LEVEL = 0.05
#: Names of the judged scores in sentences.
F1 = "clinical micro-F1"
CALLED = {HEADLINE: F1, DETAILED: f"{F1} with details"}


def format_score_span(score: Score) -> str:
    """Format a score as ``0.312 [0.290, 0.331]``."""
    if score.interval is None:
        return f"{score.value:.3f}"
    low, high = score.interval
    return f"{score.value:.3f} [{low:.3f}, {high:.3f}]"


def score_verdict(row: Row, score: str = HEADLINE) -> str:
    """Return ``better``, ``worse``, ``no different`` (not significant) or ``the same`` (equal in every resample)."""
    d = row.tested(score).difference
    assert d is not None
    if d.baseline == d.candidate and d.interval == (0.0, 0.0):
        return "the same"
    if d.holm >= LEVEL:
        return "no different"
    return "better" if d.candidate > d.baseline else "worse"


def seeds_confirm(row: Row, score: str = HEADLINE) -> bool:
    """Return whether the seed-level t-test confirms the patient-level result."""
    d, seeds = row.tested(score).difference, row.tested(score).over_seeds
    assert d is not None
    return seeds is not None and seeds.holm < LEVEL and (seeds.candidate > seeds.baseline) == (d.candidate > d.baseline)


def compare_with_sentence(row: Row, first: Row, score: str = HEADLINE) -> str:
    """Compare a variant with the first in one sentence."""
    tested, outcome, called = row.tested(score), score_verdict(row, score), CALLED.get(score, score)
    d = tested.difference
    assert d is not None
    if outcome == "the same":
        return f"“{row.name}” has exactly the {called} of “{first.name}”, in every resample."
    numbers = f"{d.candidate - d.baseline:+.3f} ({_tested(d)})"
    if tested.over_seeds is not None:
        numbers = f"{numbers[:-1]}; {_over_seeds(tested.over_seeds, len(tested.seeds))})"
    if outcome == "no different":
        return f"“{row.name}” is not shown to differ from “{first.name}” in {called}: {numbers}."
    # Without a confirmed seed-level test the seed may explain the difference, so the sentence is about reports only.
    how = (
        f"is {outcome} than"
        if seeds_confirm(row, score)
        else f"scored {'higher' if outcome == 'better' else 'lower'} than"
    )
    return f"“{row.name}” {how} “{first.name}” in {called}: {numbers}."


def _over_seeds(d: Difference, count: int) -> str:
    low, high = d.interval
    if low == high:
        return f"the same in each of {count} seeds, which is no evidence for other trainings of what was decided before"
    return f"over {count} seeds {_tested(d)}"


def _tested(d: Difference) -> str:
    low, high = d.interval
    return f"95% {low:+.3f} to {high:+.3f}, corrected p {d.holm:.3f}"


def conclude_verdict(row: Row, cases: Mapping[str, str], otherwise: str, score: str = HEADLINE) -> str:
    """Return the conclusion for the verdict on a variant, restricted to these reports unless seeds confirm it."""
    outcome = score_verdict(row, score)
    if outcome not in cases:
        return otherwise
    if seeds_confirm(row, score):
        return cases[outcome]
    return f"{cases[outcome]} So it is in these reports; that it holds for other seeds is not shown."


def describe_paired_tests(rows: Sequence[Row]) -> list[str]:
    """Compare every variant with the first in every judged score, and state the spread between seeds."""
    first = rows[0]
    against = []
    for score in first.tests:
        start = f"“{first.name}” reaches a {CALLED.get(score, score)} of {format_score_span(first.scores[score])}."
        against.append(" ".join([start, *(compare_with_sentence(row, first, score) for row in rows[1:])]))
    return [*against, describe_seed_spread(rows)]


def describe_seed_spread(rows: Sequence[Row]) -> str:
    """State the spread between seeds, and compare it with the differences between variants."""
    spread = max(max(row.tested().seeds) - min(row.tested().seeds) for row in rows)
    count = len(rows[0].tested().seeds)
    if count == 1:
        return (
            "One training each: how much another seed would move these scores is not known, and no difference between "
            "settings is shown. Intervals and tests are over patients: they are about these trainings' reports."
        )
    gaps = [abs(row.scores[HEADLINE].value - rows[0].scores[HEADLINE].value) for row in rows[1:]]
    small = sum(gap < spread for gap in gaps)
    tail = f"; {small} of {len(gaps)} differences are smaller than that" if gaps else ""
    text = f"Each of {count} seeds by itself: the same variant differs by up to {spread:.3f} between seeds{tail}. "
    if all(row.tested().over_seeds is None for row in rows):
        return text + "Intervals are over patients, all seeds of a patient together: they do not speak for other seeds."
    return text + (
        "Intervals and tests are over patients, all seeds of a patient together, and again over seeds. Better or worse "
        f"is said only where both show it. A test of {count} seeds sees only what is large beside their spread, and "
        "takes that spread to be normal."
    )


def describe_no_findings(rows: Sequence[Row]) -> str:
    """Return a sentence if no variant states any finding correctly; empty otherwise."""
    if any(row.scores[HEADLINE].value > 0 for row in rows):
        return ""
    return "No variant states a single finding rightly: nothing can be concluded."
