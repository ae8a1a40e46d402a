"""Read radiographs (JPEG, PNG or DICOM; 8 or 16 bit, grey or colour) as 8-bit grey images."""

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from amrg.data.image_ops import MAX_PIXELS
from amrg.errors import UserError


def load_film(path: Path, short_side: int) -> np.ndarray:
    """Read a film as uint8 [H, W], with at least ``short_side`` pixels on its short side if the file has them.

    JPEG is decoded at the smallest sufficient scale of 1, 1/2, 1/4 and 1/8. EXIF rotation is applied, colour is
    converted to luminance, 16 bit is scaled by the image's own range, DICOM is windowed (``read_dicom``).

    Raises:
        ValueError: the image is unreadable or has more than ``MAX_PIXELS`` pixels.
        OSError: the file cannot be read.
    """
    data = path.read_bytes()
    return read_dicom(data) if path.suffix.lower() in (".dcm", ".dicom") else read_film(data, short_side)


def read_film(data: bytes, short_side: int) -> np.ndarray:
    """Like ``load_film``, from the bytes of a file; the content determines the format."""
    if data[128:132] == b"DICM":
        return read_dicom(data)
    try:
        image: Image.Image = Image.open(io.BytesIO(data), formats=("JPEG", "PNG"))
        if image.width * image.height > MAX_PIXELS:
            raise ValueError(f"image of {image.width} × {image.height} pixels, more than {MAX_PIXELS} are refused")
        if image.format == "JPEG":
            scale = min(image.size) / short_side
            image.draft("L", (int(image.width / scale), int(image.height / scale)) if scale > 1 else image.size)
        image.load()
        image = ImageOps.exif_transpose(image)
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:  # PIL raises SyntaxError on a broken PNG
        raise ValueError(f"not a readable image ({type(error).__name__})") from None
    if image.mode.startswith(("I", "F")):
        return to_8_bit(np.asarray(image, dtype=np.float64))
    return np.asarray(image.convert("L"))


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
        inverted = record.PhotometricInterpretation == "MONOCHROME1"
    except ValueError:
        raise
    except Exception as error:  # a damaged file raises errors of any type: TypeError, zlib.error, …
        raise ValueError(f"not a readable DICOM film ({type(error).__name__})") from None
    if pixels.ndim != 2:
        raise ValueError(f"a DICOM object of shape {list(pixels.shape)} is not one grey film")
    image = to_8_bit(pixels.astype(np.float64))
    return 255 - image if inverted else image


def _decompressed(record: Any) -> np.ndarray:
    try:
        return record.pixel_array
    except RuntimeError:
        syntax = record.file_meta.TransferSyntaxUID
        raise ValueError(f"pydicom finds no decoder for a film compressed as {syntax.name}") from None


def to_8_bit(pixels: np.ndarray) -> np.ndarray:
    """Scale [darkest, brightest] to [0, 255]; a flat image becomes 0.

    Raises:
        ValueError: a pixel is NaN or infinite.
    """
    low, high = float(pixels.min()), float(pixels.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ValueError("pixels that are NaN or infinite")
    scaled = (pixels - low) * (255.0 / (high - low)) if high > low else np.zeros_like(pixels)
    return np.round(scaled).astype(np.uint8)
