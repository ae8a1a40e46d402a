"""Calibrated probability that a report states each finding, from stage 1's outputs, and a threshold for naming it.

A decoder trained on few reports names a finding only above probability 1/2 and so misses many that stage 1 detects.
Stage 1's probability and the peak of the finding's activation map are calibrated on reports that did not select the
weights. Stage 1's probability p enters as ln p and −ln (1 − p), each with a weight of at least 0 (beta calibration,
Kull et al., 2017): their sum is its logit, but the true log-odds are not a line in that.

Shape legend: N studies to calibrate on, B studies, F = 13 findings, X = 3 features.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch
from scipy.special import expit
from torch import Tensor
from torch.nn import functional as F

from amrg.data.labels import FINDINGS
from amrg.errors import UserError
from amrg.models.vision_output import VisionOutput

FILE = "certainty.json"
FEATURES = 3  # X
_PRIOR = (1.0, 1.0, 0.0)  # of the weights: stage 1's probability as it is
_BOUNDS = ((0, None), (0, None), (None, None))  # a surer stage 1 never makes a finding less probable
_LEAST_PEAK = 1e-3  # of an activation map; lower peaks are clamped


@dataclass(frozen=True)
class Certainty:
    """Logistic regression of each finding, and a threshold.

    Attributes:
        weight: weights of the features of each finding, [F, X].
        bias: [F].
        threshold: least probability of a named finding, the same for all findings.
    """

    weight: tuple[tuple[float, ...], ...]
    bias: tuple[float, ...]
    threshold: float

    @classmethod
    def fit(cls, features_NFX: Tensor, stated_NF: Tensor) -> Self:
        """Fit the regressions with a weak prior at stage 1's own probability.

        The threshold maximises micro-F1 on the same studies.
        """
        features, truth = features_NFX.double().numpy(), stated_NF.double().numpy()
        fitted = [_regression(features[:, k], truth[:, k]) for k in range(truth.shape[1])]
        weight_FX, bias_F = np.array([one[:-1] for one in fitted]), np.array([one[-1] for one in fitted])
        probability_NF = torch.from_numpy((features * weight_FX).sum(-1) + bias_F).sigmoid()
        threshold = _best_threshold(probability_NF.flatten(), torch.from_numpy(truth).flatten())
        return cls(tuple(map(tuple, weight_FX.tolist())), tuple(bias_F.tolist()), threshold)

    def probabilities(self, vision: VisionOutput) -> Tensor:
        """Probabilities that each study's report states each finding, float64 [B, F] on the CPU."""
        weight_FX, bias_F = torch.tensor(self.weight).double(), torch.tensor(self.bias).double()
        return ((calibration_features(vision) * weight_FX).sum(-1) + bias_F).sigmoid()

    def save(self, folder: Path) -> None:
        """Write ``FILE``."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / FILE).write_text(json.dumps(asdict(self), indent=2) + "\n")

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read what ``save`` wrote.

        Raises:
            UserError: it is missing or damaged.
        """
        try:
            content = json.loads((folder / FILE).read_text())
            weight = tuple(_with_both_logs(tuple(map(float, row))) for row in content["weight"])
            bias = tuple(map(float, content["bias"]))
            if not len(weight) == len(bias) == len(FINDINGS) or {len(row) for row in weight} != {FEATURES}:
                raise ValueError
            return cls(weight, bias, float(content["threshold"]))
        except (OSError, ValueError, KeyError, TypeError):
            raise UserError(f"{folder / FILE} is missing or unreadable: run `amrg stage2` again") from None


def calibration_features(vision: VisionOutput) -> Tensor:
    """Return the features of each finding, float64 [B, F, 3] on the CPU.

    Returns:
        ln p and −ln (1 − p) of stage 1's probability p, and the log peak of the activation map.
    """
    findings = slice(0, len(FINDINGS))
    logits_BF = vision.logits_BQ[:, findings].cpu().double()
    peaks_BF = vision.peaks_BQ[:, findings].cpu().double().clamp_min(_LEAST_PEAK).log()
    return torch.stack([F.logsigmoid(logits_BF), -F.logsigmoid(-logits_BF), peaks_BF], dim=-1)


def _with_both_logs(weight: tuple[float, ...]) -> tuple[float, ...]:
    """Convert weights of the logit and the peak, as older versions saved them; others are returned as they are."""
    return (weight[0], *weight) if len(weight) == FEATURES - 1 else weight


def _regression(features_NX: np.ndarray, truth_N: np.ndarray) -> np.ndarray:
    """Return the most probable weights and bias [X + 1] of a logistic regression within ``_BOUNDS``.

    Each has a normal prior of standard deviation 1 around ``_PRIOR`` and 0.
    """
    from scipy.optimize import minimize  # takes a third of a second

    inputs, prior = np.c_[features_NX, np.ones(len(features_NX))], np.array([*_PRIOR, 0.0])

    def loss(weight: np.ndarray) -> tuple[float, np.ndarray]:
        logits, offset = inputs @ weight, weight - prior
        value = (np.logaddexp(0, logits) - truth_N * logits).sum() + 0.5 * offset @ offset
        return value, inputs.T @ (expit(logits) - truth_N) + offset

    options = {"maxiter": 500, "ftol": 1e-14, "gtol": 1e-8}
    return minimize(loss, prior, jac=True, method="L-BFGS-B", bounds=[*_BOUNDS, (None, None)], options=options).x


def _best_threshold(probability_M: Tensor, truth_M: Tensor) -> float:
    """Midpoint between the last named and the first unnamed probability at the best F1; 2 if nothing is true."""
    if not truth_M.any():
        return 2.0
    sorted_M, order = probability_M.sort(descending=True)
    right_M = truth_M[order].cumsum(0)
    f1_M = 2 * right_M / (torch.arange(1, len(right_M) + 1) + truth_M.sum())
    f1_M[:-1][sorted_M[:-1] == sorted_M[1:]] = 0.0  # equal probabilities fall on the same side
    last = int(f1_M.argmax())
    return float(sorted_M[last : last + 2].mean())
