"""Read radiographs (``FORMATS``; 8 or 16 bit, grey or colour) as 8-bit grey images.

Sizes are checked on headers, before anything is decoded or inflated, so that a small file cannot take all memory.
"""

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, PngImagePlugin, UnidentifiedImageError

from amrg.data.dicom_io import decode_dicom_film, decode_dicom_levels, is_dicom_bytes
from amrg.data.gray_levels import INLIERS, FilmLevels, count_levels, level_percentiles, scale_levels
from amrg.data.image_limits import check_image_size, check_jpeg_scans

#: What is read, in words.
FORMATS = "PNG, JPEG, DICOM, TIFF, BMP or WebP"
_PILLOW = ("JPEG", "PNG", "TIFF", "BMP", "WEBP")
_SEQUENCES = ("TIFF", "WEBP")  # formats of several pages or frames, of which a film has one
_PHOTOMETRIC, _WHITE_IS_ZERO = 262, 0  # TIFF; Pillow inverts such films of 8 bits, not of 16

#: First bytes of PNG, JPEG and TIFF.
SIGNATURES = (b"\x89PNG", b"\xff\xd8\xff", b"II*\0", b"MM\0*")
#: Pillow refuses a PNG with a longer text (by default 1 MB); 64 MB for all texts together is a limit of its own.
PngImagePlugin.MAX_TEXT_CHUNK = 32 * 2**20


#: Gray value of the rows that a decoder of JPEG fills where the data end before the image does; and the least share of
#: the rows, at the bottom, for which a film is refused. Fewer rows may be a border of that value.
_FILLED_GRAY, _FILLED_ROWS = 128, 0.05


def load_film_file(path: Path, short_side: int) -> np.ndarray:
    """Read a film as uint8 [H, W], with at least ``short_side`` pixels on its short side if the file has them.

    JPEG is decoded at the smallest sufficient scale of 1, 1/2, 1/4 and 1/8. EXIF rotation is applied, colour is
    converted to luminance, 16 bit is scaled by ``scale_to_8_bit``, DICOM is windowed (``decode_dicom_film``). The
    suffix counts only where the content does not tell the format.

    Raises:
        ValueError: the image is unreadable, too large, or flat: all of its pixels have one grey value.
        OSError: the file cannot be read.
    """
    data = path.read_bytes()
    named_dicom = path.suffix.lower() in (".dcm", ".dicom") and not data.startswith(SIGNATURES)
    film = decode_dicom_film(data) if named_dicom else decode_film_bytes(data, short_side)
    _, counts, _ = count_levels(film)
    low, high = level_percentiles(np.arange(len(counts)), counts, INLIERS)
    if low == high:
        raise ValueError("a flat image: its pixels have one grey value")
    return film


def decode_film_bytes(data: bytes, short_side: int) -> np.ndarray:
    """Like ``load_film_file``, from bytes whose content determines the format; flat images are returned."""
    return decode_film_levels(data, short_side).film


def decode_film_levels(data: bytes, short_side: int) -> FilmLevels:
    """Read what ``decode_film_bytes`` does with all gray levels of the file."""
    if is_dicom_bytes(data):
        return decode_dicom_levels(data)
    image = open_raster_image(data)
    try:
        if image.format == "JPEG":
            scale = min(image.size) / short_side
            image.draft("L", (int(image.width / scale), int(image.height / scale)) if scale > 1 else image.size)
        inverted = image.format == "TIFF" and image.getexif().get(_PHOTOMETRIC) == _WHITE_IS_ZERO
        image.load()
        filled = image.format == "JPEG" and _is_filled(image)
        image = ImageOps.exif_transpose(image)
        deep = image.mode.startswith(("I", "F"))
        pixels = np.asarray(image) if deep else np.asarray(image.convert("L"))
    except Exception as error:  # a damaged file raises errors of any type: SyntaxError of a PNG, KeyError of a TIFF, …
        raise ValueError(f"not a readable image ({type(error).__name__})") from None
    if filled:
        raise ValueError("a JPEG image whose data end before its last rows: a part of the film is missing")
    if not deep:
        return FilmLevels.of_gray(pixels)
    values, counts, index = count_levels(pixels)
    gray = scale_levels(values, counts)
    return FilmLevels(index, 255 - gray if inverted else gray, values)


def _is_filled(image: Image.Image) -> bool:
    """Return whether the lowest rows of a JPEG image are those of a decoder that had no data for them."""
    rows = max(1, round(image.height * _FILLED_ROWS))
    lowest = image.crop((0, image.height - rows, image.width, image.height)).convert("L")
    return lowest.getextrema() == (_FILLED_GRAY, _FILLED_GRAY)


def open_raster_image(data: bytes) -> Image.Image:
    """Open an image that is not DICOM; only its header is read.

    Raises:
        ValueError: it is of no known format, holds several images, or is too large
            (`amrg.data.image_limits`).
    """
    try:
        image: Image.Image = Image.open(io.BytesIO(data), formats=_PILLOW)
        frames = getattr(image, "n_frames", 1) if image.format in _SEQUENCES else 1
    except UnidentifiedImageError:
        raise ValueError(f"not a readable image: damaged, or not {FORMATS}") from None
    except Exception as error:  # as in decode_film_bytes
        raise ValueError(f"not a readable image ({type(error).__name__})") from None
    check_image_size(image.width, image.height, _pixel_bytes(image.mode))
    image.info.pop("transparency", None)  # of which no film has any, and of a palette's Pillow warns
    if frames > 1:
        raise ValueError(f"a {image.format} image of {frames} frames is not one film")
    if image.format == "JPEG":
        check_jpeg_scans(data)
    return image


def _pixel_bytes(mode: str) -> int:
    """Return the bytes of a pixel in Pillow's memory; colours take four."""
    if mode in ("1", "L", "P"):
        return 1
    return 2 if mode.startswith("I;16") else 4
