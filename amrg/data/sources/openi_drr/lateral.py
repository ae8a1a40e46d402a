"""Projection of a painted chest from the side: the lateral film of the patient whose frontal film was rendered.

The volume with its lesions is summed from right to left. The film shows the front of the patient on the left.
"""

from dataclasses import replace

import numpy as np
from scipy import ndimage

from amrg.data.sources.openi_drr import projection
from amrg.data.sources.openi_drr.anatomy import SPACING
from amrg.data.sources.openi_drr.canvas import Canvas

#: mm from front to back over which a device is smeared; it is drawn in the plane of the frontal film, without depth.
_DEVICE_DEPTH = 7.0
_STREAMS = 3  # of random numbers, behind those of the frontal film


def render_lateral(canvas: Canvas, drawn: np.ndarray, seed: tuple[int, ...], size: int) -> np.ndarray:
    """Render the lateral film, uint8 [size, size]. It draws random numbers of its own.

    Args:
        canvas: the painted chest.
        drawn: attenuation of devices on the frontal film in mm of water, [R, C]. They lie in one plane here, at the
            depth of the superior vena cava.
        seed: of the frontal film.
        size: pixels of a side.
    """
    patient, exposure = (np.random.default_rng((*seed, _STREAMS + part)) for part in range(2))
    path_RY = (canvas.water.sum(2) + patient.uniform(0.65, 1.05) * canvas.anatomy.bone.sum(2)).T * SPACING[2]
    path_RY += patient.uniform(0, 60)  # fat
    path_RY += _devices(canvas, drawn)
    # From back to front in voxels as deep as they are high, then front first.
    plane = ndimage.zoom(path_RY, (1, SPACING[0] / SPACING[1]), order=1)[:, ::-1]
    wobble = np.stack([projection.draw_smooth_field(patient, size, 5, 2.0) for _ in range(2)])
    pose = projection.draw_patient_pose(patient)
    pose = replace(pose, inflation=canvas.pose.inflation, breadth=canvas.pose.breadth, scoliosis=0.0)
    grid = projection.film_pixel_grid(pose, size, plane.shape[1] / 2, wobble, tilt=0.0)
    return projection.apply_detector(projection.interpolate_plane(plane, grid, 3), exposure)


def _devices(canvas: Canvas, drawn: np.ndarray) -> np.ndarray:
    """Return the attenuation of devices from the side in mm of water, [R, Y]: what it is per mm of depth, summed."""
    middle, *_ = canvas.anatomy.landmarks["superior_vena_cava"]
    offset_Y = (np.arange(canvas.anatomy.water.shape[0]) - middle) * SPACING[0]
    share_Y = np.exp(-((offset_Y / _DEVICE_DEPTH) ** 2) / 2)
    share_Y /= share_Y.sum() * SPACING[0]
    return drawn.sum(1, keepdims=True) * SPACING[2] * share_Y
