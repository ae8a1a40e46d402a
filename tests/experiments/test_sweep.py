"""Variants, seeds and what is still to be made; then one experiment from end to end, twice."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest

from amrg import pipeline
from amrg.commands import experiment
from amrg.config import Config
from amrg.errors import UserError
from amrg.experiments.cached_steps import _vision_fingerprint
from amrg.experiments.registry import DETAILED, EXPERIMENTS, HEADLINE, Experiment
from amrg.experiments.sweep import (
    Forecast,
    Sweep,
    Variant,
    config_with_seed,
    experiments_dir,
    show_forecast,
    with_overrides,
)

SMALL = {
    "memory.beta": 200.0,
    "stage2.epochs": 1,
    "generate.max_new_tokens": 6,
    "generate.num_beams": 1,
    "evaluate.bootstrap_samples": 40,
}


def test_changes_reach_their_setting_and_nothing_else():
    config = with_overrides(Config(), {"memory.beta": 2.0, "banks.mining.method": "gradcam"})
    assert config.memory.beta == 2.0
    assert config.banks.mining.method == "gradcam"
    assert with_overrides(config, {"memory.beta": Config().memory.beta, "banks.mining.method": "layercam"}) == Config()
    with pytest.raises(UserError, match=r"unknown key `memory\.betta`"):
        with_overrides(Config(), {"memory.betta": 2.0})


def test_seed_0_is_the_run_as_configured():
    assert config_with_seed(Config(), Variant("own"), 0) == Config()
    assert config_with_seed(Config(seed=4), Variant("own"), 2).stage2.seed == 6
    assert config_with_seed(Config(seed=4), Variant("own"), 2).seed == 4


@pytest.mark.parametrize("experiment", EXPERIMENTS.values(), ids=EXPERIMENTS.keys())
def test_every_variant_is_a_configuration_of_its_own(experiment: Experiment):
    config = Config()
    variants = experiment.variants(config, 9000)
    found = [
        (repr(config_with_seed(config, variant, 0)), variant.copy_top_k, repr(variant.added)) for variant in variants
    ]
    assert len(set(found)) == len(found)
    assert len({variant.name for variant in variants}) == len(variants)


def test_sizes_of_banks_follow_the_data():
    def sizes(texts, name):
        return [v.changes[f"banks.{name}"] for v in EXPERIMENTS["bank-size"].variants(Config(), texts)]

    assert sizes(9000, "reports.rows") == [9000, 1000, 2000, 2250, 4000, 4500, 6500]
    assert sizes(9000, "mining.normal_regions") == [2000, 222, 444, 500, 889, 1000, 500]
    assert sizes(9000, "mining.regions_per_finding") == [500, 56, 111, 125, 222, 250, 500]
    assert sizes(800, "reports.rows") == [6000, 200, 400, 6500]


def test_what_asks_the_visual_memory_is_varied_with_and_without_its_loss():
    variants = EXPERIMENTS["region-query"].variants(Config(), 9000)
    assert [tuple(variant.changes.values()) for variant in variants] == [
        (query, loss) for query in ("placed_regions", "regions", "queries") for loss in (0.0, 1.0)
    ]
    assert config_with_seed(Config(), variants[0], 0) == Config()


def test_what_supports_the_words_is_varied_after_one_training():
    variants = EXPERIMENTS["grounding"].variants(Config(), 9000)
    assert [variant.changes["generate.support"] for variant in variants] == ["memory", "none", "map", "head", "all"]
    configs = [config_with_seed(Config(), variant, 1) for variant in variants]
    assert len({repr(replace(one, generate=Config().generate)) for one in configs}) == 1
    assert all(one.generate.outline_source == "retrieved" and one.decoder.predict_outline for one in configs)
    recalling = with_overrides(Config(), {"decoder.predict_outline": True, "generate.outline_source": "retrieved"})
    assert config_with_seed(recalling, variants[0], 0) == recalling


def test_retrieved_text_is_given_beside_vectors_instead_of_them_and_not_at_all():
    config = with_overrides(Config(), {"decoder.prompt": "{image}Findings:"})
    names = ("use_visual_memory", "use_report_memory", "use_retrieved_text")
    given = {v.name: config_with_seed(config, v, 0) for v in EXPERIMENTS["retrieved-text"].variants(config, 9000)}
    assert {name: tuple(getattr(one.decoder, n) for n in names) for name, one in given.items()} == {
        "vectors and text": (True, True, True),
        "vectors": (True, True, False),
        "text": (False, False, True),
        "neither": (False, False, False),
        "another patient's": (True, True, True),
    }
    assert {one.decoder.prompt for one in given.values()} == {"{image}Similar films: {retrieved}\nFindings:"}
    assert [one.generate.memory for one in given.values()] == ["own"] * 4 + ["shuffled"]


def test_two_films_are_compared_with_one_and_weights_with_the_mean():
    given = {v.name: config_with_seed(Config(), v, 0) for v in EXPERIMENTS["views"].variants(Config(), 9000)}
    assert {one.data.listed_films for one in given.values()} == {2}
    assert [name for name, one in given.items() if not one.data.lateral_films] == ["one film"]
    assert [one.vision.film_fusion for one in given.values()] == ["mean", "mean", "attention", "attention", "mean"]
    assert [one.vision.view_embeddings for one in given.values()] == [False, True, False, True, False]
    other = with_overrides(Config(), {"data.source": "mimic_cxr"})
    assert [v.name for v in EXPERIMENTS["views"].variants(other, 9000)][:2] == ["mean", "mean, views known"]


def test_the_context_is_own_anothers_or_none_and_one_decoder_sees_no_film():
    given = {v.name: config_with_seed(Config(), v, 0) for v in EXPERIMENTS["context"].variants(Config(), 9000)}
    assert {one.decoder.context for one in given.values()} == {("indication", "comparison", "sex")}
    assert [one.generate.context for one in given.values()] == ["own", "shuffled", "none", "none", "own"]
    assert [one.stage2.context_dropout for one in given.values()] == [0.3, 0.3, 0.3, 1.0, 0.3]
    films = [one.decoder.use_queries or one.decoder.use_visual_tokens for one in given.values()]
    assert films == [True] * 4 + [False]
    reading = with_overrides(Config(), {"decoder.context": ["age", "sex"]})
    assert config_with_seed(reading, EXPERIMENTS["context"].variants(reading, 9000)[0], 0) == reading


def test_the_context_asks_the_memories_after_one_training():
    variants = EXPERIMENTS["context-recall"].variants(Config(), 9000)
    given = [config_with_seed(Config(), variant, 1) for variant in variants]
    assert len({repr(replace(one, generate=Config().generate)) for one in given}) == 1
    assert all(one.generate.outline_source == "retrieved" and one.decoder.predict_outline for one in given)
    both = ("indication", "comparison")
    assert [one.generate.recall_context for one in given] == [both, both, (), both[:1], both[1:], both]
    assert [one.generate.context for one in given] == ["own", "shuffled", "own", "own", "own", "own"]
    assert [one.generate.memory for one in given] == ["own"] * 5 + ["uniform"]
    single = with_overrides(Config(), {"generate.recall_context": ["age"]})
    assert [v.name for v in EXPERIMENTS["context-recall"].variants(single, 9000)][2:] == [
        "none",
        "context without the film",
    ]


def test_the_earlier_study_is_own_anothers_or_none_and_each_part_is_read_alone():
    given = {v.name: config_with_seed(Config(), v, 0) for v in EXPERIMENTS["prior"].variants(Config(), 9000)}
    assert [one.decoder.prior for one in given.values()] == [("report", "films")] * 4 + [("report",), ("films",)]
    assert [one.generate.prior for one in given.values()] == ["own", "shuffled", "none", "none", "own", "own"]
    assert [one.stage2.prior_dropout for one in given.values()] == [0.3, 0.3, 0.3, 1.0, 0.3, 0.3]
    assert all(one.data.earlier_states for one in given.values())
    dated = with_overrides(Config(), {"data.source": "mimic_cxr", "data.path": "mimic", "decoder.prior": ["report"]})
    assert config_with_seed(dated, EXPERIMENTS["prior"].variants(dated, 9000)[0], 0) == dated


def test_no_limit_leaves_out_rows_of_a_bank_that_leaks():
    limited = with_overrides(Config(), {"banks.mining.max_studies": 10, "banks.mining.regions_per_finding": 3})
    for variant in EXPERIMENTS["leakage"].variants(limited, 9000):
        mining = config_with_seed(limited, variant, 0).banks.mining
        assert (mining.max_studies, mining.regions_per_finding, mining.normal_regions) == (None, 36000, 36000)


def test_cross_attention_is_not_taught_what_only_hopfield_networks_learn():
    def attention(config):
        return next(v for v in EXPERIMENTS["retrieval"].variants(config, 9000) if "attention" in v.name)

    taught = with_overrides(Config(), {"stage2.association_loss_weight": 1.0})
    assert config_with_seed(taught, attention(taught), 0).stage2.association_loss_weight == 0.0
    assert attention(taught).name == "cross-attention, no association loss"
    assert attention(Config()).changes == {"memory.retrieval": "cross_attention"}


def test_scores_of_details_are_judged_where_memory_gives_words():
    detailed = {name for name, one in EXPERIMENTS.items() if DETAILED in one.judged}
    asked = {"memory-ablation", "region-query", "grounding", "retrieved-text", "context-recall", "knowledge-graph"}
    assert detailed == asked | {"leakage"}
    assert {name for name, one in EXPERIMENTS.items() if one.grounded} == asked
    assert all(one.judged[0] == HEADLINE for one in EXPERIMENTS.values())


def test_regions_of_another_map_are_looked_for_anew(artefacts):
    inputs = {"data": artefacts.data, "stage1": artefacts.stage1}
    methods = ("layercam", "gradcam", "layercam")
    names = [
        _vision_fingerprint(with_overrides(artefacts.config, {"banks.mining.method": one}), inputs) for one in methods
    ]
    assert names[0] == names[2] != names[1]


def some(config, texts):
    """Three of the ablation's variants: two trainings for each seed, as mismatched memory is the trained model."""
    variants = EXPERIMENTS["memory-ablation"].variants(config, texts)
    return [variants[0], *variants[3:]]


#: Needs two trainings of each where one is asked for.
ABLATION = replace(EXPERIMENTS["memory-ablation"], variants=some, seeds=2)


@pytest.fixture(scope="module")
def config(artefacts, tmp_path_factory):
    """The random films' run in a folder of its own."""
    return with_overrides(artefacts.linked(tmp_path_factory.mktemp("sweep")).config, SMALL)


@pytest.fixture(scope="module")
def pages(config):
    return experiment.run_experiments(config, [ABLATION], seeds=1)


def test_counts_what_is_to_be_made(config):
    sweep = Sweep(config, [some(config, 16)], [3])
    assert sweep.pending_counts() == {"prepare": 0, "stage1": 0, "banks": 0, "stage2": 6, "generate": 9, "page": 1}
    two = Sweep(config, [some(config, 16), EXPERIMENTS["beta"].variants(config, 16)[:2]], [3, 1])
    assert two.pending_counts() == {
        "prepare": 0,
        "stage1": 0,
        "banks": 0,
        "stage2": 7,
        "generate": 10,
        "page": 2,
    }  # one is shared
    assert sweep.eta_message() == "still to come: about 0, and stage2, generate, page, not timed yet on this machine"


def test_an_experiment_leaves_table_and_page(config, pages):
    folder = experiments_dir(config) / "memory-ablation"
    assert pages == [folder / "index.html", experiments_dir(config) / "index.html"]
    with (folder / "table.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["variant"] for row in rows] == ["both memories", "both off", "mismatched memory"]
    assert rows[0]["visual perplexity"]
    assert not rows[1]["visual perplexity"]
    seeds = [[float(row[f"{HEADLINE} seed {i}"]) for i in range(2)] for row in rows]
    assert f"{HEADLINE} seed 2" not in rows[0]
    assert float(rows[1]["difference over seeds"]) == pytest.approx(np.mean(seeds[1]) - np.mean(seeds[0]))
    assert "2 trainings of stage 2 for each row" in pages[0].read_text()
    assert "Over seeds: the mean of each" in pages[1].read_text()
    assert f"{HEADLINE} and {DETAILED} against the first row" in pages[0].read_text()
    assert rows[1][f"{DETAILED}: difference over seeds"]
    assert 0 <= float(rows[0]["visual alike"]) <= 1
    assert not rows[1]["visual alike"]  # it is off
    assert "data:image/svg+xml;base64," in pages[0].read_text()
    assert pages[1].read_text().count("<section") == 1


def test_done_again_nothing_is_made(config, pages, capsys):
    before = {path: path.stat().st_mtime_ns for path in pipeline.artifact_root(config).glob("*-*/*")}
    page = pages[0].read_bytes()
    assert experiment.run_experiments(config, [ABLATION], seeds=1) == pages
    assert {path: path.stat().st_mtime_ns for path in pipeline.artifact_root(config).glob("*-*/*")} == before
    assert pages[0].read_bytes() == page
    assert "making" not in capsys.readouterr().err
    sweep = Sweep(config, [some(config, 16)], [3])
    assert sweep.pending_counts() == {"prepare": 0, "stage1": 0, "banks": 0, "stage2": 2, "generate": 3, "page": 1}
    assert all(row.one is not None for row in sweep.forecast() if row.verb in ("stage2", "generate"))


def test_the_seed_of_stage_2_and_mismatched_memory_change_what_they_should(config, pages):
    sweep = Sweep(config, [], [])
    own, other = sweep.run(some(config, 16)[0], 2)
    mismatched, _ = sweep.run(some(config, 16)[2], 2)
    assert own.path("banks") == other.path("banks")
    assert own.artifacts["stage2"].hash != other.artifacts["stage2"].hash
    assert own.path("stage2") == mismatched.path("stage2")
    files = [(made.path("reports") / "reports.jsonl").read_text().splitlines() for made in (own, mismatched)]
    rows = [{line["key"]: line["memory"] for line in map(json.loads, lines)} for lines in files]
    assert rows[0].keys() == rows[1].keys()
    assert sorted(map(str, rows[0].values())) == sorted(map(str, rows[1].values()))  # the same, dealt out otherwise
    assert rows[0] != rows[1]


def test_copies_come_from_the_rows_retrieved(config):
    retrieval = EXPERIMENTS["retrieval"]
    chosen = [v for v in retrieval.variants(config, 16) if v.copy_top_k or v.name == "Hopfield, 1 step"]
    assert [variant.copy_top_k for variant in chosen] == [0, 1, 5]
    page = experiment.run_experiments(config, [replace(retrieval, variants=lambda config, texts: chosen)], seeds=1)[
        0
    ].read_text()
    table = (experiments_dir(config) / "retrieval" / "table.csv").read_text()
    assert table.count("\n") == 4
    assert "over seeds" not in table
    assert "One training of stage 2 for each row" in page


def test_details_are_supported_after_one_training(config):
    """Five ways to support the words of one generator; what its frozen stage 1 saw is used again."""
    grounding = EXPERIMENTS["grounding"]
    sweep = Sweep(config, [grounding.variants(config, 16)], [1])
    assert (sweep.pending_counts()["stage2"], sweep.pending_counts()["generate"]) == (1, 5)
    before = {path.name for path in pipeline.artifact_root(config).glob("*-*")}
    page = experiment.run_experiments(config, [grounding], seeds=1)[0]
    made = sorted(
        path.name.split("-")[0] for path in pipeline.artifact_root(config).glob("*-*") if path.name not in before
    )
    assert made == ["reports"] * 5 + ["stage2"]
    assert "Not run" not in page.read_text()
    with (experiments_dir(config) / "grounding" / "table.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["variant"] for row in rows] == ["region memory", "nothing", "map", "attribute head", "memory and head"]
    assert all(row[DETAILED] and row[HEADLINE] for row in rows)
    assert len({row["validation loss"] for row in rows}) == 1


def test_what_memory_gives_is_asked_of_three_seeds_the_rest_of_as_many_as_told():
    several = {name: one.seeds for name, one in EXPERIMENTS.items() if one.seeds > 1}
    assert several == {
        "memory-ablation": 3,
        "context": 3,
        "context-recall": 3,
        "prior": 3,
        "views": 3,
        "knowledge-graph": 3,
    }


def test_what_cannot_be_had_is_said_on_the_page(config, capsys):
    bad = replace(EXPERIMENTS["temporal"], variants=lambda c, s: [Variant("no", {"stage2.batch_size": 999})])
    page = experiment.run_experiments(config, [bad], seeds=1)[0].read_text()
    assert "Not run:</b> stage2.batch_size 999 does not fit" in page


def test_a_dry_run_makes_no_data(tmp_path, capsys):
    config = Config(name="tiny", runs=str(tmp_path / "runs"))
    assert experiment.run_experiments(config, [EXPERIMENTS["beta"]], 1, dry_run=True) == []
    assert "prepare: would make" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_the_forecast_says_what_it_does_not_know(capsys):
    show_forecast([Forecast("stage2", 9, 30.0, 2), Forecast("page", 1, 30.0, 2), Forecast("generate", 5, None, 2)])
    said = capsys.readouterr().err
    assert "predicted: 2.8 minutes, and generate, not timed yet on this machine" in said


def test_mistakes_are_one_line():
    with pytest.raises(UserError, match=r"invalid choice: 'gamma'"):
        experiment.main(["gamma"])
    with pytest.raises(UserError, match="--seeds 0"):
        experiment.main(["beta", "--seeds", "0"])
