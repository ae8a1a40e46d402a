"""All experiments in the right shapes: made-up scores and lesions, through the real words and plots."""

import numpy as np

from amrg.commands.experiment import PANELS
from amrg.config import Config
from amrg.data.labels import FINDINGS
from amrg.evaluation.comparison import Difference
from amrg.experiments import conclusions, result
from amrg.experiments.aggregate import DETAILS, REPORTED_METRICS, Judged, Row, Score
from amrg.experiments.localization import Lesions, iou_by_threshold, sample_overlays
from amrg.experiments.registry import EXPERIMENTS, THRESHOLDS, Experiment
from amrg.experiments.result import Result
from amrg.pages.overlays import film_data_url, heat_map_data_url, outline_data_url

SIZE = 56  # pixels on a side of a film
RELEVANCE = ("visual relevance", "visual relevance, absent", "visual true side", "report relevance")


def write_results(config: Config):
    """Every experiment's folder, and the page of all; returns that page."""
    for number, experiment in enumerate(EXPERIMENTS.values()):
        rows, overlays = (rendered(), overlaid()) if experiment.maps == "thresholds" else (made(experiment, number), [])
        panels = PANELS.get(experiment.name, PANELS[""])
        told = Result(
            experiment.name, experiment.title, experiment.question, "",
            conclusions.experiment_conclusions(experiment.name, rows), result.result_table(rows), "Intervals: 95%.",
            result.plot_result(rows, panels, experiment.x_label), overlays, "Heat.",
        )  # fmt: skip
        result.write_experiment(config, told, rows)
    return result.write_results_page(config, result.read_results(config, list(EXPERIMENTS)))


def made(experiment: Experiment, number: int) -> list[Row]:
    """A row for each variant; the second is better than the first, the others are not shown to differ."""
    rng = np.random.default_rng(number)
    rows = []
    for i, variant in enumerate(experiment.variants(Config(), 1000)):
        value = 0.5 + 0.1 * (i == 1) + rng.uniform(-0.03, 0.03)
        names = [
            *REPORTED_METRICS,
            *(f"F1 {name}" for name in FINDINGS if experiment.per_class),
            *experiment.judged,
            *experiment.shown,
        ]
        names += [*DETAILS, *RELEVANCE] if experiment.grounded else []
        names += ["IoU", "pointing", "over control"] if experiment.maps == "methods" else []
        scores = {name: Score(value, (value - 0.06, value + 0.06)) for name in names}
        facts = {"epochs to common loss": 4 + i / 3, "visual perplexity": 90.0 - i, "report perplexity": 80.0 - i}
        facts |= {"visual base rate": 0.1, "report base rate": 0.1} if experiment.grounded else {}
        p = 0.01 if i == 1 else 0.6
        tests = {}
        for name in experiment.judged:
            found = Difference(rows[0].scores[name].value, value, (0.02, 0.2), p, p) if i else None
            tests[name] = Judged([value - 0.01, value + 0.01], *([found] * 2 if experiment.paired else []))
        rows.append(Row(variant.name, scores, variant.x, tests, facts))
    return rows


def lesions() -> Lesions:
    """Sixty films with a bright square, and a map whose peak is near it."""
    rng = np.random.default_rng(0)
    films = rng.integers(40, 120, (60, SIZE, SIZE)).astype(np.uint8)
    masks, maps = np.zeros(films.shape, bool), rng.uniform(0, 0.4, (60, 14, 14))
    for film, mask, map_HW, (y, x) in zip(films, masks, maps, rng.integers(1, 10, (60, 2)), strict=True):
        mask[4 * y : 4 * y + 12, 4 * x : 4 * x + 12] = True
        film[mask] += 100
        map_HW[y : y + 2, x : x + 3] = rng.uniform(0.3, 1)
    return Lesions([FINDINGS[i % 3] for i in range(60)], [f"p{i}" for i in range(60)], films, masks, maps)


def rendered() -> list[Row]:
    return iou_by_threshold(lesions(), THRESHOLDS, 50, 0)


def overlaid() -> list[dict[str, str]]:
    found = lesions()
    return [
        {
            "film": film_data_url(found.films[i]),
            "heat": heat_map_data_url(found.maps_LHW[i], top=1.0),
            "outline": outline_data_url(found.masks[i]),
            "finding": found.findings[i],
        }
        for i in sample_overlays(found, 0)
    ]
