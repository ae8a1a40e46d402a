"""Relevance of a memory: by hand, with weights, and what lines must tell."""

import json

import numpy as np
import pytest
import torch

from amrg.banks.bank import REPORTS, VISUAL, MemoryBank
from amrg.banks.writer import BankWriter
from amrg.data.labels import FINDINGS
from amrg.errors import UserError
from amrg.evaluation.relevance import association_base_rates, retrieval_relevance
from amrg.evaluation.reports import Association, GeneratedReport, parse_reports

HEART, LESION = FINDINGS.index("Cardiomegaly"), FINDINGS.index("Lung Lesion")


@pytest.fixture(scope="module")
def banks(tmp_path_factory):
    """Ten rows each; four of the visual ones are of lesions, one of them of a large heart too."""
    folder = tmp_path_factory.mktemp("banks")
    known = {"key": "k", "group": "g", "split": "train", "source": "region", "view": 0, "box": [0, 0, 1, 1]}
    for name in (VISUAL, REPORTS):
        with BankWriter(folder / name, 8) as writer:
            for found in [["Lung Lesion"]] * 3 + [["Lung Lesion", "Cardiomegaly"]] + [[]] * 6:
                writer.add(torch.randn(1, 8), [known | {"findings": found}])
    return folder


def report(lesion, heart=0.0, tops=(0, 0), side=None, first=0):
    """A report whose lesion's and heart's associations have these shares on rows of their own, and heaviest rows."""
    share, top_row, sides = [0.0] * 13, [-1] * 13, [None] * 13
    share[LESION], share[HEART], sides[LESION] = lesion, heart, side
    top_row[LESION], top_row[HEART] = tops
    memory = {"visual": [{"row": first, "weight": 0.6}, {"row": 9, "weight": 0.1}]}
    return GeneratedReport("k", "", memory, association={"visual": Association(share, top_row, sides)})


def half(side):
    mask = np.zeros((8, 8), bool)
    mask[:, slice(4, 8) if side == "left" else slice(0, 4)] = True
    return {"Lung Lesion": mask}


def test_by_hand(banks):
    reports = [
        report(0.9, 0.5, (1, 3), side=0.8, first=1),  # lesion on the left, heart
        report(0.5, 0.1, (2, 3), side=0.6, first=1),  # lesion on the right
        report(0.7, 0.3, (1, 3), side=0.4, first=2),  # lesion on both sides
        report(0.2, 0.2, (0, 3), first=1),  # nothing
    ]
    present = np.zeros((4, 13), bool)
    present[:3, LESION] = present[0, HEART] = True
    masks = [half("left"), half("right"), {"Lung Lesion": np.ones((8, 8), bool)}, {}]
    weights = np.array([[1.0, 1, 1, 1], [2.0, 0, 0, 2]])
    found = retrieval_relevance(banks, reports, present, ~present, masks, weights)
    assert found["report"] is None
    visual = found["visual"]
    heart, lesion = (visual["findings"][finding] for finding in ("Cardiomegaly", "Lung Lesion"))
    all_of_them = visual["all"]
    assert list(visual["findings"]) == ["Cardiomegaly", "Lung Lesion"]
    assert (lesion["studies"], lesion["rows"], lesion["sided"]) == (3, 2, 2)
    assert lesion["base"] == pytest.approx(0.4)
    assert lesion["with"]["value"] == pytest.approx(0.7)
    assert lesion["without"]["value"] == pytest.approx(0.2)
    assert lesion["side"]["value"] == pytest.approx((0.8 + 0.4) / 2)
    assert (heart["studies"], heart["rows"], heart["base"]) == (1, 1, 0.1)
    assert heart["without"]["value"] == pytest.approx(0.2)
    assert heart["side"] == {"value": None, "interval": None}
    assert all_of_them["with"]["value"] == pytest.approx((0.9 + 0.5 + 0.7 + 0.5) / 4)
    assert all_of_them["base"] == pytest.approx((3 * 0.4 + 0.1) / 4)
    assert (all_of_them["studies"], all_of_them["rows"]) == (4, 3)
    assert visual["alike"]["value"] == 0.75
    assert visual["leading"] == 2
    # the second resample holds the first and the last study twice: 0.9 with a lesion, and so on
    low, high = np.quantile([0.7, 0.9], [0.025, 0.975])
    assert lesion["with"]["interval"] == pytest.approx([low, high])
    low, high = np.quantile([0.75, 1.0], [0.025, 0.975])
    assert visual["alike"]["interval"] == pytest.approx([low, high])


def test_without_lists_or_findings(banks):
    nothing = np.zeros((2, 13), bool)
    silent = [report(0.5), GeneratedReport("k", "")]
    assert retrieval_relevance(banks, silent, nothing, ~nothing, [{}, {}], np.ones((3, 2)))["visual"] is None
    found = retrieval_relevance(banks, [report(0.5)] * 2, nothing, ~nothing, [{}, {}], np.ones((3, 2)))["visual"]
    assert (found["all"], found["findings"]) == (None, {})
    everyone = np.ones((2, 13), bool)
    found = retrieval_relevance(banks, [report(0.5)] * 2, everyone, ~everyone, [{}, {}], np.ones((3, 2)))["visual"]
    assert found["all"]["without"] == {"value": None, "interval": None}
    assert found["findings"]["Fracture"]["rows"] == 0


def test_a_finding_that_is_unknown_is_not_absent(banks):
    """Of three studies the first has a lesion, the second none, and the data set of the third does not say."""
    present, absent = np.zeros((3, 13), bool), np.ones((3, 13), bool)
    present[0, LESION], absent[[0, 2], LESION] = True, False
    reports = [report(0.9), report(0.2), report(0.7)]
    found = retrieval_relevance(banks, reports, present, absent, [{}] * 3, np.ones((2, 3)))["visual"]
    for means in (found["all"], found["findings"]["Lung Lesion"]):
        assert (means["with"]["value"], means["without"]["value"]) == (0.9, 0.2)


def test_base_rates(banks):
    rates = association_base_rates(MemoryBank.open(banks / VISUAL))
    assert rates[LESION] == pytest.approx(0.4)
    assert rates[HEART] == pytest.approx(0.1)
    assert rates.sum() == pytest.approx(0.5)


def line(**association):
    told = {"share": [0.5] * 13, "top_row": [-1] * 13, "side": [None] * 12 + [1.0]} | association
    return json.dumps({"key": "a", "generated": "x", "association": {"visual": told}}) + "\n"


def test_lines_with_and_without_associations(tmp_path):
    file = tmp_path / "reports.jsonl"
    file.write_text(line())
    found = parse_reports(file)["a"].association["visual"]
    assert (found.share[0], found.top_row[0], found.side[11:]) == (0.5, -1, [None, 1.0])
    file.write_text(json.dumps({"key": "a", "generated": "x", "association": None}) + "\n")
    assert parse_reports(file)["a"].association == {}
    told = json.loads(line())
    del told["association"]["visual"]["side"]  # the report memory has no boxes
    file.write_text(json.dumps(told) + "\n")
    assert parse_reports(file)["a"].association["visual"].side == [None] * 13


@pytest.mark.parametrize(
    "wrong",
    [{"share": [0.5] * 12}, {"share": ["a"] * 13}, {"share": [2.0] * 13}, {"top_row": [0.5] * 13}, {"side": [None]}],
)
def test_malformed_associations_are_refused(tmp_path, wrong):
    file = tmp_path / "reports.jsonl"
    file.write_text(line(**wrong))
    with pytest.raises(UserError, match="line 1 is not a report"):
        parse_reports(file)
