"""Drawing of the knowledge graph: findings on a circle, and findings beside their sites, qualifiers and devices."""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from amrg.data.labels import FINDINGS, NO_FINDING
from amrg.graph.facts import HAS_QUALIFIER, LOCATED_AT, NODES, WITH_DEVICE
from amrg.graph.knowledge_graph import CO_OCCURS, EXCLUDES, WITHOUT, Edge, KnowledgeGraph

#: Edges of a finding to sites, qualifiers and devices that are drawn, the strongest; and their least strength.
_PER_FINDING, _LEAST_STRENGTH = 5, 0.2
#: Colors that readers with any color vision can distinguish (Okabe and Ito), by the kind of a node or relation.
_COLORS = {"site": "#0072b2", "qualifier": "#e69f00", "device": "#009e73", "more": "#0072b2", "fewer": "#d55e00"}
_CURATED = "#cc79a7"


def strongest_edges(graph: KnowledgeGraph, finding: str, most: int) -> list[Edge]:
    """Return the strongest edges of a finding, positive ones first and then the most negative ones.

    Edges of No Finding, which exclude findings by definition, and of denied findings are left out.
    """
    edges = [e for e in graph.edges if finding in (e.head, e.tail) and e.relation != WITHOUT]
    edges = sorted((e for e in edges if NO_FINDING not in (e.head, e.tail)), key=lambda e: -abs(e.strength))[:most]
    return sorted(edges, key=lambda e: -e.strength)


def draw_graph(graph: KnowledgeGraph, file: Path) -> None:
    """Draw a graph into an SVG, PNG or PDF file."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    with plt.rc_context({"svg.fonttype": "none", "svg.hashsalt": "amrg", "font.size": 9}):
        figure, (left, right) = plt.subplots(1, 2, figsize=(15, 8.5), width_ratios=(1, 1.15))
        _draw_findings(graph, left)
        _draw_details(graph, right)
        for axes in (left, right):
            axes.set_axis_off()
        figure.tight_layout()
        figure.savefig(file, dpi=110, metadata={"Date": None} if file.suffix == ".svg" else None)
        plt.close(figure)


def _draw_findings(graph: KnowledgeGraph, axes: Any) -> None:
    """Draw the findings on a circle, with the edges between them."""
    stated = [f for f in FINDINGS if graph.stated(f)]
    angles = {f: 2 * math.pi * i / max(len(stated), 1) for i, f in enumerate(stated)}
    place = {f: (math.cos(a), math.sin(a)) for f, a in angles.items()}
    largest = max((graph.stated(f) for f in stated), default=1)
    edges = [e for e in graph.edges if e.relation != WITHOUT and {e.head, e.tail} <= place.keys()]
    for edge in (e for e in edges if abs(e.strength) >= _LEAST_STRENGTH or e.weight is not None):
        (x0, y0), (x1, y1) = place[edge.head], place[edge.tail]
        style = "-" if edge.strength > 0 else "--"
        axes.plot((x0, x1), (y0, y1), style, color=_color(edge), lw=0.6 + 3 * abs(edge.strength), alpha=0.75, zorder=1)
        t = 0.4 if angles[edge.head] < angles[edge.tail] else 0.6  # beside the crossing in the middle
        axes.text(
            x0 + t * (x1 - x0), y0 + t * (y1 - y0), "curated" if edge.weight is not None else str(edge.count),
            fontsize=7, ha="center", va="center", zorder=2, bbox={"fc": "white", "ec": "none", "pad": 0.5},
        )  # fmt: skip
    for finding, (x, y) in place.items():
        axes.scatter([x], [y], s=60 + 500 * graph.stated(finding) / largest, color="#444444", zorder=3)
        side = "left" if x > 0.2 else "right" if x < -0.2 else "center"
        axes.text(1.14 * x, 1.14 * y, f"{finding}\n{graph.stated(finding)}", ha=side, va="center")
    axes.set_title(
        f"Findings of {graph.num_studies} train reports: number of studies at nodes and edges\n"
        "blue: more often together than by chance; orange, dashed: less often; width: strength"
    )
    axes.set_xlim(-1.9, 1.9)
    axes.set_ylim(-1.35, 1.35)


def _draw_details(graph: KnowledgeGraph, axes: Any) -> None:
    """Draw the findings in one column, and their sites, qualifiers and devices in another."""
    relations = (LOCATED_AT, HAS_QUALIFIER, WITH_DEVICE)
    edges: list[Edge] = []
    for finding in (f for f in FINDINGS if graph.stated(f)):
        own = [e for e in graph.edges if e.head == finding and (e.relation in relations or e.weight is not None)]
        own = [
            e for e in own if e.strength >= _LEAST_STRENGTH and NODES[e.tail] != "finding" and e.relation != EXCLUDES
        ]
        edges += sorted(own, key=lambda e: -e.strength)[:_PER_FINDING]
    findings = [f for f in FINDINGS if any(e.head == f for e in edges)]
    heights = {f: 1 - i / max(len(findings) - 1, 1) for i, f in enumerate(findings)}
    mean = {node: _mean(heights[e.head] for e in edges if e.tail == node) for node in {e.tail for e in edges}}
    nodes = sorted(mean, key=lambda node: (-mean[node], node))
    right = {node: 1 - i / max(len(nodes) - 1, 1) for i, node in enumerate(nodes)}
    for edge in edges:
        width = 0.6 + 2.5 * edge.strength
        axes.plot((0, 1), (heights[edge.head], right[edge.tail]), color=_color(edge), lw=width, alpha=0.6, zorder=1)
    for finding in findings:
        axes.text(-0.03, heights[finding], finding, ha="right", va="center")
    for node in nodes:
        counts = sum(edge.count for edge in edges if edge.tail == node)
        axes.text(1.03, right[node], f"{node} ({counts})", va="center", color=_COLORS[NODES[node]])
    axes.set_title(
        f"The strongest sites (blue), qualifiers (orange) and devices (green) of each finding, at most {_PER_FINDING}\n"
        "in brackets: studies of the edges that are drawn"
    )
    axes.set_xlim(-0.55, 1.5)
    axes.set_ylim(-0.03, 1.03)


def _color(edge: Edge) -> str:
    if edge.weight is not None:
        return _CURATED
    if NODES[edge.tail] == "finding" or edge.relation in (CO_OCCURS, EXCLUDES):
        return _COLORS["more" if edge.strength > 0 else "fewer"]
    return _COLORS[NODES[edge.tail]]


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return sum(found) / len(found)
