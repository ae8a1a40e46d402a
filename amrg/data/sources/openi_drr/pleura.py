"""Fluid and air between lung and chest wall, in a patient who stands."""

import numpy as np

from amrg.data.sources.openi_drr.anatomy import SPACING
from amrg.data.sources.openi_drr.canvas import Box, Canvas, edge, noise


def _half(canvas: Canvas, side: str, rows: slice) -> Box:
    """The box round one lung between two rows."""
    columns = np.flatnonzero((canvas.anatomy.lobe[:, rows] > 0).any((0, 1)))
    middle = int(canvas.anatomy.midline)
    inner, outer = (middle, int(columns[-1]) + 3) if side == "left" else (int(columns[0]) - 2, middle)
    return slice(8, 88), rows, slice(inner, outer)


def _sulcus(canvas: Canvas, side: str) -> float:
    """Row of the lateral costophrenic angle: the lowest lung in the outer quarter of that side."""
    lung = (canvas.anatomy.lobe > 0).any(0)
    columns = np.flatnonzero(lung.any(0))
    quarter = (columns[-1] - columns[0]) // 10
    outer = slice(columns[-1] - quarter, columns[-1]) if side == "left" else slice(columns[0], columns[0] + quarter)
    return float(np.flatnonzero(lung[:, outer].any(1))[-1])


def effusion(canvas: Canvas, side: str, severity: float, labels: tuple[str, ...]) -> None:
    """Fluid that fills the recesses from below and climbs along the wall: a meniscus.

    The fluid's thickness at the wall shrinks from ``thick`` at the sulcus to nothing ``height`` above it, so its edge is
    concave and rises to the side.
    """
    rng = canvas.rng
    sulcus = _sulcus(canvas, side)
    height = rng.uniform(30, 42) + 28.0 * severity
    thick = 0.9 * height
    top = int(sulcus - height / SPACING[1] - 4)
    box = _half(canvas, side, slice(top, 202))
    chest = canvas.anatomy
    above = ((sulcus - np.arange(box[1].start, box[1].stop)) * SPACING[1])[None, :, None]
    share = np.clip(1 - above / height, 0, None)
    thickness = thick * share**2.2 + 9.0 * (share > 0.75) + rng.normal(0, 0.3)
    depth = chest.wall[box] + 1.2 * noise(rng, box, 22.0)
    # voxels cut by the lung's surface belong to the fluid too, or a dark seam would lie under it
    touched = np.maximum.reduce([chest.lung[box], np.roll(chest.lung[box], 1, 1), np.roll(chest.lung[box], -1, 1)])
    alpha = edge(thickness - depth, 1.3) * (touched > 0.02) * (above < height)
    canvas.paint(box, alpha, labels)


def pneumothorax(canvas: Canvas, side: str, severity: float, labels: tuple[str, ...]) -> None:
    """Air over the apex and along the side, no vessels in it, the visceral pleura as a fine line."""
    rng, chest = canvas.rng, canvas.anatomy
    apex = float(np.flatnonzero(_half_lung(canvas, side).any((0, 2)))[0])
    reach = rng.uniform(85, 115) + 30.0 * severity
    box = _half(canvas, side, slice(max(int(apex) - 2, 0), int(apex + reach / SPACING[1])))
    below = ((np.arange(box[1].start, box[1].stop) - apex) * SPACING[1])[None, :, None]
    thickness = (rng.uniform(11, 15) + 8.0 * severity) * np.clip(1 - (below / reach) ** 2, 0, 1)
    inward = thickness - chest.wall[box] + 0.8 * noise(rng, box, 22.0)
    lung = chest.lung[box] > 0.3
    canvas.paint(box, edge(inward, 0.8) * lung, labels, target=0.0)
    pleura = np.exp(-((inward / 1.1) ** 2)) * lung * (thickness > 2)
    canvas.paint(box, 0.8 * pleura, ())


def _half_lung(canvas: Canvas, side: str) -> np.ndarray:
    columns = np.arange(canvas.anatomy.lobe.shape[2])
    return (canvas.anatomy.lobe > 0) & (
        columns > canvas.anatomy.midline if side == "left" else columns < canvas.anatomy.midline
    )
