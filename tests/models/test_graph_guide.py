"""Reports that are checked against a graph in which an enlarged heart and an effusion exclude each other."""

from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest

from amrg.config import GraphConfig
from amrg.data.labels import LABELS
from amrg.data.studies import Study
from amrg.graph.build import graph_of
from amrg.graph.facts import report_facts
from amrg.models.composer import Composer
from amrg.models.graph_guide import GraphGuide, save_guide
from tests.models.test_composer import EFFUSION, EVEN, HEART, compose, report_bank, texts, visual_bank

ENLARGED, LEFT, RIGHT = "The heart is enlarged.", "Small left pleural effusion.", "Small right pleural effusion."
CLEAR = "No pneumothorax."


def guided(check: Literal["none", "flag", "drop"], reports: tuple[str, ...] = (ENLARGED, LEFT)) -> GraphGuide:
    """Each report is that of 40 studies."""
    train = [
        Study(f"s{i}", f"p{i}", "train", reports[i % len(reports)], dict.fromkeys(LABELS))
        for i in range(40 * len(reports))
    ]
    return GraphGuide(graph_of(train, GraphConfig(), 0), GraphConfig(check=check))


def test_flagged_or_dropped() -> None:
    text = f"{ENLARGED} {LEFT} {CLEAR}"
    entry = {"head": HEART, "relation": "excludes", "tail": EFFUSION, "count": 0, "expected": 20.0}
    assert guided("none").check(text) == (text, [])
    assert guided("flag").check(text) == (text, [entry])
    dropped, found = guided("drop").check(text)
    assert dropped == f"{ENLARGED} {CLEAR}"
    assert found == [entry | {"left_out": True}]
    assert guided("drop").check(text, composed=2) == (text, [entry])  # sentences of memory were chosen already
    for check in ("flag", "drop"):
        assert guided(check).check(f"{LEFT} {CLEAR}") == (f"{LEFT} {CLEAR}", [])


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
    asks = {EFFUSION: {0: 1.0}}, {EFFUSION: {0: 0.9, 1: 0.1}}
    chosen = {}
    for check in ("flag", "drop"):
        guide = guided(check, (LEFT, fracture))
        assert len(guide.graph.implausible(report_facts(RIGHT))) == 1
        chosen[check] = texts(compose(Composer(EVEN, visual, reports, source="none", guide=guide), [EFFUSION], *asks))
    assert chosen == {"flag": [RIGHT], "drop": [LEFT]}
    only = Composer(
        EVEN, visual, report_bank(tmp_path / "only", [(RIGHT, "p0")]), guide=guided("drop", (LEFT, fracture))
    )
    assert texts(compose(only, [EFFUSION], asks[0], {EFFUSION: {0: 1.0}})) == [RIGHT]  # there is no other


def test_the_copy_beside_the_reports_has_no_studies(tmp_path: Path) -> None:
    guide = guided("flag")
    (tmp_path / "graph").mkdir()
    guide.graph.save(tmp_path / "graph")
    save_guide(GraphConfig(), tmp_path / "graph", tmp_path)
    assert GraphGuide.open(GraphConfig(), tmp_path) is None
    save_guide(guide.config, tmp_path / "graph", tmp_path)
    opened = GraphGuide.open(guide.config, tmp_path)
    assert opened is not None
    assert opened.graph == replace(guide.graph, keys={})


@pytest.mark.parametrize("check", ["flag", "drop"])
def test_an_empty_report_is_checked(check: Literal["flag", "drop"]) -> None:
    assert guided(check).check("") == ("", [])
