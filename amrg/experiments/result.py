"""Files of an experiment (``result.json``, ``table.csv``, ``index.html``), and the page of all experiments of a run."""

import base64
import csv
import io
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from amrg.config import Config
from amrg.evaluation.comparison import Difference
from amrg.experiments.aggregate import Row, Score
from amrg.experiments.registry import HEADLINE
from amrg.experiments.sweep import experiments_dir
from amrg.experiments.verdicts import format_score_span
from amrg.pages import EMBEDDED_DATA_NOTICE, NOT_CLINICAL_NOTICE
from amrg.pages.result_page import format_number, load_templates

RESULT, TABLE, PAGE = "result.json", "table.csv", "index.html"
_BLUE, _GRAY = "#005a9c", "#8795a1"


@dataclass(frozen=True)
class Result:
    """One experiment's part of the page.

    Attributes:
        name, title, question: as in ``Experiment``.
        unavailable: reason why it could not run; all fields below are then empty.
        paragraphs: conclusions.
        table: column heads and rows, as text.
        note: note on the table.
        plot: SVG data URL.
        overlays: ``film``, ``heat``, ``outline`` (data URLs) and ``finding`` per overlay.
        overlay_note: explanation of the overlays.
    """

    name: str
    title: str
    question: str
    unavailable: str = ""
    paragraphs: list[str] = field(default_factory=list)
    table: tuple[list[str], list[list[str]]] | None = None
    note: str = ""
    plot: str = ""
    overlays: list[dict[str, str]] = field(default_factory=list)
    overlay_note: str = ""


def write_experiment(config: Config, result: Result, rows: Sequence[Row]) -> Path:
    """Write an experiment's folder; returns its page."""
    folder = experiments_dir(config) / result.name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / TABLE).unlink(missing_ok=True)
    if rows:
        (folder / TABLE).write_text(result_csv(rows))
    (folder / RESULT).write_text(json.dumps(asdict(result)) + "\n")
    (folder / PAGE).write_text(render_results_page(config, [result]), encoding="utf-8")
    return folder / PAGE


def read_results(config: Config, names: Sequence[str]) -> list[Result]:
    """Read the results of the run's experiments that have one, in the order of ``names``."""
    files = [experiments_dir(config) / name / RESULT for name in names]
    return [Result(**json.loads(file.read_text())) for file in files if file.exists()]


def write_results_page(config: Config, results: Sequence[Result]) -> Path:
    """Write the page of all experiments; returns its path."""
    page = experiments_dir(config) / PAGE
    page.write_text(render_results_page(config, results), encoding="utf-8")
    return page


def render_results_page(config: Config, results: Sequence[Result]) -> str:
    """Render the page as text."""
    return (
        load_templates()
        .get_template("experiments.html.j2")
        .render(
            run=config.name,
            source=config.data.source,
            always=NOT_CLINICAL_NOTICE,
            embedded=EMBEDDED_DATA_NOTICE if config.data.source == "openi_drr" else None,
            results=results,
        )
    )


def result_csv(rows: Sequence[Row]) -> str:
    """Format one line per variant: scores with intervals, differences in judged scores with tests, seeds, facts."""
    lines = [_flat(row) for row in rows]
    names = dict.fromkeys(name for line in lines for name in line)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(names), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def _flat(row: Row) -> dict[str, Any]:
    line: dict[str, Any] = {"variant": row.name}
    for name, score in row.scores.items():
        line[name] = score.value
        if score.interval is not None:
            line[f"{name} low"], line[f"{name} high"] = score.interval
    for judged, tested in row.tests.items():
        for d, how in ((tested.difference, ""), (tested.over_seeds, " over seeds")):
            if d is not None:
                low, high = d.interval
                numbers = {"difference": d.candidate - d.baseline, "difference low": low, "difference high": high}
                numbers |= {"p": d.p, "p corrected": d.holm}
                line |= {f"{_of(judged)}{name}{how}": value for name, value in numbers.items()}
    seeds = {f"{judged} seed {i}": v for judged, tested in row.tests.items() for i, v in enumerate(tested.seeds)}
    return line | seeds | row.diagnostics


def _of(score: str) -> str:
    """Return the column prefix of a judged score; empty for the headline."""
    return "" if score == HEADLINE else f"{score}: "


def result_table(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Format column heads and rows for a reader, with intervals in the cell of their number."""
    scores = dict.fromkeys(name for row in rows for name in row.scores)
    facts = dict.fromkeys(name for row in rows for name in row.diagnostics)
    tests: dict[tuple[str, str], list[Difference | None]] = {}
    for judged in dict.fromkeys(judged for row in rows for judged in row.tests):
        tests[_of(judged), ""] = [row.tested(judged).difference for row in rows]
        tests[_of(judged), " over seeds"] = [row.tested(judged).over_seeds for row in rows]
    tested = {where: found for where, found in tests.items() if any(found)}
    test_heads = [f"{of}{name}{how}" for of, how in tested for name in ("difference [95%]", "corrected p")]
    heads = ["", *scores, *test_heads, *facts]
    return heads, [
        [
            row.name,
            *(format_score_span(row.scores[name]) if name in row.scores else "–" for name in scores),
            *(cell for found in tested.values() for cell in _difference(found[i])),
            *(_fact(name, row.diagnostics.get(name)) for name in facts),
        ]
        for i, row in enumerate(rows)
    ]


def _fact(name: str, value: float | None) -> str:
    is_count = name.endswith((" rows", " texts"))
    return f"{value:,.0f}" if value is not None and is_count else format_number(value)


def _difference(d: Difference | None) -> list[str]:
    if d is None:
        return ["–", "–"]
    return [f"{d.candidate - d.baseline:+.3f} [{d.interval[0]:+.3f}, {d.interval[1]:+.3f}]", f"{d.holm:.3f}"]


def plot_result(rows: Sequence[Row], panels: Sequence[str], x_label: str) -> str:
    """Plot one panel per score or fact, along x if all variants have one, else one line per variant.

    Bars are 95% intervals; small gray points are single seeds.

    Returns:
        an SVG as a data URL, deterministic for the same numbers.
    """
    shown = [name for name in panels if any(_value(row, name) is not None for row in rows)]
    along = all(row.x is not None for row in rows)
    height = 3.2 if along else 1.1 + 0.36 * len(rows)
    figure = Figure(figsize=(4.2 * len(shown) + (0 if along else 1.6), height), layout="constrained")
    for axes, name in zip(np.atleast_1d(figure.subplots(1, len(shown), sharey=not along)), shown, strict=True):
        places, scores, seeds = _drawn(rows, name)
        ends = [score.interval or (score.value, score.value) for score in scores]
        values, (low, high) = [score.value for score in scores], zip(*ends, strict=True)
        (axes.vlines if along else axes.hlines)(places, low, high, color=_BLUE)
        axes.plot(*((places, values) if along else (values, places)), "o-" if along else "o", color=_BLUE, ms=5, lw=1)
        for place, of_place in zip(places, seeds, strict=True):
            points = [place] * len(of_place)
            axes.plot(*((points, of_place) if along else (of_place, points)), "o", color=_GRAY, ms=3)
        axes.set_title(name, fontsize=10)
        axes.grid(alpha=0.3)
        if along:
            axes.set_xlabel(x_label)
            if max(places) > 8 * min(places) > 0:
                axes.set_xscale("log", base=2)
        else:
            axes.set_yticks(range(len(rows)), [row.name for row in rows])
            axes.set_ylim(len(rows) - 0.5, -0.5)
    return _svg(figure)


def _drawn(rows: Sequence[Row], name: str) -> tuple[list[float], list[Score], list[list[float]]]:
    """Return position (x, else the row index), score and seeds of each variant that has the number."""
    drawn = []
    for i, row in enumerate(rows):
        score = _value(row, name)
        if score is not None:
            drawn.append((float(i) if row.x is None else row.x, score, row.tested(name).seeds))
    places, scores, seeds = zip(*sorted(drawn, key=lambda one: one[0]), strict=True)
    return list(places), list(scores), list(seeds)


def _value(row: Row, name: str) -> Score | None:
    if name in row.scores:
        return row.scores[name]
    value = row.diagnostics.get(name, math.nan)
    return None if math.isnan(value) else Score(value)


def _svg(figure: Figure) -> str:
    import matplotlib

    with io.BytesIO() as file, matplotlib.rc_context({"svg.hashsalt": "amrg"}):
        figure.savefig(file, format="svg", metadata={"Date": None})
        return f"data:image/svg+xml;base64,{base64.b64encode(file.getvalue()).decode()}"
