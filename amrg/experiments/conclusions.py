"""Conclusions of each experiment as sentences, generated from its numbers."""

from collections.abc import Callable, Mapping, Sequence

from amrg.experiments.aggregate import LOST, Row, Score
from amrg.experiments.registry import DETAILED, HEADLINE
from amrg.experiments.retrieval_relevance import BASE
from amrg.experiments.verdicts import (
    CALLED,
    F1,
    conclude_verdict,
    describe_no_findings,
    describe_paired_tests,
    describe_seed_spread,
    format_score_span,
    score_verdict,
)


def conclude_ablation(rows: Sequence[Row]) -> list[str]:
    """Conclude whether memory helps, and whether its content matters."""
    if nothing := describe_no_findings(rows):
        return [nothing, *describe_paired_tests(rows)]
    named = {row.name: row for row in rows}
    off, mismatched = named["both off"], named["mismatched memory"]
    helps = conclude_verdict(
        off,
        {
            "worse": "With both memories on the reports are better than without any: memory helps here.",
            "better": "With both memories off the reports are better: memory does harm here.",
        },
        "That memory helps is not shown here: with both memories off the score is not shown to be worse.",
    )
    matters = conclude_verdict(
        mismatched,
        {
            "worse": "Memory retrieved for another patient does harm, so what is retrieved is used.",
            "better": "Memory retrieved for another patient does even better, so what it holds is not why it helps.",
        },
        "Memory retrieved for another patient is not shown to do harm: that the generator uses what is retrieved for "
        "its own film is not shown either.",
    )
    return [f"{helps} {matters}", *_details_of(named), *describe_relevance(rows[:1]), *describe_paired_tests(rows)]


def _details_of(named: Mapping[str, Row]) -> list[str]:
    """Conclude how the visual memory, and its content, affect details; empty if details are not judged."""
    unseen, mismatched = named["visual memory off"], named["mismatched memory"]
    if DETAILED not in unseen.tests:
        return []
    gives = conclude_verdict(
        unseen,
        {
            "worse": "Details are worse without the visual memory: what regions retrieve reaches the words.",
            "better": "Details are better without the visual memory: what regions retrieve does harm.",
        },
        "That the visual memory gives details is not shown here.",
        DETAILED,
    )
    whose = conclude_verdict(
        mismatched,
        {
            "worse": "With memory retrieved for another patient details are worse.",
            "better": "With memory retrieved for another patient details are even better.",
        },
        "That details come from what was retrieved for the own film is not shown: another patient's do no visible "
        "harm.",
        DETAILED,
    )
    return [f"{gives} {whose}"]


def describe_relevance(rows: Sequence[Row]) -> list[str]:
    """State the share of a finding's association on rows of that finding, for each memory with this score."""
    parts = []
    for memory in ("visual", "report"):
        of = [_relevance(row, memory) for row in rows if f"{memory} relevance" in row.scores]
        if of:
            parts.append(
                f"Share of a finding's own association in the {memory} memory that falls on rows of that finding, "
                f"where the film has it: {'; '.join(of)}."
            )
    return parts


def _relevance(row: Row, memory: str) -> str:
    """Format ``“name” 0.7 [0.6, 0.8] (0.1 [0.0, 0.2] where the film lacks it, 0.143 of the rows)``."""
    context = [f"{row.diagnostics[f'{memory} {BASE}']:.3f} of the rows"]
    if lacking := row.scores.get(f"{memory} relevance, absent"):
        context.insert(0, f"{format_score_span(lacking)} where the film lacks it")
    return f"“{row.name}” {format_score_span(row.scores[f'{memory} relevance'])} ({', '.join(context)})"


def conclude_region_query(rows: Sequence[Row]) -> list[str]:
    """Compare the queries of the visual memory by relevance and by report scores."""
    return [*describe_relevance(rows), *describe_paired_tests(rows)]


def conclude_grounding(rows: Sequence[Row]) -> list[str]:
    """Compare the supports of recalled sentences by detail scores."""
    parts = []
    for name in ("side exact", "side opposite", "zone exact", "device kind", "unsupported details"):
        if of := [f"“{row.name}” {format_score_span(row.scores[name])}" for row in rows if name in row.scores]:
            parts.append(f"{name.capitalize()}: {'; '.join(of)}.")
    return [*([" ".join(parts)] if parts else []), *describe_paired_tests(rows)]


def conclude_retrieval(rows: Sequence[Row]) -> list[str]:
    """Compare every variant with the first, and state the number of missing copies."""
    paragraphs = describe_paired_tests(rows)
    if lost := [f"{row.diagnostics[LOST]:.0f} of “{row.name}”" for row in rows if LOST in row.diagnostics]:
        paragraphs.append(
            "Reports that could not be copied, as no row was retrieved whose study is in the data, and that count as "
            f"empty: {', '.join(lost)}."
        )
    return paragraphs


def conclude_beta(rows: Sequence[Row]) -> list[str]:
    """Conclude on training speed, association spread and score along β."""
    if nothing := describe_no_findings(rows):
        return [nothing, *describe_paired_tests(rows)]
    speed = {row.name: row.diagnostics["epochs to common loss"] for row in rows}
    fastest, slowest = min(speed, key=lambda n: speed[n]), max(speed, key=lambda n: speed[n])
    best = max(rows, key=lambda row: row.scores[HEADLINE].value)
    ordered = sorted((row for row in rows if row.x is not None), key=lambda row: row.x or 0.0)
    low, high = ordered[0], ordered[-1]
    spread = " and ".join(
        f"from {low.diagnostics[name]:.1f} to {high.diagnostics[name]:.1f} rows ({name.split()[0]} bank)"
        for name in ("visual perplexity", "report perplexity")
        if name in low.diagnostics and name in high.diagnostics
    )
    ahead = "The fastest also has" if fastest == best.name else f"Not the fastest but {best.name} has"
    text = (
        f"The validation loss that all trainings reach is reached first by {fastest} (after {speed[fastest]:.1f} "
        f"epochs) and last by {slowest} ({speed[slowest]:.1f}). "
        f"{ahead} the highest {F1}, "
        f"{format_score_span(best.scores[HEADLINE])}."
    )
    return [
        text + (f" From {low.name} to {high.name} a query spreads {spread}." if spread else ""),
        *describe_paired_tests(rows),
    ]


def conclude_per_class(rows: Sequence[Row]) -> list[str]:
    """Count the findings for which each sampling has the highest F1."""
    findings = [name for name in rows[0].scores if name.startswith("F1 ") and not name[-1].isdigit()]
    ahead = dict.fromkeys((row.name for row in rows), 0)
    no_finding_stated = []
    for name in findings:
        values = [row.scores[name].value for row in rows]
        if max(values) == 0:
            no_finding_stated.append(name.removeprefix("F1 "))
        elif values.count(max(values)) == 1:
            ahead[rows[values.index(max(values))].name] += 1
    counts = ", ".join(f"“{name}” for {count}" for name, count in ahead.items())
    text = f"Of {len(findings)} findings in the references, highest F1 (alone): {counts}."
    if no_finding_stated:
        text += (
            f" None ever writes {', '.join(no_finding_stated)}."
            if len(no_finding_stated) < len(findings)
            else " None writes any of them."
        )
    return [text + " Single findings are few: these counts are no test.", *describe_paired_tests(rows)]


def conclude_temporal(rows: Sequence[Row]) -> list[str]:
    """Compare intervals on the two test sets; they have no paired test."""
    a, b = rows
    one, two = a.scores[HEADLINE], b.scores[HEADLINE]
    disjoint = _intervals_disjoint(one, two)
    relation = "apart" if disjoint else "overlapping, so a loss over time is neither shown nor excluded"
    return [
        f"{F1[0].upper()}{F1[1:]} is {format_score_span(one)} “{a.name}” and {format_score_span(two)} “{b.name}”: "
        f"intervals {relation}. The two are scored on different studies and trained on different ones, so "
        "part of any difference may be the studies themselves.",
        describe_seed_spread(rows),
    ]


def conclude_leakage(rows: Sequence[Row]) -> list[str]:
    """Conclude how much the leak raises scores, and whether masking the patient prevents it."""
    if nothing := describe_no_findings(rows):
        return [nothing, *describe_paired_tests(rows)]
    masked, leaked = rows[2], rows[3]
    # With recalled sentences stage 1 names the findings, so a leak may appear in details only.
    score = next((score for score in leaked.tests if score_verdict(leaked, score) == "better"), HEADLINE)
    gain = leaked.tested(score).difference
    assert gain is not None
    words, leaked_words = rows[0].scores["ROUGE-L"], leaked.scores["ROUGE-L"]
    copied = leaked_words.value > words.value and _intervals_disjoint(leaked_words, words)
    worth = conclude_verdict(
        leaked,
        {
            "better": f"The fault is worth {gain.candidate - gain.baseline:+.3f} {CALLED[score]}: scores with it "
            "cannot be believed.",
            "worse": "The fault lowers the score here: the generator does not profit from finding the answer.",
        },
        "That the fault raises clinical scores is not shown here"
        + ("." if copied else ": at this scale the generator does not visibly copy the answer that it could retrieve."),
        score,
    )
    prevented = (
        "Hiding a patient's own rows, which this code does, prevents it even then."
        if score_verdict(leaked, score) == "better" and score_verdict(masked, score) != "better"
        else ""
    )
    quoted = (
        f"The answer is quoted: ROUGE-L {format_score_span(leaked_words)} in place of {format_score_span(words)}."
        if copied
        else ""
    )
    return [" ".join(filter(None, (worth, prevented, quoted))), *describe_paired_tests(rows)]


def conclude_thresholds(rows: Sequence[Row]) -> list[str]:
    """Conclude which τ agrees best with the lesions, and which τ leaves the most maps empty."""
    best = max(rows, key=lambda row: row.scores["IoU"].value)
    emptiest = max(rows, key=lambda row: row.scores["empty masks"].value)
    disjoint = [row for row in rows if _intervals_disjoint(row.scores["IoU"], best.scores["IoU"])]
    others = ", ".join(row.name for row in rows if row is not best and row not in disjoint)
    text = f"The mask agrees best with the lesion at {best.name}: IoU {format_score_span(best.scores['IoU'])}."
    text += f" Its interval overlaps that of {others}." if others else " All others are apart from it."
    half = best.scores["IoU"].value
    text += " Even so, most of lesion and mask do not overlap." if half < 1 / 3 else ""
    return [
        f"{text} The peak lies in the lesion in {format_score_span(best.scores['pointing'])} of cases there. At "
        f"{emptiest.name} nothing is left of {format_score_span(emptiest.scores['empty masks'])} of the maps."
    ]


def conclude_methods(rows: Sequence[Row]) -> list[str]:
    """Conclude which map points best, and whether the reports improve."""
    if "pointing" not in rows[0].scores:
        return ["The data has no lesion masks to compare maps with.", *describe_paired_tests(rows)]
    best = max(rows, key=lambda row: row.scores["pointing"].value)
    hits = "; ".join(f"{row.name} {format_score_span(row.scores['pointing'])}" for row in rows)
    disjoint = all(row is best or _intervals_disjoint(row.scores["pointing"], best.scores["pointing"]) for row in rows)
    sure = "apart from all others" if disjoint else "not apart from all others"
    control = best.scores["over control"]
    assert control.interval is not None
    knows = "more than" if control.interval[0] > 1 else "not shown to be more than"
    text = (
        f"The peak lies in the true lesion: {hits}. Highest is {best.name}, its interval {sure}. Its activation inside "
        f"the lesion is {format_score_span(control)} times that inside other studies' lesions of the same finding: "
        f"{knows} a map that only knows where such lesions usually are."
    )
    return [text, *describe_paired_tests(rows)]


def _intervals_disjoint(a: Score, b: Score) -> bool:
    assert a.interval is not None
    assert b.interval is not None
    return a.interval[1] < b.interval[0] or b.interval[1] < a.interval[0]


#: Conclusions by experiment; ``describe_paired_tests`` for all others.
CONCLUSIONS: dict[str, Callable[[Sequence[Row]], list[str]]] = {
    "mask-threshold": conclude_thresholds,
    "cam-method": conclude_methods,
    "beta": conclude_beta,
    "memory-ablation": conclude_ablation,
    "region-query": conclude_region_query,
    "grounding": conclude_grounding,
    "retrieval": conclude_retrieval,
    "bank-sampling": conclude_per_class,
    "temporal": conclude_temporal,
    "leakage": conclude_leakage,
}


def experiment_conclusions(name: str, rows: Sequence[Row]) -> list[str]:
    """Return the paragraphs of an experiment."""
    return CONCLUSIONS.get(name, describe_paired_tests)(rows)
