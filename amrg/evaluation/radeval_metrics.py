"""Metrics with learned weights, through the package ``radeval``: a number, or the reason for its absence, never 0.

Each metric runs in its own process, which frees its memory, has a time limit and downloads nothing. Its weights must be
in radeval's cache folders (``amrg.evaluation.scorers``, ``amrg fetch-metrics``).
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
from amrg.evaluation.scorers import SCORERS, missing_metric_files
from amrg.evaluation.statistics import percentile_interval
from amrg.progress import print_on_rank_0

#: Per-study scores of the generated reports, in a scores artefact.
FILE = "learned.json"

#: Labels of each of CheXbert's averages.
_CHEXBERT = {f"CheXbert F1 {kind}-{n}": LABEL_SETS[n] for n in ("14", "5") for kind in ("micro", "macro")}

#: Names of all scores.
NAMES = (*_CHEXBERT, *(name for scorer in SCORERS.values() for name in scorer.scores.values()))

#: Scored instead of an empty report, on which some metrics fail.
EMPTY_REPORT_PLACEHOLDER = "."

_OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}


@dataclass(frozen=True)
class LearnedScores:
    """Per-study scores of one system's reports.

    Attributes:
        means: values by score, float64 [S], whose mean is the score.
        chexbert: hits and misses of CheXbert's labels; None if CheXbert was unavailable.
        radeval: version of radeval; empty if unknown.
    """

    means: Mapping[str, np.ndarray] = field(default_factory=dict)
    chexbert: ClinicalScores | None = None
    radeval: str = ""

    def __bool__(self) -> bool:
        return bool(self.means) or self.chexbert is not None

    def scores(self, weights_BS: np.ndarray) -> dict[str, np.ndarray]:
        """Return every score, [B]."""
        found = {name: weights_BS @ each / weights_BS.sum(1) for name, each in self.means.items()}
        return found | (_averages(self.chexbert, weights_BS) if self.chexbert else {})

    def summary(self, weights_BS: np.ndarray) -> dict[str, dict[str, Any]]:
        """Return every score with its interval, ready for JSON."""
        drawn = self.scores(weights_BS)
        observed = self.scores(np.ones((1, weights_BS.shape[1])))
        return {
            name: {"value": float(v[0]), "interval": list(percentile_interval(drawn[name]))}
            for name, v in observed.items()
        }

    def joined(self, other: "LearnedScores") -> "LearnedScores":
        """Add the scores of other metrics on the same reports."""
        return replace(self, means={**self.means, **other.means}, chexbert=self.chexbert or other.chexbert)

    def concat(self, other: "LearnedScores") -> "LearnedScores":
        """Concatenate the studies of both; metrics that only one of them has are left out."""
        common = [name for name in self.means if name in other.means]
        both = self.chexbert.concat(other.chexbert) if self.chexbert and other.chexbert else None
        return LearnedScores({n: np.concatenate([self.means[n], other.means[n]]) for n in common}, both)

    def save(self, path: Path, keys: Sequence[str]) -> None:
        """Write the values with the keys of the studies."""
        content: dict[str, Any] = {"radeval": self.radeval, "keys": list(keys)}
        content["means"] = {name: each.tolist() for name, each in self.means.items()}
        if self.chexbert:
            truth, stated = self.chexbert.tp | self.chexbert.fn, self.chexbert.tp | self.chexbert.fp
            found = {
                "labels": LABELS,
                "reference": truth.astype(int).tolist(),
                "generated": stated.astype(int).tolist(),
            }
            content["chexbert"] = found
        path.write_text(json.dumps(content) + "\n")

    @classmethod
    def read(cls, path: Path, keys: Sequence[str]) -> "LearnedScores":
        """Read a file of ``save`` in the order of the keys; empty scores if it does not exist.

        Raises:
            UserError: the file is damaged or has other studies.
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
    """Run the metrics; returns the scores per system, and "unavailable: <reason>" per metric that did not run.

    Args:
        metrics: names in ``SCORERS``.
        references, systems: full reports, in the same order.
        timeout: seconds per metric for all systems.
        each: maps over the metrics.
    """
    query = partial(_run_metric, references=references, systems=systems, timeout=timeout)
    found = {name: LearnedScores(radeval=_version()) for name in systems}
    reasons = {}
    for metric, answer in zip(metrics, each(query, metrics), strict=True):
        if isinstance(answer, str):
            reasons[metric] = answer
        else:
            found = {name: scores.joined(answer[name]) for name, scores in found.items()}
    return found, reasons


def _run_metric(
    metric: str, references: Sequence[str], systems: Mapping[str, Sequence[str]], timeout: float
) -> dict[str, LearnedScores] | str:
    """Run one metric; returns its scores per system, or "unavailable: <reason>"."""
    if importlib.util.find_spec("radeval") is None:
        return "unavailable: radeval is not installed: pip install 'amrg[clinical]'"
    generated = {
        name: [text if text.strip() else EMPTY_REPORT_PLACEHOLDER for text in texts] for name, texts in systems.items()
    }
    print_on_rank_0(f"{metric}: asking radeval")
    with tempfile.TemporaryDirectory() as folder:  # metrics write files into their working directory
        question, answer = Path(folder) / "question.json", Path(folder) / "answer.json"
        question.write_text(
            json.dumps({"metric": SCORERS[metric].name, "references": list(references), "systems": generated})
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
    """Explain a refused download."""
    names = ", ".join(f"{weights.repository} ({weights.part})" for weights in missing_metric_files([metric]))
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
    """Build the scores from label names in ``labels`` and 0 or 1, [S, 14], in ``reference`` and ``generated``."""
    columns = [found["labels"].index(label) for label in LABELS]
    truth, stated = (np.array(found[text], dtype=bool)[list(order)][:, columns] for text in ("reference", "generated"))
    return ClinicalScores.from_labels(truth, stated)


def _averages(chexbert: ClinicalScores, weights_BS: np.ndarray) -> dict[str, np.ndarray]:
    """Compute F1 as radeval does with scikit-learn: in macro F1 a label that no report states counts as 0."""
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
