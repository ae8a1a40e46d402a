"""What an experiment showed, in sentences that follow from its numbers."""

from collections.abc import Callable, Mapping, Sequence

from amrg.evaluation.comparison import Difference
from amrg.experiments.measure import HEADLINE, Row, Score

#: Corrected p below which a difference is called one.
LEVEL = 0.05
#: How the headline score is called in sentences.
F1 = "clinical micro-F1"


def span(score: Score) -> str:
    """``0.312 [0.290, 0.331]``."""
    if score.interval is None:
        return f"{score.value:.3f}"
    low, high = score.interval
    return f"{score.value:.3f} [{low:.3f}, {high:.3f}]"


def verdict(row: Row) -> str:
    """``better``, ``worse``, ``no different`` (not shown to differ) or ``the same`` (in every resample)."""
    d = row.difference
    assert d is not None
    if d.first == d.other and d.interval == (0.0, 0.0):
        return "the same"
    if d.holm >= LEVEL:
        return "no different"
    return "better" if d.other > d.first else "worse"


def settled(row: Row) -> bool:
    """Whether what the reports show of a variant is shown of its setting, too: by the test over seeds, as clearly."""
    d, seeds = row.difference, row.over_seeds
    assert d is not None
    return seeds is not None and seeds.holm < LEVEL and (seeds.other > seeds.first) == (d.other > d.first)


def compared(row: Row, first: Row) -> str:
    """One sentence on a variant against the first."""
    d, said = row.difference, verdict(row)
    assert d is not None
    if said == "the same":
        return f"“{row.name}” has exactly the {F1} of “{first.name}”, in every resample."
    numbers = f"{d.other - d.first:+.3f} ({_tested(d)})"
    if row.over_seeds is not None:
        numbers = f"{numbers[:-1]}; over {len(row.seeds)} seeds {_tested(row.over_seeds)})"
    if said == "no different":
        return f"“{row.name}” is not shown to differ from “{first.name}” in {F1}: {numbers}."
    # Trainings may differ so by their seeds alone: then it is said of the reports, not of the setting.
    how = f"is {said} than" if settled(row) else f"scored {'higher' if said == 'better' else 'lower'} than"
    return f"“{row.name}” {how} “{first.name}” in {F1}: {numbers}."


def _tested(d: Difference) -> str:
    low, high = d.interval
    return f"95% {low:+.3f} to {high:+.3f}, corrected p {d.holm:.3f}"


def concluded(row: Row, cases: Mapping[str, str], otherwise: str) -> str:
    """What follows from the verdict on a variant, and how far."""
    said = verdict(row)
    if said not in cases:
        return otherwise
    if settled(row):
        return cases[said]
    return f"{cases[said]} So it is in these reports; that it holds for other seeds is not shown."


def paired(rows: Sequence[Row]) -> list[str]:
    """Every variant against the first, and how much the seeds alone move the score."""
    first = rows[0]
    start = f"“{first.name}” reaches a {F1} of {span(first.scores[HEADLINE])}."
    return [" ".join([start, *(compared(row, first) for row in rows[1:])]), seeds(rows)]


def seeds(rows: Sequence[Row]) -> str:
    """What several trainings of the same thing say about the differences above."""
    spread = max(max(row.seeds) - min(row.seeds) for row in rows)
    count = len(rows[0].seeds)
    if count == 1:
        return (
            "One training each: how much another seed would move these scores is not known, and no difference between "
            "settings is shown. Intervals and tests are over patients: they are about these trainings' reports."
        )
    gaps = [abs(row.scores[HEADLINE].value - rows[0].scores[HEADLINE].value) for row in rows[1:]]
    small = sum(gap < spread for gap in gaps)
    tail = f"; {small} of {len(gaps)} differences are smaller than that" if gaps else ""
    told = f"Each of {count} seeds by itself: the same variant differs by up to {spread:.3f} between seeds{tail}. "
    if all(row.over_seeds is None for row in rows):
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


def ablation(rows: Sequence[Row]) -> list[str]:
    """Does memory help, and does it matter what it holds?"""
    if nothing := silent(rows):
        return [nothing, *paired(rows)]
    named = {row.name: row for row in rows}
    off, mismatched = named["both off"], named["mismatched memory"]
    helps = concluded(
        off,
        {
            "worse": "With both memories on the reports are better than without any: memory helps here.",
            "better": "With both memories off the reports are better: memory does harm here.",
        },
        "That memory helps is not shown here: with both memories off the score is not shown to be worse.",
    )
    matters = concluded(
        mismatched,
        {
            "worse": "Memory retrieved for another patient does harm, so what is retrieved is used.",
            "better": "Memory retrieved for another patient does even better, so what it holds is not why it helps.",
        },
        "Memory retrieved for another patient is not shown to do harm: that the generator uses what is retrieved for "
        "its own film is not shown either.",
    )
    return [f"{helps} {matters}", *paired(rows)]


def beta(rows: Sequence[Row]) -> list[str]:
    """Speed, spread and score along β."""
    if nothing := silent(rows):
        return [nothing, *paired(rows)]
    speed = {row.name: row.facts["epochs to common loss"] for row in rows}
    fastest, slowest = min(speed, key=lambda n: speed[n]), max(speed, key=lambda n: speed[n])
    best = max(rows, key=lambda row: row.scores[HEADLINE].value)
    ordered = sorted((row for row in rows if row.x is not None), key=lambda row: row.x or 0.0)
    low, high = ordered[0], ordered[-1]
    spread = " and ".join(
        f"from {low.facts[name]:.1f} to {high.facts[name]:.1f} rows ({name.split()[0]} bank)"
        for name in ("visual perplexity", "report perplexity")
        if name in low.facts and name in high.facts
    )
    ahead = "The fastest also has" if fastest == best.name else f"Not the fastest but {best.name} has"
    text = (
        f"The validation loss that all trainings reach is reached first by {fastest} (after {speed[fastest]:.1f} "
        f"epochs) and last by {slowest} ({speed[slowest]:.1f}). "
        f"{ahead} the highest {F1}, "
        f"{span(best.scores[HEADLINE])}."
    )
    return [
        text + (f" From {low.name} to {high.name} a query spreads {spread}." if spread else ""),
        *paired(rows),
    ]


def per_class(rows: Sequence[Row]) -> list[str]:
    """Which way of sampling is ahead for how many findings."""
    findings = [name for name in rows[0].scores if name.startswith("F1 ") and not name[-1].isdigit()]
    ahead = dict.fromkeys((row.name for row in rows), 0)
    silent = []
    for name in findings:
        values = [row.scores[name].value for row in rows]
        if max(values) == 0:
            silent.append(name.removeprefix("F1 "))
        elif values.count(max(values)) == 1:
            ahead[rows[values.index(max(values))].name] += 1
    told = ", ".join(f"“{name}” for {count}" for name, count in ahead.items())
    text = f"Of {len(findings)} findings in the references, highest F1 (alone): {told}."
    if silent:
        text += (
            f" None ever writes {', '.join(silent)}." if len(silent) < len(findings) else " None writes any of them."
        )
    return [text + " Single findings are few: these counts are no test.", *paired(rows)]


def temporal(rows: Sequence[Row]) -> list[str]:
    """Two test sets, so two intervals and no paired test."""
    a, b = rows
    one, two = a.scores[HEADLINE], b.scores[HEADLINE]
    assert one.interval is not None
    assert two.interval is not None
    apart = one.interval[1] < two.interval[0] or two.interval[1] < one.interval[0]
    said = "apart" if apart else "overlapping, so a loss over time is neither shown nor excluded"
    return [
        f"{F1[0].upper()}{F1[1:]} is {span(one)} “{a.name}” and {span(two)} “{b.name}”: intervals {said}. "
        "The two are scored on different studies and trained on different ones, so part of any difference may be the "
        "studies themselves.",
        seeds(rows),
    ]


def leakage(rows: Sequence[Row]) -> list[str]:
    """How much the fault is worth, and what masking the patient prevents."""
    if nothing := silent(rows):
        return [nothing, *paired(rows)]
    masked, leaked = rows[2], rows[3]
    gain = leaked.difference
    assert gain is not None
    worth = concluded(
        leaked,
        {
            "better": f"The fault is worth {gain.other - gain.first:+.3f} {F1}: scores with it cannot be believed.",
            "worse": "The fault lowers the score here: the generator does not profit from finding the answer.",
        },
        "That the fault raises the score is not shown here: at this scale the generator does not visibly copy the "
        "answer that it could retrieve.",
    )
    prevented = (
        "Hiding a patient's own rows, which this code does, prevents it even then."
        if verdict(leaked) == "better" and verdict(masked) != "better"
        else ""
    )
    return [f"{worth} {prevented}".strip(), *paired(rows)]


def thresholds(rows: Sequence[Row]) -> list[str]:
    """Which τ agrees best with the lesions, and what the published ones cost."""
    best = max(rows, key=lambda row: row.scores["IoU"].value)
    emptiest = max(rows, key=lambda row: row.scores["empty masks"].value)
    apart = [row for row in rows if _apart(row.scores["IoU"], best.scores["IoU"])]
    others = ", ".join(row.name for row in rows if row is not best and row not in apart)
    text = f"The mask agrees best with the lesion at {best.name}: IoU {span(best.scores['IoU'])}."
    text += f" Its interval overlaps that of {others}." if others else " All others are apart from it."
    half = best.scores["IoU"].value
    text += " Even so, most of lesion and mask do not overlap." if half < 1 / 3 else ""
    return [
        f"{text} The peak lies in the lesion in {span(best.scores['pointing'])} of cases there. At {emptiest.name} "
        f"nothing is left of {span(emptiest.scores['empty masks'])} of the maps."
    ]


def methods(rows: Sequence[Row]) -> list[str]:
    """Which map points best, and whether the reports notice."""
    if "pointing" not in rows[0].scores:
        return ["The data has no lesion masks to compare maps with.", *paired(rows)]
    best = max(rows, key=lambda row: row.scores["pointing"].value)
    told = "; ".join(f"{row.name} {span(row.scores['pointing'])}" for row in rows)
    apart = all(row is best or _apart(row.scores["pointing"], best.scores["pointing"]) for row in rows)
    sure = "apart from all others" if apart else "not apart from all others"
    control = best.scores["over control"]
    assert control.interval is not None
    knows = "more than" if control.interval[0] > 1 else "not shown to be more than"
    text = (
        f"The peak lies in the true lesion: {told}. Highest is {best.name}, its interval {sure}. Its activation inside "
        f"the lesion is {span(control)} times that inside other studies' lesions of the same finding: {knows} a "
        "map that only knows where such lesions usually are."
    )
    return [text, *paired(rows)]


def _apart(a: Score, b: Score) -> bool:
    assert a.interval is not None
    assert b.interval is not None
    return a.interval[1] < b.interval[0] or b.interval[1] < a.interval[0]


#: By experiment; the others say what ``paired`` says.
WORDS: dict[str, Callable[[Sequence[Row]], list[str]]] = {
    "mask-threshold": thresholds,
    "cam-method": methods,
    "beta": beta,
    "memory-ablation": ablation,
    "bank-sampling": per_class,
    "temporal": temporal,
    "leakage": leakage,
}


def sentences(name: str, rows: Sequence[Row]) -> list[str]:
    """The paragraphs of an experiment."""
    return WORDS.get(name, paired)(rows)
