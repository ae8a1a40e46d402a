"""Metrics that need learned weights, through the package ``radeval``: a number, or why there is none; never 0.

Each runs in a process of its own: what it loads is gone afterwards, what hangs is stopped, and nothing is downloaded.
Its weights must lie where radeval looks for them (``amrg.evaluation.scorers``, ``amrg fetch-metrics``).
"""

import contextlib
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from amrg.artifacts import MapFn
from amrg.data.labels import LABELS
from amrg.errors import UserError
from amrg.evaluation.clinical import LABEL_SETS, ClinicalScores
from amrg.evaluation.scorers import SCORERS, missing
from amrg.evaluation.statistics import interval
from amrg.progress import echo

#: What the scores of the generated reports are made of, in a scores artefact.
FILE = "learned.json"

#: CheXbert's averages → the labels that each is over.
_CHEXBERT = {f"CheXbert F1 {kind}-{n}": LABEL_SETS[n] for n in ("14", "5") for kind in ("micro", "macro")}

#: All scores.
NAMES = (*_CHEXBERT, *(name for scorer in SCORERS.values() for name in scorer.scores.values()))

#: What is scored in the place of an empty report, on which some of the metrics fail.
EMPTY_REPORT_PLACEHOLDER = "."

_OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}


@dataclass(frozen=True)
class LearnedScores:
    """What the metrics found in the reports of one system, study by study.

    Attributes:
        means: score → its value for each study, float64 [S].
        chexbert: hits and misses of CheXbert's labels; None where it could not be asked.
        radeval: the version that was asked; empty where that is not known.
    """

    means: Mapping[str, np.ndarray] = field(default_factory=dict)
    chexbert: ClinicalScores | None = None
    radeval: str = ""

    def __bool__(self) -> bool:
        return bool(self.means) or self.chexbert is not None

    def scores(self, weights_BS: np.ndarray) -> dict[str, np.ndarray]:
        """Every score, [B]."""
        found = {name: weights_BS @ each / weights_BS.sum(1) for name, each in self.means.items()}
        return found | (_averages(self.chexbert, weights_BS) if self.chexbert else {})

    def summary(self, weights_BS: np.ndarray) -> dict[str, dict[str, Any]]:
        """Every score with its interval, ready for JSON."""
        drawn = self.scores(weights_BS)
        whole = self.scores(np.ones((1, weights_BS.shape[1])))
        return {name: {"value": float(v[0]), "interval": list(interval(drawn[name]))} for name, v in whole.items()}

    def joined(self, other: "LearnedScores") -> "LearnedScores":
        """With what other metrics found in the same reports."""
        return replace(self, means={**self.means, **other.means}, chexbert=self.chexbert or other.chexbert)

    def concat(self, other: "LearnedScores") -> "LearnedScores":
        """The studies of both behind one another; a metric that one of the two does not have is left out."""
        common = [name for name in self.means if name in other.means]
        both = self.chexbert.concat(other.chexbert) if self.chexbert and other.chexbert else None
        return LearnedScores({n: np.concatenate([self.means[n], other.means[n]]) for n in common}, both)

    def save(self, path: Path, keys: Sequence[str]) -> None:
        """Write a file of the values by the keys of the studies."""
        content: dict[str, Any] = {"radeval": self.radeval, "keys": list(keys)}
        content["means"] = {name: each.tolist() for name, each in self.means.items()}
        if self.chexbert:
            truth, said = self.chexbert.tp | self.chexbert.fn, self.chexbert.tp | self.chexbert.fp
            found = {"labels": LABELS, "reference": truth.astype(int).tolist(), "generated": said.astype(int).tolist()}
            content["chexbert"] = found
        path.write_text(json.dumps(content) + "\n")

    @classmethod
    def read(cls, path: Path, keys: Sequence[str]) -> "LearnedScores":
        """Read such a file, in the order of the keys; nothing where there is none.

        Raises:
            UserError: it is damaged, or of other studies.
        """
        if not path.exists():
            return cls()
        try:
            content = json.loads(path.read_text())
            place = {key: number for number, key in enumerate(content["keys"])}
            order = [place[key] for key in keys]
            means = {name: np.asarray(each, dtype=np.float64)[order] for name, each in content["means"].items()}
            found = content.get("chexbert")
            return cls(means, None if found is None else _counts(found, order), content["radeval"])
        except (OSError, ValueError, KeyError, TypeError, IndexError):
            raise UserError(f"{path} does not fit the reports: delete its folder and evaluate again") from None


def learned_scores(
    metrics: Sequence[str],
    references: Sequence[str],
    systems: Mapping[str, Sequence[str]],
    timeout: float,
    each: MapFn = map,
) -> tuple[dict[str, LearnedScores], dict[str, str]]:
    """What each system's reports score, and by metric "unavailable: <reason>" where it could not be asked.

    Args:
        metrics: names in ``SCORERS``.
        references, systems: whole reports, in one order.
        timeout: seconds for one metric on all systems.
        each: asks for each metric.
    """
    ask = partial(_run_metric, references=references, systems=systems, timeout=timeout)
    found = {name: LearnedScores(radeval=_version()) for name in systems}
    reasons = {}
    for metric, answer in zip(metrics, each(ask, metrics), strict=True):
        if isinstance(answer, str):
            reasons[metric] = answer
        else:
            found = {name: scores.joined(answer[name]) for name, scores in found.items()}
    return found, reasons


def _run_metric(
    metric: str, references: Sequence[str], systems: Mapping[str, Sequence[str]], timeout: float
) -> dict[str, LearnedScores] | str:
    """What one metric found, by system, or why there is nothing."""
    if importlib.util.find_spec("radeval") is None:
        return "unavailable: radeval is not installed: pip install 'amrg[clinical]'"
    said = {
        name: [text if text.strip() else EMPTY_REPORT_PLACEHOLDER for text in texts] for name, texts in systems.items()
    }
    echo(f"{metric}: asking radeval")
    with tempfile.TemporaryDirectory() as folder:  # the metrics print, and write files where they are started
        question, answer = Path(folder) / "question.json", Path(folder) / "answer.json"
        question.write_text(
            json.dumps({"metric": SCORERS[metric].name, "references": list(references), "systems": said})
        )
        command = [sys.executable, "-m", "amrg.evaluation.radeval_worker", str(question), str(answer)]
        path = os.pathsep.join(filter(None, (str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH"))))
        environment = {**os.environ, **_OFFLINE, "PYTHONPATH": path}
        try:
            subprocess.run(command, cwd=folder, env=environment, capture_output=True, timeout=timeout, check=False)
            found = json.loads(answer.read_text())
        except subprocess.TimeoutExpired:
            return f"unavailable: it took longer than {timeout:g} s (evaluate.model_based_timeout)"
        except (OSError, ValueError):
            return "unavailable: radeval ended without an answer"
    if "reason" in found:
        return f"unavailable: {found['reason'] or _lacking(metric)}"
    try:
        return {name: _values(metric, scores, len(references)) for name, scores in found["scores"].items()}
    except (KeyError, TypeError, ValueError):
        return "unavailable: radeval has not told a number for every study"


def _lacking(metric: str) -> str:
    """Why a metric wanted to download something."""
    names = ", ".join(f"{weights.repository} ({weights.part})" for weights in missing([metric]))
    if not names:
        return "its weights are not where radeval looks, though all that `amrg fetch-metrics` knows of is there"
    return f"its weights are not on this machine: {names}: `amrg fetch-metrics {metric}` tells where and fetches them"


def _values(metric: str, scores: Mapping[str, Any], count: int) -> LearnedScores:
    if metric == "CheXbert":
        return LearnedScores(chexbert=_counts(scores, range(count)))
    values = {name: np.asarray(scores[key], dtype=np.float64) for key, name in SCORERS[metric].scores.items()}
    if not all(each.shape == (count,) and np.isfinite(each).all() for each in values.values()):
        raise ValueError
    return LearnedScores(values)


def _counts(found: Mapping[str, Any], order: Sequence[int]) -> ClinicalScores:
    """Of ``labels``, their names, and what is stated in ``reference`` and ``generated``, 0 or 1 [S, 14]."""
    columns = [found["labels"].index(label) for label in LABELS]
    truth, said = (np.array(found[text], dtype=bool)[list(order)][:, columns] for text in ("reference", "generated"))
    return ClinicalScores.from_labels(truth, said)


def _averages(chexbert: ClinicalScores, weights_BS: np.ndarray) -> dict[str, np.ndarray]:
    """F1 as radeval has it from scikit-learn: its macro F1 takes a label that no report states as 0."""
    per_label = chexbert.per_label(weights_BS)[:, :, 2]
    return {
        name: chexbert.micro(labels, weights_BS)[:, 2]
        if "micro" in name
        else per_label[:, [LABELS.index(label) for label in labels]].mean(1)
        for name, labels in _CHEXBERT.items()
    }


def _version() -> str:
    with contextlib.suppress(PackageNotFoundError):
        return version("radeval")
    return ""
