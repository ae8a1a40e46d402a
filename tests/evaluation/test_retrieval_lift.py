"""Lifts of retrieved rows and findings, by hand."""

import pytest

from amrg.data.labels import FINDINGS
from amrg.evaluation.reports import Association, GeneratedReport
from amrg.evaluation.retrieval_lift import MeanRetrieval

NONE = [None] * len(FINDINGS)


def report(key, visual, shares=None):
    memory = {"visual": [{"row": row, "weight": weight} for row, weight in visual.items()]}
    association = {}
    if shares is not None:
        share = [shares.get(finding, 0.1) for finding in FINDINGS]
        association = {"visual": Association(share, [0] * len(FINDINGS), NONE)}
    return GeneratedReport(key, "", memory, association=association)


def test_what_every_film_retrieves_has_no_lift():
    """Row 7 leads everywhere with 0.4; row 1 has 0.2 in one of four films."""
    reports = [report(str(i), {7: 0.4, **({1: 0.2} if i == 0 else {2: 0.1})}) for i in range(4)]
    means = MeanRetrieval.of(reports)
    first, second = means.row_lifts("visual", reports[0].memory["visual"])
    assert (first.row, first.lift, first.studies) == (1, pytest.approx(4), 0.25)
    assert (second.row, second.lift, second.studies) == (7, pytest.approx(1), 1.0)
    (row,) = means.row_lifts("visual", [{"row": 2, "weight": 0.3}])
    assert (row.mean, row.lift) == (pytest.approx(0.075), pytest.approx(4))
    assert means.row_lifts("report", []) == []


def test_findings_are_ordered_by_what_is_above_their_mean():
    reports = [report(str(i), {}, {"Edema": share, "Fracture": 0.5}) for i, share in enumerate((0.6, 0.1, 0.2))]
    lifts = MeanRetrieval.of(reports).finding_lifts("visual", reports[0])
    assert (lifts[0].finding, lifts[0].share) == ("Edema", 0.6)
    assert lifts[0].lift == pytest.approx(2)
    assert [one.lift for one in lifts[1:]] == pytest.approx([1] * 12)
    assert MeanRetrieval.of(reports).finding_lifts("report", reports[0]) == []
    without = report("x", {})
    assert MeanRetrieval.of([without]).finding_lifts("visual", without) == []
