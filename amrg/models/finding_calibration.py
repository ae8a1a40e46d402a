"""Calibrated probability that a report states each finding, from stage 1's outputs, and a threshold for naming it.

A decoder trained on few reports names a finding only above probability 1/2 and so misses many that stage 1 detects.
Stage 1's logit and the peak of the finding's activation map are calibrated on reports that did not select the weights.

Shape legend: N studies to calibrate on, B studies, F = 13 findings, X = 2 features.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional as F

from amrg.data.labels import FINDINGS
from amrg.errors import UserError
from amrg.models.vision_output import VisionOutput

FILE = "certainty.json"
FEATURES = 2  # X
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
        features_NFX, truth_NF = features_NFX.double(), stated_NF.double()
        prior_FX = torch.zeros(features_NFX.shape[1:], dtype=torch.float64)
        prior_FX[:, 0] = 1.0  # the logit as it is
        weight_FX, bias_F = prior_FX.clone().requires_grad_(), torch.zeros(len(prior_FX)).double().requires_grad_()
        optimizer = torch.optim.LBFGS(
            [weight_FX, bias_F], max_iter=500, tolerance_change=1e-12, line_search_fn="strong_wolfe"
        )

        def loss() -> Tensor:
            optimizer.zero_grad()
            logits_NF = (features_NFX * weight_FX).sum(-1) + bias_F
            prior = 0.5 * ((weight_FX - prior_FX).square().sum() + bias_F.square().sum())
            total = F.binary_cross_entropy_with_logits(logits_NF, truth_NF, reduction="sum") + prior
            total.backward()
            return total

        optimizer.step(loss)
        weight_FX, bias_F = weight_FX.detach(), bias_F.detach()
        probability_NF = ((features_NFX * weight_FX).sum(-1) + bias_F).sigmoid()
        threshold = _best_threshold(probability_NF.flatten(), truth_NF.flatten())
        return cls(tuple(map(tuple, weight_FX.tolist())), tuple(bias_F.tolist()), threshold)

    def probabilities(self, vision: VisionOutput) -> Tensor:
        """Probabilities that each study's report states each finding, float64 [B, F] on the CPU."""
        weight_FX, bias_F = torch.tensor(self.weight).double(), torch.tensor(self.bias).double()
        return ((features_of(vision) * weight_FX).sum(-1) + bias_F).sigmoid()

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
            weight = tuple(tuple(map(float, row)) for row in content["weight"])
            bias = tuple(map(float, content["bias"]))
            if not len(weight) == len(bias) == len(FINDINGS) or {len(row) for row in weight} != {FEATURES}:
                raise ValueError
            return cls(weight, bias, float(content["threshold"]))
        except (OSError, ValueError, KeyError, TypeError):
            raise UserError(f"{folder / FILE} is missing or unreadable: run `amrg stage2` again") from None


def features_of(vision: VisionOutput) -> Tensor:
    """Return stage 1's logit and the log peak of the activation map of each finding, float64 [B, F, 2] on the CPU."""
    findings = slice(0, len(FINDINGS))
    peaks_BF = vision.peaks_BQ[:, findings].cpu().double().clamp_min(_LEAST_PEAK).log()
    return torch.stack([vision.logits_BQ[:, findings].cpu().double(), peaks_BF], dim=-1)


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
