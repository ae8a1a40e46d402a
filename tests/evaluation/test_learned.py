"""Metrics with learned weights: what radeval answers, and every way in which it cannot.

radeval's weights are on no test machine, so a stand-in package of that name takes its place in the other process.
"""

import importlib.util

import numpy as np
import pytest

from amrg.evaluation.learned import METRICS, learned_scores

REFERENCES = ["Small effusion.", "No effusion.", "Cardiomegaly."]
SYSTEMS = {"model": ["Small effusion.", "", "Effusion."], "normal": ["No effusion."] * 3}
WEIGHTS = np.array([[1, 1, 1], [3, 0, 0], [0, 3, 0]])

STAND_IN = """
import os, sys, time
class RadEval:
    def __init__(self, metrics, per_sample, show_progress):
        self.metric, self.each = metrics[0], per_sample
        assert os.environ["HF_HUB_OFFLINE"] == "1" and not show_progress
        if self.metric == "bertscore":
            import RadEval  # its former name
        if self.metric == "green":
            import urllib.request
            urllib.request.urlopen("https://127.0.0.1/weights")
        if self.metric == "radgraph":
            time.sleep(60)
        if self.metric == "ratescore":
            import no_such_module
        if self.metric == "radcliq":
            os._exit(3)
    def __call__(self, refs, hyps):
        print("chatter")
        if self.metric == "bertscore":
            return {"bertscore": [float(len(h)) for h in hyps]}
        return {k: 0.25 for k in ("f1chexbert_all_micro_f1", "f1chexbert_all_macro_f1", "f1chexbert_5_micro_f1",
                                  "f1chexbert_5_macro_f1")} if not self.each else {}
"""


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    (tmp_path / "radeval").mkdir()
    (tmp_path / "radeval" / "__init__.py").write_text(STAND_IN)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.syspath_prepend(tmp_path)


def ask(*metrics, timeout=30.0):
    return learned_scores(metrics, REFERENCES, SYSTEMS, WEIGHTS, timeout)


def test_numbers_with_intervals_where_the_score_is_a_mean(stand_in):
    found = ask("BERTScore", "CheXbert")
    assert found["model"]["BERTScore"]["value"] == pytest.approx((15 + 1 + 9) / 3)  # an empty report stands as "."
    low, high = found["model"]["BERTScore"]["interval"]
    assert 1 <= low < high <= 15
    assert found["normal"]["CheXbert F1 micro-14"] == {"value": 0.25, "interval": None}
    assert set(found["normal"]) == {"BERTScore", *METRICS["CheXbert"][1].values()}


@pytest.mark.parametrize(
    ("metric", "reason"),
    [
        ("GREEN", "unavailable: its weights are not on this machine"),  # the download was refused
        ("RaTEScore", "unavailable: radeval failed: ModuleNotFoundError No module named 'no_such_module'"),
        ("RadCliQ", "unavailable: radeval ended without an answer"),
    ],
)
def test_why_there_is_no_number(stand_in, metric, reason):
    found = ask(metric)
    assert all(answer[metric].startswith(reason) for answer in found.values())


def test_what_hangs_is_stopped(stand_in):
    assert ask("RadGraph", timeout=1.0)["model"]["RadGraph"].startswith("unavailable: it took longer than 1 s")


def test_without_radeval(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert ask("GREEN")["model"]["GREEN"] == ("unavailable: radeval is not installed: pip install 'amrg[clinical]'")
    assert ask()["model"] == {}
