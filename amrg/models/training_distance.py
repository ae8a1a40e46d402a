"""Distance of a study's films from the training films, and the distance beyond which films are unlike these.

It is the Mahalanobis distance (Lee et al. 2018, arXiv:1807.03888, with one class) of the mean of stage 1's fine grid.
Of the features and distances compared on the demo, it alone tells all real films, and the demo's own test films upside
down, turned or inverted, from the training films (docs/results.md).

Shape legend: N training studies, M validation studies, B studies, D query width.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from amrg.errors import UserError
from amrg.models.vision_output import VisionOutput

FILE = "training_distance.safetensors"
#: Share of studies like the training studies that may exceed the threshold.
FALSE_ALARM_RATE = 0.02
#: Weight of the mean variance in the covariance, so that directions without variance have a finite scale.
_SHRINKAGE = 0.01


@dataclass(frozen=True)
class TrainingDistance:
    """Mahalanobis distance to the training studies.

    Attributes:
        mean_D: mean feature of the training studies, float64.
        whitening_DD: maps a centered feature to one whose length is the distance, float64.
        threshold: distance beyond which a study is unlike the training studies.
    """

    mean_D: Tensor
    whitening_DD: Tensor
    threshold: float

    @classmethod
    def fit(cls, train_ND: Tensor, validation_MD: Tensor) -> Self:
        """Fit the distance on training studies, and the threshold on validation studies.

        The threshold is the conformal quantile: a further study like the validation studies exceeds it with a
        probability of at most ``FALSE_ALARM_RATE``, or 1/(M + 1) if that is larger.
        """
        train_ND = train_ND.double()
        mean_D = train_ND.mean(0)
        centered_ND = train_ND - mean_D
        covariance_DD = centered_ND.T @ centered_ND / len(train_ND)
        variance = covariance_DD.diagonal().mean().clamp_min(1e-12)
        values_D, vectors_DD = torch.linalg.eigh(covariance_DD)
        scale_D = ((1 - _SHRINKAGE) * values_D.clamp_min(0) + _SHRINKAGE * variance).rsqrt()
        fitted = cls(mean_D, vectors_DD * scale_D, math.inf)
        distances_M = fitted._distances(validation_MD).sort().values
        last = min(math.ceil((len(distances_M) + 1) * (1 - FALSE_ALARM_RATE)), len(distances_M)) - 1
        return cls(fitted.mean_D, fitted.whitening_DD, float(distances_M[last]))

    def records(self, vision: VisionOutput) -> list[dict[str, Any]]:
        """Return ``unlike_training``, ``training_distance`` and ``training_distance_threshold`` of each study."""
        return [
            {
                "unlike_training": distance > self.threshold,
                "training_distance": round(distance, 3),
                "training_distance_threshold": round(self.threshold, 3),
            }
            for distance in self._distances(vision.film_BD).tolist()
        ]

    def _distances(self, feature_BD: Tensor) -> Tensor:
        return ((feature_BD.cpu().double() - self.mean_D) @ self.whitening_DD).norm(dim=1)

    def save(self, folder: Path) -> None:
        """Write ``FILE``."""
        folder.mkdir(parents=True, exist_ok=True)
        threshold = torch.tensor([self.threshold], dtype=torch.float64)
        tensors = {"mean": self.mean_D, "whitening": self.whitening_DD.contiguous(), "threshold": threshold}
        save_file(tensors, folder / FILE)

    @classmethod
    def load(cls, folder: Path) -> Self | None:
        """Read what ``save`` wrote; None if a version without the distance made the folder.

        Raises:
            UserError: it is damaged.
        """
        if not (folder / FILE).exists():
            return None
        try:
            tensors = load_file(folder / FILE)
            return cls(tensors["mean"], tensors["whitening"], float(tensors["threshold"]))
        except (OSError, SafetensorError, KeyError, ValueError, RuntimeError):
            raise UserError(f"{folder / FILE} is unreadable: run `amrg stage2` again") from None
