"""Counts, chance levels and mutual information of a few reports, computed by hand."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from amrg import cli, pipeline
from amrg.config import GraphConfig
from amrg.data.labels import FINDINGS, LABELS, NO_FINDING
from amrg.data.studies import Study
from amrg.data.text.sites import finding_sites
from amrg.errors import UserError
from amrg.graph.build import count_report_graph, permuted_findings
from amrg.graph.curated import read_curated_edges
from amrg.graph.facts import Facts, read_report_facts
from amrg.graph.knowledge_graph import CO_OCCURS, EXCLUDES, FILE, LEAST_EXPECTED, WITHOUT, Edge, KnowledgeGraph
from tests.conftest import Artefacts

HEART, EFFUSION, EDEMA, DEVICES = "Cardiomegaly", "Pleural Effusion", "Edema", "Support Devices"
REPORTS = (
    "The heart is enlarged. Small left pleural effusion.",
    "The heart is enlarged. Small right pleural effusion. Pacemaker in place.",
    "The heart is enlarged. No pleural effusion.",
    "Moderate left pleural effusion. Heart size is normal.",
    "The lungs are clear. No pneumothorax.",
)


def studies(texts: tuple[str, ...] = REPORTS) -> list[Study]:
    return [Study(f"s{i}", f"p{i}", "train", text, dict.fromkeys(LABELS)) for i, text in enumerate(texts)]


def counted(texts: tuple[str, ...] = REPORTS, config: GraphConfig | None = None) -> KnowledgeGraph:
    return count_report_graph(studies(texts), config or GraphConfig(), 0)


def edge(graph: KnowledgeGraph, head: str, relation: str, tail: str) -> Edge:
    (found,) = [e for e in graph.edges if (e.head, e.relation, e.tail) == (head, relation, tail)]
    return found


def test_facts_of_a_report() -> None:
    facts = read_report_facts(REPORTS[1])
    assert facts.stated == {HEART, EFFUSION, DEVICES}
    assert facts.devices == {"pacemaker"}
    expected = {(EFFUSION, "located_at", "right"), (EFFUSION, "located_at", "pleura"), (HEART, "located_at", "heart")}
    assert facts.details == expected | {(EFFUSION, "has_qualifier", "mild")}
    nodule = read_report_facts("There is a 1.2 cm nodule in the right upper lobe.").details
    assert {node for _, _, node in nodule} == {"right", "upper", "right upper lobe", "1 to 3 cm"}
    assert read_report_facts(REPORTS[4]) == Facts(
        frozenset({NO_FINDING}), frozenset({"Pneumothorax"} | _clear()), frozenset(), frozenset()
    )


def _clear() -> set[str]:
    """Findings that "The lungs are clear" denies."""
    return set(read_report_facts("The lungs are clear.").denied)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Heart size is enlarged with small left pleural effusion.", {HEART: {"heart"}, EFFUSION: {"pleura"}}),
        ("Healed left rib fractures and cardiomegaly.", {"Fracture": {"rib"}, HEART: {"heart"}}),
        ("Right lower lobe opacity. No rib fracture.", {"Lung Opacity": {"right lower lobe"}}),
        ("Opacities in the RUL and left lower lobe.", {"Lung Opacity": {"right upper lobe", "left lower lobe"}}),
        ("Retrocardiac opacity.", {}),
        ("Mediastinal calcification and a right upper lobe nodule.", {"Lung Lesion": {"right upper lobe"}}),
        ("No pleural effusion.", {}),
    ],
)
def test_sites_belong_to_the_nearest_finding(text: str, expected: dict[str, set[str]]) -> None:
    assert finding_sites(text) == expected


def test_counts_and_mutual_information_by_hand() -> None:
    graph = counted()
    assert graph.num_studies == 5
    both = edge(graph, HEART, CO_OCCURS, EFFUSION)  # 2 of 5 studies, 3 state each
    assert (both.count, both.expected, both.keys) == (2, pytest.approx(9 / 5), ("s0", "s1"))
    assert both.pmi == pytest.approx(math.log(10 / 9))
    assert both.strength == pytest.approx(math.log(7 / 6.8))
    # 7 cases: 3 of the heart, 3 effusions, 1 device; 2 of them are on the left, both effusions
    left = edge(graph, EFFUSION, "located_at", "left")
    assert (left.count, left.expected, left.keys) == (2, pytest.approx(6 / 7), ("s0", "s3"))
    assert left.pmi == pytest.approx(math.log(7 / 3))
    pacemaker = edge(graph, HEART, "with_device", "pacemaker")
    assert (pacemaker.count, pacemaker.expected, pacemaker.keys) == (1, pytest.approx(3 / 5), ("s1",))
    without = edge(graph, HEART, WITHOUT, EFFUSION)  # 3 studies state the one, 1 or 2 deny the other
    denying = sum(EFFUSION in read_report_facts(text).denied for text in REPORTS)
    assert (without.count, without.expected, without.keys) == (1, pytest.approx(3 * denying / 5), ("s2",))


def test_two_films_of_one_report_count_once() -> None:
    twice = [replace(study, key=f"{study.key}-r{i}") for study in studies() for i in range(2)]
    graph = count_report_graph(twice, GraphConfig(), 0)
    assert graph.num_studies == 5
    assert edge(graph, HEART, CO_OCCURS, EFFUSION).keys == ("s0-r0", "s1-r0")


def exclusive() -> KnowledgeGraph:
    """Of 80 studies 40 state the one and 40 the other finding."""
    return counted(tuple("The heart is enlarged." if i % 2 else "Small left pleural effusion." for i in range(80)))


def test_pairs_that_exclude_each_other_and_sites_that_are_never_stated() -> None:
    graph = exclusive()
    never = edge(graph, HEART, EXCLUDES, EFFUSION)
    assert (never.count, never.expected, never.pmi) == (0, 20.0, None)
    found = graph.implausible(read_report_facts("The heart is enlarged. Small pleural effusion."))
    assert found == [never]
    assert found[0].to_dict() == {"head": HEART, "relation": EXCLUDES, "tail": EFFUSION, "count": 0, "expected": 20.0}
    assert graph.implausible(read_report_facts("Small left pleural effusion.")) == []
    odd = Facts(frozenset({HEART}), frozenset(), frozenset(), frozenset({(HEART, "located_at", "left")}))
    (place,) = graph.implausible(odd)
    assert (place.relation, place.tail, place.count, place.expected) == ("located_at", "left", 0, 20.0)
    few = counted(("The heart is enlarged.", "Small left pleural effusion."))  # 0 of ½ says nothing
    assert few.implausible(read_report_facts("The heart is enlarged. Small pleural effusion.")) == []
    assert all(e.count or e.expected >= LEAST_EXPECTED for e in few.edges)


def test_a_graph_without_some_studies_is_the_graph_of_the_others() -> None:
    """Also what is stored is: no key of a removed study stays."""
    graph, others = counted().without(["s1", "unknown"]), [s for s in studies() if s.key != "s1"]
    assert graph == count_report_graph(others, GraphConfig(), 0)
    assert graph.edges == count_report_graph(others, GraphConfig(), 0).edges


@pytest.mark.parametrize("with_keys", [True, False])
def test_saved_and_loaded(tmp_path: Path, with_keys: bool) -> None:
    curated = (Edge(HEART, "causes", EDEMA, weight=2.0), Edge(HEART, EXCLUDES, "Fracture", weight=1.5))
    graph = KnowledgeGraph.of_studies({s.key: read_report_facts(s.report) for s in studies()}, curated)
    graph.save(tmp_path, with_keys)
    loaded = KnowledgeGraph.load(tmp_path)
    assert loaded.curated == curated
    plain = [replace(e, keys=()) for e in graph.edges]
    assert [replace(e, keys=()) for e in loaded.edges] == plain
    assert (loaded == graph) is with_keys
    assert (b"s3" in (tmp_path / FILE).read_bytes()) is with_keys
    (tmp_path / FILE).write_bytes(b"PAR1")
    with pytest.raises(UserError, match="unreadable"):
        KnowledgeGraph.load(tmp_path)


def test_a_curated_graph_is_merged_and_decides(tmp_path: Path) -> None:
    file = tmp_path / "curated.tsv"
    file.write_text(
        "head\trelation\ttail\tweight\nedema\tsuggests\tcardiomegaly\t\nPleural Effusion\texcludes\tlingula\t0.5\n"
    )
    graph = counted(config=GraphConfig(curated=str(file)))
    assert edge(graph, HEART, "suggests", EDEMA).weight == 1.0  # pairs of findings are in the order of the labels
    assert graph.label_strengths()[LABELS.index(HEART), LABELS.index(EDEMA)] == pytest.approx(1.0)
    facts = Facts(frozenset({EFFUSION}), frozenset(), frozenset(), frozenset({(EFFUSION, "located_at", "lingula")}))
    assert [e.relation for e in graph.implausible(facts)] == [EXCLUDES]
    allowed = KnowledgeGraph(exclusive().counts, {}, (Edge(HEART, "with", EFFUSION, weight=1.0),))
    assert allowed.implausible(read_report_facts("The heart is enlarged. Small pleural effusion.")) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("head,relation,tail\nheart,part_of,Edema\nspleen,part_of,Liver\n", "unknown nodes: Liver, spleen;"),
        ("head,tail\nheart,Edema\n", "a first line with head, relation, tail"),
        ("head,relation,tail,weight\nheart,part_of,Edema,-1\n", "line 2: the weight -1"),
        ("head,relation,tail\nEdema,part_of,edema\n", "line 2: two different nodes"),
    ],
)
def test_a_wrong_curated_graph_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "c.csv").write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        read_curated_edges(tmp_path / "c.csv")
    assert "\n" not in str(caught.value)


def test_a_shuffled_graph_has_the_same_edges_at_other_findings() -> None:
    names = permuted_findings(0)
    assert sorted(names.values()) == sorted(LABELS)
    assert all(names[f] != f for f in FINDINGS)
    real, shuffled = counted(), counted(config=GraphConfig(shuffled=True))
    assert shuffled.stated(names[HEART]) == real.stated(HEART)
    first, second = sorted((names[HEART], names[EFFUSION]), key=LABELS.index)
    assert edge(shuffled, first, CO_OCCURS, second).keys == ("s0", "s1")
    before, after = (np.sort(graph.label_strengths().ravel()) for graph in (real, shuffled))
    np.testing.assert_allclose(before, after)


def test_the_chain_and_its_identities_are_as_before_without_a_setting_of_the_graph(artefacts: Artefacts) -> None:
    config = artefacts.config
    assert pipeline.verbs_up_to(config) == list(pipeline.STEPS)
    guided = replace(config, graph=GraphConfig(check="flag"))
    assert pipeline.verbs_up_to(guided)[:3] == ["prepare", "graph", "stage1"]
    assert pipeline.verbs_up_to(guided, "prepare") == ["prepare"]
    for verb in ("prepare", "stage1", "banks", "stage2"):  # the check is of reports alone
        assert pipeline.STEPS[verb].settings(guided) == pipeline.STEPS[verb].settings(config)
    assert pipeline.step_recipe("stage1", guided).identity == pipeline.step_recipe("stage1", config).identity


def test_the_command_makes_prints_and_draws_it(
    artefacts: Artefacts, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plot = tmp_path / "g.png"
    run = artefacts.linked(tmp_path).data.parent
    cli.main(["graph", "show", str(run), "--plot", str(plot)])
    shown = capsys.readouterr().out
    assert "16 train reports" in shown
    assert EFFUSION in shown
    assert plot.read_bytes().startswith(b"\x89PNG")
    (made,) = run.glob("graph-*")
    config = replace(artefacts.config, graph=GraphConfig(check="flag"))
    assert pipeline.step_recipe("graph", config).path(run) == made  # the folder and the configuration name the same one
    cli.main(["graph", "show", str(made), "--plot", str(tmp_path / "g.svg")])
    assert "Cardiomegaly" in (tmp_path / "g.svg").read_text()
    with pytest.raises(SystemExit) as stop:
        cli.main(["graph", "show", str(run), "--plot", "g.gif"])
    assert stop.value.code == 2
