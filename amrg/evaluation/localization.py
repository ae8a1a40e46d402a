"""Measure per finding whether activation maps point at the true lesion, with a control.

A map may look right only because the finding is always in the same place. The control is the same number with the
masks of the *other* studies that have the finding, averaged: the expected value of a random derangement, without its
noise.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from amrg.evaluation.statistics import bootstrap_counts, percentile_interval

#: Pixels of at least this share of a map's maximum form its region, for IoU.
REGION = 0.5

#: Terciles of the studies by lesion area, computed from ``LEAST_STUDIES`` studies on.
SIZES = ("small", "medium", "large")
LEAST_STUDIES = 6


@dataclass(frozen=True)
class Localization:
    """Scores of one finding, an array [S] over studies each.

    Attributes:
        ratio: mean activation inside the true lesion / mean of the whole image (0 for an empty map).
        control: the same with the other studies' masks, averaged.
        iou: intersection over union of the map's region (``REGION``) and the lesion.
        pointing_hit: whether the map's peak lies in the lesion (pointing game; Zhang et al., 2016, no tolerance).
        lesion_area_share: share of the image that the lesion covers: the chance of a random peak to hit it.
        empty: whether the map has no activation at all.
    """

    ratio: np.ndarray
    control: np.ndarray
    iou: np.ndarray
    pointing_hit: np.ndarray
    lesion_area_share: np.ndarray
    empty: np.ndarray

    def summary(self, groups: Sequence[str], samples: int, seed: int) -> dict[str, Any]:
        """Average over studies, with bootstrap intervals by patient; ``sizes`` has the same per tercile of lesion area.

        Args:
            groups: patient of each study.
            samples, seed: number of bootstrap resamples, and their seed.
        """
        found = self._means(bootstrap_counts(groups, samples, seed))
        if len(self.ratio) < LEAST_STUDIES:
            return {**found, "sizes": {}}
        sizes = {}
        for name, rows in zip(SIZES, self.terciles(), strict=True):
            part = self.subset(rows)
            area = {"area_least": float(part.lesion_area_share.min()), "area_most": float(part.lesion_area_share.max())}
            sizes[name] = part._means(bootstrap_counts([groups[i] for i in rows], samples, seed)) | area
        return {**found, "sizes": sizes}

    def terciles(self) -> list[np.ndarray]:
        """Indices of the studies with the smallest, middle and largest lesions, in parts of nearly equal size."""
        return np.array_split(np.argsort(self.lesion_area_share, kind="stable"), len(SIZES))

    def subset(self, rows: np.ndarray) -> "Localization":
        """Select studies by index."""
        return Localization(*(getattr(self, field.name)[rows] for field in fields(self)))

    @classmethod
    def concat(cls, parts: Sequence["Localization"]) -> "Localization":
        """Join several findings; a study counts once per lesion."""
        return cls(*(np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(cls)))

    def _means(self, weights_BS: np.ndarray) -> dict[str, Any]:
        total = weights_BS.sum(1)
        ratio_B, control_B, iou_B, hit_B = (
            weights_BS @ x / total for x in (self.ratio, self.control, self.iou, self.pointing_hit)
        )
        return {
            "studies": len(self.ratio),
            "ratio": float(self.ratio.mean()),
            "ratio_interval": list(percentile_interval(ratio_B)),
            "control": float(self.control.mean()),
            "over_control": float(self.ratio.mean() / max(self.control.mean(), 1e-12)),
            "over_control_interval": list(percentile_interval(ratio_B / np.where(control_B > 0, control_B, np.nan))),
            "iou": float(self.iou.mean()),
            "iou_interval": list(percentile_interval(iou_B)),
            "pointing": float(self.pointing_hit.mean()),
            "pointing_interval": list(percentile_interval(hit_B)),
            "pointing_chance": float(self.lesion_area_share.mean()),
            "empty_maps": int(self.empty.sum()),
        }


def localization_scores(maps_SHW: np.ndarray, masks_SHW: np.ndarray) -> Localization:
    """Compare activation maps of one finding with its true masks.

    Args:
        maps_SHW: non-negative activations on any grid, one map per study that has the finding. S ≥ 2.
        masks_SHW: bool, at the image's size, each with at least one true pixel.
    """
    assert len(maps_SHW) == len(masks_SHW) >= 2, (len(maps_SHW), len(masks_SHW))
    masks = masks_SHW.reshape(len(masks_SHW), -1).astype(np.float64)
    area = masks.sum(1)
    assert area.min() > 0, "an empty mask has no inside"
    maps = upsample_maps(maps_SHW, masks_SHW.shape[1:]).reshape(len(masks), -1).astype(np.float64)
    assert maps.min() >= 0, "activation maps are non-negative"

    mean, peak = maps.mean(1), maps.max(1)
    filled = peak > 0
    inside = (maps @ masks.T) / area[None] / np.where(filled, mean, 1)[:, None]  # [map, mask]
    ratio = np.diag(inside).copy()
    region = (maps >= REGION * peak[:, None]) & filled[:, None]
    overlap = (region * masks).sum(1)
    return Localization(
        ratio=ratio,
        control=(inside.sum(1) - ratio) / (len(masks) - 1),
        iou=overlap / (region.sum(1) + area - overlap),
        pointing_hit=masks[np.arange(len(masks)), maps.argmax(1)] * filled,
        lesion_area_share=area / masks.shape[1],
        empty=~filled,
    )


def upsample_maps(maps_NHW: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """Interpolate maps bilinearly to (H, W), float32 [N, H, W]; cell centers keep their positions."""
    maps = torch.from_numpy(np.ascontiguousarray(maps_NHW, dtype=np.float32))[:, None]
    return functional.interpolate(maps, size=tuple(size), mode="bilinear", align_corners=False)[:, 0].numpy()
