"""Result page: one self-contained HTML file, to open from disk or send to a colleague."""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from amrg.data.labels import LABELS
from amrg.pages import EMBEDDED_DATA_NOTICE, NOT_CLINICAL_NOTICE, score_table
from amrg.pages.overlays import film_data_url, heat_map_data_url, outline_data_url
from amrg.pages.plain_summary import plain_summary
from amrg.pages.plots import forest_plot_svg, line_chart_svg
from amrg.pages.retrieved_rows import MemoryRow, RecalledSentence, recalled_sentence_views, retrieved_row_view


@dataclass(frozen=True)
class SampleStudy:
    """One study on the page.

    Attributes:
        film: uint8 [H, W].
        findings: positive findings of the study.
        probabilities: classifier's probabilities by shown finding.
        maps: activation map by finding, non-negative, on any grid that covers the film.
        masks: true lesion by finding, bool [H, W].
        reference, generated: reports with marked findings (``overlays.mark_text_spans``).
        verdict: what the generated report gets right and wrong, in counts.
        memory: retrieved rows by bank ("visual", "report"), the most unusual first.
        unusual: by bank, findings on whose rows more of their association lies than for the mean study: name, share
            and lift.
        sentences: recalled sentences that the report begins with.
        unsure: text and probability of what the report leaves out as not probable enough.
        graph, implausible: edges of the knowledge graph that the report states, and combinations that it lacks.
        views: square films with boxes of sentences, by their number in the study, uint8 [S, S].
        grid: cells per side of the grid of the boxes.
    """

    key: str
    film: np.ndarray
    findings: Sequence[str]
    probabilities: dict[str, float]
    maps: dict[str, np.ndarray]
    masks: dict[str, np.ndarray]
    reference: Markup
    generated: Markup
    verdict: str = ""
    memory: dict[str, list[MemoryRow]] = field(default_factory=dict)
    unusual: Mapping[str, Sequence[tuple[str, float, float]]] = field(default_factory=dict)
    sentences: Sequence[RecalledSentence] = ()
    unsure: Sequence[tuple[str, float]] = ()
    graph: Sequence[str] = ()
    implausible: Sequence[str] = ()
    views: Mapping[int, np.ndarray] = field(default_factory=dict)
    grid: int = 14


@dataclass(frozen=True)
class Page:
    """Content of the page.

    Attributes:
        scores: content of ``scores.json``.
        curves: rows of each stage's ``curves.jsonl``.
        contact_sheet: films with their captions.
        studies: studies that were chosen before the reports were read.
        worst, best: studies that were chosen by their reports, the worst and the best first.
    """

    scores: dict[str, Any]
    curves: dict[str, list[dict[str, Any]]]
    contact_sheet: Sequence[tuple[np.ndarray, str]]
    studies: Sequence[SampleStudy]
    worst: Sequence[SampleStudy] = ()
    best: Sequence[SampleStudy] = ()


def write_result_page(page: Page, path: Path) -> None:
    """Render the page into one file."""
    path.write_text(render_result_page(page), encoding="utf-8")


def render_result_page(page: Page) -> str:
    """Render the page as text; the same input gives the same bytes."""
    environment = load_templates()
    environment.filters["number"] = format_number
    environment.filters["odds"] = lambda value: f"{value:,.0f}" if value >= 100 else f"{value:.2g}"
    environment.filters["span"] = lambda pair: f"{format_number(pair[0])} – {format_number(pair[1])}"
    script = files("amrg.pages").joinpath("sort_tables.js").read_text(encoding="utf-8")
    return environment.get_template("result_page.html.j2").render(
        scores=page.scores,
        summary=plain_summary(page.scores),
        always=NOT_CLINICAL_NOTICE,
        embedded=EMBEDDED_DATA_NOTICE if page.scores["source"] == "openi_drr" else None,
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        forest=score_forest_plots(page.scores),
        scored=score_table.system_score_rows(page.scores),
        data_sets=score_table.data_set_rows(page.scores),
        sections=score_table.section_score_rows(page.scores),
        learned=score_table.learned_metric_rows(page.scores),
        clinical=score_table.clinical_rows(page.scores),
        details=score_table.detail_score_rows(page.scores),
        detail_findings=score_table.detail_finding_rows(page.scores),
        reliability=score_table.reliability_rows(page.scores),
        confidence_charts=confidence_charts(page.scores["confidence"]),
        odds_missing={f: score_table.why_no_odds_ratio(t) for f, t in page.scores["mentions"].items()},
        relevance={b: found and score_table.relevance_rows(found) for b, found in page.scores["relevance"].items()},
        wording=score_table.report_wording_rows(page.scores),
        temporal=score_table.temporal_rows(page.scores),
        copying=score_table.copy_rate_rows(page.scores),
        sizes=score_table.lesion_size_rows(page.scores),
        unavailable=score_table.unavailable_metrics(page.scores),
        labels=LABELS,
        charts={stage: training_charts(rows) for stage, rows in page.curves.items()},
        contact=[(film_data_url(film, 168), caption) for film, caption in page.contact_sheet],
        samples=[
            (name, [_study(study) for study in studies])
            for name, studies in (("chosen", page.studies), ("worst", page.worst), ("best", page.best))
        ],
    )


def load_templates() -> Environment:
    """Load the templates of all pages; all values are escaped."""
    return Environment(
        loader=PackageLoader("amrg.pages", "."),
        autoescape=select_autoescape(default_for_string=True, default=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def format_number(value: float | int | None) -> str:
    """Format a number for a table: three decimals below 10, fewer above; a dash for an unknown value."""
    if value is None or value != value:
        return "–"
    if isinstance(value, int):
        return str(value)
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}" if abs(value) < 1000 else f"{value:.3g}"


def training_charts(rows: list[dict[str, Any]]) -> list[Markup]:
    """Draw one chart per quantity; ``train_x`` and ``val_x`` share the chart of ``x``."""
    names = sorted({name for row in rows for name, v in row.items() if isinstance(v, float)})
    groups: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for name in names:
        part, quantity = next(((p, name.removeprefix(p)) for p in _PARTS if name.startswith(p)), ("", name))
        line = [(row["epoch"], row[name]) for row in rows if name in row]
        groups.setdefault(quantity, {})[_PARTS.get(part, quantity.replace("_", " "))] = line
    return [line_chart_svg(lines, quantity.replace("_", " ")) for quantity, lines in groups.items()]


def score_forest_plots(scores: dict[str, Any]) -> list[Markup]:
    """Draw each main score of all systems with its intervals; the line is the model's value, or a difference of 0."""
    model = next(iter(scores["systems"]))
    return [
        forest_plot_svg(rows, title, *((rows[model][0], model) if model in rows else (0.0,)))
        for title, rows in score_table.forest_plot_rows(scores).items()
    ]


def confidence_charts(confidence: dict[str, Any] | None) -> list[Markup]:
    """Draw the reliability diagram and the risk-coverage curve; none without stated findings."""
    if confidence is None:
        return []
    bins, curve = confidence["bins"], confidence["risk_coverage"]
    everything = curve[-1]["wrong"]
    reliability = {
        "stated findings": [(one["probability"], one["right"]) for one in bins],
        "calibrated": [(0.0, 0.0), (1.0, 1.0)],
    }
    risk = {
        "most probable first": [(one["coverage"], one["wrong"]) for one in curve],
        "in random order": [(0.0, everything), (1.0, everything)],
    }
    return [
        line_chart_svg(
            reliability, "share that the reference states, by probability", "mean probability", integers=False
        ),
        line_chart_svg(
            risk, "share of wrong findings, by coverage", "share of the findings that is kept", integers=False
        ),
    ]


_PARTS = {"train_": "training", "val_": "validation"}


def _study(study: SampleStudy) -> dict[str, Any]:
    shown = [
        {
            "finding": finding,
            "true": finding in study.findings,
            "probability": study.probabilities.get(finding),
            "heat": heat_map_data_url(map_HW),
            "outline": outline_data_url(study.masks[finding]) if finding in study.masks else None,
        }
        for finding, map_HW in study.maps.items()
    ]
    return {
        "key": study.key,
        "film": film_data_url(study.film),
        "findings": study.findings,
        "shown": shown,
        "reference": study.reference,
        "generated": study.generated,
        "verdict": study.verdict,
        "unusual": study.unusual,
        "unsure": study.unsure,
        "graph": study.graph,
        "implausible": study.implausible,
        "memory": {bank: [retrieved_row_view(row) for row in rows] for bank, rows in study.memory.items()},
        "recalled": recalled_sentence_views(study.sentences, study.views, study.grid),
    }
