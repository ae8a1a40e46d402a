"""Curated graphs: a table of triples with the columns head, relation, tail and, optionally, weight."""

import csv
import math
from pathlib import Path

from amrg.data.labels import LABELS
from amrg.errors import UserError
from amrg.graph.facts import NODES
from amrg.graph.knowledge_graph import EXCLUDES, WITHOUT, Edge

_COLUMNS = ("head", "relation", "tail")


def read_curated_edges(file: Path) -> list[Edge]:
    """Read the edges of a table of comma- or tab-separated values.

    Nodes are compared without regard to case. Every relation but ``excludes`` says that its nodes go together. A weight
    is in the unit of the mutual information; it is 1 if the table has none.

    Raises:
        UserError: the file cannot be read, lacks a column, or names an unknown node or an impossible weight.
    """
    setting = f"graph.curated {file}"
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{setting} cannot be read ({type(error).__name__}): give a CSV or TSV file") from None
    head = text.partition("\n")[0]
    rows = list(csv.DictReader(text.splitlines(), delimiter="\t" if "\t" in head else ","))
    if not rows or not {*_COLUMNS} <= rows[0].keys():
        raise UserError(f"{setting}: a first line with {', '.join(_COLUMNS)} and optionally weight is needed")
    known = {node.lower(): node for node in NODES}
    unknown = sorted({row[c] or "" for row in rows for c in ("head", "tail") if _plain(row[c]) not in known})
    if unknown:
        raise UserError(f"{setting} names unknown nodes: {', '.join(unknown)}; `amrg graph nodes` lists the known ones")
    edges = []
    for number, row in enumerate(rows, start=2):
        nodes, relation = [known[_plain(row[c])] for c in ("head", "tail")], _plain(row["relation"])
        if not relation or relation == WITHOUT or nodes[0] == nodes[1]:
            raise UserError(
                f"{setting} line {number}: two different nodes and a relation other than {WITHOUT} are needed"
            )
        if relation == EXCLUDES or {*nodes} <= {*LABELS}:
            nodes.sort(key=[*NODES].index)  # these relations have no direction
        edges.append(Edge(nodes[0], relation, nodes[1], weight=_weight(row.get("weight"), f"{setting} line {number}")))
    return edges


def _plain(value: str | None) -> str:
    return (value or "").strip().lower()


def _weight(text: str | None, where: str) -> float:
    try:
        weight = float(text) if text and text.strip() else 1.0
    except ValueError:
        weight = math.nan
    if not (math.isfinite(weight) and weight > 0):
        raise UserError(f"{where}: the weight {text} is not a number above 0")
    return weight
