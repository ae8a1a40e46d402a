"""Do maps point at the true lesions? For every lesion of the held-out split, whether or not the classifier finds it."""

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
from amrg.evaluation.classifier_outputs import run_on_test
from amrg.evaluation.localization import localization_scores, upsample_to
from amrg.evaluation.statistics import bootstrap_counts, interval
from amrg.experiments.aggregate import Row, Score
from amrg.mining.regions import STATS
from amrg.models.classifier import DiseaseClassifier

#: Films drawn for the reader to look at.
OVERLAYS = 50


class NoMasks(UserError):
    """The data has no true lesions to compare with."""


@dataclass(frozen=True)
class Lesions:
    """Every true lesion of a split, with the activation map of its finding.

    Attributes:
        findings, groups: of each lesion, its finding and its patient.
        films: uint8 [L, size, size].
        masks: bool, of the same shape.
        maps_LHW: in units of τ: divided by the class's scale, as mining does.
    """

    findings: list[str]
    groups: list[str]
    films: np.ndarray
    masks: np.ndarray
    maps_LHW: np.ndarray


def load_lesions(config: Config, data: Path, stage1: Path, banks: Path) -> Lesions:
    """Look at the split of ``generate`` with the map of ``banks.mining.method``.

    Raises:
        NoMasks: the data has no lesion masks.
    """
    model = DiseaseClassifier.from_pretrained(stage1 / "model").to(distributed.device())
    seen = run_on_test(model, data, config.generate.split, config.banks.mining.method, config.stage1.dtype)
    scales = json.loads((banks / VISUAL / STATS).read_text())["scales"]
    pairs = [(i, f) for i, masks in enumerate(seen.masks) for f in FINDINGS if f in masks and masks[f].any()]
    if len(pairs) < 2:
        raise NoMasks(f"the split `{config.generate.split}` has no lesion masks to compare maps with")
    maps = [seen.maps_SKhw[i, LABELS.index(f)] / scales[f] for i, f in pairs]
    return Lesions(
        [f for _, f in pairs],
        [seen.studies[i].group for i, _ in pairs],
        np.stack([seen.films[i] for i, _ in pairs]),
        np.stack([seen.masks[i][f] for i, f in pairs]),
        np.stack(maps),
    )


def iou_by_threshold(found: Lesions, thresholds: Sequence[float], samples: int, seed: int) -> list[Row]:
    """IoU of what exceeds each τ with the lesion, pointing (a map that nowhere exceeds τ misses), empty masks, area."""
    weights_BL = bootstrap_counts(found.groups, samples, seed)
    large = upsample_to(found.maps_LHW, found.masks.shape[1:]).reshape(len(found.masks), -1)
    masks = found.masks.reshape(len(found.masks), -1)
    hit = masks[np.arange(len(masks)), large.argmax(1)]
    rows = []
    for threshold in thresholds:
        region = large > threshold
        iou = (region & masks).sum(1) / (region | masks).sum(1)
        empty = found.maps_LHW.reshape(len(masks), -1).max(1) <= threshold  # as mining sees it: by cells
        scores = {"IoU": iou, "pointing": hit & ~empty, "empty masks": empty, "area": region.mean(1)}
        means = {name: _mean(values, weights_BL) for name, values in scores.items()}
        rows.append(Row(f"τ = {threshold:g}", means, threshold))
    return rows


def scores_of_method(found: Lesions, samples: int, seed: int) -> dict[str, Score]:
    """What does not depend on τ: IoU at half of the map's own peak, pointing, activation inside over the whole film.

    Activation is also divided by what the lesions of other studies with the same finding get: 1 for a map that only
    knows where such lesions usually are.
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
    over = Score(float(ratio.mean() / max(control.mean(), 1e-12)), interval(quotient))
    return {
        "IoU": _mean(iou, weights_BL),
        "pointing": _mean(hit, weights_BL),
        "inside / whole": _mean(ratio, weights_BL),
        "over control": over,
    }


def sample_overlays(found: Lesions, seed: int) -> list[int]:
    """Numbers of the lesions to look at: drawn at random, not chosen."""
    order = np.random.default_rng(seed).permutation(len(found.findings))
    return sorted(order[:OVERLAYS].tolist())


def _mean(values_L: np.ndarray, weights_BL: np.ndarray) -> Score:
    values = values_L.astype(np.float64)
    return Score(float(values.mean()), interval(weights_BL @ values / weights_BL.sum(1)))
