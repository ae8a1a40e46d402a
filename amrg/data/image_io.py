"""Read radiographs (``FORMATS``; 8 or 16 bit, grey or colour) as 8-bit grey images."""

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from amrg.data.image_ops import MAX_PIXELS
from amrg.errors import UserError

#: What is read, in words.
FORMATS = "PNG, JPEG, DICOM, TIFF, BMP or WebP"
_PILLOW = ("JPEG", "PNG", "TIFF", "BMP", "WEBP")
_SEQUENCES = ("TIFF", "WEBP")  # formats of several pages or frames, of which a film has one
_PHOTOMETRIC, _WHITE_IS_ZERO = 262, 0  # TIFF; Pillow inverts such films of 8 bits, not of 16

#: Percentiles of a film of more than 8 bits that span at least half of its range, unless some pixels are outliers.
_INLIERS = (0.05, 99.95)


def load_film(path: Path, short_side: int) -> np.ndarray:
    """Read a film as uint8 [H, W], with at least ``short_side`` pixels on its short side if the file has them.

    JPEG is decoded at the smallest sufficient scale of 1, 1/2, 1/4 and 1/8. EXIF rotation is applied, colour is
    converted to luminance, 16 bit is scaled by ``to_8_bit``, DICOM is windowed (``read_dicom``).

    Raises:
        ValueError: the image is unreadable or has more than ``MAX_PIXELS`` pixels.
        OSError: the file cannot be read.
    """
    data = path.read_bytes()
    return read_dicom(data) if path.suffix.lower() in (".dcm", ".dicom") else read_film(data, short_side)


def read_film(data: bytes, short_side: int) -> np.ndarray:
    """Like ``load_film``, from the bytes of a file; the content determines the format."""
    if is_dicom(data):
        return read_dicom(data)
    image = open_image(data)
    try:
        if image.format == "JPEG":
            scale = min(image.size) / short_side
            image.draft("L", (int(image.width / scale), int(image.height / scale)) if scale > 1 else image.size)
        inverted = image.format == "TIFF" and image.getexif().get(_PHOTOMETRIC) == _WHITE_IS_ZERO
        image.load()
        image = ImageOps.exif_transpose(image)
        deep = image.mode.startswith(("I", "F"))
        pixels = np.asarray(image, dtype=np.float64) if deep else np.asarray(image.convert("L"))
    except Exception as error:  # a damaged file raises errors of any type: SyntaxError of a PNG, KeyError of a TIFF, …
        raise ValueError(f"not a readable image ({type(error).__name__})") from None
    if not deep:
        return pixels
    return 255 - to_8_bit(pixels) if inverted else to_8_bit(pixels)


def is_dicom(data: bytes) -> bool:
    """Return whether the bytes are those of a DICOM file."""
    return data[128:132] == b"DICM"


def open_image(data: bytes) -> Image.Image:
    """Open an image that is not DICOM; only its header is read.

    Raises:
        ValueError: it is of no known format, holds several images, or has more than ``MAX_PIXELS`` pixels.
    """
    try:
        image: Image.Image = Image.open(io.BytesIO(data), formats=_PILLOW)
        frames = getattr(image, "n_frames", 1) if image.format in _SEQUENCES else 1
    except UnidentifiedImageError:
        raise ValueError(f"not a readable image: damaged, or not {FORMATS}") from None
    except Exception as error:  # as in read_film
        raise ValueError(f"not a readable image ({type(error).__name__})") from None
    if image.width * image.height > MAX_PIXELS:
        raise ValueError(f"image of {image.width} × {image.height} pixels, more than {MAX_PIXELS} are refused")
    image.info.pop("transparency", None)  # of which no film has any, and of a palette's Pillow warns
    if frames > 1:
        raise ValueError(f"a {image.format} image of {frames} frames is not one film")
    return image


def read_dicom(data: bytes) -> np.ndarray:
    """Read the pixels of a DICOM radiograph as displayed, uint8 [H, W]: rescaled, windowed (VOI), bone bright.

    Raises:
        ValueError: not DICOM, without pixels, or not a single grey image.
    """
    try:
        import pydicom
        from pydicom.pixels import apply_modality_lut, apply_voi_lut
    except ImportError:
        raise UserError("DICOM films need pydicom: `pip install 'amrg[dicom]'`") from None
    # Its warnings would quote patient data of the file.
    pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
    try:
        record = pydicom.dcmread(io.BytesIO(data))
        if "PixelData" not in record:
            raise ValueError("a DICOM object without pixels")
        if record.Rows * record.Columns > MAX_PIXELS:
            raise ValueError(f"image of {record.Columns} × {record.Rows} pixels, more than {MAX_PIXELS} are refused")
        pixels = apply_voi_lut(apply_modality_lut(_decompressed(record), record), record)
        windowed = "VOILUTSequence" in record or record.get("WindowWidth") is not None
        # Both say that low values are bright. Most films that say one say the other, too: they are inverted once.
        inverted = record.PhotometricInterpretation == "MONOCHROME1" or record.get("PresentationLUTShape") == "INVERSE"
    except ValueError:
        raise
    except Exception as error:  # a damaged file raises errors of any type: TypeError, zlib.error, …
        raise ValueError(f"not a readable DICOM film ({type(error).__name__})") from None
    if pixels.ndim != 2:
        raise ValueError(f"a DICOM object of shape {list(pixels.shape)} is not one grey film")
    image = to_8_bit(pixels.astype(np.float64), clip_outliers=not windowed)
    return 255 - image if inverted else image


def _decompressed(record: Any) -> np.ndarray:
    try:
        return record.pixel_array
    except RuntimeError:
        syntax = record.file_meta.TransferSyntaxUID
        raise ValueError(f"pydicom finds no decoder for a film compressed as {syntax.name}") from None


def to_8_bit(pixels: np.ndarray, clip_outliers: bool = True) -> np.ndarray:
    """Scale [darkest, brightest] to [0, 255]; a flat image becomes 0.

    Args:
        pixels: [H, W].
        clip_outliers: where a few pixels, such as a hot one, squeeze the others into less than half of the range,
            scale [0.05th, 99.95th percentile] instead and clip. Other images do not depend on it.

    Raises:
        ValueError: a pixel is NaN or infinite.
    """
    low, high = float(pixels.min()), float(pixels.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ValueError("pixels that are NaN or infinite")
    if clip_outliers:
        inner_low, inner_high = np.percentile(pixels, _INLIERS)
        if 0 < inner_high - inner_low < (high - low) / 2:
            low, high, pixels = inner_low, inner_high, pixels.clip(inner_low, inner_high)
    scaled = (pixels - low) * (255.0 / (high - low)) if high > low else np.zeros_like(pixels)
    return np.round(scaled).astype(np.uint8)
