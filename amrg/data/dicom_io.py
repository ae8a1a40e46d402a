"""DICOM radiographs: their pixels as a viewer displays them, and what their tags tell of the patient."""

import io
import logging
import struct
import warnings
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from amrg.data.context import Context, parse_age_in_years, parse_patient_sex
from amrg.data.gray_levels import VISIBLE, FilmLevels, count_levels, level_percentiles, scale_levels
from amrg.data.image_limits import JPEG_SCAN, MAX_BYTES, check_image_size, check_jpeg_scans
from amrg.errors import UserError

#: Largest size of what a deflated DICOM file holds: the pixels, and the other elements.
MAX_INFLATED = MAX_BYTES + 10_000_000
#: Least share of pixels that a film has besides its padding; with less the padding is not believed.
_UNPADDED = 0.1
_DICOM_DEFAULTS = {"SamplesPerPixel": 1, "PhotometricInterpretation": "MONOCHROME2", "PixelRepresentation": 0}


def is_dicom_bytes(data: bytes) -> bool:
    """Return whether the bytes begin like those of a DICOM file, also of one without preamble as in old archives."""
    if data[128:132] == b"DICM":
        return True
    explicit = data[4:6].isalpha() and data[4:6].isupper()  # the type of the first element, not its length
    if data[:2] == b"\0\x08":  # big endian
        return explicit
    return data[:2] in (b"\2\0", b"\x08\0") and data[3:4] == b"\0" and (explicit or data[5:8] == b"\0\0\0")


def parse_dicom(data: bytes, **options: Any) -> Any:
    """Parse a DICOM file, also without preamble or file meta information, to a ``pydicom.FileDataset``.

    Args:
        data: the bytes of the file. If they are deflated, at most ``MAX_INFLATED`` bytes are inflated.
        options: of ``pydicom.dcmread``.

    Raises:
        ValueError: a deflated file holds more.
        Exception: of any type if the file is damaged.
    """
    try:
        import pydicom
        from pydicom import uid
        from pydicom.filereader import read_dataset
    except ImportError:
        raise UserError("DICOM films need pydicom: `pip install 'amrg[dicom]'`") from None
    # Its warnings, and those of its decoders, would quote patient data of the file.
    pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
    warnings.filterwarnings("ignore", module=r"pydicom|pylibjpeg|libjpeg|openjpeg")
    logging.getLogger("pydicom").setLevel(logging.ERROR)
    file = io.BytesIO(data)
    file.seek(132 if data[128:132] == b"DICM" else 0)
    meta = read_dataset(file, False, True, stop_when=lambda tag, *_: tag.group != 2)
    if meta.get("TransferSyntaxUID") == uid.DeflatedExplicitVRLittleEndian:
        data = _inflate(data[file.tell() :])
    record = pydicom.dcmread(io.BytesIO(data), force=True, **options)
    if not record.file_meta.get("TransferSyntaxUID"):
        implicit, little = record.original_encoding
        explicit = uid.ExplicitVRLittleEndian if little else uid.ExplicitVRBigEndian
        record.file_meta.TransferSyntaxUID = uid.ImplicitVRLittleEndian if implicit else explicit
    return record


def read_dicom_patient(data: bytes) -> Context:
    """Return the age and sex that the tags of a DICOM file tell; nothing for other formats and damaged files."""
    if not is_dicom_bytes(data):
        return Context()
    try:
        record = parse_dicom(data, stop_before_pixels=True)
        return Context(
            age=parse_age_in_years(str(record.get("PatientAge", ""))),
            sex=parse_patient_sex(str(record.get("PatientSex", ""))),
        )
    except Exception:  # of any type; reading the pixels tells what is wrong
        return Context()


def _inflate(data: bytes) -> bytes:
    inflated = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, MAX_INFLATED + 1)
    if len(inflated) > MAX_INFLATED:
        raise _RefusedDicom(f"a deflated DICOM object of more than {MAX_INFLATED // 10**6} MB is refused")
    return inflated


class _RefusedDicom(ValueError):
    """A DICOM file that is no film. Errors of pydicom may quote the file, the message of this one does not."""


def decode_dicom_film(data: bytes) -> np.ndarray:
    """Read the pixels of a DICOM radiograph as displayed, uint8 [H, W]: rescaled, windowed (VOI), bone bright.

    What says nothing about the pixels is ignored: a rescale slope of 0, and a window (or VOI LUT) that shows them in
    one grey value, since it lies beside them, has no width or is far too wide. Without a window that suits, the film
    is scaled like any other of more than 8 bits (``scale_to_8_bit``). Padding (``PixelPaddingValue``) does not count
    in the range of the pixels.

    Raises:
        ValueError: not DICOM, without pixels, too large, or not a single grey image.
    """
    return decode_dicom_levels(data).film


def decode_dicom_levels(data: bytes) -> FilmLevels:
    """Read what ``decode_dicom_film`` does with all gray levels of the file."""
    try:
        record = parse_dicom(data)
        pixels = _stored_pixels(record)
        with np.errstate(all="ignore"):  # absurd windows
            return _displayed(record, pixels)
    except (_RefusedDicom, UserError):
        raise
    except Exception as error:  # a damaged file raises errors of any type: TypeError, zlib.error, …
        raise ValueError(f"not a readable DICOM film ({type(error).__name__})") from None


def _stored_pixels(record: Any) -> np.ndarray:
    """Decode the stored pixels, integers [H, W], after a check of what the tags and the compressed data declare."""
    from pydicom.encaps import get_frame
    from pydicom.pixels import get_decoder
    from pydicom.uid import RLELossless

    if "PixelData" not in record:
        raise _RefusedDicom("a DICOM object without pixels")
    for name, value in _DICOM_DEFAULTS.items():
        if record.get(name) in (None, ""):
            setattr(record, name, value)
    record.PhotometricInterpretation = str(record.PhotometricInterpretation).strip().upper()
    rows, columns = int(record.Rows), int(record.Columns)
    bits, frames = int(record.BitsAllocated), next(iter(_numbers(record, "NumberOfFrames")), np.nan)
    if not frames >= 1:  # nor if it is no number
        record.NumberOfFrames = 1
    elif frames != 1:
        raise _RefusedDicom(f"a DICOM object of {frames:.0f} frames is not one grey film")
    if record.SamplesPerPixel != 1:
        raise _RefusedDicom(f"a DICOM object of {record.SamplesPerPixel} colours is not one grey film")
    if record.get("BitsStored") in (None, ""):
        record.BitsStored, record.HighBit = bits, bits - 1
    syntax = record.file_meta.TransferSyntaxUID
    name = syntax.name if syntax.is_transfer_syntax else "a private or unknown syntax"
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError:
        raise _RefusedDicom(f"a DICOM film compressed as {name}, which pydicom does not decode") from None
    try:
        check_image_size(columns, rows, max(1, bits // 8))
        if syntax.is_encapsulated and syntax != RLELossless:
            _check_stream(get_frame(record.PixelData, 0, number_of_frames=1), max(1, bits // 8))
    except ValueError as error:
        raise _RefusedDicom(str(error)) from None
    if not decoder.is_available:
        raise _RefusedDicom(f'no decoder for a film compressed as {name}: pip install "amrg[dicom]"')
    return record.pixel_array


def _check_stream(stream: bytes, pixel_bytes: int) -> None:
    """Check the size that a stream of JPEG, JPEG-LS or JPEG 2000 itself declares, since decoders go by it."""
    start = stream.find(b"\xff\x4f\xff\x51")  # JPEG 2000: start of codestream, size
    if start >= 0:
        width, height, colors = struct.unpack(">II24xH", stream[start + 8 : start + 42])
        check_image_size(width, height, pixel_bytes * colors)
    place = stream.find(b"\xff\xd8\xff")
    if place < 0:
        return
    if b"\xff\xd9" not in stream:  # its end; decoders would fill the rest with one value
        raise ValueError("a DICOM film whose compressed pixels are cut off")
    check_jpeg_scans(stream)
    place += 2
    while place + 10 <= len(stream) and stream[place] == 0xFF and stream[place + 1] != JPEG_SCAN[1]:
        marker, length, height, width, colors = struct.unpack(">xBHxHHB", stream[place : place + 10])
        if marker == 0xF7 or (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)):  # start of frame
            check_image_size(width, height, pixel_bytes * colors)
        place += 2 + length


def _displayed(record: Any, pixels: np.ndarray) -> FilmLevels:
    if pixels.ndim != 2:
        raise _RefusedDicom(f"a DICOM object of shape {list(pixels.shape)} is not one grey film")
    values, counts, index = count_levels(pixels)
    photometric = record.PhotometricInterpretation
    if photometric == "PALETTE COLOR":
        luminance = scale_levels(_palette(record, values), counts, clip_outliers=False)
        return FilmLevels.of_gray(luminance[index])  # its stored values are no brightness
    rescaled = _modality(record, values)
    counts = _without_padding(record, values, counts)
    shown = next((y for y in _windowed(record, rescaled) if _is_visible(y, counts)), None)
    gray = scale_levels(rescaled, counts) if shown is None else scale_levels(shown, counts, clip_outliers=False)
    # Both say that low values are bright. Most films that say one say the other, too: they are inverted once.
    inverted = photometric == "MONOCHROME1" or record.get("PresentationLUTShape") == "INVERSE"
    return FilmLevels(index, 255 - gray if inverted else gray, values)


def _without_padding(record: Any, values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return the number of pixels of each stored value, 0 for what the film says is padding."""
    ends = [_numbers(record, f"PixelPadding{name}")[:1] for name in ("Value", "RangeLimit")]
    bounds = np.array([end[0] for end in (ends[0], ends[1] or ends[0]) if end])
    if values.min() < 0:  # signed pixels, but a file may store these as unsigned
        bounds -= 2**16 * (bounds >= 2**15)
    if len(bounds) < 2 or np.isnan(bounds).any():
        return counts
    rest = np.where((values >= bounds.min()) & (values <= bounds.max()), 0, counts)
    return rest if rest.sum() >= _UNPADDED * counts.sum() else counts


def _palette(record: Any, values: np.ndarray) -> np.ndarray:
    """Return the luminance of the colours that the palette gives to stored values."""
    from pydicom.pixels import apply_color_lut

    if not any("PaletteColorLookupTableData" in name for name in record.dir("PaletteColor")):
        raise _RefusedDicom("a DICOM film of PALETTE COLOR without its palette")
    colors = apply_color_lut(values.astype(np.int64)[None], record)[0]
    return colors[:, :3] @ np.array([0.299, 0.587, 0.114])  # as Pillow does


def _modality(record: Any, values: np.ndarray) -> np.ndarray:
    """Apply the Modality LUT or the rescale slope and intercept to stored values."""
    for item in record.get("ModalityLUTSequence") or ():
        if (found := _apply_table(record, item, values)) is not None:
            return found[0]
    slope, intercept = (next(iter(_numbers(record, f"Rescale{name}")), np.nan) for name in ("Slope", "Intercept"))
    slope = slope if np.isfinite(slope) and slope else 1.0
    return values * slope + (intercept if np.isfinite(intercept) else 0.0)


def _windowed(record: Any, values: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the values, in [0, 1], as shown by each VOI LUT and each window (DICOM PS3.3 C.11.2) of the film."""
    for item in record.get("VOILUTSequence") or ():
        if (found := _apply_table(record, item, values)) is not None:
            yield found[0] / (2 ** found[1] - 1)
    function = str(record.get("VOILUTFunction") or "LINEAR").strip().upper()
    for center, width in zip(_numbers(record, "WindowCenter"), _numbers(record, "WindowWidth"), strict=False):
        if not (np.isfinite(center) and np.isfinite(width) and width > 0):
            continue
        if function == "SIGMOID":
            yield 0.5 + 0.5 * np.tanh(2 * (values - center) / width)
        elif function == "LINEAR_EXACT":
            yield ((values - center) / width + 0.5).clip(0, 1)
        elif width > 1:
            yield ((values - (center - 0.5)) / (width - 1) + 0.5).clip(0, 1)


def _is_visible(shown: np.ndarray, counts: np.ndarray) -> bool:
    """Return whether a window leaves something of a film to be visible."""
    low, high = level_percentiles(shown, counts, VISIBLE)
    return bool((high - low) * 255 >= 1)


def _apply_table(record: Any, item: Any, values: np.ndarray) -> tuple[np.ndarray, int] | None:
    """Apply a look-up table of 8 to 16 bits; returns the result and the bits, None if the table is unusable."""
    descriptor, table = _words(record, item, "LUTDescriptor"), _words(record, item, "LUTData")
    if len(descriptor) != 3 or not len(table):
        return None
    entries, first, bits = (int(number) for number in descriptor)
    entries = entries or 2**16
    if len(table) < entries <= 2 * len(table) and bits <= 8:  # packed: two entries a word
        table = table.astype("<u2").view(np.uint8)
    first -= 2**16 * (first >= 2**15 and values.min() < 0)
    table = table[:entries].astype(np.float64)
    return table[(np.round(values) - first).clip(0, len(table) - 1).astype(np.int64)], bits if 0 < bits <= 16 else 16


def _words(record: Any, item: Any, name: str) -> np.ndarray:
    """Return an element of 16-bit words, which DICOM stores as numbers or as bytes."""
    value = item.get(name)
    if isinstance(value, bytes):
        return np.frombuffer(value[: len(value) // 2 * 2], "<u2" if record.original_encoding[1] else ">u2")
    return np.atleast_1d(np.asarray([] if value is None else value, dtype=np.int64))


def _numbers(record: Any, name: str) -> list[float]:
    """Return the numbers of an element, also with decimal commas; NaN for what is none."""
    try:
        value = record.get(name)
    except Exception:  # of any type where pydicom cannot convert the text
        value = record.get_item(name).value
    if isinstance(value, bytes):
        value = value.decode("ascii", "replace")
    parts = value.strip(" \0").split("\\") if isinstance(value, str) else np.atleast_1d(value).tolist()
    return [_number(part) for part in parts if part not in (None, "")]


def _number(part: Any) -> float:
    try:
        return float(str(part).replace(",", "."))
    except ValueError:
        return np.nan
