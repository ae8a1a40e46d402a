"""Metrics that need learned weights, through the package ``radeval``: a number, or why there is none; never 0.

Each runs in a process of its own: what it loads is gone afterwards, what hangs is stopped, and nothing is downloaded.
The weights must lie where radeval looks for them (the Hugging Face cache, ``HF_HOME``).
"""

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from amrg.artifacts import Each
from amrg.evaluation.statistics import interval
from amrg.progress import say

#: Metric → (its name in radeval, radeval's name of a score → ours).
METRICS: dict[str, tuple[str, dict[str, str]]] = {
    "BERTScore": ("bertscore", {"bertscore": "BERTScore"}),
    "CheXbert": (
        "f1chexbert",
        {
            "f1chexbert_all_micro_f1": "CheXbert F1 micro-14",
            "f1chexbert_all_macro_f1": "CheXbert F1 macro-14",
            "f1chexbert_5_micro_f1": "CheXbert F1 micro-5",
            "f1chexbert_5_macro_f1": "CheXbert F1 macro-5",
        },
    ),
    "RadGraph": (
        "radgraph",
        {
            "radgraph_simple": "RadGraph F1 simple",
            "radgraph_partial": "RadGraph F1 partial",
            "radgraph_complete": "RadGraph F1 complete",
        },
    ),
    "RadCliQ": ("radcliq", {"radcliq_v1": "RadCliQ-v1 (lower is better)"}),
    "RaTEScore": ("ratescore", {"ratescore": "RaTEScore"}),
    "GREEN": ("green", {"green": "GREEN"}),
}

#: What is scored in the place of an empty report, on which some of the metrics fail.
EMPTY = "."

_OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}


def learned_scores(
    metrics: Sequence[str],
    references: Sequence[str],
    systems: Mapping[str, Sequence[str]],
    weights_BS: np.ndarray,
    timeout: float,
    each: Each = map,
) -> dict[str, dict[str, Any]]:
    """By system and score: ``{"value", "interval"}``, or under the metric's name ``"unavailable: <reason>"``.

    Scores that are no mean over studies (CheXbert's F1) have no interval.

    Args:
        metrics: names in ``METRICS``.
        references, systems: whole reports, in one order.
        weights_BS: how often each bootstrap sample holds each study.
        timeout: seconds for one metric on all systems.
        each: asks for each metric.
    """
    found: dict[str, dict[str, Any]] = {name: {} for name in systems}
    ask = partial(_ask, references=references, systems=systems, timeout=timeout)
    for metric, answer in zip(metrics, each(ask, metrics), strict=True):
        for name in systems:
            known = {metric: answer} if isinstance(answer, str) else _named(metric, answer[name], weights_BS)
            found[name].update(known)
    return found


def _ask(
    metric: str, references: Sequence[str], systems: Mapping[str, Sequence[str]], timeout: float
) -> dict[str, dict[str, Any]] | str:
    """radeval's scores by system, or why there are none."""
    if importlib.util.find_spec("radeval") is None:
        return "unavailable: radeval is not installed: pip install 'amrg[clinical]'"
    said = {name: [text if text.strip() else EMPTY for text in texts] for name, texts in systems.items()}
    say(f"{metric}: asking radeval")
    with tempfile.TemporaryDirectory() as folder:  # the metrics print, and write files where they are started
        question, answer = Path(folder) / "question.json", Path(folder) / "answer.json"
        question.write_text(json.dumps({"metric": METRICS[metric][0], "references": list(references), "systems": said}))
        command = [sys.executable, "-m", "amrg.evaluation.learned_worker", str(question), str(answer)]
        path = os.pathsep.join(filter(None, (str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH"))))
        environment = {**os.environ, **_OFFLINE, "PYTHONPATH": path}
        try:
            subprocess.run(command, cwd=folder, env=environment, capture_output=True, timeout=timeout, check=False)
            found = json.loads(answer.read_text())
        except subprocess.TimeoutExpired:
            return f"unavailable: it took longer than {timeout:g} s (evaluate.learned_timeout)"
        except (OSError, ValueError):
            return "unavailable: radeval ended without an answer"
    return found["scores"] if "scores" in found else f"unavailable: {found['reason']}"


def _named(metric: str, scores: Mapping[str, Any], weights_BS: np.ndarray) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, name in METRICS[metric][1].items():
        value = scores[key]
        if isinstance(value, list):
            each = np.asarray(value, dtype=np.float64)
            resampled = weights_BS @ each / weights_BS.sum(1)
            found[name] = {"value": float(each.mean()), "interval": list(interval(resampled))}
        else:
            found[name] = {"value": float(value), "interval": None}
    return found
