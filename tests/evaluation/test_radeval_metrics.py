"""Metrics with learned weights: what radeval answers, and every way in which it cannot.

radeval's weights are on no test machine, so a stand-in package of that name takes its place in the other process.
"""

import importlib.util

import numpy as np
import pytest

from amrg.data.labels import LABELS
from amrg.evaluation.radeval_metrics import NAMES, LearnedScores, learned_scores
from amrg.evaluation.scorers import SCORERS

REFERENCES = ["Small effusion.", "No effusion.", "Cardiomegaly."]
SYSTEMS = {"model": ["Small effusion.", "", "Effusion."], "normal": ["No effusion."] * 3}
WEIGHTS = np.array([[1, 1, 1], [3, 0, 0], [0, 3, 0]])

STAND_IN = """
import os, sys, time
class RadEval:
    def __init__(self, metrics, per_sample, show_progress):
        (self.metric,) = metrics
        assert os.environ["HF_HUB_OFFLINE"] == "1" and per_sample and not show_progress
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
        return {"bertscore": [float(len(h)) for h in hyps]}
"""

#: Reads three labels, and names them in an order of its own.
CHEXBERT = f"""
class F1CheXbert:
    TARGET_NAMES = {sorted(LABELS)!r}
    def __init__(self, device):
        assert device in ("cpu", "cuda")
    def get_labels(self, reports):
        return [[int(name in self.read(report)) for name in self.TARGET_NAMES] for report in reports]
    def read(self, report):
        if "No" in report:
            return ["No Finding"]
        return [n for n, word in (("Pleural Effusion", "ffusion"), ("Cardiomegaly", "Cardio")) if word in report]
"""


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    package = tmp_path / "radeval"
    (package / "metrics").mkdir(parents=True)
    (package / "__init__.py").write_text(STAND_IN)
    (package / "metrics" / "__init__.py").touch()
    (package / "metrics" / "f1chexbert.py").write_text(CHEXBERT)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))  # without weights


def ask(*metrics, timeout=60.0):
    return learned_scores(metrics, REFERENCES, SYSTEMS, timeout)


def test_scores_with_intervals(stand_in):
    found, reasons = ask("BERTScore", "CheXbert")
    assert reasons == {}
    told = {name: scores.summary(WEIGHTS) for name, scores in found.items()}
    (bertscore,) = SCORERS["BERTScore"].scores.values()
    assert set(told["normal"]) == {bertscore, *(name for name in NAMES if name.startswith("CheXbert"))}
    assert told["model"][bertscore]["value"] == pytest.approx((15 + 1 + 9) / 3)  # an empty report stands as "."
    # of the draws 25/3, 15 and 1: a twentieth of the way from the least and from the largest
    assert told["model"][bertscore]["interval"] == pytest.approx([1 + 0.05 * 22 / 3, 15 - 0.05 * 20 / 3])


def test_chexberts_f1_is_drawn_from_counts(stand_in):
    """By hand: one hit (effusion), one false alarm (effusion), misses: No Finding and Cardiomegaly.

    The draws hold all three studies, the hit three times, the missed No Finding three times; their micro F1 over 14
    labels is 2/5, 1 and 0, where a mean over studies would be 1/3, 1 and 0.
    """
    told = ask("CheXbert")[0]["model"].summary(WEIGHTS)
    values = {"micro-14": 2 / 5, "macro-14": 2 / 3 / 14, "micro-5": 2 / 4, "macro-5": 2 / 3 / 5}
    assert {name: told[f"CheXbert F1 {name}"]["value"] for name in values} == pytest.approx(values)
    assert told["CheXbert F1 micro-14"]["interval"] == pytest.approx([0.05 * 2 / 5, 1 - 0.05 * 3 / 5])
    assert told["CheXbert F1 macro-14"]["interval"] == pytest.approx([0.05 * 2 / 42, 1 / 14 - 0.05 * (3 - 2) / 42])


def test_what_a_system_scored_is_kept_by_study(stand_in, tmp_path):
    found = ask("BERTScore", "CheXbert")[0]["model"]
    found.save(tmp_path / "learned.json", ["c", "a", "b"])
    again = LearnedScores.read(tmp_path / "learned.json", ["a", "b", "c"])
    for weights in WEIGHTS[:, None]:
        drawn, expected = again.scores(weights[:, [1, 2, 0]]), found.scores(weights)
        assert drawn.keys() == expected.keys()
        np.testing.assert_allclose(list(drawn.values()), list(expected.values()))


@pytest.mark.parametrize(
    ("metric", "reason"),
    [
        (  # the download was refused
            "GREEN",
            "unavailable: its weights are not on this machine: StanfordAIMI/GREEN-radllama2-7b (model): "
            "`amrg fetch-metrics GREEN`",
        ),
        ("RaTEScore", "unavailable: radeval failed: ModuleNotFoundError No module named 'no_such_module'"),
        ("RadCliQ", "unavailable: radeval ended without an answer"),
    ],
)
def test_why_there_is_no_number(stand_in, metric, reason):
    found, reasons = ask(metric)
    assert reasons[metric].startswith(reason)
    assert not any(found.values())


def test_what_hangs_is_stopped(stand_in):
    assert ask("RadGraph", timeout=1.0)[1]["RadGraph"].startswith("unavailable: it took longer than 1 s")


def test_without_radeval(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert ask("GREEN")[1] == {"GREEN": "unavailable: radeval is not installed: pip install 'amrg[clinical]'"}
    assert ask()[0]["model"].summary(WEIGHTS) == {}
