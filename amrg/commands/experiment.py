"""``amrg experiment NAME [CONFIG]``: run one experiment, or all, over several seeds."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np

from amrg import pipeline
from amrg.artifacts import find_artifact
from amrg.cli_config import ArgumentParser, parse_config_arguments
from amrg.config import Config
from amrg.data.stream import load_split_studies
from amrg.errors import UserError
from amrg.evaluation.temporal import TEMPORAL
from amrg.experiments import conclusions, localization, result
from amrg.experiments.aggregate import Row, score_variants
from amrg.experiments.jobs import Jobs
from amrg.experiments.markdown import write_markdown
from amrg.experiments.registry import DETAILED, EXPERIMENTS, HEADLINE, THRESHOLDS, Experiment
from amrg.experiments.result import Result
from amrg.experiments.sweep import Sweep, Variant, VariantOutputs, experiments_dir, show_forecast
from amrg.mining.reports import candidate_texts
from amrg.pages.overlays import film_data_url, heat_map_data_url, outline_data_url
from amrg.progress import print_on_rank_0

#: Scores of the plots by experiment; scores that an experiment does not have are left out.
PANELS = {
    "": (HEADLINE, "ROUGE-L"),
    "beta": (HEADLINE, "epochs to common loss", "report perplexity"),
    "cam-method": ("pointing", "IoU", HEADLINE),
    "mask-threshold": ("IoU", "pointing", "empty masks"),
    "memory-ablation": (HEADLINE, DETAILED, "side exact", "visual relevance"),
    "region-query": ("visual relevance", "visual true side", "side exact", DETAILED),
    "grounding": ("side exact", "zone exact", "unsupported details", DETAILED),
    "retrieved-text": (HEADLINE, DETAILED, "side exact", "ROUGE-L"),
    "context": (HEADLINE, "CIDEr", "BLEU-4"),
    "context-recall": (HEADLINE, "CIDEr", "BLEU-4"),
    "prior": (HEADLINE, TEMPORAL, "CIDEr"),
    "knowledge-graph": (HEADLINE, DETAILED, "classifier AUROC", "visual relevance"),
    "views": (HEADLINE, "classifier AUROC"),
    "leakage": (HEADLINE, DETAILED, "BLEU-4"),
}


def main(arguments: Sequence[str]) -> None:
    """Run one experiment or all; finished steps are reused, so the same command resumes after an interruption."""
    parser = ArgumentParser(prog="amrg experiment", description=__doc__, allow_abbrev=False)
    parser.add_argument("name", choices=[*EXPERIMENTS, "all"])
    parser.add_argument(
        "--seeds",
        type=int,
        default=3,
        help="trainings of stage 2 for each variant (default 3); more where an experiment needs them",
    )
    parser.add_argument("--dry-run", action="store_true", help="only say what is to be made and how long it may take")
    parser.add_argument("--jobs", type=int, default=1, help="steps made at a time, each with its share of the cores")
    options, rest = parser.parse_known_args(list(arguments))
    for name in ("seeds", "jobs"):
        if getattr(options, name) < 1:
            raise UserError(f"--{name} {getattr(options, name)}: at least 1 is needed")
    config = parse_config_arguments(rest, f"amrg experiment {options.name} [CONFIG]")
    chosen = list(EXPERIMENTS.values()) if options.name == "all" else [EXPERIMENTS[options.name]]
    pages = run_experiments(config, chosen, options.seeds, options.jobs, options.dry_run)
    for page in pages:
        print(page)


def run_experiments(
    config: Config, chosen: Sequence[Experiment], seeds: int, jobs: int = 1, dry_run: bool = False
) -> list[Path]:
    """Run experiments, write their pages and the common page, and return the paths.

    Args:
        config: the base run; its data are prepared first (not for ``dry_run``).
        chosen: experiments to run.
        seeds: trainings of stage 2 per variant; at least those that an experiment needs (``Experiment.seeds``).
        jobs: steps that run at a time.
        dry_run: only print the forecast.
    """
    if dry_run and find_artifact(pipeline.artifact_root(config), pipeline.step_recipe("prepare", config)) is None:
        print_on_rank_0(pipeline.describe_step("prepare", config))
        print_on_rank_0("the steps after it are listed once it is made: they depend on its reports")
        return []
    data = pipeline.run_pipeline(config, "prepare").path
    texts = len(candidate_texts(load_split_studies(data, "train"), config.banks.reports.granularity))
    variants = {experiment.name: experiment.variants(config, texts) for experiment in chosen}
    trainings = [max(seeds, experiment.seeds) for experiment in chosen]
    sweep = Sweep(config, list(variants.values()), trainings, jobs)
    show_forecast(sweep.forecast())
    if dry_run:
        return []
    sweep.base_run()  # first and with all cores: nearly every variant builds on it
    pages = []
    with Jobs(jobs) if jobs > 1 else nullcontext() as concurrent:
        if concurrent:
            sweep.submit_all(concurrent)
        for number, (experiment, count) in enumerate(zip(chosen, trainings, strict=True), start=1):
            print_on_rank_0(f"experiment {number} of {len(chosen)}: {experiment.name}")
            pages.append(_run_one(config, experiment, variants[experiment.name], count, sweep))
    results = result.read_results(config, list(EXPERIMENTS))
    write_markdown(results, experiments_dir(config) / "results.md", "results")
    return [*pages, result.write_results_page(config, results)]


def _run_one(config: Config, experiment: Experiment, variants: list[Variant], seeds: int, sweep: Sweep) -> Path:
    """Run one experiment and write its page; an error is written there, so that the others still run."""
    summary = Result(experiment.name, experiment.title, experiment.question)
    made: list[list[VariantOutputs]] = []
    try:
        for number, variant in enumerate(variants, start=1):
            print_on_rank_0(f"{experiment.name}: {variant.name} ({number} of {len(variants)}); {sweep.eta_message()}")
            made.append(sweep.run(variant, seeds))
        with sweep.timed_page():
            rows, summary = _measured(config, experiment, summary, made, sweep)
    except UserError as error:
        print_on_rank_0(f"{experiment.name}: {error}")
        rows, summary = [], replace(summary, unavailable=str(error))
    return result.write_experiment(config, summary, rows)


def _measured(
    config: Config, experiment: Experiment, summary: Result, made: list[list[VariantOutputs]], sweep: Sweep
) -> tuple[list[Row], Result]:
    """Score the variants: rows of the table, and the content of the page."""
    rows = score_variants(config, made, experiment) if made else []
    if experiment.maps == "methods":
        rows = [_with_maps(config, row, seeds[0]) for row, seeds in zip(rows, made, strict=True)]
    elif experiment.maps == "thresholds":
        rows, summary = _thresholds(config, summary, sweep.base_run())
    panels = PANELS.get(experiment.name, PANELS[""])
    if experiment.per_class:
        panels = tuple(
            name for name in rows[0].scores if name == HEADLINE or (name.startswith("F1 ") and name[3].isupper())
        )
    return rows, replace(
        summary,
        paragraphs=conclusions.experiment_conclusions(experiment.name, rows),
        table=result.result_table(rows),
        note=_note(config, len(made[0]) if made else 0, experiment),
        plot=result.plot_result(rows, panels[:4], experiment.x_label),
    )


def _with_maps(config: Config, row: Row, made: VariantOutputs) -> Row:
    """Add the localization scores of the row's method, if the data has masks."""
    method = made.variant.changes["banks.mining.method"]
    banks = replace(config.banks, mining=replace(config.banks.mining, method=str(method)))
    try:
        found = localization.load_lesion_maps(
            replace(config, banks=banks), made.path("data"), made.path("stage1"), made.path("banks")
        )
    except localization.NoMasks:
        return row
    scores = localization.scores_of_method(found, config.evaluate.bootstrap_samples, config.seed)
    return replace(row, scores={**scores, **row.scores})


def _thresholds(config: Config, summary: Result, made: VariantOutputs) -> tuple[list[Row], Result]:
    """Score each τ, and choose lesions to show."""
    found = localization.load_lesion_maps(config, made.path("data"), made.path("stage1"), made.path("banks"))
    rows = localization.iou_by_threshold(found, THRESHOLDS, config.evaluate.bootstrap_samples, config.seed)
    threshold = config.banks.mining.threshold
    overlays = [
        {
            "film": film_data_url(found.films[i]),
            "heat": heat_map_data_url(np.where(found.maps_LHW[i] > threshold, found.maps_LHW[i], 0.0), top=1.0),
            "outline": outline_data_url(found.masks[i]),
            "finding": found.findings[i],
        }
        for i in localization.sample_overlays(found, config.seed)
    ]
    note = f"Heat: what exceeds τ = {threshold:g}, strongest where the map is 1 or more. Outline: the true lesion."
    return rows, replace(summary, overlays=overlays, overlay_note=note)


def _note(config: Config, seeds: int, experiment: Experiment) -> str:
    drawn = f"Intervals: 95%, bootstrap over patients, {config.evaluate.bootstrap_samples} resamples"
    if not seeds:
        return f"{drawn}. Every lesion of the {config.generate.split} split counts once."
    tested, judged = "", experiment.judged
    if experiment.paired:
        tested = (
            f" Difference and p: {' and '.join(judged)} against the first row, paired by patient (permutation test), "
            f"p corrected for the rows of this table{' and its judged scores' if len(judged) > 1 else ''} (Holm)."
        )
    if experiment.paired and seeds > 1:
        tested += " Over seeds: the mean of each seed's own difference, paired t-test, p corrected likewise."
    trained = "one training" if seeds == 1 else f"{seeds} trainings"
    stage2 = config.stage2
    length = f"{stage2.epochs} epochs in batches of {stage2.batch_size}"
    return f"{trained[0].upper()}{trained[1:]} of stage 2 for each row, {length}. {drawn}.{tested}"
