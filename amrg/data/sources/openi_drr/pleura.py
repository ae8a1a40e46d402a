"""Fluid and air between lung and chest wall of a standing patient."""

import numpy as np

from amrg.data.sources.openi_drr.anatomy import SPACING
from amrg.data.sources.openi_drr.canvas import Box, Canvas, draw_smooth_noise, smooth_edge_step


def _half(canvas: Canvas, side: str, rows: slice) -> Box:
    """Return the box of one lung between two rows."""
    columns = np.flatnonzero((canvas.anatomy.lobe[:, rows] > 0).any((0, 1)))
    middle = int(canvas.anatomy.midline)
    inner, outer = (middle, int(columns[-1]) + 3) if side == "left" else (int(columns[0]) - 2, middle)
    return slice(8, 88), rows, slice(inner, outer)


def _sulcus(canvas: Canvas, side: str) -> float:
    """Return the row of the lateral costophrenic angle: the lowest lung in the outer quarter of that side."""
    lung = canvas.anatomy.lobe.max(0) > 0
    columns = np.flatnonzero(lung.any(0))
    quarter = (columns[-1] - columns[0]) // 10
    outer = slice(columns[-1] - quarter, columns[-1]) if side == "left" else slice(columns[0], columns[0] + quarter)
    return float(np.flatnonzero(lung[:, outer].any(1))[-1])


def paint_effusion(canvas: Canvas, side: str, severity: float, labels: tuple[str, ...]) -> None:
    """Paint fluid that fills the recesses from below and rises along the wall as a meniscus.

    The layer at the wall decreases from ``thick`` at the costophrenic angle to zero at ``height`` above it, so that its
    border is concave in projection and rises outwards.
    """
    rng, chest = canvas.rng, canvas.anatomy
    sulcus = _sulcus(canvas, side)
    height = rng.uniform(52, 68) + 48.0 * severity
    thick = rng.uniform(26, 34) + 28.0 * severity
    box = _half(canvas, side, slice(int(sulcus - height / SPACING[1]), 202))
    above = ((sulcus - np.arange(box[1].start, box[1].stop)) * SPACING[1])[None, :, None].astype(np.float32)
    lateral = np.abs((np.arange(box[2].start, box[2].stop) - chest.midline) * SPACING[2]).astype(np.float32)
    layer = thick * np.clip(1 - above / height, 0, None) ** 1.5 * np.clip((lateral - 15) / 70, 0.1, 1)
    # voxels at the surface of the lung belong to the fluid too, or a dark seam would remain under it
    lung = chest.lung[box]
    touched = np.maximum.reduce([lung, np.roll(lung, 1, 1), np.roll(lung, -1, 1)]) > 0.02
    # fluid behind the dome is hardly visible and must not end in a line, so it fades towards the spine and downwards
    fade = np.clip((lateral - 18) / 45, 0, 1) * np.clip(1 + above / 45, 0, 1)
    canvas.paint(
        box, smooth_edge_step(layer - chest.rim[box] + draw_smooth_noise(rng, box, 22.0), 1.3) * touched * fade, labels
    )


def paint_pneumothorax(canvas: Canvas, side: str, severity: float, labels: tuple[str, ...]) -> None:
    """Paint air over the apex and along the side, without vessels, with the visceral pleura as a fine line."""
    rng, chest = canvas.rng, canvas.anatomy
    apex = float(np.flatnonzero(_half_lung(canvas, side).any((0, 2)))[0])
    reach = rng.uniform(85, 115) + 30.0 * severity
    box = _half(canvas, side, slice(max(int(apex) - 2, 0), int(apex + reach / SPACING[1])))
    below = ((np.arange(box[1].start, box[1].stop) - apex) * SPACING[1])[None, :, None]
    thickness = (rng.uniform(11, 15) + 8.0 * severity) * np.clip(1 - (below / reach) ** 2, 0, 1)
    inward = thickness - chest.wall[box] + 0.8 * draw_smooth_noise(rng, box, 22.0)
    lung = np.clip(2.5 * chest.lung[box] - 1.5, 0, 1)  # without the share of the wall in surface voxels
    air = smooth_edge_step(inward, 0.8) * lung
    canvas.paint(box, air, labels, target=0.0, extent=0.35 * air)
    pleura = np.exp(-((inward / 1.1) ** 2)) * lung * (thickness > 2)
    canvas.paint(box, 0.8 * pleura, ())


def _half_lung(canvas: Canvas, side: str) -> np.ndarray:
    columns = np.arange(canvas.anatomy.lobe.shape[2])
    return (canvas.anatomy.lobe > 0) & (
        columns > canvas.anatomy.midline if side == "left" else columns < canvas.anatomy.midline
    )
