"""Knowledge graph with the counts, the chance level and the studies behind each edge.

Counts are of studies. N is the number of studies, n_a of those that state finding a, and n_ab of those that state both:

- ``co_occurs_with``, ``with_device``: expected n_a n_b / N.
- ``excludes`` instead of ``co_occurs_with``: so few studies state both by chance with a probability below
  ``SIGNIFICANCE`` (one-sided hypergeometric test, Bonferroni over the pairs of findings).
- ``present_without`` (a is stated and b is denied): expected n_a d_b / N with the number d_b of studies that deny b.
- ``located_at``, ``has_qualifier``: a case is a finding of a study. Expected n_a m_s / T with the number m_s of cases
  with the site or qualifier, and the number T of all cases.

The pointwise mutual information is ln(count / expected); it is absent where the count is 0.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from amrg.data.labels import FINDINGS, LABELS, NO_FINDING
from amrg.data.text.statements import DEVICES
from amrg.errors import UserError
from amrg.graph.facts import HAS_QUALIFIER, LOCATED_AT, NODES, WITH_DEVICE, Facts

Triple = tuple[str, str, str]

FILE = "graph.parquet"
CO_OCCURS, EXCLUDES, WITHOUT = "co_occurs_with", "excludes", "present_without"
#: Rows of the file that are no edges: all studies, those that state a finding or a device, those that deny a finding.
_READ, _STATED, _DENIED = "read", "stated", "denied"
_ALL = ("", _READ, "")

SIGNIFICANCE = 0.05 / math.comb(len(LABELS), 2)
#: A pair without any study is kept, and can be implausible, if chance predicts at least so many.
LEAST_EXPECTED = 5.0
#: Share of the expected count up to which a pair of findings that exclude each other is implausible.
FAR_BELOW = 0.1
#: Studies at chance level that are added to count and expected count of each strength.
SHRINKAGE = 5.0

_SCHEMA = pa.schema(
    {
        "head": pa.string(), "relation": pa.string(), "tail": pa.string(), "source": pa.string(), "count": pa.int64(),
        "expected": pa.float64(), "pmi": pa.float64(), "weight": pa.float64(), "keys": pa.list_(pa.string()),
    }
)  # fmt: skip


@dataclass(frozen=True)
class Edge:
    """One edge.

    Attributes:
        head, relation, tail: nodes of ``NODES`` and how they are related.
        count, expected: studies with both, and their number by chance; 0 for a curated edge.
        weight: of a curated edge, in the unit of the mutual information; None: counted in reports.
        keys: the studies.
    """

    head: str
    relation: str
    tail: str
    count: int = 0
    expected: float = 0.0
    weight: float | None = None
    keys: tuple[str, ...] = ()

    @property
    def pmi(self) -> float | None:
        """Pointwise mutual information in nats; None without a study."""
        return math.log(self.count / self.expected) if self.count else None

    @property
    def strength(self) -> float:
        """Mutual information with ``SHRINKAGE`` studies at chance level added; the weight of a curated edge."""
        if self.weight is not None:
            return -self.weight if self.relation == EXCLUDES else self.weight
        return math.log((self.count + SHRINKAGE) / (self.expected + SHRINKAGE))

    def to_dict(self) -> dict[str, Any]:
        """Return the edge without its studies, for a line of ``reports.jsonl``."""
        numbers = {"count": self.count, "expected": round(self.expected, 2)}
        return {"head": self.head, "relation": self.relation, "tail": self.tail} | (
            numbers if self.weight is None else {"weight": self.weight}
        )


@dataclass(frozen=True)
class KnowledgeGraph:
    """Number of studies that state each triple, and curated edges; the counted edges follow from these.

    Attributes:
        counts: number of studies by (head, relation, tail).
        keys: keys of these studies, sorted; empty in a graph that was saved without them.
        curated: edges of a curated graph.
    """

    counts: Mapping[Triple, int]
    keys: Mapping[Triple, tuple[str, ...]]
    curated: tuple[Edge, ...] = ()

    @classmethod
    def of_studies(cls, facts: Mapping[str, Facts], curated: Iterable[Edge] = ()) -> Self:
        """Count the facts of studies, which are given by their keys."""
        found: dict[Triple, list[str]] = {_ALL: sorted(facts)}
        for key, of in sorted(facts.items()):
            triples = {*of.details, *((f, _STATED, "") for f in of.stated), *((d, _STATED, "") for d in of.devices)}
            triples |= {(f, _DENIED, "") for f in of.denied}
            triples |= {(a, CO_OCCURS, b) for a, b in _pairs(of.stated)}
            triples |= {(a, WITHOUT, b) for a in of.stated for b in of.denied if a != NO_FINDING}
            triples |= {(a, WITH_DEVICE, d) for a in of.stated - {NO_FINDING} for d in of.devices}
            for triple in triples:
                found.setdefault(triple, []).append(key)
        return cls._of_keys({triple: tuple(keys) for triple, keys in sorted(found.items())}, curated)

    @classmethod
    def _of_keys(cls, keys: Mapping[Triple, tuple[str, ...]], curated: Iterable[Edge]) -> Self:
        return cls({triple: len(of) for triple, of in keys.items()}, keys, tuple(curated))

    def without(self, keys: Iterable[str]) -> Self:
        """Return the graph that the other studies alone give; ``keys`` must be known."""
        removed = frozenset(keys)
        kept = {triple: tuple(k for k in of if k not in removed) for triple, of in self.keys.items()}
        return self._of_keys({triple: of for triple, of in kept.items() if of or triple == _ALL}, self.curated)

    @property
    def num_studies(self) -> int:
        """Number of studies."""
        return self.counts[_ALL]

    def stated(self, node: str) -> int:
        """Number of studies that state a finding or a device."""
        return self.counts.get((node, _STATED, ""), 0)

    def _denied(self, finding: str) -> int:
        return self.counts.get((finding, _DENIED, ""), 0)

    @cached_property
    def edges(self) -> tuple[Edge, ...]:
        """All edges: counted ones with a study or at least ``LEAST_EXPECTED`` expected studies, and curated ones."""
        from scipy.stats import hypergeom  # imported where it is used: it takes half as long as torch's import

        studies = max(self.num_studies, 1)
        cases = max(sum(self.stated(f) for f in FINDINGS), 1)
        edges = []
        for a, b in _pairs(LABELS):
            edge = self._edge(a, CO_OCCURS, b, self.stated(a) * self.stated(b) / studies)
            chance = hypergeom.cdf(edge.count, studies, self.stated(a), self.stated(b))
            edges.append(replace(edge, relation=EXCLUDES) if chance < SIGNIFICANCE else edge)
        for a in FINDINGS:
            edges += [self._edge(a, WITH_DEVICE, d, self.stated(a) * self.stated(d) / studies) for d in DEVICES]
            edges += [self._edge(a, WITHOUT, b, self.stated(a) * self._denied(b) / studies) for b in FINDINGS if a != b]
        for relation, kinds in ((LOCATED_AT, "site"), (HAS_QUALIFIER, "qualifier")):
            for node in (node for node, kind in NODES.items() if kind == kinds):
                with_node = sum(self.counts.get((f, relation, node), 0) for f in FINDINGS)
                edges += [self._edge(f, relation, node, self.stated(f) * with_node / cases) for f in FINDINGS]
        return (*(e for e in edges if e.count or e.expected >= LEAST_EXPECTED), *self.curated)

    def _edge(self, head: str, relation: str, tail: str, expected: float) -> Edge:
        triple = head, relation, tail
        return Edge(*triple, self.counts.get(triple, 0), expected, None, self.keys.get(triple, ()))

    @cached_property
    def _by_nodes(self) -> dict[tuple[str, str], list[Edge]]:
        found: dict[tuple[str, str], list[Edge]] = {}
        for edge in self.edges:
            if edge.relation != WITHOUT:
                for nodes in {(edge.head, edge.tail), (edge.tail, edge.head)}:
                    found.setdefault(nodes, []).append(edge)
        return found

    def between(self, a: str, b: str) -> list[Edge]:
        """Return the edges between two nodes in either direction, without those of denied findings."""
        return self._by_nodes.get((a, b), [])

    def implausible(self, facts: Facts) -> list[Edge]:
        """Return the combinations of a report that the train reports practically never state.

        These are pairs of findings with at most ``FAR_BELOW`` of the expected studies, and sites at which a finding is
        never stated, both with at least ``LEAST_EXPECTED`` expected studies. A curated edge decides alone.
        """
        pairs = [*_pairs(facts.stated - {NO_FINDING}), *sorted((f, s) for f, r, s in facts.details if r == LOCATED_AT)]
        return [edge for a, b in pairs if (edge := self._implausible(a, b)) is not None]

    def _implausible(self, a: str, b: str) -> Edge | None:
        edges = self.between(a, b)
        for edge in edges:
            if edge.weight is not None:
                return edge if edge.relation == EXCLUDES else None
        for edge in edges:
            share = {EXCLUDES: FAR_BELOW, CO_OCCURS: FAR_BELOW, LOCATED_AT: 0.0}.get(edge.relation, -1.0)
            if edge.expected >= LEAST_EXPECTED and edge.count <= share * edge.expected:
                return edge
        return None

    def stated_edges(self, facts: Facts) -> list[Edge]:
        """Return the edges between the findings, sites, qualifiers and devices of a report, the strongest first."""
        pairs = {*_pairs(facts.stated), *((f, node) for f, _, node in facts.details)}
        pairs |= {(f, d) for f in facts.stated for d in facts.devices}
        edges = {edge for a, b in pairs for edge in self.between(a, b)}
        return sorted(edges, key=lambda e: (-e.strength, e.head, e.relation, e.tail))

    def label_strengths(self) -> np.ndarray:
        """Sum the strengths of the edges between each two labels, float64 [14, 14] in the order of ``LABELS``."""
        strengths = np.zeros((len(LABELS), len(LABELS)))
        for (i, a), (j, b) in combinations(enumerate(LABELS), 2):
            strengths[i, j] = strengths[j, i] = sum(edge.strength for edge in self.between(a, b))
        return strengths

    def save(self, folder: Path, with_keys: bool = True) -> None:
        """Write ``FILE``.

        Args:
            folder: receives the file.
            with_keys: write the keys of the studies; without them no edge can be recounted.
        """
        unary = [
            Edge(*triple, count, 0.0, None, self.keys.get(triple, ()))
            for triple, count in self.counts.items()
            if triple[1] in (_READ, _STATED, _DENIED)
        ]
        rows = [
            {"head": e.head, "relation": e.relation, "tail": e.tail, "count": e.count, "expected": e.expected}
            | {"source": "reports" if e.weight is None else "curated", "weight": e.weight}
            | {"pmi": e.pmi if e.expected else None}
            | {"keys": e.keys if with_keys else ()}
            for e in (*unary, *self.edges)
        ]
        pq.write_table(pa.Table.from_pylist(rows, _SCHEMA), folder / FILE)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read what ``save`` wrote.

        Raises:
            UserError: it is missing or damaged.
        """
        try:
            rows = pq.read_table(folder / FILE, schema=_SCHEMA).to_pylist()
        except (OSError, pa.ArrowInvalid):
            raise UserError(
                f"{folder / FILE} is missing or unreadable: delete its folder and run the step again"
            ) from None
        counts, keys, curated = {}, {}, []
        for row in rows:
            head, relation, tail = row["head"], row["relation"], row["tail"]
            triple = head, CO_OCCURS if relation == EXCLUDES else relation, tail
            if row["weight"] is not None:
                curated.append(Edge(head, relation, tail, weight=row["weight"]))
            elif row["count"] or triple == _ALL:
                counts[triple] = row["count"]
                if row["keys"]:
                    keys[triple] = tuple(row["keys"])
        if _ALL not in counts:
            raise UserError(f"{folder / FILE} is no knowledge graph: it does not tell the number of studies")
        return cls(dict(sorted(counts.items())), dict(sorted(keys.items())), tuple(curated))


def _pairs(labels: Iterable[str]) -> list[tuple[str, str]]:
    """Return each two different labels, in the order of ``LABELS``."""
    return list(combinations(sorted(labels, key=LABELS.index), 2))
