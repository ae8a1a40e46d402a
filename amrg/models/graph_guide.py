"""Guidance of reports by the knowledge graph: plausible combinations, and rows of the memories that fit the film.

Shape legend: B studies, Q = 14 queries, F = 13 findings, N rows of a bank, V nodes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Self

from amrg.config import GraphConfig
from amrg.data.labels import FINDINGS
from amrg.data.text.cleaning import split_sentences
from amrg.graph.facts import Facts, report_facts
from amrg.graph.knowledge_graph import FILE, Edge, KnowledgeGraph

#: Edges of a report that are recorded, the strongest.
RECORDED_EDGES = 8


@dataclass(frozen=True)
class GraphGuide:
    """Graph and the settings of its use."""

    graph: KnowledgeGraph
    config: GraphConfig

    @classmethod
    def open(cls, config: GraphConfig, folder: Path) -> Self | None:
        """Read the graph of a folder; None if the settings use none for reports."""
        return cls(KnowledgeGraph.load(folder), config) if config.guides_reports else None

    def less_probable(self, findings: Sequence[str], probability: Mapping[str, float]) -> set[str]:
        """Return the findings to leave out: of each two that are implausible together, the less probable (``drop``)."""
        kept: list[str] = []
        if self.config.check == "drop":
            for finding in sorted(findings, key=lambda f: -probability[f]):
                if not self.graph.implausible(_stating({*kept, finding})):
                    kept.append(finding)
        return {*findings} - {*kept} if self.config.check == "drop" else set()

    def fits(self, sentence: str) -> bool:
        """Whether a sentence may be chosen: with ``drop`` it states no implausible combination."""
        return self.config.check != "drop" or not self.graph.implausible(_facts(sentence))

    def check(self, text: str, composed: int = 0) -> tuple[str, list[dict[str, Any]]]:
        """Check a report.

        Args:
            text: the report.
            composed: number of its first sentences, which are kept: each was the best that there is.

        Returns:
            The report, with ``drop`` without the sentences that make it implausible, and the implausible combinations:
            edges of the graph, with ``left_out`` if their sentence was left out.
        """
        if self.config.check == "none":
            return text, []
        if self.config.check == "flag":
            return text, [edge.to_dict() for edge in self.graph.implausible(report_facts(text))]
        kept: list[str] = []
        known: list[Edge] = []
        found: list[dict[str, Any]] = []
        for number, sentence in enumerate(split_sentences(text)):
            edges = self.graph.implausible(report_facts(" ".join([*kept, sentence])))
            fresh = [edge for edge in edges if edge not in known]
            left_out = bool(fresh) and number >= composed
            found += [edge.to_dict() | ({"left_out": True} if left_out else {}) for edge in fresh]
            if not left_out:
                kept.append(sentence)
                known += fresh
        return (text if not any("left_out" in one for one in found) else " ".join(kept)), found

    def record(self, text: str, implausible: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Return ``graph``, the edges that a report states, and ``implausible``, if it is, of a line of reports."""
        edges = [edge.to_dict() for edge in self.graph.stated_edges(report_facts(text))[:RECORDED_EDGES]]
        return {"graph": edges} | ({"implausible": list(implausible)} if implausible else {})


def save_guide(config: GraphConfig, graph: Path | None, folder: Path) -> None:
    """Write the counts of a graph, without its studies, beside the reports that it guides."""
    if graph is not None and config.guides_reports and not (folder / FILE).exists():
        KnowledgeGraph.load(graph).save(folder, with_keys=False)


@lru_cache(maxsize=65536)
def _facts(sentence: str) -> Facts:
    return report_facts(sentence)


def _stating(findings: set[str]) -> Facts:
    assert findings <= {*FINDINGS}
    return Facts(frozenset(findings), frozenset(), frozenset(), frozenset())
