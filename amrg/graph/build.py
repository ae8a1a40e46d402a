"""Build the knowledge graph of a data artefact."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from amrg.config import GraphConfig
from amrg.data.labels import FINDINGS, LABELS
from amrg.data.stream import load_split_studies
from amrg.data.studies import Study
from amrg.graph.curated import read_curated_edges
from amrg.graph.facts import Facts, read_report_facts
from amrg.graph.knowledge_graph import KnowledgeGraph


def build_report_graph(config: GraphConfig, data: Path, folder: Path, seed: int) -> None:
    """Count the reports of the train split of a data artefact, and write the graph into a folder.

    Args:
        config: ``curated`` and ``shuffled`` are read.
        data: data artefact.
        folder: receives the file.
        seed: of the permutation of a shuffled graph.

    Raises:
        UserError: the curated graph cannot be read.
    """
    count_report_graph(load_split_studies(data, "train"), config, seed).save(folder)


def count_report_graph(studies: list[Study], config: GraphConfig, seed: int) -> KnowledgeGraph:
    """Count the reports of studies; of several studies of a patient with the same text, the first."""
    first: dict[tuple[str, str], str] = {}
    for study in studies:
        first.setdefault((study.group, study.report), study.key)
    facts = {key: read_report_facts(report) for (_, report), key in first.items()}
    if config.shuffled:
        names = permuted_findings(seed)
        facts = {key: _renamed(of, names) for key, of in facts.items()}
    return KnowledgeGraph.of_studies(facts, read_curated_edges(Path(config.curated)) if config.curated else ())


def permuted_findings(seed: int) -> dict[str, str]:
    """Return a random name for each label: a permutation of findings without fixed points; No Finding keeps its own."""
    generator = np.random.default_rng([seed, len(FINDINGS)])
    while True:
        order = generator.permutation(len(FINDINGS))
        if (order != np.arange(len(FINDINGS))).all():
            return dict(zip(LABELS, [*(FINDINGS[i] for i in order), LABELS[-1]], strict=True))


def _renamed(facts: Facts, names: Mapping[str, str]) -> Facts:
    return Facts(
        frozenset(names[f] for f in facts.stated),
        frozenset(names[f] for f in facts.denied),
        facts.devices,
        frozenset((names[f], relation, node) for f, relation, node in facts.details),
    )
