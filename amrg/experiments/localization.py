"""Localization by activation maps, for every lesion of the held-out split, detected by the classifier or not."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from amrg import distributed
from amrg.banks.bank import VISUAL
from amrg.config import Config
from amrg.data.labels import FINDINGS, LABELS
from amrg.errors import UserError
from amrg.evaluation.classifier_outputs import classify_test_split
from amrg.evaluation.localization import localization_scores, upsample_maps
from amrg.evaluation.statistics import bootstrap_counts, percentile_interval
from amrg.experiments.aggregate import Row, Score
from amrg.mining.regions import STATS
from amrg.models.classifier import DiseaseClassifier

#: Number of films with overlays on the page.
OVERLAYS = 50


class NoMasks(UserError):
    """The data has no true lesions to compare maps with."""


@dataclass(frozen=True)
class Lesions:
    """All true lesions of a split, with the activation maps of their findings.

    Attributes:
        findings, groups: finding and patient per lesion.
        films: uint8 [L, size, size].
        masks: bool [L, size, size].
        maps_LHW: activation maps in units of τ: divided by the class's scale, as in mining.
    """

    findings: list[str]
    groups: list[str]
    films: np.ndarray
    masks: np.ndarray
    maps_LHW: np.ndarray


def load_lesion_maps(config: Config, data: Path, stage1: Path, banks: Path) -> Lesions:
    """Run the classifier on the split of ``generate``, with the map of ``banks.mining.method``.

    Raises:
        NoMasks: the data has no lesion masks.
    """
    model = DiseaseClassifier.from_pretrained(stage1 / "model").to(distributed.local_device())
    outputs = classify_test_split(model, data, config.generate.split, config.banks.mining.method, config.stage1.dtype)
    scales = json.loads((banks / VISUAL / STATS).read_text())["scales"]
    pairs = [(i, f) for i, masks in enumerate(outputs.masks) for f in FINDINGS if f in masks and masks[f].any()]
    if len(pairs) < 2:
        raise NoMasks(f"the split `{config.generate.split}` has no lesion masks to compare maps with")
    maps = [outputs.maps_SKhw[i, LABELS.index(f)] / scales[f] for i, f in pairs]
    return Lesions(
        [f for _, f in pairs],
        [outputs.studies[i].group for i, _ in pairs],
        np.stack([outputs.films[i] for i, _ in pairs]),
        np.stack([outputs.masks[i][f] for i, f in pairs]),
        np.stack(maps),
    )


def iou_by_threshold(found: Lesions, thresholds: Sequence[float], samples: int, seed: int) -> list[Row]:
    """Score masks per τ: IoU with the lesion, pointing (a map that never exceeds τ misses), empty masks, area."""
    weights_BL = bootstrap_counts(found.groups, samples, seed)
    large = upsample_maps(found.maps_LHW, found.masks.shape[1:]).reshape(len(found.masks), -1)
    masks = found.masks.reshape(len(found.masks), -1)
    hit = masks[np.arange(len(masks)), large.argmax(1)]
    rows = []
    for threshold in thresholds:
        region = large > threshold
        iou = (region & masks).sum(1) / (region | masks).sum(1)
        empty = found.maps_LHW.reshape(len(masks), -1).max(1) <= threshold  # on the cells of the grid, as in mining
        scores = {"IoU": iou, "pointing": hit & ~empty, "empty masks": empty, "area": region.mean(1)}
        means = {name: _mean(values, weights_BL) for name, values in scores.items()}
        rows.append(Row(f"τ = {threshold:g}", means, threshold))
    return rows


def scores_of_method(found: Lesions, samples: int, seed: int) -> dict[str, Score]:
    """Score maps independently of τ: IoU at half of the map's peak, pointing, activation inside / over the full film.

    ``over control`` divides the activation inside by that inside other studies' lesions of the same finding. It is 1
    for a map that only marks the usual place of such lesions.
    """
    parts: dict[str, list[np.ndarray]] = {}
    groups: list[str] = []
    for finding in dict.fromkeys(found.findings):
        rows = [i for i, name in enumerate(found.findings) if name == finding]
        if len(rows) < 2:
            continue
        one = localization_scores(found.maps_LHW[rows], found.masks[rows])
        groups += [found.groups[i] for i in rows]
        for name in ("iou", "pointing_hit", "ratio", "control"):
            parts.setdefault(name, []).append(getattr(one, name))
    if not groups:
        return {}
    iou, hit, ratio, control = (np.concatenate(parts[name]) for name in ("iou", "pointing_hit", "ratio", "control"))
    weights_BL = bootstrap_counts(groups, samples, seed)
    drawn_control = weights_BL @ control
    quotient = weights_BL @ ratio / np.where(drawn_control > 0, drawn_control, np.nan)
    over = Score(float(ratio.mean() / max(control.mean(), 1e-12)), percentile_interval(quotient))
    return {
        "IoU": _mean(iou, weights_BL),
        "pointing": _mean(hit, weights_BL),
        "inside / whole": _mean(ratio, weights_BL),
        "over control": over,
    }


def sample_overlays(found: Lesions, seed: int) -> list[int]:
    """Draw the indices of the lesions shown on the page at random."""
    order = np.random.default_rng(seed).permutation(len(found.findings))
    return sorted(order[:OVERLAYS].tolist())


def _mean(values_L: np.ndarray, weights_BL: np.ndarray) -> Score:
    values = values_L.astype(np.float64)
    return Score(float(values.mean()), percentile_interval(weights_BL @ values / weights_BL.sum(1)))
