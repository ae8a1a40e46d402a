"""Guidance of reports by the knowledge graph: plausible combinations, and rows of the memories that fit the film.

Shape legend: B studies, Q = 14 queries, F = 13 findings, J retrieved rows, N rows of a bank, V nodes.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from amrg.config import GraphConfig
from amrg.data.labels import FINDINGS, NO_FINDING
from amrg.data.text.cleaning import split_sentences
from amrg.graph.facts import DEVICE_FINDING, LOCATED_AT, NODES, Facts, read_report_facts
from amrg.graph.knowledge_graph import EXCLUDES, FILE, Edge, KnowledgeGraph

#: Edges of a report that are recorded, the strongest.
RECORDED_EDGES = 8
#: Added to both activations of a node before they are compared.
SMOOTHING = 0.01

_NODES = list(NODES)


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

    def check(self, sections: Sequence[str], composed: int = 0) -> tuple[list[str], list[dict[str, Any]]]:
        """Check a report.

        Args:
            sections: its sections, one after the other.
            composed: number of its first sentences, which are kept: each was the best that there is.

        Returns:
            The sections, with ``drop`` without the sentences that make the report implausible, and the implausible
            combinations: edges of the graph, with ``left_out`` if their sentence was left out.
        """
        if self.config.check == "none":
            return list(sections), []
        if self.config.check == "flag":
            return list(sections), [
                edge.to_dict() for edge in self.graph.implausible(read_report_facts(" ".join(sections)))
            ]
        kept: list[str] = []
        known: list[Edge] = []
        found: list[dict[str, Any]] = []
        checked: list[str] = []
        number = 0
        for section in sections:
            before, sentences = len(kept), split_sentences(section)
            for sentence in sentences:
                edges = self.graph.implausible(read_report_facts(" ".join([*kept, sentence])))
                fresh = [edge for edge in edges if edge not in known]
                left_out = bool(fresh) and number >= composed
                found += [edge.to_dict() | ({"left_out": True} if left_out else {}) for edge in fresh]
                if not left_out:
                    kept.append(sentence)
                    known += fresh
                number += 1
            checked.append(section if len(kept) - before == len(sentences) else " ".join(kept[before:]))
        return checked, found

    def record(self, text: str, implausible: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Return ``graph``, the edges that a report states, and ``implausible``, if it is, of a line of reports."""
        edges = [edge.to_dict() for edge in self.graph.stated_edges(read_report_facts(text))[:RECORDED_EDGES]]
        return {"graph": edges} | ({"implausible": list(implausible)} if implausible else {})

    @cached_property
    def _step_FV(self) -> Tensor:
        """Share of the studies with each finding that state each node, float64.

        Of another finding only what exceeds its share of all studies counts; a finding itself has 1. A curated edge of
        weight w counts as 1 − exp(−w) if that is more.
        """
        graph, step_FV = self.graph, torch.zeros(len(FINDINGS), len(_NODES), dtype=torch.float64)
        for i, finding in enumerate(FINDINGS):
            own = max(graph.stated(finding), 1)
            for v, node in enumerate(_NODES):
                edges = [e for e in graph.between(finding, node) if e.relation != EXCLUDES]
                share = max((e.count / own for e in edges), default=0.0)
                if NODES[node] == "finding":
                    share = max(share - graph.stated(node) / max(graph.num_studies, 1), 0.0)
                share = max(share, *(1 - math.exp(-e.weight) for e in edges if e.weight is not None), 0.0)
                step_FV[i, v] = 1.0 if finding == node else share
        return step_FV

    def activations(self, probability_BF: Tensor) -> Tensor:
        """Spread probabilities of findings one step along the graph, float64 [B, V] in the order of ``NODES``.

        A node is active unless no finding activates it: 1 − Π (1 − p_f · share of the node in studies with f). No
        Finding is active if no finding but a device is.
        """
        probability_BF = probability_BF.double()
        active_BV = 1 - (1 - probability_BF[:, :, None] * self._step_FV).prod(1)
        lesions = [i for i, f in enumerate(FINDINGS) if f != DEVICE_FINDING]
        active_BV[:, _NODES.index(NO_FINDING)] = (1 - probability_BF[:, lesions]).prod(1)
        return active_BV

    def weigh(self, weights_BQJ: Tensor, rows_BQJ: Tensor, nodes_NV: Tensor, probability_BF: Tensor) -> Tensor:
        """Multiply the weights of rows by how well their nodes fit the film; each query's sum is kept.

        The lift of a node is its activation by the film over that by the shares of the findings in the train reports. A
        row fits by the geometric mean of its nodes' lifts to the power of ``retrieval_weight``. With ``restrict``, rows
        with a lift below 1 get no weight, unless a query has no others. Rows without nodes fit by 1.

        Args:
            weights_BQJ, rows_BQJ: retrieved rows of each query; row −1 is none.
            nodes_NV: 1 for the nodes of each row (``node_indicators``).
            probability_BF: calibrated probabilities of the findings.
        """
        if self.config.retrieval == "none":
            return weights_BQJ
        studies = max(self.graph.num_studies, 1)
        usual_1F = torch.tensor([[self.graph.stated(f) / studies for f in FINDINGS]])
        ratio_BV = (self.activations(probability_BF) + SMOOTHING) / (self.activations(usual_1F) + SMOOTHING)
        lift_BV = ratio_BV.log()
        if self.config.retrieval == "weight":
            mean_BN = (lift_BV @ nodes_NV.double().T) / nodes_NV.sum(1).clamp_min(1)
            fit_BN = (self.config.retrieval_weight * mean_BN).exp()
        else:
            fit_BN = ((lift_BV < 0).double() @ nodes_NV.double().T == 0).double()
        fit_BQJ = fit_BN.float().gather(1, rows_BQJ.clamp_min(0).flatten(1)).view_as(weights_BQJ)
        given_BQJ = torch.where(rows_BQJ >= 0, weights_BQJ, 0.0)
        fitted_BQJ = given_BQJ * fit_BQJ
        before_BQ1, after_BQ1 = given_BQJ.sum(-1, keepdim=True), fitted_BQJ.sum(-1, keepdim=True)
        return torch.where(after_BQ1 > 0, fitted_BQJ * before_BQ1 / after_BQ1.clamp_min(1e-30), weights_BQJ)


def node_indicators(rows: Iterable[Iterable[str]]) -> Tensor:
    """Return 1 for the nodes of each row, float32 [N, V]."""
    named = [[_NODES.index(node) for node in nodes] for nodes in rows]
    nodes_NV = torch.zeros(len(named), len(_NODES))
    for row, nodes in enumerate(named):
        nodes_NV[row, nodes] = 1.0
    return nodes_NV


def nodes_of_text(text: str, finding: str | None = None) -> set[str]:
    """Return the positive findings of a text and their sites; of one finding only, if it is given."""
    facts = read_report_facts(text)
    findings = facts.stated - {NO_FINDING} if finding is None else {finding}
    return {*findings, *(node for f, relation, node in facts.details if relation == LOCATED_AT and f in findings)}


def save_graph_guide(config: GraphConfig, graph: Path | None, folder: Path) -> None:
    """Write the counts of a graph, without its studies, beside the reports that it guides."""
    if graph is not None and config.guides_reports and not (folder / FILE).exists():
        KnowledgeGraph.load(graph).save(folder, with_keys=False)


@lru_cache(maxsize=65536)
def _facts(sentence: str) -> Facts:
    return read_report_facts(sentence)


def _stating(findings: set[str]) -> Facts:
    assert findings <= {*FINDINGS}
    return Facts(frozenset(findings), frozenset(), frozenset(), frozenset())
