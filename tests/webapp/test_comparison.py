"""Two runs next to each other: copies of a small run, whose reports are written by hand."""

import math
import shutil
from dataclasses import replace

import pytest
from starlette.testclient import TestClient

from amrg.commands.view import main as view
from amrg.data.stream import load_split_studies
from amrg.errors import UserError
from amrg.inference.run_artifacts import find_run_artifacts
from amrg.webapp import comparison
from amrg.webapp.comparison import ComparedRun
from amrg.webapp.run_store import RunStore
from amrg.webapp.server import create_viewer_app
from tests.webapp.tiny_run import copy_with_reports

#: By key. Both findings of the first text are invented: its references state Cardiomegaly or nothing.
TEXTS = (
    {"test-0": "Pulmonary edema. Rib fracture.", "test-1": "The lungs are clear.", "test-2": "Rib fracture."},
    {"test-0": "The heart is enlarged.", "test-1": "Pulmonary edema.", "test-3": "The lungs are clear."},
)
#: Heaviest row of either memory, then others; the first is of both runs.
ROWS = ([(3, 0.5), (1, 0.2)], [(4, 0.4), (3, 0.1)])


@pytest.fixture(scope="module")
def folders(run, tmp_path_factory):
    return [
        copy_with_reports(run, tmp_path_factory.mktemp(name) / name, texts, rows)
        for name, texts, rows in zip(("first", "other"), TEXTS, ROWS, strict=True)
    ]


@pytest.fixture(scope="module")
def client(folders):
    first, other = map(find_run_artifacts, folders)
    return TestClient(create_viewer_app(first, ["testserver"], compared=ComparedRun.open(first, other)))


def test_only_common_studies_are_compared_which_is_said(folders):
    compared = ComparedRun.open(*map(find_run_artifacts, folders))
    assert compared.names == ("first", "other")
    assert set(compared.reports) == {"test-0", "test-1"}
    assert compared.note == (
        "2 studies are compared, which both runs report; left out: 1 only of first, 1 only of other, "
        "0 with another reference."
    )


def test_a_study_with_another_reference_is_no_common_one(folders, monkeypatch):
    """Its key alone does not make it the same: the other data set has another report under it."""
    first, other = map(find_run_artifacts, folders)
    changed = iter((False, True))

    def studies(folder, split):
        found, change = load_split_studies(folder, split), next(changed)
        return [replace(s, report="Other.") if change and s.key == "test-1" else s for s in found]

    monkeypatch.setattr(comparison, "load_split_studies", studies)
    compared = ComparedRun.open(first, other)
    assert set(compared.reports) == {"test-0"}
    assert "1 with another reference." in compared.note


def test_the_page_names_both_runs(client):
    page = client.get("/").text
    assert "first and other" in page
    assert "other better first" in page
    assert "2 studies are compared" in page


def test_a_study_has_both_reports_with_errors_scores_and_rows(client):
    found = client.get("/api/comparisons/test/test-0").json()
    first, other = found["sides"]
    assert (first["name"], other["name"]) == ("first", "other")
    assert "".join(piece[0] for piece in first["text"]) == "Pulmonary edema. Rib fracture."
    assert [piece[1:] for piece in first["text"] if piece[1]] == [["extra", "Edema"], ["extra", "Fracture"]]
    assert first["errors"] == {
        "found": [],
        "conflicting": [],
        "missed": ["Cardiomegaly"],
        "extra": ["Edema", "Fracture"],
    }
    assert other["errors"] == {"found": ["Cardiomegaly"], "conflicting": [], "missed": [], "extra": []}
    assert (first["scores"]["errors"], other["scores"]["errors"]) == (3, 0)
    assert (first["scores"]["F1 with details"], other["scores"]["F1 with details"]) == (0, 1)
    # All 4 words of the other report are in the reference, which has 10: the brevity penalty is exp(1 - 10/4).
    assert other["scores"]["BLEU-1"] == pytest.approx(math.exp(-1.5))
    assert first["scores"]["ROUGE-L"] == 0
    for side, rows in zip((first, other), ROWS, strict=True):
        assert [(row["row"], row["weight"]) for row in side["memory"]["report"]] == rows
        assert [row["both"] for row in side["memory"]["report"]] == [row == 3 for row, _ in rows]
        assert all(row["image"].startswith("data:image/jpeg") for row in side["memory"]["visual"])


def test_what_a_film_retrieves_is_compared_with_the_means_over_the_reports(client, folders):
    """All three reports of the first run have retrieved row 3 with 0.5 and row 1 with 0.2, and no other row."""
    means, compared = {3: 0.5, 1: 0.2}, 0
    for key in ("test-0", "test-4"):
        for rows in client.get(f"/api/looks/test/{key}").json()["memory"].values():
            above = [row["weight"] - means.get(row["row"], 0) for row in rows]
            assert above == sorted(above, reverse=True)
            for row in rows:
                mean = means.get(row["row"])
                assert row["lift"] == (None if mean is None else pytest.approx(row["weight"] / mean, abs=1e-3))
                assert (row["studies"], row["usual"]) == (0.0 if mean is None else 1.0, mean is not None)
                compared += mean is not None
    assert compared
    (side, _) = client.get("/api/comparisons/test/test-0").json()["sides"]
    assert [row["lift"] for row in side["memory"]["visual"]] == [1, 1]


def test_other_banks_than_those_of_the_reports_are_not_compared(folders):
    chain = find_run_artifacts(folders[0])
    assert RunStore(chain, 224, 14).averaged == 3
    chain.reports.manifest["inputs"]["banks"]["hash"] = "of other banks"
    store = RunStore(chain, 224, 14)
    assert store.averaged == 0
    assert store.with_lifts({"visual": [{"row": 3, "weight": 0.5}]}) == {"visual": [{"row": 3, "weight": 0.5}]}


@pytest.mark.parametrize("place", ["test/test-2", "test/test-4", "test/nobody", "nowhere/test-0"])
def test_what_is_not_compared_is_said(client, place):
    answer = client.get(f"/api/comparisons/{place}")
    assert answer.status_code == 404
    assert answer.json()["error"]


def test_the_worklist_is_sorted_by_the_difference(client):
    orders = {}
    for order in ("better", "worse"):
        rows = client.get("/api/studies", params={"order": order}).json()["studies"]
        orders[order] = [(row["key"], row["difference"]) for row in rows]
    # test-0: 3 errors and none. test-1, whose effusion both miss: 1 and 2.
    assert orders["better"][:2] == [("test-0", -3), ("test-1", 1)]
    assert orders["worse"][:2] == [("test-1", 1), ("test-0", -3)]
    assert {difference for _, difference in orders["better"][2:]} == {None}


def test_what_cannot_be_compared_is_refused_before_models_are_loaded(folders, run, tmp_path):
    first, other = folders
    with pytest.raises(UserError, match="names the reports that are viewed"):
        view([str(first), "--compare", str(first)])
    with pytest.raises(UserError, match="none of them the same with the same reference"):
        view([str(first), "--compare", str(copy_with_reports(run, tmp_path / "none", {"test-4": "Clear."}, ROWS[0]))])
    shutil.copytree(other, tmp_path / "bare")
    for folder in (*(tmp_path / "bare").glob("reports-*"), *(tmp_path / "bare").glob("scores-*")):
        shutil.rmtree(folder)
    with pytest.raises(UserError, match="has no reports to compare: write them with `amrg generate`"):
        view([str(first), "--compare", str(tmp_path / "bare")])
    with pytest.raises(UserError, match="no run at"):
        view([str(first), "--compare", str(tmp_path / "nothing")])


def test_two_reports_of_one_run_are_named_by_their_artefacts(folders, tmp_path):
    shutil.copytree(folders[0], tmp_path / "first")
    reports = next((tmp_path / "first").glob("reports-*"))
    shutil.copytree(reports, reports.with_name("reports-0123456789"))
    one, two = find_run_artifacts(reports), find_run_artifacts(reports.with_name("reports-0123456789"))
    assert ComparedRun.open(one, two).names == (f"first/{reports.name}", "first/reports-0123456789")
