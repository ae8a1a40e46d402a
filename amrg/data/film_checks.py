"""Is an image a chest radiograph at all: its size, colour, structure and DICOM tags.

Only what is clearly none is refused. A film that passes may still be unlike those that a model has seen, and grey
photographs pass: their structure lies within that of films. ``docs/own-films.md`` gives the measured margins of every
threshold; ``python -m benchmarks.film_checks FOLDER`` measures them on other films.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image
from scipy import ndimage

from amrg.data.dicom_io import is_dicom_bytes, parse_dicom
from amrg.data.image_io import open_raster_image

#: Pixels of the short side: less shows no ribs, and no film that we know of is stored so small.
MIN_SIDE = 64
#: Long side by short side. Films of the chest are at most 1.8 times as long as wide, also those of one half of it.
MAX_ASPECT = 3.0
#: Structure and colour are measured at this many pixels on the long side, where ribs show and fine noise is averaged.
REDUCED_SIDE = 128

#: Grey levels of 255 between the 1st and the 99th percentile: an empty page with some noise has fewer.
MIN_CONTRAST = 12.0
#: Mean absolute Laplacian by contrast. Less: a gradient without any detail.
MIN_ROUGHNESS = 0.008
#: More: noise, or the strokes of text, of which neighbouring pixels are unrelated.
MAX_ROUGHNESS = 0.33
#: Effective number of grey levels of 64 (exponential of the entropy): drawings have a few colours.
MIN_LEVELS = 11.0
#: Share of pixels that equal their neighbours: the areas of plots and logos are filled.
MAX_PLAIN = 0.3
#: Slope of the power spectrum in logarithms. More: the fine structures of text, lines and noise outweigh coarse ones.
MAX_SLOPE = -1.6
#: Mean distance from grey, in units of Cb and Cr: sepia and blue scans have less.
MAX_CHROMA = 45.0
#: Share of pixels whose colour differs from the usual one at their brightness: a tint has none, a photograph many.
MAX_COLORED = 0.2

_DIFFERENT_COLOR = 6.0  # units of Cb and Cr; more than the noise of a JPEG
#: Kinds of views that an encoder tells apart (``vision.view_embeddings``).
VIEW_KINDS = ("unknown", "frontal", "lateral")

_EXTREME, _EQUAL = 0.02, 0.01  # shares of the contrast: of a border's values, and between equal pixels
_LEVELS = 64
_MAX_CYCLES = 30  # per side

_MODALITIES = ("CR", "DX", "RG", "RF", "OT")
_CHEST = ("CHEST", "THORA", "TORA", "LUNG", "RIB", "STERN", "CLAV", "HEART", "CARDI")
_OTHER_PARTS = (
    "SKULL", "HEAD", "BRAIN", "FACE", "SINUS", "DENTAL", "TEETH", "MANDIB", "NECK", "CERVICAL", "LUMBAR",
    "SPINE", "SACR", "COCCYX", "PELVIS", "ABDOMEN", "BREAST", "EXTREMIT", "SHOULDER", "HUMERUS", "ELBOW",
    "FOREARM", "WRIST", "HAND", "FINGER", "THUMB", "FEMUR", "KNEE", "KNIE", "PATELLA", "TIBIA", "FIBULA", "ANKLE",
    "FOOT", "CALCANEUS",
)  # fmt: skip
_SHORT_PARTS = ("ARM", "LEG", "HIP", "TOE", "JAW", "EYE", "EAR", "NOSE")  # as words of their own: CHARM is no ARM
_LATERAL_VIEWS = frozenset(("LL", "RL", "LAT", "LLAT", "RLAT", "LATERAL", "LLO", "RLO"))
_FRONTAL_VIEWS = frozenset(
    ("AP", "PA", "FRONTAL", "LLD", "RLD", "DECUBITUS")
)  # decubitus: the patient lies on a side, seen AP
_TAGS = ("Modality", "BodyPartExamined", "ViewPosition", "PatientOrientation", "ImageLaterality")


class NotAFilm(ValueError):
    """An image that is no chest radiograph. The message is the reason, without data of a patient."""


@dataclass(frozen=True)
class Structure:
    """What tells a film from noise, text and drawings; all are independent of brightness, contrast and rotation.

    All but the contrast are measured without the black or white border (collimation, a rotated scan's background, a
    page's paper).

    Attributes:
        contrast: grey levels between the 1st and the 99th percentile.
        roughness: mean absolute Laplacian, by contrast.
        levels: effective number of grey levels.
        plain: share of pixels that equal their eight neighbours.
        slope: exponent with which the power spectrum falls with the frequency: 0 of white noise; minus infinity of
            an area too small to measure it.
    """

    contrast: float
    roughness: float
    levels: float
    plain: float
    slope: float


def check_chest_film(data: bytes, film: np.ndarray) -> None:
    """Refuse a file that is clearly no chest radiograph.

    Args:
        data: the bytes of the file.
        film: its pixels as read by ``decode_film_bytes``.

    Raises:
        NotAFilm: it is none.
    """
    if is_dicom_bytes(data):
        _check_tags(_tags(data))
    else:
        image = open_raster_image(data)
        _check_shape(image.height, image.width)
        _check_color(image)
    check_film_pixels(film)


def check_film_pixels(film: np.ndarray) -> None:
    """Refuse a grey image, uint8 [H, W], that is clearly no radiograph.

    Raises:
        NotAFilm: it is none.
    """
    _check_shape(*film.shape)
    found = measure_structure(film)
    if found.contrast < MIN_CONTRAST:
        raise NotAFilm("almost all of it has one grey value")
    if found.roughness > MAX_ROUGHNESS:
        raise NotAFilm("noise or text, no radiograph")
    if found.levels < MIN_LEVELS or found.plain > MAX_PLAIN:
        raise NotAFilm("areas filled with a few grey values, as in a plot, a logo or a drawing; no radiograph")
    if found.roughness < MIN_ROUGHNESS:
        raise NotAFilm("a gradient without detail, no radiograph")
    if found.slope > MAX_SLOPE:
        raise NotAFilm("noise, text or lines, no radiograph")


def measure_structure(film: np.ndarray) -> Structure:
    """Measure a grey image, uint8 [H, W]."""
    gray = np.asarray(_reduced(Image.fromarray(np.ascontiguousarray(film)))).astype(np.float64)
    low, high = np.percentile(gray, (1, 99))
    if high == low:
        return Structure(0.0, 0.0, 1.0, 1.0, -math.inf)
    gray = ((gray - low) / (high - low)).clip(0, 1)
    inside = ~(_touches_edge(gray <= _EXTREME) | _touches_edge(gray >= 1 - _EXTREME))
    if not inside.any():
        return Structure(float(high - low), 0.0, 1.0, 1.0, -math.inf)
    equal = ndimage.maximum_filter(gray, 3) - ndimage.minimum_filter(gray, 3) <= _EQUAL
    counts = np.bincount((gray[inside] * (_LEVELS - 1)).round().astype(np.int64))
    shares = counts[counts > 0] / counts.sum()
    # The border's own edge is no roughness, but of strokes of text nothing is left without it.
    core = ndimage.binary_erosion(inside, np.ones((3, 3)), border_value=1)
    laplacian = np.abs(ndimage.laplace(gray))[core if core.any() else inside]
    return Structure(
        contrast=float(high - low),
        roughness=float(laplacian.mean()),
        levels=float(np.exp(-(shares * np.log(shares)).sum())),
        plain=float(equal[inside].mean()),
        slope=_spectral_slope(gray, inside),
    )


def measure_color(image: Image.Image) -> tuple[float, float]:
    """Measure an image's mean distance from grey, and the share of pixels coloured unlike others as bright as they."""
    image.draft("RGB", (REDUCED_SIDE, REDUCED_SIDE))
    luminance, *color = np.moveaxis(np.asarray(_reduced(image.convert("RGB")).convert("YCbCr")).astype(float), 2, 0)
    offset = np.stack(color, axis=2) - 128
    unlike = np.zeros(luminance.shape)
    for level in np.unique(luminance // 16):
        alike = luminance // 16 == level
        unlike[alike] = np.hypot(*(offset[alike] - np.median(offset[alike], axis=0)).T)
    return float(np.hypot(*np.moveaxis(offset, 2, 0)).mean()), float((unlike > _DIFFERENT_COLOR).mean())


def recorded_view(data: bytes) -> str:
    """Return the ``ViewPosition`` of a DICOM film; empty if it tells none, or the file is no DICOM."""
    return _tags(data).get("ViewPosition", "") if is_dicom_bytes(data) else ""


def is_lateral_dicom(data: bytes) -> bool:
    """Return whether a file is DICOM and its tags say that it is a lateral film.

    ``ViewPosition`` counts before ``PatientOrientation``, and both before ``ImageLaterality``, which in general names
    a side of the body.
    """
    tags = _tags(data) if is_dicom_bytes(data) else {}
    view, orientation = tags.get("ViewPosition", ""), tags.get("PatientOrientation", "")
    if view:
        return is_lateral_view(view)
    if orientation:  # where rows and columns point: a side of a lateral film is the front or the back of the patient
        return any(word[0] in "AP" for word in orientation.split())
    return is_lateral_view(tags.get("ImageLaterality", ""))


def view_kinds_of_films(views: Sequence[str], films: int) -> tuple[int, ...]:
    """Return the place in ``VIEW_KINDS`` of each of a study's films.

    Args:
        views: names of their projections; empty ones, or too few, if these are not known.
        films: number of films.
    """
    names = [*views, *[""] * films][:films]
    return tuple(
        VIEW_KINDS.index("lateral" if is_lateral_view(name) else "frontal" if is_frontal_view(name) else "unknown")
        for name in names
    )


def is_frontal_view(view: str) -> bool:
    """Return whether the name of a projection (``PA``, ``AP SUPINE``, ``FRONTAL``) is a frontal one."""
    return bool(set(_words(view.upper())) & _FRONTAL_VIEWS)


def is_lateral_view(view: str) -> bool:
    """Return whether the name of a projection (``LL``, ``LATERAL``, ``XTABLE LATERAL``) is a lateral one."""
    words = set(_words(view.upper()))
    return bool(words & _LATERAL_VIEWS) and not words & _FRONTAL_VIEWS


def _check_shape(height: int, width: int) -> None:
    short, long = sorted((height, width))
    if short < MIN_SIDE:
        raise NotAFilm(f"{width} × {height} pixels, smaller than any film (at least {MIN_SIDE} on the short side)")
    if long > MAX_ASPECT * short:
        raise NotAFilm(f"{width} × {height} pixels, longer than any film (at most {MAX_ASPECT:.0f} times its width)")


def _check_color(image: Image.Image) -> None:
    if image.mode.startswith(("1", "L", "I", "F")):
        return
    chroma, coloured = measure_color(image)
    if chroma > MAX_CHROMA or coloured > MAX_COLORED:
        raise NotAFilm("a colour image, no radiograph")


def _check_tags(tags: dict[str, str]) -> None:
    """Refuse by modality and body part; only known words of a tag are quoted, since others may be a patient's."""
    modality, part = tags.get("Modality", ""), tags.get("BodyPartExamined", "")
    if modality and modality not in _MODALITIES:
        named = modality if re.fullmatch("[A-Z]{2}", modality) else "another"
        raise NotAFilm(f"its DICOM Modality is {named}, none of {', '.join(_MODALITIES)}")
    if any(name in part for name in _CHEST):
        return
    others = [name for name in _OTHER_PARTS if name in part] + [name for name in _SHORT_PARTS if name in _words(part)]
    if others:
        raise NotAFilm(f"its DICOM BodyPartExamined is {others[0]}, not the chest")


def _tags(data: bytes) -> dict[str, str]:
    """Read ``_TAGS`` of a DICOM file that could be read, as upper-case words; absent and damaged ones are left out."""
    tags = {}
    try:
        record = parse_dicom(data, stop_before_pixels=True, specific_tags=list(_TAGS))
        for name in _TAGS:
            value = record.get(name) or ""
            tags[name] = (value if isinstance(value, str) else " ".join(map(str, value))).strip().upper()
    except Exception:  # a damaged file raises errors of any type
        return {}
    return tags


def _words(text: str) -> list[str]:
    return re.findall("[A-Z]+", text)


def _reduced(image: Image.Image) -> Image.Image:
    scale = min(1.0, REDUCED_SIDE / max(image.size))
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.BOX)


def _spectral_slope(gray: np.ndarray, inside: np.ndarray) -> float:
    """Fit the exponent of the radial power spectrum within the bounding box of ``inside``, bool [H, W]."""
    rows, columns = np.nonzero(inside.any(axis=1))[0], np.nonzero(inside.any(axis=0))[0]
    level = gray[inside].mean()
    box = np.where(inside, gray - level, 0.0)[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    # Films that are stored small are not averaged: at the highest frequencies they are noise.
    cycles = np.arange(2, min(_MAX_CYCLES, min(box.shape) // 3) + 1)
    if len(cycles) < 3:
        return -math.inf
    window = np.outer(np.hanning(box.shape[0]), np.hanning(box.shape[1]))  # else the box's own edges would count
    power = np.abs(np.fft.fft2(box * window)) ** 2
    frequencies = (np.fft.fftfreq(side) * side for side in box.shape)
    radius = np.hypot(*np.meshgrid(*frequencies, indexing="ij")).round().astype(np.int64).ravel()
    radial = np.bincount(radius, power.ravel()) / np.bincount(radius)
    return float(np.polyfit(np.log(cycles), np.log(radial[cycles] + 1e-12), 1)[0])


def _touches_edge(mask: np.ndarray) -> np.ndarray:
    """Return the pixels of a mask, bool [H, W], that are connected to the image's edge."""
    parts, _ = ndimage.label(mask)
    edge = np.concatenate((parts[0], parts[-1], parts[:, 0], parts[:, -1]))
    return mask & np.isin(parts, edge)
