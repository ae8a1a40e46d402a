"""Reports of a run that a knowledge graph guides, from the step to Python's interface."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from amrg import pipeline
from amrg.artifacts import Artifact
from amrg.config import Config, GraphConfig
from amrg.config_files import load_config
from amrg.data.stream import iter_split_samples
from amrg.graph.knowledge_graph import FILE
from amrg.inference.generate import generate_faults
from amrg.inference.run import LoadedRun
from amrg.inference.run_artifacts import find_run_artifacts
from tests.conftest import TINY
from tests.webapp.tiny_run import make_run


def lines(artifact: Artifact) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (artifact.path / "reports.jsonl").read_text().splitlines()]


def test_a_guided_run(tmp_path: Path) -> None:
    """A flag changes nothing but what is told; retrieval changes the weights of the rows; the graph goes along."""
    made, tiny = make_run(tmp_path, "retrieved"), load_config(str(TINY))
    config = replace(
        tiny,
        runs=str(tmp_path),
        decoder=replace(tiny.decoder, predict_outline=True),
        generate=replace(tiny.generate, max_new_tokens=8, outline_source="retrieved"),
    )

    def written(graph: GraphConfig) -> Artifact:
        guided: Config = replace(config, graph=graph)
        if graph.used:
            pipeline.run_pipeline_step(pipeline.GRAPH, guided)
        return pipeline.run_pipeline_step("generate", guided)

    plain, flagged = written(GraphConfig()), written(GraphConfig(check="flag"))
    assert plain.manifest["inputs"].keys() == {"data", "stage1", "banks", "stage2"}
    assert plain.manifest["inputs"]["stage2"]["hash"] == made["stage2"].hash
    assert flagged.manifest["inputs"].keys() == {"data", "stage1", "banks", "stage2", "graph"}
    with_graph = lines(flagged)
    assert any(line["graph"] for line in with_graph)
    assert [{k: v for k, v in line.items() if k not in ("graph", "implausible")} for line in with_graph] == lines(plain)
    assert not (plain.path / FILE).exists()
    assert set(map(tuple, pq.read_table(flagged.path / FILE)["keys"].to_pylist())) == {()}  # no study goes along

    weighted = written(GraphConfig(retrieval="weight", retrieval_weight=3.0))
    assert [one["association"] for one in lines(weighted)] != [one["association"] for one in with_graph]

    loaded = LoadedRun(find_run_artifacts(flagged.path))
    assert loaded.artifacts.config.graph == GraphConfig(check="flag")
    films = [sample.views for sample in iter_split_samples(made["data"].path, "test")][:2]
    assert all("graph" in record for record in loaded.generate_records(films))


def test_retrieval_without_a_composer_is_refused() -> None:
    weighted = replace(load_config(str(TINY)), graph=GraphConfig(retrieval="weight"))
    assert weighted.generate.outline_source == "decoder"
    (fault,) = generate_faults(weighted)
    assert fault.startswith("graph.retrieval weight acts on composed reports")
    assert generate_faults(replace(weighted, graph=GraphConfig(check="drop"))) == []
