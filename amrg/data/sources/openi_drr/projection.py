"""Projection of a volume to a film: parallel projection as sums of sheared slices, a 2-D warp, a detector model."""

import itertools
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from amrg.data.sources.openi_drr.anatomy import SPACING

Box = tuple[slice, slice, slice]

_SPINE_TILT = 0.065  # columns per row that straighten the spine of the tilted patient
_LOWEST = 318.0  # mm below the CT's top; nothing below is shown
_WATER = 0.019  # attenuation of water per mm at about 70 keV
_GROUP = 0.5  # slices whose shear differs by less than this many pixels are shifted together


@dataclass(frozen=True)
class Pose:
    """Pose and shape of the patient on the film. Lengths in mm, angles in degrees."""

    yaw: float = 0.0
    pitch: float = 0.0
    roll: float = 0.0
    field: float = 300.0  # width of the film
    aspect: float = 0.88  # height over width of the film before it is scaled to a square: lungs are taller upright
    top: float = 5.0  # part of the CT above the film's upper edge
    shift: float = 0.0  # sideways
    breadth: float = 1.0
    inflation: float = 1.0  # height of the lungs relative to the CT's deep breath
    raised: tuple[float, float] = (0.0, 0.0)  # each dome's elevation, (patient's right, left)
    scoliosis: float = 0.0


def draw_patient_pose(rng: np.random.Generator) -> Pose:
    """Draw a pose within the range of films of standing patients."""
    return Pose(
        yaw=rng.normal(0, 2.0),
        pitch=rng.normal(0, 2.0),
        roll=rng.normal(0, 0.8),
        field=rng.uniform(285, 318),
        aspect=rng.uniform(0.84, 0.92),
        top=rng.uniform(4, 12),
        shift=rng.normal(0, 4),
        breadth=rng.uniform(0.93, 1.05),
        inflation=rng.uniform(0.9, 1.02),
        scoliosis=rng.normal(0, 2.0),
    )


def slice_shifts(depth: int, pose: Pose) -> tuple[np.ndarray, np.ndarray]:
    """Return the shifts in rows and columns of each of ``depth`` slices; far and near slices shift oppositely."""
    offset = (np.arange(depth) - depth / 2) * SPACING[0]
    rows = offset * np.tan(np.radians(pose.pitch)) / SPACING[1]
    columns = offset * np.tan(np.radians(pose.yaw)) / SPACING[2]
    return rows, columns


def cumulative_path(volume: np.ndarray) -> np.ndarray:
    """Return the sums over slices 0..k−1 in mm of water, [Y + 1, R, C]; a group of slices is then one subtraction."""
    total = np.zeros((volume.shape[0] + 1, *volume.shape[1:]), np.float32)
    np.cumsum(volume, axis=0, out=total[1:])
    total *= SPACING[0]
    return total


def project_volume(
    total: np.ndarray, pose: Pose, depth: int, box: Box | None = None, into: np.ndarray | None = None
) -> np.ndarray:
    """Compute line integrals in mm of water, [R, C].

    Args:
        total: ``cumulative_path`` of a full volume, or of its part in ``box``.
        depth: number of slices of the full volume.
        into: plane to which the integrals of a box are added; required with ``box``.
    """
    first = box[0].start if box else 0
    rows, columns = (shift[first : first + len(total) - 1] for shift in slice_shifts(depth, pose))
    steps = np.maximum(np.abs(rows - rows[:1]), np.abs(columns - columns[:1])) // _GROUP
    edges = [0, *(np.flatnonzero(np.diff(steps)) + 1), len(rows)]
    plane = np.zeros(total.shape[1:], np.float32) if into is None else into
    top, left = (box[1].start, box[2].start) if box else (0, 0)
    for start, stop in itertools.pairwise(edges):
        part = total[stop] - total[start]
        _add_shifted(plane, part, top + rows[start:stop].mean(), left + columns[start:stop].mean())
    return plane


def _add_shifted(plane: np.ndarray, part: np.ndarray, row: float, column: float) -> None:
    """Add ``part`` with its corner at a fractional position by bilinear interpolation; values outside are dropped."""
    r0, c0 = int(np.floor(row)), int(np.floor(column))
    fr, fc = row - r0, column - c0
    for dr, dc, weight in ((0, 0, (1 - fr) * (1 - fc)), (0, 1, (1 - fr) * fc), (1, 0, fr * (1 - fc)), (1, 1, fr * fc)):
        if weight < 1e-3:
            continue
        top, left = r0 + dr, c0 + dc
        r = slice(max(top, 0), min(top + part.shape[0], plane.shape[0]))
        c = slice(max(left, 0), min(left + part.shape[1], plane.shape[1]))
        if r.start < r.stop and c.start < c.stop:
            plane[r, c] += np.float32(weight) * part[r.start - top : r.stop - top, c.start - left : c.stop - left]


def film_pixel_grid(pose: Pose, size: int, midline: float, wobble: np.ndarray, tilt: float = _SPINE_TILT) -> np.ndarray:
    """Return the position in the plane of each film pixel, float [2, size, size] (rows, columns).

    Args:
        midline: column of the plane in the middle of the film.
        wobble: smooth displacement in mm, [2, size, size], so that ribcages differ.
        tilt: columns per row that straighten the plane.
    """
    v, u = np.meshgrid((np.arange(size) + 0.5) / size, (np.arange(size) + 0.5) / size - 0.5, indexing="ij")
    roll = np.radians(pose.roll)
    x = pose.field * (u * np.cos(roll) + (v - 0.5) * np.sin(roll)) + pose.shift + wobble[1]
    z = pose.top + pose.field * pose.aspect * (v - u * np.sin(roll)) + wobble[0]
    x = x / pose.breadth + pose.scoliosis * np.sin(z / 55.0)
    dome = 190.0  # position of the domes, mm below the CT's top
    below = 1 / (1 + np.exp(-(z - dome * pose.inflation) / 25.0))
    z = z / pose.inflation - below * (z / pose.inflation - z - dome * (1 - pose.inflation)) * 0.9
    for raised, sign in zip(pose.raised, (-1, 1), strict=True):
        side = np.exp(-(((x * sign - 70) / 45) ** 2))
        z = z + raised * side * np.exp(-(((z - (dome - 20)) / 55) ** 2))
    z *= min(1.0, _LOWEST / z.max())
    rows = z / SPACING[1]
    columns = midline + x / SPACING[2] + tilt * (rows - 110)
    return np.stack([rows, columns])


def draw_smooth_field(rng: np.random.Generator, size: int, knots: int, amplitude: float) -> np.ndarray:
    """Draw a smooth random field [size, size] of about ``amplitude``, cubic between knots × knots values."""
    coarse = rng.normal(0, amplitude, (knots, knots))
    return ndimage.zoom(coarse, size / knots, order=3, mode="nearest", grid_mode=True)


def interpolate_plane(plane: np.ndarray, grid: np.ndarray, order: int) -> np.ndarray:
    """Interpolate a plane at the points of a grid, float32; the plane's border continues outside it."""
    return ndimage.map_coordinates(plane, grid, order=order, mode="nearest", output=np.float32)


def apply_detector(path: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Convert line integrals in mm of water to a film, uint8 [H, W]: scatter, quantum noise, local contrast, exposure.

    The black, white and mid-grey points are random, as with automatic exposure and manual windowing, so that the
    overall brightness of a film does not depend on the patient.
    """
    size = path.shape[0]
    primary = np.exp(-_WATER * path)
    signal = primary + rng.uniform(0.08, 0.3) * ndimage.gaussian_filter(primary, size * 0.08)
    quanta = 10 ** rng.uniform(3.7, 4.7) / signal.mean()
    grain = ndimage.gaussian_filter(rng.standard_normal(path.shape, dtype=np.float32), rng.uniform(0.4, 0.8)) * 1.6
    density = -np.log(np.maximum(signal + grain * np.sqrt(signal / quanta), 1e-4))
    broad = ndimage.gaussian_filter(density, size * rng.uniform(0.07, 0.11))
    fine = density - ndimage.gaussian_filter(density, size * 0.014)
    density += rng.uniform(0.3, 1.0) * fine - rng.uniform(0.25, 0.5) * broad
    black, middle, white = np.percentile(density, [rng.uniform(0.3, 2.5), 50, rng.uniform(97.5, 99.9)])
    scaled = np.clip((density - black) / (white - black), 0, 1)
    grey = np.clip((middle - black) / (white - black), 0.05, 0.95)
    scaled = scaled ** (np.log(rng.uniform(0.42, 0.6)) / np.log(grey))
    scaled += rng.uniform(-0.6, 0.35) * np.sin(2 * np.pi * scaled) / (2 * np.pi)  # a softer or harder film
    low, high = rng.uniform(2, 26), rng.uniform(212, 246)
    return np.clip(low + (high - low) * scaled, 0, 255).round().astype(np.uint8)
