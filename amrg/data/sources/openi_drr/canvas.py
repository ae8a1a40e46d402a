"""A chest volume to which lesions are added. Changes are stored, so that a film is the healthy film plus changes."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache

import numpy as np
from scipy import ndimage

from amrg.data.sources.openi_drr import anatomy
from amrg.data.sources.openi_drr.anatomy import SPACING, Anatomy
from amrg.data.sources.openi_drr.projection import Box, Pose, cumulative_path, project_volume

TISSUE = 1.03  # water-equivalent of fluid, pus and soft tissue
_SHOWN = 0.06  # a lesion is visible where it changes the line integral by this fraction


@dataclass
class Canvas:
    """One patient's chest and its changes.

    Attributes:
        anatomy: the healthy chest.
        rng: generator of every random choice for this patient.
        pose: pose of the patient; findings such as hyperinflation change it.
    """

    anatomy: Anatomy
    rng: np.random.Generator
    pose: Pose
    _changes: list[tuple[Box, np.ndarray]] = field(default_factory=list)
    _extents: dict[str, list[tuple[Box, np.ndarray]]] = field(default_factory=dict)
    _water: np.ndarray | None = None

    @property
    def water(self) -> np.ndarray:
        """Attenuation with all lesions so far."""
        return self.anatomy.water if self._water is None else self._water

    def box(self, center: Sequence[float], radius_mm: Sequence[float] | np.ndarray) -> Box:
        """Return the part of the grid within ``radius_mm`` of ``center``."""
        edges = []
        for middle, reach, spacing, length in zip(center, radius_mm, SPACING, self.anatomy.water.shape, strict=True):
            low = int(np.clip(middle - reach / spacing, 0, length - 2))
            edges.append(slice(low, int(np.clip(middle + reach / spacing + 2, low + 2, length))))
        return edges[0], edges[1], edges[2]

    def offsets(self, box: Box, center: Sequence[float]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the offsets in mm from ``center`` along Y, R, C, broadcastable to the box's shape."""
        y, r, c = (
            ((np.arange(part.start, part.stop) - middle) * spacing).astype(np.float32)
            for part, middle, spacing in zip(box, center, SPACING, strict=True)
        )
        return y[:, None, None], r[None, :, None], c[None, None, :]

    def paint(
        self,
        box: Box,
        alpha: np.ndarray,
        labels: tuple[str, ...] = (),
        target: float = TISSUE,
        extent: np.ndarray | None = None,
    ) -> None:
        """Blend the box towards ``target`` by ``alpha`` in [0, 1]; only air (0) lowers the attenuation.

        Args:
            labels: labels to whose extent the change belongs.
            extent: water-equivalent of the lesion, if it is more than the change.
        """
        if self._water is None:
            self._water = self.anatomy.water.copy()
        old = self._water[box]
        change = (alpha * (target - old)).astype(np.float32)
        if target > 0:
            np.maximum(change, 0, out=change)
        self._water[box] = old + change
        total = cumulative_path(change)
        self._changes.append((box, total))
        for label in labels:
            counted = total if extent is None else cumulative_path(extent.astype(np.float32))
            self._extents.setdefault(label, []).append((box, counted))

    def paths(self) -> np.ndarray:
        """Return the line integrals of soft tissue and lesions in mm of water, [R, C]."""
        depth = self.anatomy.water.shape[0]
        plane = project_volume(healthy_water(), self.pose, depth)
        for box, total in self._changes:
            project_volume(total, self.pose, depth, box, plane)
        return plane

    def bones(self) -> np.ndarray:
        """Return the line integrals of the excess of bone in mm of water, [R, C]."""
        return project_volume(healthy_bone_path(), self.pose, self.anatomy.water.shape[0])

    def extents(self, path: np.ndarray) -> dict[str, np.ndarray]:
        """Return the visibility [R, C] of each label's lesions on a film with line integrals ``path``; 1 is visible."""
        planes = {}
        for label, parts in self._extents.items():
            plane = np.zeros_like(path)
            for box, total in parts:
                project_volume(total, self.pose, self.anatomy.water.shape[0], box, plane)
            planes[label] = np.abs(plane) / (_SHOWN * path)
        return planes


@cache
def healthy_water() -> np.ndarray:
    """Return the cumulative water path of the healthy anatomy."""
    return cumulative_path(anatomy.load_anatomy().water)


@cache
def healthy_bone_path() -> np.ndarray:
    """Return the cumulative bone path of the healthy anatomy."""
    return cumulative_path(anatomy.load_anatomy().bone)


@cache
def _noise_block(scale_mm: float) -> np.ndarray:
    """Return smooth noise of unit variance, larger than any box; each lesion takes a random part of it."""
    rng = np.random.default_rng(round(scale_mm * 1000))
    white = rng.standard_normal((112, 256, 192), dtype=np.float32)
    smooth = ndimage.gaussian_filter(white, [scale_mm / s / 2.4 for s in SPACING], mode="wrap", truncate=3)
    return smooth / smooth.std()


def draw_smooth_noise(rng: np.random.Generator, box: Box, scale_mm: float) -> np.ndarray:
    """Return smooth noise of unit variance with a grain of about ``scale_mm``, in the shape of a box."""
    block = _noise_block(scale_mm)
    sizes = [part.stop - part.start for part in box]
    corner = [rng.integers(length - size + 1) for size, length in zip(sizes, block.shape, strict=True)]
    part = block[tuple(slice(start, start + size) for start, size in zip(corner, sizes, strict=True))]
    return part[:, :, ::-1] if rng.random() < 0.5 else part


def smooth_edge_step(distance: np.ndarray, width: float) -> np.ndarray:
    """Return a smooth step of ``width``: 1 where ``distance`` is well above 0, 0 well below."""
    return 1 / (1 + np.exp(np.clip(-distance / width, -30, 30)))
