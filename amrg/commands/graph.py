"""``amrg graph COMMAND ...``: show the knowledge graph of the train reports, and draw it."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from amrg import pipeline
from amrg.artifacts import MANIFEST, Artifact, build_artifact, find_artifact, open_artifact
from amrg.cli_config import ArgumentParser, parse_config_arguments
from amrg.config import Config
from amrg.data.labels import FINDINGS
from amrg.errors import UserError
from amrg.graph.drawing import draw_graph, strongest_edges
from amrg.graph.facts import NODES
from amrg.graph.knowledge_graph import KnowledgeGraph

_FORMATS = (".svg", ".png", ".pdf")


def main(arguments: Sequence[str]) -> None:
    """Run one of the commands."""
    parser = ArgumentParser(prog="amrg graph", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, parser_class=ArgumentParser)
    show = commands.add_parser(
        "show", help="print and draw a graph", epilog="A graph that is not there yet is counted from the data."
    )
    show.add_argument(
        "run", nargs="?", default="demo", help="a configuration, a folder of artefacts, or a graph or data artefact"
    )
    show.add_argument("--edges", type=int, default=8, help="strongest edges printed of each finding")
    show.add_argument("--plot", type=Path, help="drawing (.svg, .png or .pdf); default: graph.svg in the run's folder")
    commands.add_parser("nodes", help="list all nodes, as a curated graph must name them")
    options, rest = parser.parse_known_args(list(arguments))
    if options.command == "nodes":
        if rest:
            parser.error(f"unknown argument {rest[0]}")
        for kind in dict.fromkeys(NODES.values()):
            print(f"{kind}: {', '.join(node for node, of in NODES.items() if of == kind)}")
        return
    _show(options, rest)


def _show(options: argparse.Namespace, settings: list[str]) -> None:
    plot: Path | None = options.plot
    if plot is not None and plot.suffix not in _FORMATS:
        raise UserError(f"--plot {plot}: give a name that ends with {', '.join(_FORMATS)}")
    if plot is not None and not plot.absolute().parent.is_dir():
        raise UserError(f"--plot {plot}: there is no folder {plot.parent}")
    artifact = _graph(options.run, settings)
    graph = KnowledgeGraph.load(artifact.path)
    width = None if sys.stdout.isatty() else 120
    Console(width=width).print(_table(graph, max(options.edges, 0)))
    plot = plot or artifact.path.parent / "graph.svg"
    draw_graph(graph, plot)
    print(f"{artifact.path}\n{plot}")


def _graph(run: str, settings: list[str]) -> Artifact:
    """Open the graph of a configuration, a run or an artefact; a missing one is counted."""
    folder = Path(run)
    if not folder.is_dir():
        config = parse_config_arguments([run, *settings], "amrg graph show [CONFIG]")
        pipeline.check_before_start([pipeline.GRAPH], config)
        return pipeline.run_pipeline_step(pipeline.GRAPH, config)
    if settings:
        raise UserError(f"{settings[0]}: settings go with a configuration, and {folder} is a folder")
    if (folder / MANIFEST).is_file() and folder.name.startswith("graph-"):
        return open_artifact(folder, "graph")
    data = folder if (folder / MANIFEST).is_file() else _newest(folder)
    return _count(open_artifact(data, "data")) if data.name.startswith("data-") else open_artifact(data, "graph")


def _newest(run: Path) -> Path:
    """Find the newest graph of a run, or its newest data if there is none."""
    for kind in ("graph", "data"):
        if found := sorted(run.glob(f"{kind}-*/{MANIFEST}"), key=lambda file: file.stat().st_mtime):
            return found[-1].parent
    raise UserError(f"{run} holds no data to count: give a folder of artefacts, or make them with `amrg prepare`")


def _count(data: Artifact) -> Artifact:
    """Count the graph of a data artefact with the default settings, as its run would."""
    root = data.path.absolute().parent
    config = Config(name=root.name, runs=str(root.parent), seed=data.manifest["seed"])
    plan = pipeline.graph_step_recipe(config, data)
    if (made := find_artifact(root, plan)) is not None:
        return made
    with build_artifact(root, plan) as partial:
        pipeline.ALL_STEPS[pipeline.GRAPH].run(config, {"data": data.path}, partial)
    return open_artifact(plan.path(root), "graph")


def _table(graph: KnowledgeGraph, most: int) -> Table:
    table = Table(title=f"{graph.num_studies} train reports", title_justify="left")
    for name in ("finding", "studies", "relation", "node", "count", "by chance", "PMI", "strength"):
        table.add_column(name, justify="left" if name in ("finding", "relation", "node") else "right")
    for finding in FINDINGS:
        for number, edge in enumerate(strongest_edges(graph, finding, most)):
            first = [finding, str(graph.stated(finding))] if number == 0 else ["", ""]
            other = edge.tail if edge.head == finding else edge.head
            if edge.weight is not None:
                numbers = ["curated", "", ""]
            else:
                numbers = [str(edge.count), f"{edge.expected:.1f}", "–" if edge.pmi is None else f"{edge.pmi:+.2f}"]
            table.add_row(*first, edge.relation, other, *numbers, f"{edge.strength:+.2f}")
    return table
