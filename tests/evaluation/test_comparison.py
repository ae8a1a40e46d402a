"""Paired comparison: known answers, an independent reference for the permutation test, and every refusal."""

import itertools
import json

import numpy as np
import pytest
from scipy import stats

from amrg.artifacts import Recipe, build_artifact, open_artifact
from amrg.commands.compare import main
from amrg.errors import UserError
from amrg.evaluation.clinical import ClinicalScores
from amrg.evaluation.comparison import (
    bootstrap_run_scores,
    compare_with_first,
    holm_correction,
    read_run_reports,
    run_display_name,
)
from amrg.evaluation.radeval_metrics import NAMES, LearnedScores

SICK, WELL = "Small left pleural effusion.", "No pleural effusion."


def lines(generated, reference=None, groups=None):
    reference = reference or [SICK, WELL] * (len(generated) // 2)
    groups = groups or [f"p{i // 2}" for i in range(len(generated))]
    rows = zip(groups, reference, generated, strict=True)
    return [{"key": f"s{i:03d}", "group": g, "reference": r, "generated": t} for i, (g, r, t) in enumerate(rows)]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_better_run_and_the_same_run(tmp_path):
    silent = read_run_reports(write(tmp_path / "silent.jsonl", lines([WELL] * 40)))
    perfect = read_run_reports(write(tmp_path / "perfect.jsonl", lines([SICK, WELL] * 20)))
    again = read_run_reports(write(tmp_path / "again.jsonl", lines([WELL] * 40)))
    found = compare_with_first(silent, [perfect, again], samples=400, seed=0)
    better, same = (found[name]["F1 micro-13"] for name in (perfect.name, again.name))
    assert (better.baseline, better.candidate, better.interval) == (0, 1, (1, 1))
    assert better.p == pytest.approx(1 / 401)
    assert (same.candidate - same.baseline, same.interval, same.p, same.holm) == (0, (0, 0), 1, 1)
    assert found[perfect.name]["ROUGE-L"].p == pytest.approx(1 / 401)
    assert better.holm == pytest.approx(min(1, len(found) * len(found[again.name]) / 401))
    assert compare_with_first(silent, [perfect, again], samples=400, seed=0) == found


def test_p_is_that_of_scipys_exact_permutation_test(tmp_path):
    """ROUGE-L is a mean over studies: for one study a patient scipy's paired permutation test is the same test."""
    rng = np.random.default_rng(0)
    words = np.array(["heart", "size", "is", "normal", "there", "no", "pleural", "effusion", "seen"])
    texts = [[" ".join(rng.choice(words, 6)) for _ in range(9)] for _ in range(3)]
    groups = [f"p{i}" for i in range(9)]
    one, two = (
        read_run_reports(write(tmp_path / f"{name}.jsonl", lines(said, texts[0], groups)))
        for name, said in (("one", texts[1]), ("two", texts[2]))
    )
    found = compare_with_first(one, [two], samples=20_000, seed=0)[two.name]["ROUGE-L"]
    from pycocoevalcap.rouge.rouge import Rouge

    each = [
        Rouge().compute_score({i: [r] for i, r in enumerate(texts[0])}, {i: [t] for i, t in enumerate(said)})[1]
        for said in texts[1:]
    ]
    exact = stats.permutation_test(each, lambda x, y: y.mean() - x.mean(), permutation_type="samples", n_resamples=1e9)
    assert found.p == pytest.approx(exact.pvalue, abs=0.02)


def test_silence_is_compared_as_what_it_is(tmp_path):
    """Two runs without a word are the same; against one that says something nothing is missing or no number."""
    silent, mute, loud = (
        read_run_reports(write(tmp_path / f"{name}.jsonl", lines(said)))
        for name, said in (("silent", [""] * 12), ("mute", [" . "] * 12), ("loud", [SICK, WELL] * 6))
    )
    found = compare_with_first(silent, [mute, loud], samples=50, seed=0)
    assert all((d.candidate - d.baseline, d.interval, d.p) == (0, (0, 0), 1) for d in found[mute.name].values())
    assert all(
        np.isfinite([d.baseline, d.candidate, *d.interval, d.p, d.holm]).all() for d in found[loud.name].values()
    )
    assert found[loud.name]["F1 micro-13"].candidate == 1


def test_details_are_compared_where_both_runs_have_a_case(tmp_path):
    """Side exact is 1 and 0; the run that is silent has no sides, so it is not tested in them."""
    other_side = "Small right pleural effusion."
    right, wrong, silent = (
        read_run_reports(write(tmp_path / f"{name}.jsonl", lines(said)))
        for name, said in (("right", [SICK, WELL] * 20), ("wrong", [other_side, WELL] * 20), ("silent", [WELL] * 40))
    )
    found = compare_with_first(right, [wrong, silent], samples=200, seed=0)
    side, f1, plain = (found[wrong.name][n] for n in ("side exact", "F1 micro-13 with details", "F1 micro-13"))
    assert (side.baseline, side.candidate, side.interval) == (1, 0, (-1, -1))
    assert side.p == pytest.approx(1 / 201)
    assert (f1.baseline, f1.candidate, plain.baseline, plain.candidate) == (1, 0, 1, 1)
    assert found[wrong.name]["side opposite"].candidate == 1
    assert found[wrong.name]["unsupported details"].candidate == 0.5  # the side; the severity is right
    assert "zone exact" not in found[wrong.name]
    assert "side exact" not in found[silent.name]
    assert found[silent.name]["contradicting reports"].p == 1
    scores = bootstrap_run_scores(silent, 50, 0)
    assert np.isnan(scores["side exact"][0])
    assert scores["F1 micro-13 with details"] == (0, (0, 0))


def test_patients_are_swapped_and_drawn_whole(tmp_path):
    """All studies are one patient's: nothing can be told from two labels of one unit."""
    groups = ["p"] * 8
    first = read_run_reports(write(tmp_path / "a.jsonl", lines([WELL] * 8, groups=groups)))
    other = read_run_reports(write(tmp_path / "b.jsonl", lines([SICK, WELL] * 4, groups=groups)))
    found = compare_with_first(first, [other], samples=50, seed=0)[other.name]["F1 micro-13"]
    assert found.p == 1
    assert found.interval == (1, 1)


def test_holm_by_hand():
    assert holm_correction([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm_correction([0.5, 0.9]) == [1.0, 1.0]
    assert holm_correction([]) == []


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (lines([WELL] * 4)[:3], "a.jsonl has 4 studies and .*/b.jsonl has 3, 3 of them the same"),
        (lines([WELL] * 4, [WELL] * 4), "other references or patients for 2 of 4"),
        (lines([WELL] * 4, groups=["q"] * 4), "other references or patients for 4 of 4"),
        ([*lines([WELL] * 4), lines([WELL] * 4)[0]], "line 5 repeats the study of line 1"),
        ([{"key": "s", "generated": "x"}], "1 of 1 lines lack `reference` or `group`"),
        ([], "holds no reports"),
    ],
)
def test_what_cannot_be_paired_is_refused_in_one_line(tmp_path, other, message):
    first = write(tmp_path / "a.jsonl", lines([WELL] * 4))
    with pytest.raises(UserError, match=message) as error:
        main([str(first), str(write(tmp_path / "b.jsonl", other)), "--resamples", "5"])
    assert "\n" not in str(error.value)


def make(runs, kind, name, write_into, inputs=None):
    recipe = Recipe(kind, 1, {"name": name}, inputs or {}, 0)
    with build_artifact(runs, recipe) as folder:
        write_into(folder)
    return open_artifact(recipe.path(runs), kind)


def scored(runs, name, learned):
    """A scores artefact whose reports are all the same; what the learned metrics found is in another order."""
    rows = lines([WELL] * 10, groups=[f"p{i}" for i in range(10)])
    reports = make(runs, "reports", name, lambda folder: write(folder / "reports.jsonl", rows))
    keys = [row["key"] for row in rows][::-1]
    into = (lambda folder: learned.save(folder / "learned.json", keys)) if learned else (lambda folder: None)
    return make(runs, "scores", name, into, {"reports": reports}).path


def test_learned_scores_are_compared_where_both_runs_have_them(tmp_path):
    """The mean's p is scipy's exact one; CheXbert's F1 is 1 and 0, which chance does as far twice in 1,024 swaps."""
    rng = np.random.default_rng(1)
    values = rng.random((2, 10))
    truth = np.zeros((10, 14), dtype=bool)
    truth[:, 9] = True
    right, wrong = ClinicalScores.from_labels(truth, truth), ClinicalScores.from_labels(truth, ~truth)
    one, two, three, bare = (
        read_run_reports(scored(tmp_path, name, learned))
        for name, learned in (
            ("one", LearnedScores({"GREEN": values[0]}, right, "2.2.1")),
            ("two", LearnedScores({"GREEN": values[1], "RaTEScore": values[0]}, wrong, "2.2.1")),
            ("three", LearnedScores({"GREEN": values[1]}, None, "2.3")),
            ("bare", None),
        )
    )
    both = compare_with_first(one, [two, bare], samples=20_000, seed=0)
    found = both[two.name]
    exact = stats.permutation_test(
        values, lambda x, y: y.mean() - x.mean(), permutation_type="samples", n_resamples=1e9
    )
    assert (found["GREEN"].baseline, found["GREEN"].candidate) == pytest.approx(values.mean(1))
    assert found["GREEN"].p == pytest.approx(exact.pvalue, abs=0.02)
    f1 = found["CheXbert F1 micro-14"]
    assert (f1.baseline, f1.candidate, f1.interval) == (1, 0, (-1, -1))
    assert f1.p == pytest.approx(2 / 1024, abs=0.001)
    assert found["CheXbert F1 macro-5"].baseline == 1 / 5  # four of the five labels are in no report
    assert "RaTEScore" not in found
    assert not set(NAMES) & set(both[bare.name])
    assert found["GREEN"].holm >= found["GREEN"].p
    with pytest.raises(UserError, match=r"was scored by radeval 2\.2\.1 and .* by 2\.3: evaluate one of them again"):
        compare_with_first(one, [three], samples=5, seed=0)


def test_learned_scores_of_other_studies(tmp_path):
    path = scored(tmp_path, "one", LearnedScores({"GREEN": np.ones(10)}))
    file = path / "learned.json"
    file.write_text(file.read_text().replace("s000", "s999"))
    with pytest.raises(UserError, match="does not fit the reports"):
        read_run_reports(path)


def test_command(tmp_path, capsys):
    """Artefacts of both kinds lead to the same reports; the table has no report text in it."""
    made = [
        make(tmp_path, "reports", name, lambda folder, said=said: write(folder / "reports.jsonl", lines(said)))
        for name, said in (("a", [WELL] * 12), ("b", [SICK, WELL] * 6))
    ]
    scores = make(
        tmp_path, "scores", "b", lambda folder: (folder / "scores.json").write_text("{}"), {"reports": made[1]}
    )
    main([str(made[0].path), str(scores.path), "--resamples", "50", "--json", str(tmp_path / "out.json")])
    printed = capsys.readouterr().out
    assert "F1 micro-13 with details" in printed  # not cut on a terminal of 80 columns
    assert "…" not in printed
    assert "uncertain" not in printed
    assert "effusion" not in printed
    written = json.loads((tmp_path / "out.json").read_text())
    assert written["runs"][run_display_name(scores.path)]["F1 micro-13"]["candidate"] == 1
    assert (written["studies"], written["patients"]) == (12, 6)

    for arguments, message in (
        ([made[0].path], "one run alone"),
        ([made[0].path, made[0].path], "not compared with itself"),
        ([made[0].path, tmp_path], "neither a scores nor a reports"),
        ([made[0].path, tmp_path / "none"], "cannot read"),
        ([made[0].path, made[1].path, "--resamples", "0"], "at least 1"),
        ([made[0].path, made[1].path, "--resamples", "5", "--json", tmp_path / "no" / "x"], "cannot write"),
    ):
        with pytest.raises(UserError, match=message):
            main(list(map(str, arguments)))
    for artefact, before, after, message in (
        (made[1], made[1].hash, "0" * 64, "no longer what"),
        (scores, made[1].path.name, f"../elsewhere/{made[1].path.name}", "an input outside the folder of its run"),
    ):
        manifest = artefact.path / "manifest.json"
        manifest.write_text(manifest.read_text().replace(before, after))
        with pytest.raises(UserError, match=message):
            main([str(made[0].path), str(scores.path)])


def test_every_pair_of_subsets_of_a_patient_stays_together():
    from amrg.evaluation.comparison import _permutation_signs

    swaps = _permutation_signs(["a", "b", "a", "c", "b"], 200, 0)
    assert (swaps[:, 0] == swaps[:, 2]).all()
    assert (swaps[:, 1] == swaps[:, 4]).all()
    assert {tuple(row) for row in swaps[:, [0, 1, 3]]} == set(itertools.product((False, True), repeat=3))
