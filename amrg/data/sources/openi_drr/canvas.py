"""A chest that lesions are painted into: what each changes is kept, so that a film is the healthy one plus differences."""

from dataclasses import dataclass, field
from functools import cache

import numpy as np
from scipy import ndimage

from amrg.data.sources.openi_drr import anatomy
from amrg.data.sources.openi_drr.anatomy import SPACING, Anatomy
from amrg.data.sources.openi_drr.projection import Box, Pose, cumulative, project

TISSUE = 1.03  # water-equivalent of fluid, pus and soft tissue
_SHOWN = 5.0  # mm of lesion in the beam's way that count as visible


@dataclass
class Canvas:
    """One patient's chest in the making.

    Attributes:
        anatomy: the healthy chest.
        rng: where every random choice of this patient comes from.
        pose: how the patient stands; lesions such as hyperinflation change it.
        planes: additions in mm of water that are drawn in the plane [R, C] (wires, breasts).
    """

    anatomy: Anatomy
    rng: np.random.Generator
    pose: Pose
    _changes: list[tuple[Box, np.ndarray]] = field(default_factory=list)
    _extents: dict[str, list[tuple[Box, np.ndarray]]] = field(default_factory=dict)
    _water: np.ndarray | None = None

    @property
    def water(self) -> np.ndarray:
        """Attenuation with everything painted so far."""
        return self.anatomy.water if self._water is None else self._water

    def box(self, center: tuple[float, float, float], radius_mm: tuple[float, float, float]) -> Box:
        """The part of the grid within ``radius_mm`` of ``center``."""
        edges = []
        for middle, reach, spacing, length in zip(center, radius_mm, SPACING, self.anatomy.water.shape, strict=True):
            low = int(np.clip(middle - reach / spacing, 0, length - 2))
            edges.append(slice(low, int(np.clip(middle + reach / spacing + 2, low + 2, length))))
        return edges[0], edges[1], edges[2]

    def offsets(self, box: Box, center: tuple[float, float, float]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Millimetres from ``center`` along Y, R, C, broadcastable to the box's shape."""
        y, r, c = (
            ((np.arange(part.start, part.stop) - middle) * spacing).astype(np.float32)
            for part, middle, spacing in zip(box, center, SPACING, strict=True)
        )
        return y[:, None, None], r[None, :, None], c[None, None, :]

    def paint(self, box: Box, alpha: np.ndarray, labels: tuple[str, ...] = (), target: float = TISSUE) -> None:
        """Blend the box towards ``target`` by ``alpha`` in [0, 1] and remember its extent under ``labels``.

        Tissue is never made lighter than it is, except by air (``target`` 0).
        """
        if self._water is None:
            self._water = self.anatomy.water.copy()
        old = self._water[box]
        change = alpha * (target - old)
        if target > 0:
            np.maximum(change, 0, out=change)
        self._water[box] = old + change
        self._changes.append((box, change))
        for label in labels:
            self._extents.setdefault(label, []).append((box, alpha * (self.anatomy.lung[box] > 0.3)))

    def paths(self) -> np.ndarray:
        """Line integrals of soft tissue in mm of water, [R, C], lesions included."""
        depth = self.anatomy.water.shape[0]
        plane = project(healthy_water(), self.pose, depth)
        for box, change in self._changes:
            project(cumulative(change), self.pose, depth, box, plane)
        return plane

    def bones(self) -> np.ndarray:
        """What bone adds, [R, C]."""
        return project(healthy_bone(), self.pose, self.anatomy.water.shape[0])

    def extents(self) -> dict[str, np.ndarray]:
        """Per label, how visible its lesions are: mm in the beam's way over ``_SHOWN``, [R, C]; visible at ≥ 1."""
        shape = self.anatomy.water.shape
        planes = {}
        for label, parts in self._extents.items():
            plane = np.zeros(shape[1:], np.float32)
            for box, alpha in parts:
                project(cumulative(alpha.astype(np.float32)), self.pose, shape[0], box, plane)
            planes[label] = plane / _SHOWN
        return planes


@cache
def healthy_water() -> np.ndarray:
    return cumulative(anatomy.load().water)


@cache
def healthy_bone() -> np.ndarray:
    return cumulative(anatomy.load().bone)


@cache
def _noise_block(scale_mm: float) -> np.ndarray:
    """Periodic smooth noise [64, 128, 128] of unit variance; the same for every patient, who sees a random part of it."""
    rng = np.random.default_rng(round(scale_mm * 1000))
    white = rng.standard_normal((64, 128, 128), dtype=np.float32)
    smooth = ndimage.gaussian_filter(white, [scale_mm / s / 2.4 for s in SPACING], mode="wrap")
    return smooth / smooth.std()


def noise(rng: np.random.Generator, box: Box, scale_mm: float) -> np.ndarray:
    """Smooth noise of unit variance and about ``scale_mm`` grain on a box's grid."""
    block = _noise_block(scale_mm)
    picks = [
        (np.arange(len(range(*part.indices(10**6)))) + rng.integers(length)) % length
        for part, length in zip(box, block.shape, strict=True)
    ]
    return block[np.ix_(*picks)]


def edge(distance: np.ndarray, width: float) -> np.ndarray:
    """1 where ``distance`` is well above 0, 0 well below, smooth over ``width``."""
    return 1 / (1 + np.exp(np.clip(-distance / width, -30, 30)))
