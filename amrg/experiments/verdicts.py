"""What paired tests say of variants, in sentences that follow from their numbers."""

from collections.abc import Mapping, Sequence

from amrg.evaluation.comparison import Difference
from amrg.experiments.aggregate import Row, Score
from amrg.experiments.registry import DETAILED, HEADLINE

#: Corrected p below which a difference is called one.
LEVEL = 0.05
#: How the judged scores are called in sentences.
F1 = "clinical micro-F1"
CALLED = {HEADLINE: F1, DETAILED: f"{F1} with details"}


def span(score: Score) -> str:
    """``0.312 [0.290, 0.331]``."""
    if score.interval is None:
        return f"{score.value:.3f}"
    low, high = score.interval
    return f"{score.value:.3f} [{low:.3f}, {high:.3f}]"


def verdict(row: Row, score: str = HEADLINE) -> str:
    """``better``, ``worse``, ``no different`` (not shown to differ) or ``the same`` (in every resample)."""
    d = row.tested(score).difference
    assert d is not None
    if d.baseline == d.candidate and d.interval == (0.0, 0.0):
        return "the same"
    if d.holm >= LEVEL:
        return "no different"
    return "better" if d.candidate > d.baseline else "worse"


def settled(row: Row, score: str = HEADLINE) -> bool:
    """Whether what the reports show of a variant is shown of its setting, too: by the test over seeds, as clearly."""
    d, seeds = row.tested(score).difference, row.tested(score).over_seeds
    assert d is not None
    return seeds is not None and seeds.holm < LEVEL and (seeds.candidate > seeds.baseline) == (d.candidate > d.baseline)


def compared(row: Row, first: Row, score: str = HEADLINE) -> str:
    """One sentence on a variant against the first."""
    tested, said, called = row.tested(score), verdict(row, score), CALLED[score]
    d = tested.difference
    assert d is not None
    if said == "the same":
        return f"“{row.name}” has exactly the {called} of “{first.name}”, in every resample."
    numbers = f"{d.candidate - d.baseline:+.3f} ({_tested(d)})"
    if tested.over_seeds is not None:
        numbers = f"{numbers[:-1]}; over {len(tested.seeds)} seeds {_tested(tested.over_seeds)})"
    if said == "no different":
        return f"“{row.name}” is not shown to differ from “{first.name}” in {called}: {numbers}."
    # Trainings may differ so by their seeds alone: then it is said of the reports, not of the setting.
    how = f"is {said} than" if settled(row, score) else f"scored {'higher' if said == 'better' else 'lower'} than"
    return f"“{row.name}” {how} “{first.name}” in {called}: {numbers}."


def _tested(d: Difference) -> str:
    low, high = d.interval
    return f"95% {low:+.3f} to {high:+.3f}, corrected p {d.holm:.3f}"


def concluded(row: Row, cases: Mapping[str, str], otherwise: str, score: str = HEADLINE) -> str:
    """What follows from the verdict on a variant, and how far."""
    said = verdict(row, score)
    if said not in cases:
        return otherwise
    if settled(row, score):
        return cases[said]
    return f"{cases[said]} So it is in these reports; that it holds for other seeds is not shown."


def paired(rows: Sequence[Row]) -> list[str]:
    """Every variant against the first in every judged score, and how much the seeds alone move the headline."""
    first = rows[0]
    against = []
    for score in first.tests:
        start = f"“{first.name}” reaches a {CALLED[score]} of {span(first.scores[score])}."
        against.append(" ".join([start, *(compared(row, first, score) for row in rows[1:])]))
    return [*against, seeds(rows)]


def seeds(rows: Sequence[Row]) -> str:
    """What several trainings of the same thing say about the differences above."""
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
    told = f"Each of {count} seeds by itself: the same variant differs by up to {spread:.3f} between seeds{tail}. "
    if all(row.tested().over_seeds is None for row in rows):
        return told + "Intervals are over patients, all seeds of a patient together: they do not speak for other seeds."
    return told + (
        "Intervals and tests are over patients, all seeds of a patient together, and again over seeds. Better or worse "
        f"is said only where both show it. A test of {count} seeds sees only what is large beside their spread, and "
        "takes that spread to be normal."
    )


def silent(rows: Sequence[Row]) -> str:
    """What is to be said where no variant states a single finding rightly; empty elsewhere."""
    if any(row.scores[HEADLINE].value > 0 for row in rows):
        return ""
    return "No variant states a single finding rightly: nothing can be concluded."
