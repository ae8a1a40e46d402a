"""Rows, words and the page from made-up reports and curves; localisation from a made-up lesion."""

import csv
import io
import itertools
import math
from dataclasses import replace

import numpy as np
import pytest

from amrg.config import Config
from amrg.evaluation.comparison import Difference, ReportSet
from amrg.evaluation.reports import GeneratedReport
from amrg.experiments import conclusions, verdicts
from amrg.experiments.aggregate import (
    LOST,
    REPORTED_METRICS,
    Judged,
    Row,
    Score,
    epochs_to_loss,
    f1_by_finding,
    paired_t_test,
    pool_seed_reports,
    with_differences,
)
from amrg.experiments.localization import Lesions, iou_by_threshold, scores_of_method
from amrg.experiments.markdown import write_markdown
from amrg.experiments.registry import DETAILED, HEADLINE
from amrg.experiments.result import Result, plot_result, render_results_page, result_csv, result_table
from amrg.experiments.retrieval_relevance import most_typical_text

EFFUSION, NORMAL = "There is a large left pleural effusion.", "The lungs are clear. No pleural effusion."


def run(name, right):
    """Twelve patients with an effusion each; the report says so for the first ``right``."""
    return ReportSet(
        name, [GeneratedReport(f"s{i}", EFFUSION if i < right else NORMAL, {}, f"p{i}", EFFUSION) for i in range(12)]
    )


def row(name, value, seeds=(), difference=None, over=None, judged=(HEADLINE,), **more):
    """A row whose scores, and all that is known of its judged ones, are the same."""
    scores = dict.fromkeys((*REPORTED_METRICS, *judged), Score(value, (value - 0.05, value + 0.05)))
    tests = dict.fromkeys(judged, Judged([*seeds] or [value], difference, over))
    return Row(name, scores, tests=tests, **more)


def test_paired_tests_take_all_seeds_of_a_patient_together():
    pools = [
        pool_seed_reports("base", [run("a", 2), run("b", 3)]),
        pool_seed_reports("good", [run("c", 12), run("d", 11)]),
    ]
    assert len({report.key for report in pools[0].reports}) == 24
    assert len({report.group for report in pools[0].reports}) == 12
    rows = with_differences(
        [row("base", 0.3), row("good", 0.9), row("again", 0.3)], [*pools, replace(pools[0], name="again")], 400, 0
    )
    assert rows[0].tested().difference is None
    good, again = rows[1].tested().difference, rows[2].tested().difference
    # micro-F1 of 5 of 24 and of 23 of 24: 2·5 / (2·5 + 19), 2·23 / (2·23 + 1)
    assert (good.baseline, good.candidate) == pytest.approx((10 / 29, 46 / 47))
    assert good.interval[0] > 0
    assert good.p < 0.01
    assert good.holm == pytest.approx(2 * good.p)
    assert verdicts.score_verdict(rows[1]) == "better"
    assert verdicts.score_verdict(rows[2]) == "the same"
    assert again.p == 1


def test_seeds_repeated_do_not_make_a_difference_surer():
    once = with_differences(
        [row("a", 0), row("b", 0)],
        [pool_seed_reports("a", [run("x", 4)]), pool_seed_reports("b", [run("y", 6)])],
        400,
        0,
    )
    many = with_differences(
        [row("a", 0), row("b", 0)],
        [pool_seed_reports("a", [run("x", 4)] * 3), pool_seed_reports("b", [run("y", 6)] * 3)],
        400,
        0,
    )
    assert once[1].tested().difference == many[1].tested().difference


def by_hand(first, other):
    """Difference, its 95 % interval and p of the paired t-test of three seeds: t with 2 degrees has a closed form."""
    gaps = [b - a for a, b in zip(first, other, strict=True)]
    mean = sum(gaps) / 3
    error = math.sqrt(sum((gap - mean) ** 2 for gap in gaps) / 2 / 3)
    t = mean / error
    return mean, (mean - 4.302653 * error, mean + 4.302653 * error), 1 - abs(t) / math.sqrt(2 + t * t)


@pytest.mark.parametrize("other", [(0.31, 0.42, 0.37), (0.52, 0.55, 0.51), (0.1, 0.6, 0.2)])
def test_the_test_over_three_seeds_is_students(other):
    first = (0.30, 0.35, 0.28)
    found, (mean, interval, p) = paired_t_test(first, other), by_hand(first, other)
    assert found.candidate - found.baseline == pytest.approx(mean)
    assert found.interval == pytest.approx(interval, rel=1e-5)
    assert found.p == pytest.approx(p)


def test_seeds_that_change_nothing_are_no_evidence():
    """Findings that are decided before stage 2 have one training, however many seeds stage 2 is trained with."""
    constant = paired_t_test((0.695, 0.695, 0.695), (0.728, 0.728, 0.728))
    shifted = paired_t_test((0.1, 0.2, 0.4), (0.2, 0.3, 0.5))
    for found, gap in ((constant, 0.033), (shifted, 0.1)):
        assert (found.p, found.interval) == (1.0, pytest.approx((gap, gap)))
    patients = Difference(0.695, 0.728, (0.014, 0.054), 0.003, 0.048)
    text = verdicts.compare_with_sentence(
        row("queries", 0.728, [0.728] * 3, patients, constant), row("none", 0.695, [0.695] * 3)
    )
    assert "scored higher than" in text
    assert "; the same in each of 3 seeds, which is no evidence for other trainings" in text


def test_over_seeds_p_is_corrected_and_what_is_the_same_is_no_difference():
    pools = [pool_seed_reports(name, [run(str(i), right) for i, right in enumerate((2, 3, 2))]) for name in "abc"]
    rows = [row(name, 0.3, seeds) for name, seeds in
            (("a", [0.3, 0.35, 0.28]), ("b", [0.52, 0.55, 0.51]), ("c", [0.3, 0.35, 0.28]))]  # fmt: skip
    first, other, same = with_differences(rows, pools, 50, 0)
    assert first.tested().over_seeds is None
    assert other.tested().over_seeds.holm == pytest.approx(2 * by_hand([0.3, 0.35, 0.28], [0.52, 0.55, 0.51])[2])
    assert (same.tested().over_seeds.interval, same.tested().over_seeds.p) == ((0, 0), 1)
    single = with_differences(
        [row("a", 0.3), row("b", 0.3)], [pool_seed_reports(name, [run("x", 2)]) for name in "ab"], 50, 0
    )
    assert single[1].tested().over_seeds is None


def sided(name, right):
    """Twelve patients with an effusion on the left; every report states it, the first ``right`` on that side."""
    wrong = EFFUSION.replace("left", "right")
    return ReportSet(
        name, [GeneratedReport(f"s{i}", EFFUSION if i < right else wrong, {}, f"p{i}", EFFUSION) for i in range(12)]
    )


def test_each_judged_score_is_tested_and_p_is_corrected_for_all_of_them():
    """A wrong side is no miss of the headline; a hit with details it is not."""
    pools = [
        pool_seed_reports("a", [sided("x", 12), sided("y", 12)]),
        pool_seed_reports("b", [sided("z", 3), sided("w", 2)]),
    ]
    rows = [row(name, 0, seeds, judged=(HEADLINE, DETAILED)) for name, seeds in (("a", (1, 1)), ("b", (0.25, 1 / 6)))]
    plain, detailed = (with_differences(rows, pools, 400, 0)[1].tested(name) for name in (HEADLINE, DETAILED))
    assert (plain.difference.baseline, plain.difference.candidate, plain.difference.p) == (1, 1, 1)
    assert (detailed.difference.baseline, detailed.difference.candidate) == pytest.approx((1, 5 / 24))
    assert detailed.difference.holm == pytest.approx(2 * detailed.difference.p)
    assert detailed.over_seeds.holm == pytest.approx(2 * paired_t_test((1, 1), (0.25, 1 / 6)).p)
    alone = with_differences([replace(one, tests={DETAILED: one.tests[DETAILED]}) for one in rows], pools, 400, 0)[1]
    assert alone.tested(DETAILED).difference.holm == detailed.difference.p


def test_over_patients_three_seeds_are_swapped_together():
    """p against every one of the 2^6 ways to swap six patients' reports, under all seeds at once, counted by hand."""
    truth = [i < 4 for i in range(6)]  # who has an effusion
    wrong = np.random.default_rng(0).random((2, 3, 6)) < [[[0.5]], [[0.1]]]
    said = wrong != truth

    def reports(name, effusions):
        texts = [EFFUSION if one else NORMAL for one in effusions]
        real = [EFFUSION if one else NORMAL for one in truth]
        return ReportSet(name, [GeneratedReport(f"s{i}", texts[i], {}, f"p{i}", real[i]) for i in range(6)])

    def f1(said_SP):
        hits = (said_SP & truth).sum()
        return 2 * hits / (said_SP.sum() + 3 * sum(truth))

    gaps = []
    for swapped in itertools.product((False, True), repeat=6):
        a, b = np.where(swapped, said[1], said[0]), np.where(swapped, said[0], said[1])
        gaps.append(f1(b) - f1(a))
    exact = np.mean([abs(gap) >= abs(gaps[0]) - 1e-12 for gap in gaps])
    pools = [pool_seed_reports(name, [reports(str(i), of_seed) for i, of_seed in enumerate(of_run)])
             for name, of_run in zip("ab", said, strict=True)]  # fmt: skip
    found = with_differences([row("a", 0), row("b", 0)], pools, 20_000, 0)[1].tested().difference
    assert found.candidate - found.baseline == pytest.approx(gaps[0])
    assert 1 / 64 < exact < 0.5
    assert found.p == pytest.approx(exact, abs=0.01)


def test_better_is_said_only_where_patients_and_seeds_show_it():
    patients, first = Difference(0.3, 0.5, (0.1, 0.3), 0.001, 0.004), row("first", 0.3, [0.3, 0.3, 0.3])
    for holm, other, word in ((0.01, 0.5, "is better than"), (0.3, 0.5, "scored higher than"),
                              (0.01, 0.2, "scored higher than")):  # fmt: skip
        over = Difference(0.3, other, (-0.2, 0.6), holm, holm)
        one = row("both off", 0.5, [0.4, 0.5, 0.6], patients, over)
        text = verdicts.compare_with_sentence(one, first)
        assert f"“both off” {word} “first”" in text
        assert f"; over 3 seeds 95% -0.200 to +0.600, corrected p {holm:.3f})" in text
        rows = [replace(one, name=name) for name in ("visual memory off", "report memory off", "both off")]
        said = conclusions.experiment_conclusions(
            "memory-ablation", [first, *rows, replace(one, name="mismatched memory")]
        )
        assert ("that it holds for other seeds is not shown" in said[0]) == ("higher" in word)
        assert "A test of 3 seeds sees only what is large beside their spread" in said[-1]


def test_class_f1_of_what_references_state():
    assert f1_by_finding(run("x", 6)) == {"Pleural Effusion": pytest.approx(2 / 3)}


def test_epochs_to_a_loss():
    curve = [{"epoch": i + 1, "val_loss": loss} for i, loss in enumerate((3.0, 2.0, 1.0))]
    assert epochs_to_loss(curve, 3.5) == 1.0
    assert epochs_to_loss(curve, 1.25) == pytest.approx(2.75)
    assert np.isnan(epochs_to_loss(curve, 0.5))


def test_the_most_typical_text():
    assert most_typical_text(["a b", "x y", "a b c"]) == "a b"
    assert most_typical_text([]) == ""


def test_localisation_of_a_made_up_lesion():
    masks = np.zeros((2, 8, 8), bool)
    masks[:, :4, :4] = True
    maps = np.zeros((2, 2, 2))
    maps[0, 0, 0] = 0.9
    found = Lesions(["Edema", "Edema"], ["p", "q"], np.zeros((2, 8, 8), np.uint8), masks, maps)
    low, high = iou_by_threshold(found, (0.4, 0.95), 50, 0)
    assert low.scores["empty masks"].value == 0.5
    assert low.scores["pointing"].value == 0.5
    assert high.scores["empty masks"].value == 1.0
    assert high.scores["pointing"].value == 0.0
    assert high.scores["IoU"].value == 0.0
    assert 0.2 < low.scores["IoU"].value <= 0.5
    assert scores_of_method(found, 50, 0)["pointing"].value == 0.5


def differing(name, other, holm, interval, judged=(HEADLINE,)):
    return row(name, other, difference=Difference(0.3, other, interval, holm / 4, holm), judged=judged)


def ablation(off, mismatched):
    same = Difference(0.3, 0.3, (0.0, 0.0), 1, 1)
    one_off = [row(f"{bank} memory off", 0.3, difference=same) for bank in ("visual", "report")]
    return [row("both memories", 0.3), *one_off, off, mismatched]


def test_words_say_what_holds_and_what_does_not():
    worse = differing("both off", 0.2, 0.01, (-0.15, -0.05))
    unclear = differing("mismatched memory", 0.29, 0.6, (-0.05, 0.03))
    text = " ".join(conclusions.experiment_conclusions("memory-ablation", ablation(worse, unclear)))
    assert "memory helps here" in text
    assert "is not shown to do harm" in text
    assert "“both off” scored lower than “both memories” in clinical micro-F1: -0.100 (95% -0.150 to -0.050" in text
    assert "One training each" in text
    none = " ".join(
        conclusions.experiment_conclusions("memory-ablation", ablation(replace(unclear, name="both off"), unclear))
    )
    assert "That memory helps is not shown here" in none
    zero = [
        replace(r, scores=dict.fromkeys(REPORTED_METRICS, Score(0.0, (0.0, 0.0)))) for r in ablation(worse, unclear)
    ]
    assert "nothing can be concluded" in conclusions.experiment_conclusions("memory-ablation", zero)[0]


def test_words_of_the_leak():
    rows = [row("train", 0.3), differing("seen", 0.3, 1.0, (-0.1, 0.1)), differing("hidden", 0.31, 1.0, (-0.1, 0.1)),
            differing("leaked", 0.8, 0.001, (0.4, 0.6))]  # fmt: skip
    assert "worth +0.500" in conclusions.experiment_conclusions("leakage", rows)[0]
    assert "Hiding a patient's own rows" in conclusions.experiment_conclusions("leakage", rows)[0]
    rows[3] = differing("leaked", 0.31, 0.8, (-0.1, 0.1))
    assert "not shown here" in conclusions.experiment_conclusions("leakage", rows)[0]
    assert "does not visibly copy" in conclusions.experiment_conclusions("leakage", rows)[0]
    rows[0].scores["ROUGE-L"], rows[3].scores["ROUGE-L"] = Score(0.31, (0.30, 0.32)), Score(0.36, (0.35, 0.38))
    text = conclusions.experiment_conclusions("leakage", rows)[0]
    assert "not shown here. The answer is quoted: ROUGE-L 0.360 [0.350, 0.380] in place of 0.310 [0.300" in text


def test_a_leak_that_shows_in_details_alone_is_told():
    rows = [row("train", 0.3), *(differing(name, 0.3, 1.0, (-0.1, 0.1)) for name in ("seen", "hidden", "leaked"))]
    better = Difference(0.3, 0.6, (0.2, 0.4), 0.001, 0.004)
    rows[3] = replace(rows[3], tests={**rows[3].tests, DETAILED: Judged([0.6], better)})
    rows[:3] = [differing(one.name, 0.3, 1.0, (-0.1, 0.1), (HEADLINE, DETAILED)) for one in rows[:3]]
    assert "worth +0.300 clinical micro-F1 with details" in conclusions.experiment_conclusions("leakage", rows)[0]


def test_words_of_details_and_relevance():
    both = (HEADLINE, DETAILED)
    said = {"visual relevance": Score(0.7, (0.6, 0.8)), "visual relevance, absent": Score(0.1, (0.0, 0.2))}
    first = row("both memories", 0.3, judged=both, diagnostics={"visual base rate": 0.143})
    first = replace(first, scores={**first.scores, **said})
    off = [differing(f"{bank} memory off", 0.2, 0.01, (-0.15, -0.05), both) for bank in ("visual", "report")]
    others = [differing(name, 0.3, 0.9, (-0.1, 0.1), both) for name in ("both off", "mismatched memory")]
    text = "\n".join(conclusions.experiment_conclusions("memory-ablation", [first, *off, *others]))
    assert "Details are worse without the visual memory" in text
    assert "another patient's do no visible harm" in text
    assert (
        "“both memories” 0.700 [0.600, 0.800] (0.100 [0.000, 0.200] where the film lacks it, 0.143 of the rows)" in text
    )
    assert "“both memories” reaches a clinical micro-F1 with details of 0.300" in text
    assert "report memory that falls" not in text
    asked = conclusions.experiment_conclusions("region-query", [first, replace(off[0], name="Q-Former queries")])
    assert "visual memory that falls on rows of that finding" in asked[0]
    sides = {"side exact": Score(0.8, (0.7, 0.9))}
    supported = [replace(first, name="region memory", scores={**first.scores, **sides}), off[0]]
    assert (
        conclusions.experiment_conclusions("grounding", supported)[0]
        == "Side exact: “region memory” 0.800 [0.700, 0.900]."
    )


def test_copies_that_could_not_be_had_are_said():
    rows = [row("Hopfield, 1 step", 0.3), differing("copy", 0.2, 0.9, (-0.2, 0.1))]
    assert not any("could not be copied" in text for text in conclusions.experiment_conclusions("retrieval", rows))
    rows[1] = replace(rows[1], diagnostics={LOST: 3.0})
    assert "3 of “copy”" in conclusions.experiment_conclusions("retrieval", rows)[-1]


def test_words_of_beta_name_the_fastest_and_the_best():
    facts = [{"epochs to common loss": e, "report perplexity": p} for e, p in ((3.0, 90.0), (1.5, 8.0))]
    rows = [
        row("β = 0.5", 0.3, x=0.5, diagnostics=facts[0]),
        replace(differing("β = 8", 0.2, 0.4, (-0.2, 0.1)), x=8.0, diagnostics=facts[1]),
    ]
    text = conclusions.experiment_conclusions("beta", rows)[0]
    assert "reached first by β = 8 (after 1.5 epochs) and last by β = 0.5 (3.0)" in text
    assert "Not the fastest but β = 0.5 has" in text
    assert "from 90.0 to 8.0 rows (report bank)" in text


def test_words_over_time_compare_intervals():
    assert "intervals overlapping" in conclusions.experiment_conclusions("temporal", [row("a", 0.3), row("b", 0.28)])[0]
    assert "intervals apart" in conclusions.experiment_conclusions("temporal", [row("a", 0.5), row("b", 0.2)])[0]


def test_csv_and_table_hold_every_number():
    rows = [
        row("base", 0.3, diagnostics={"report rows": 1000.0}),
        differing("other, with a comma", 0.4, 0.02, (0.05, 0.15)),
    ]
    read = list(csv.DictReader(io.StringIO(result_csv(rows))))
    assert read[1]["variant"] == "other, with a comma"
    assert float(read[1]["difference"]) == pytest.approx(0.1)
    assert float(read[0][f"{HEADLINE} low"]) == pytest.approx(0.25)
    assert read[1]["report rows"] == ""
    both = [row("base", 0.3, judged=(HEADLINE, DETAILED)), differing("b", 0.4, 0.02, (0, 0.2), (HEADLINE, DETAILED))]
    read = list(csv.DictReader(io.StringIO(result_csv(both))))
    assert float(read[1][f"{DETAILED}: p corrected"]) == float(read[1]["p corrected"]) == pytest.approx(0.02)
    assert float(read[0][f"{DETAILED} seed 0"]) == pytest.approx(0.3)
    assert f"{DETAILED}: corrected p" in result_table(both)[0]
    heads, cells = result_table(rows)
    assert all(len(line) == len(heads) for line in cells)
    assert "+0.100 [+0.050, +0.150]" in cells[1]


def test_the_page_is_the_same_every_time_and_markup_stays_text():
    rows = [row("<b>base</b>", 0.3, x=1.0), replace(differing("b", 0.4, 0.02, (0.05, 0.15)), x=16.0)]
    told = Result(
        "beta", "β", "?", "", ["<script>"], result_table(rows), "", plot_result(rows, (HEADLINE, "none"), "β")
    )
    pages = [render_results_page(Config(), [told, Result("temporal", "Time", "?", "no films")]) for _ in range(2)]
    assert pages[0] == pages[1]
    assert plot_result(rows, (HEADLINE,), "β") == plot_result(rows, (HEADLINE,), "β")
    assert "<script>" not in pages[0]
    assert "&lt;b&gt;base&lt;/b&gt;" in pages[0]
    assert "Not run:</b> no films" in pages[0]


def test_as_markdown_a_table_is_narrower_and_a_plot_is_a_file(tmp_path):
    heads = ["", HEADLINE, "F1 Edema", "BLEU-4", "p", "reports rows", "distinct texts"]
    told = Result(
        "beta",
        "β",
        "?",
        "",
        ["said"],
        (heads, [["a|b", "1", "2", "3", "4", "9", "8"], ["c", "1", "2", "3", "4", "9", "7"]]),
        "note",
        plot_result([row("a", 0.3)], (HEADLINE,), "β"),
    )
    write_markdown([told, Result("temporal", "Time", "?", "no films")], tmp_path / "results.md", "plots")
    lines = (tmp_path / "results.md").read_text().splitlines()
    assert [line for line in lines if line.startswith("|")] == [
        f"|  | {HEADLINE} | p | distinct texts |",
        "| --- | --- | --- | --- |",
        "| a\\|b | 1 | 4 | 8 |",
        "| c | 1 | 4 | 7 |",
    ]
    assert "Not run: no films" in lines
    assert "![β](plots/beta.svg)" in lines
    assert (tmp_path / "plots" / "beta.svg").read_text().startswith("<?xml")
    assert not (tmp_path / "plots" / "temporal.svg").exists()
