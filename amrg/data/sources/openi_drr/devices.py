"""Lines, tubes and pacemakers, drawn as paths in the plane of the film, in mm of water."""

import numpy as np
from scipy import interpolate

from amrg.data.sources.openi_drr.anatomy import SPACING
from amrg.data.sources.openi_drr.canvas import Canvas, smooth_edge_step

Point = tuple[float, float]  # row, column


def draw_device(canvas: Canvas, kind: str, side: str) -> np.ndarray:
    """Draw one device on a plane [R, C], in mm of water.

    Args:
        kind: a key of ``_DRAW``.
        side: side of entry, ``left`` or ``right``.
    """
    plane = np.zeros(canvas.anatomy.water.shape[1:], np.float32)
    _DRAW[kind](canvas, plane, -1.0 if side == "right" else 1.0)
    return plane


def _stroke(plane: np.ndarray, points: list[Point], width_mm: float, density: float) -> None:
    """Add a smooth curve through ``points``, with round cross-section, to the plane."""
    rows, columns = np.array(points).T
    spline, _ = interpolate.splprep([rows, columns], s=0, k=min(3, len(points) - 1))
    r, c = interpolate.splev(np.linspace(0, 1, 40 * len(points)), spline)
    low_r, low_c = max(int(min(r)) - 4, 0), max(int(min(c)) - 4, 0)
    part = plane[low_r : int(max(r)) + 5, low_c : int(max(c)) + 5]
    grid_r, grid_c = np.ogrid[low_r : low_r + part.shape[0], low_c : low_c + part.shape[1]]
    squared = np.full(part.shape, 1e4, np.float32)
    for row, column in zip(r, c, strict=True):
        np.minimum(squared, (grid_r - row) ** 2 + (grid_c - column) ** 2, out=squared)
    part += density * smooth_edge_step(width_mm / 2 / SPACING[1] - np.sqrt(squared), 0.25)


def _disc(plane: np.ndarray, center: Point, radii_mm: Point, angle: float, power: float, density: float) -> None:
    """Add a filled superellipse to the plane: power 2 is an ellipse, 4 a box with round corners."""
    r, c = np.ogrid[: plane.shape[0], : plane.shape[1]]
    dr, dc = (r - center[0]) * SPACING[1], (c - center[1]) * SPACING[2]
    a, b = dr * np.cos(angle) - dc * np.sin(angle), dr * np.sin(angle) + dc * np.cos(angle)
    level = (np.abs(a) / radii_mm[0]) ** power + (np.abs(b) / radii_mm[1]) ** power
    plane += (density * smooth_edge_step(1 - level, 0.12)).astype(np.float32)


def _cava(canvas: Canvas) -> list[Point]:
    """Return a path from the brachiocephalic vein through the superior vena cava to the atrium."""
    _, row, column = canvas.anatomy.landmarks["superior_vena_cava"]
    jitter = canvas.rng.normal(0, 1.5)
    end = row + canvas.rng.uniform(8, 24)
    return [(row - 18, column + 1 + jitter), (row, column + jitter), (end, column + 3 + jitter)]


def _entry(canvas: Canvas, sign: float) -> Point:
    rng = canvas.rng
    return 34 + rng.normal(0, 4), canvas.anatomy.midline + sign * (66 + rng.normal(0, 5))


def _under_clavicle(canvas: Canvas, sign: float) -> list[Point]:
    rng, middle = canvas.rng, canvas.anatomy.midline
    return [
        (24 + rng.normal(0, 2), middle + sign * (42 + rng.normal(0, 3))),
        (34 + rng.normal(0, 2), middle + sign * 20),
    ]


def _pacemaker(canvas: Canvas, plane: np.ndarray, sign: float) -> None:
    rng = canvas.rng
    box = _entry(canvas, sign)
    box = (box[0] + 8, box[1])
    radii = (rng.uniform(19, 24), rng.uniform(22, 27))
    _disc(plane, box, radii, rng.uniform(-0.5, 0.5), 3.2, rng.uniform(60, 90))
    _disc(plane, (box[0] - 13, box[1] - sign * 6), (6, 11), 0.0, 4.0, 15.0)
    _, row, column = canvas.anatomy.landmarks["heart"]
    tips = [(row + rng.uniform(22, 32), column + rng.uniform(18, 30)), (row - 2, column - rng.uniform(26, 34))]
    for tip in tips[: rng.integers(1, 3)]:
        through = [(box[0] - 14, box[1] - sign * 8), *_under_clavicle(canvas, sign), *_cava(canvas)[:2]]
        bend = [(row + 12, column - 30 + rng.normal(0, 2))] if tip is tips[0] else [(row + 10, column - 34)]
        _stroke(plane, [*through, *bend, tip], 2.6, 16.0)
        _stroke(plane, [(tip[0], tip[1] - 2), tip], 4.0, 14.0)


def _port(canvas: Canvas, plane: np.ndarray, sign: float) -> None:
    box = _entry(canvas, sign)
    box = (box[0] + 22, box[1] - sign * 6)
    _disc(plane, box, (11, 12), 0.0, 2.4, 24.0)
    _disc(plane, box, (6, 7), 0.0, 2.0, 14.0)
    _stroke(plane, [box, *_under_clavicle(canvas, sign), *_cava(canvas)], 3.0, 11.0)


def _picc(canvas: Canvas, plane: np.ndarray, sign: float) -> None:
    middle = canvas.anatomy.midline
    start = [(52.0, middle + sign * 108), (34.0, middle + sign * 84)]
    _stroke(plane, [*start, *_under_clavicle(canvas, sign), *_cava(canvas)], 2.6, 10.0)


def _central_line(canvas: Canvas, plane: np.ndarray, sign: float) -> None:
    middle = canvas.anatomy.midline
    if canvas.rng.random() < 0.5:  # through the jugular vein
        start = [(2.0, middle + sign * 24), (18.0, middle + sign * 19)]
    else:
        start = [(36.0, middle + sign * 70), *_under_clavicle(canvas, sign)]
    _stroke(plane, [*start, *_cava(canvas)], 3.0, 11.0)


def _endotracheal(canvas: Canvas, plane: np.ndarray, sign: float) -> None:
    _, row, column = canvas.anatomy.landmarks["trachea"]
    end = row + canvas.rng.uniform(-14, 8)
    for offset in (-2.8, 2.8):
        _stroke(plane, [(0.0, column + offset), (end / 2, column + 0.5 + offset), (end, column + offset)], 2.0, 11.0)


def _enteric(canvas: Canvas, plane: np.ndarray, sign: float) -> None:
    _, row, column = canvas.anatomy.landmarks["stomach"]
    middle = canvas.anatomy.midline
    _stroke(
        plane, [(0.0, middle), (70.0, middle + 4), (140.0, middle + 6), (164.0, middle + 16), (row, column)], 3.4, 11.0
    )


def _chest_tube(canvas: Canvas, plane: np.ndarray, sign: float) -> None:
    middle, wander = canvas.anatomy.midline, canvas.rng.normal(0, 5)
    points = [(150.0, 112.0), (118.0, 88.0), (70.0, 66.0 + wander), (38.0 + wander, 52.0)]
    _stroke(plane, [(row, middle + sign * column) for row, column in points], 5.0, 13.0)


_DRAW = {
    "pacemaker": _pacemaker,
    "port": _port,
    "picc": _picc,
    "central line": _central_line,
    "endotracheal tube": _endotracheal,
    "enteric tube": _enteric,
    "chest tube": _chest_tube,
}
