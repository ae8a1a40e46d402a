"""Reports that are checked against a graph, and rows of memories that are weighted by it."""

from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
import torch

from amrg.banks.bank import NO_GROUP
from amrg.config import GraphConfig
from amrg.data.labels import FINDINGS, LABELS
from amrg.data.studies import Study
from amrg.graph.build import count_report_graph
from amrg.graph.facts import NODES, read_report_facts
from amrg.models.composer import Composer
from amrg.models.graph_guide import GraphGuide, node_indicators, nodes_of_text, save_graph_guide
from amrg.models.vision_output import MEMORIES
from tests.models.test_composer import EFFUSION, EVEN, HEART, associate, compose, report_bank, texts, visual_bank
from tests.models.vision_outputs import sight_of

ENLARGED, LEFT, RIGHT = "The heart is enlarged.", "Small left pleural effusion.", "Small right pleural effusion."
CLEAR = "No pneumothorax."


def guided(check: Literal["none", "flag", "drop"], reports: tuple[str, ...] = (ENLARGED, LEFT)) -> GraphGuide:
    """Each report is that of 40 studies."""
    train = [
        Study(f"s{i}", f"p{i}", "train", reports[i % len(reports)], dict.fromkeys(LABELS))
        for i in range(40 * len(reports))
    ]
    return GraphGuide(count_report_graph(train, GraphConfig(), 0), GraphConfig(check=check))


def test_flagged_or_dropped() -> None:
    text = f"{ENLARGED} {LEFT} {CLEAR}"
    entry = {"head": HEART, "relation": "excludes", "tail": EFFUSION, "count": 0, "expected": 20.0}
    assert guided("none").check([text]) == ([text], [])
    assert guided("flag").check([text]) == ([text], [entry])
    dropped, found = guided("drop").check([text])
    assert dropped == [f"{ENLARGED} {CLEAR}"]
    assert found == [entry | {"left_out": True}]
    assert guided("drop").check([text], composed=2) == ([text], [entry])  # sentences of memory were chosen already
    for check in ("flag", "drop"):
        assert guided(check).check([f"{LEFT} {CLEAR}"]) == ([f"{LEFT} {CLEAR}"], [])


def test_an_impression_is_checked_behind_the_findings() -> None:
    impression = f"{LEFT}  {CLEAR}"
    assert guided("drop").check((ENLARGED, impression))[0] == [ENLARGED, CLEAR]
    assert guided("drop").check((f"{ENLARGED} {LEFT}", CLEAR))[0] == [ENLARGED, CLEAR]
    assert guided("drop").check(("", impression)) == (["", impression], [])  # as it was: nothing is left out
    assert guided("flag").check((ENLARGED, LEFT)) == guided("flag").check((ENLARGED, LEFT), composed=1)
    assert len(guided("flag").check((ENLARGED, LEFT))[1]) == 1


def test_recorded_edges_are_those_of_the_text() -> None:
    guide = guided("flag")
    line = guide.record(LEFT, [])
    assert line.keys() == {"graph"}  # nothing implausible: as in files without a check
    assert {(e["head"], e["tail"], e["count"]) for e in line["graph"]} >= {
        (EFFUSION, "left", 40),
        (EFFUSION, "mild", 40),
    }
    assert guide.record("", []) == {"graph": []}


def test_of_two_findings_that_exclude_each_other_the_less_probable_is_neither_stated_nor_denied(tmp_path: Path) -> None:
    visual = visual_bank(tmp_path, [(EFFUSION, LEFT), (HEART, ENLARGED)])
    reports = report_bank(tmp_path, [(LEFT, "p0"), (ENLARGED, "p1")])
    composed = {}
    for check in ("flag", "drop"):
        composer = Composer(EVEN, visual, reports, guide=guided(check))
        composed[check] = compose(composer, [HEART, EFFUSION], {EFFUSION: {0: 1.0}, HEART: {1: 1.0}}, None)
    assert set(composed["flag"].findings) == {HEART, EFFUSION}
    (kept,) = composed["drop"].findings  # equally probable: the first in the order of the labels
    assert kept == HEART
    assert texts(composed["drop"]) == [ENLARGED]
    assert not composed["drop"].agrees(LEFT, [])
    assert not composed["drop"].agrees("No pleural effusion.", [])


def test_another_sentence_is_chosen_where_one_states_an_implausible_site(tmp_path: Path) -> None:
    """Effusions are never on the right in these reports, fractures often."""
    fracture = "Fracture of the right clavicle."
    visual = visual_bank(tmp_path, [(EFFUSION, RIGHT)])
    reports = report_bank(tmp_path, [(RIGHT, "p0"), (LEFT, "p1")], alike=[[RIGHT, LEFT]])
    weights = {EFFUSION: {0: 1.0}}, {EFFUSION: {0: 0.9, 1: 0.1}}
    chosen = {}
    for check in ("flag", "drop"):
        guide = guided(check, (LEFT, fracture))
        assert len(guide.graph.implausible(read_report_facts(RIGHT))) == 1
        chosen[check] = texts(
            compose(Composer(EVEN, visual, reports, source="none", guide=guide), [EFFUSION], *weights)
        )
    assert chosen == {"flag": [RIGHT], "drop": [LEFT]}
    only = Composer(
        EVEN, visual, report_bank(tmp_path / "only", [(RIGHT, "p0")]), guide=guided("drop", (LEFT, fracture))
    )
    assert texts(compose(only, [EFFUSION], weights[0], {EFFUSION: {0: 1.0}})) == [RIGHT]  # there is no other


def test_the_copy_beside_the_reports_has_no_studies(tmp_path: Path) -> None:
    guide = guided("flag")
    (tmp_path / "graph").mkdir()
    guide.graph.save(tmp_path / "graph")
    save_graph_guide(GraphConfig(), tmp_path / "graph", tmp_path)
    assert GraphGuide.open(GraphConfig(), tmp_path) is None
    save_graph_guide(guide.config, tmp_path / "graph", tmp_path)
    opened = GraphGuide.open(guide.config, tmp_path)
    assert opened is not None
    assert opened.graph == replace(guide.graph, keys={})


@pytest.mark.parametrize("check", ["flag", "drop"])
def test_an_empty_report_is_checked(check: Literal["flag", "drop"]) -> None:
    assert guided(check).check([""]) == ([""], [])


#: Reports of which half state an effusion, always on the left, and a quarter edema, always with an effusion.
LINKED = (LEFT, "The lungs are clear.", f"{LEFT} Pulmonary edema.", "The lungs are clear.")
EDEMA = "Edema"


def retrieving(retrieval: Literal["weight", "restrict"], weight: float = 1.0) -> GraphGuide:
    graph = guided("none", LINKED).graph
    return GraphGuide(graph, GraphConfig(retrieval=retrieval, retrieval_weight=weight))


def probabilities(**given: float) -> torch.Tensor:
    return torch.tensor([[given.get(finding.replace(" ", ""), 0.0) for finding in FINDINGS]])


def test_probabilities_spread_one_step() -> None:
    active = dict(zip(NODES, retrieving("weight").activations(probabilities(Edema=0.5))[0].tolist(), strict=True))
    assert active[EDEMA] == pytest.approx(0.5)
    assert active[EFFUSION] == pytest.approx(0.5 * (1 - 0.5))  # stated in all studies with edema, and in half of all
    assert active["left"] == 0.0  # two steps away
    assert active["No Finding"] == pytest.approx(0.5)
    both = dict(
        zip(
            NODES,
            retrieving("weight").activations(probabilities(Edema=0.5, PleuralEffusion=0.4))[0].tolist(),
            strict=True,
        )
    )
    assert both[EDEMA] == pytest.approx(1 - (1 - 0.5) * (1 - 0.4 * (1 / 2 - 1 / 4)))
    assert both["left"] == pytest.approx(0.4)


def test_rows_that_fit_the_film_gain_and_each_query_keeps_its_sum() -> None:
    """Two rows, of an effusion and of edema, on a film with an effusion alone."""
    nodes = node_indicators([[EFFUSION], [EDEMA], []])
    weights, found = torch.tensor([[[0.2, 0.3, 0.1, 0.0], [0.0, 0.5, 0.0, 0.0]]]), probabilities(PleuralEffusion=1.0)
    rows = torch.tensor([0, 1, 2, -1]).expand(1, 2, -1)
    usual = {EFFUSION: 1 - (1 - 0.5) * (1 - 0.25 * 0.5), EDEMA: 1 - (1 - 0.25) * (1 - 0.5 * 0.25)}
    lift = torch.tensor([1.01 / (usual[EFFUSION] + 0.01), (0.25 + 0.01) / (usual[EDEMA] + 0.01), 1.0, 1.0])
    for power in (1.0, 2.0):
        fitted = weights[0, 0] * lift**power
        weighed = retrieving("weight", power).weigh(weights, rows, nodes, found)
        torch.testing.assert_close(weighed[0, 0], fitted * 0.6 / fitted.sum())
        torch.testing.assert_close(weighed[0, 1], weights[0, 1])
    restricted = retrieving("restrict").weigh(weights, rows, nodes, found)
    torch.testing.assert_close(restricted, torch.tensor([[[0.4, 0.0, 0.2, 0.0], [0.0, 0.5, 0.0, 0.0]]]))
    assert torch.equal(guided("flag").weigh(weights, rows, nodes, found), weights)


def test_nodes_of_rows() -> None:
    assert nodes_of_text(LEFT) == {EFFUSION, "left", "pleura"}
    assert nodes_of_text(f"{LEFT} {ENLARGED}", HEART) == {HEART, "heart"}
    assert nodes_of_text("The lungs are clear.") == set()


def test_a_restricted_composer_words_the_side_that_the_graph_knows(tmp_path: Path) -> None:
    """In these reports effusions are on the left; rows of the right side are not activated."""
    visual = visual_bank(tmp_path, [(EFFUSION, RIGHT), (EFFUSION, LEFT)])
    reports = report_bank(tmp_path, [(RIGHT, "p0"), (LEFT, "p1")], alike=[[RIGHT, LEFT]])
    weights = {EFFUSION: {0: 0.7, 1: 0.3}}, {EFFUSION: {0: 0.9, 1: 0.1}}
    graph = guided("none", (LEFT, "Fracture of the right clavicle.")).graph
    chosen = {}
    for retrieval in ("none", "restrict"):
        composer = Composer(EVEN, visual, reports, guide=GraphGuide(graph, GraphConfig(retrieval=retrieval)))
        film = sight_of({EFFUSION: 2.0})
        associations = composer.fitted(film, {name: associate(of) for name, of in zip(MEMORIES, weights, strict=True)})
        (found,) = composer.compose(film, associations, torch.tensor([NO_GROUP]))
        chosen[retrieval] = texts(found)
    assert chosen == {"none": [RIGHT], "restrict": [LEFT]}
