"""DICOM and other films outside of data sets: what a tag wrongly says, old archives, compression, decoder bombs."""

import io
import struct
import subprocess
import sys
import zlib

import numpy as np
import pydicom
import pytest
from PIL import Image, PngImagePlugin
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from amrg.data.dicom_io import is_dicom_bytes
from amrg.data.film_checks import NotAFilm, check_chest_film, is_lateral_dicom
from amrg.data.gray_levels import scale_to_8_bit
from amrg.data.image_io import decode_film_bytes, load_film_file
from amrg.data.own_studies import read_own_study
from tests.data.test_image_io import GREY, dicom
from tests.made_films import chest_film, encoded

RAMP = GREY.astype(np.uint16) * 10  # 0 … 2160
SHOWN = scale_to_8_bit(RAMP)


def film(tmp_path, pixels=RAMP, without=(), **tags) -> np.ndarray:
    """The film that is read from a DICOM file with the tags, and without some others."""
    path = dicom(tmp_path / "film.dcm", pixels, **tags)
    if without:
        record = pydicom.dcmread(path)
        for name in without:
            delattr(record, name)
        record.save_as(path)
    return load_film_file(path, 40)


def refused(tmp_path, message, pixels=RAMP, **tags) -> None:
    with pytest.raises(ValueError, match=message) as error:
        film(tmp_path, pixels, **tags)
    assert "\n" not in str(error.value)


def with_text(tmp_path, pixels=RAMP, **texts) -> np.ndarray:
    """Like ``film``, with numbers replaced by texts that are none for pydicom."""
    path = dicom(tmp_path / "film.dcm", pixels, **dict.fromkeys(texts, "12345"))
    data = path.read_bytes()
    for name, text in texts.items():
        tag = struct.pack("<HH", *divmod(pydicom.datadict.tag_for_keyword(name), 2**16))
        old = tag + b"DS" + struct.pack("<H", 6) + b"12345 "
        text += " " * (len(text) % 2)
        assert data.count(old) == 1, name
        data = data.replace(old, tag + b"DS" + struct.pack("<H", len(text)) + text.encode())
    path.write_bytes(data)
    return load_film_file(path, 40)


def linear(center, width) -> np.ndarray:
    """The ramp in a window by DICOM PS3.3 C.11.2.1.2, in 0 … 255."""
    x = RAMP.astype(float)
    low, high = center - 0.5 - (width - 1) / 2, center - 0.5 + (width - 1) / 2
    y = np.where(x <= low, 0, np.where(x > high, 1, (x - (center - 0.5)) / (width - 1) + 0.5))
    return 255 * (y - y.min()) / (y.max() - y.min())


def close(shown, expected) -> bool:
    return np.abs(shown.astype(float) - expected).max() <= 0.51


def table(data, first, bits, name="LUTData") -> Dataset:
    item = Dataset()
    item.add_new("LUTDescriptor", "US", [len(data) % 2**16, first, bits])
    item.add_new(name, "OW", np.asarray(data, "<u2").tobytes())
    return item


def test_a_slope_of_zero_counts_as_one(tmp_path):
    assert (film(tmp_path, RescaleSlope=0, RescaleIntercept=0) == SHOWN).all()
    # the window is one of stored values less 100
    tags = {"RescaleSlope": "0.0", "RescaleIntercept": -100, "WindowCenter": 900, "WindowWidth": 500}
    assert close(film(tmp_path, **tags), linear(1000, 500))


def test_a_negative_slope_turns_the_film(tmp_path):
    assert close(film(tmp_path, RescaleSlope=-1, RescaleIntercept=2160), 255 - RAMP / 2160 * 255)


@pytest.mark.parametrize("empty", [None, ""])
def test_empty_rescale_and_window_values(tmp_path, empty):
    blank = {"RescaleSlope": empty, "RescaleIntercept": empty}
    assert (film(tmp_path, **blank) == SHOWN).all()
    assert close(film(tmp_path, **blank, WindowCenter=1000, WindowWidth=500), linear(1000, 500))
    assert (film(tmp_path, WindowCenter=empty, WindowWidth=empty) == SHOWN).all()
    assert (film(tmp_path, WindowCenter=1000, WindowWidth=empty) == SHOWN).all()
    assert (film(tmp_path, NumberOfFrames=0) == SHOWN).all()
    assert (film(tmp_path, NumberOfFrames=empty, VOILUTSequence=[], ModalityLUTSequence=[]) == SHOWN).all()


@pytest.mark.parametrize(
    "window",
    [
        (1000, 0), (1000, 1), (1000, -400), (0, 0),
        (50_000, 400), (-9000, 4000), (1000, 1e9), (1e30, 1e30), (1e300, 1e-300),
    ],
)  # fmt: skip
def test_a_window_that_shows_nothing_is_ignored(tmp_path, window):
    assert (film(tmp_path, WindowCenter=str(window[0]), WindowWidth=str(window[1])) == SHOWN).all()


def test_a_film_beside_its_window_is_cleared_of_outliers(tmp_path):
    pixels = RAMP.copy()
    pixels[0, 0] = 60_000  # the only pixel in the window
    shown = film(tmp_path, pixels, WindowCenter=60_000, WindowWidth=500)
    low, high = np.percentile(pixels, (0.05, 99.95))
    expected = 255 * (pixels.clip(low, high) - low) / (high - low)
    assert close(shown, expected)


def test_the_first_window_that_suits_is_taken(tmp_path):
    shown = film(tmp_path, WindowCenter=[90_000, 1000, 40], WindowWidth=[400, 500, 80])
    assert close(shown, linear(1000, 500))


def test_numbers_with_decimal_commas(tmp_path):
    assert close(with_text(tmp_path, WindowCenter="1000,0", WindowWidth="500,0"), linear(1000, 500))
    expected = ((RAMP * 0.5 - 499.5) / 249.5 + 0.5).clip(0, 1) * 255
    assert close(with_text(tmp_path, RescaleSlope="0,5", WindowCenter="500", WindowWidth="250,5"), expected)
    assert (with_text(tmp_path, WindowCenter="middle", WindowWidth="500") == SHOWN).all()
    assert (with_text(tmp_path, RescaleSlope="none", RescaleIntercept="1.2.3") == SHOWN).all()


def test_window_functions(tmp_path):
    window = {"WindowCenter": 1000, "WindowWidth": 500}
    x = RAMP.astype(float)
    exact = ((x - 1000) / 500 + 0.5).clip(0, 1) * 255
    assert close(film(tmp_path, **window, VOILUTFunction="LINEAR_EXACT"), exact)
    curve = 1 / (1 + np.exp(-4 * (x - 1000) / 500))
    curve = 255 * (curve - curve.min()) / (curve.max() - curve.min())
    assert close(film(tmp_path, **window, VOILUTFunction="SIGMOID"), curve)


@pytest.mark.parametrize("bits", [8, 10, 11, 12, 14, 15, 16])
def test_a_modality_table_of_any_depth(tmp_path, bits):
    """The table squares the values 0 … 2160; below and above it, the first and the last entry count."""
    squares = np.round((np.arange(1500) / 1499) ** 2 * (2**bits - 1))
    expected = 255 * squares[(RAMP.astype(int) - 300).clip(0, 1499)] / (2**bits - 1)
    shown = film(tmp_path, ModalityLUTSequence=[table(squares, 300, bits)])
    assert close(shown, expected)
    assert (film(tmp_path, ModalityLUTSequence=[table(squares, 300, bits)], RescaleSlope=0) == shown).all()


def test_a_table_of_bytes(tmp_path):
    """Two entries of 8 bits in each word."""
    data = np.round(255 * np.sqrt(np.arange(256) / 255)).astype(np.uint8)
    item = Dataset()
    item.add_new("LUTDescriptor", "US", [256, 0, 8])
    item.add_new("LUTData", "OW", data.tobytes())
    expected = data[GREY].astype(float)
    expected = 255 * (expected - expected.min()) / (expected.max() - expected.min())
    assert close(film(tmp_path, GREY, ModalityLUTSequence=[item]), expected)


def test_a_voi_table_before_a_window_and_a_flat_one_not(tmp_path):
    window = {"WindowCenter": 1000, "WindowWidth": 500}
    turned = 4095 - np.arange(4096)
    assert close(film(tmp_path, VOILUTSequence=[table(turned, 0, 12)], **window), 255 - RAMP / 2160 * 255)
    assert close(film(tmp_path, VOILUTSequence=[table(np.full(4096, 7), 0, 12)], **window), linear(1000, 500))
    broken = Dataset()
    broken.add_new("LUTDescriptor", "US", [4096, 0, 12])
    assert close(film(tmp_path, VOILUTSequence=[broken], **window), linear(1000, 500))


def palette(*tables, bits=8) -> dict:
    tags = {"PhotometricInterpretation": "PALETTE COLOR"}
    for color, values in zip(("Red", "Green", "Blue"), tables, strict=True):
        tags[f"{color}PaletteColorLookupTableDescriptor"] = [len(values), 0, bits]
        tags[f"{color}PaletteColorLookupTableData"] = values.astype("u1" if bits == 8 else "<u2").tobytes()
    return tags


def test_a_palette_is_applied(tmp_path):
    upright, x = GREY / 216 * 255, np.arange(256)
    assert close(film(tmp_path, GREY, **palette(255 - x, 255 - x, 255 - x)), 255 - upright)
    assert close(film(tmp_path, GREY, **palette(x, x, x)), upright)
    deep = 65535 - x * 257
    assert close(film(tmp_path, GREY, **palette(deep, deep, deep, bits=16)), 255 - upright)
    colored = np.stack([x, 255 - x, x // 2])[:, GREY].astype(float)
    luminance = 0.299 * colored[0] + 0.587 * colored[1] + 0.114 * colored[2]
    expected = 255 * (luminance - luminance.min()) / (luminance.max() - luminance.min())
    assert close(film(tmp_path, GREY, **palette(x, 255 - x, x // 2)), expected)
    refused(tmp_path, "PALETTE COLOR without its palette", GREY, PhotometricInterpretation="PALETTE COLOR")


@pytest.mark.parametrize(
    ("padding", "tags"),
    [
        (-2000, {"PixelPaddingValue": -2000}),
        (-2000, {"PixelPaddingValue": -2100, "PixelPaddingRangeLimit": -1900}),
        (9000, {"PixelPaddingValue": 9000, "PhotometricInterpretation": "MONOCHROME1"}),
        (-2000, {"PixelPaddingValue": -2000, "WindowCenter": 1000, "WindowWidth": 100_000}),  # nearly no window
    ],
)
def test_padding_does_not_count_in_the_range(tmp_path, padding, tags):
    """A border of a value that no pixel of the body has would leave the body a part of the grey levels."""
    pixels = RAMP.astype(np.int16)
    pixels[:, :10] = padding
    body, inverted = pixels[:, 10:].astype(float), "PhotometricInterpretation" in tags
    expected = 255 * (body - body.min()) / (body.max() - body.min())
    shown = film(tmp_path, pixels, PixelRepresentation=1, **tags)
    assert close(shown[:, 10:], 255 - expected if inverted else expected)
    assert (shown[:, :10] == 0).all()


def test_padding_that_leaves_nothing_is_not_believed(tmp_path):
    assert (film(tmp_path, PixelPaddingValue=0, PixelPaddingRangeLimit=2159) == SHOWN).all()
    assert (film(tmp_path, PixelPaddingRangeLimit=100) == SHOWN).all()


def test_signed_pixels_over_their_whole_range(tmp_path):
    pixels = np.linspace(-32768, 32767, 2400).round().astype(np.int16).reshape(40, 60)
    expected = 255 * (pixels.astype(float) + 32768) / 65535
    assert close(film(tmp_path, pixels, PixelRepresentation=1), expected)
    negative = film(tmp_path, pixels, PixelRepresentation=1, PhotometricInterpretation="MONOCHROME1")
    assert close(negative, 255 - expected)


def test_grey_is_assumed_where_nothing_is_said(tmp_path):
    unsaid = ("PhotometricInterpretation", "SamplesPerPixel", "PixelRepresentation", "BitsStored", "HighBit")
    for count in range(1, len(unsaid) + 1):
        assert (film(tmp_path, without=unsaid[:count]) == SHOWN).all(), unsaid[:count]
    assert (film(tmp_path, PhotometricInterpretation="") == SHOWN).all()
    assert (film(tmp_path, PhotometricInterpretation="monochrome1") == 255 - SHOWN).all()


def rewritten(record, syntax, preamble=True, meta=True) -> bytes:
    """The file of a film in a transfer syntax; without preamble or file meta information if asked."""
    with io.BytesIO() as file:
        record.file_meta.TransferSyntaxUID = syntax
        if syntax == ExplicitVRBigEndian:
            record.PixelData = np.frombuffer(record.PixelData, "<u2").astype(">u2").tobytes()
        implicit, little = syntax.is_implicit_VR, syntax.is_little_endian
        pydicom.dcmwrite(file, record, implicit_vr=implicit, little_endian=little, enforce_file_format=True)
        data = file.getvalue()
    start = 132
    length = struct.unpack("<I", data[start + 8 : start + 12])[0] + 12
    return data[: start * preamble] + data[start : start + length] * meta + data[start + length :]


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian])
@pytest.mark.parametrize(("preamble", "meta"), [(True, True), (False, True), (False, False), (True, False)])
def test_old_archives_without_preamble_or_meta_information(tmp_path, syntax, preamble, meta):
    tags = {"WindowCenter": 1000, "WindowWidth": 500, "ViewPosition": "LL", "SOPClassUID": "1.2.840.10008.5.1.4.1.1.7"}
    record = pydicom.dcmread(dicom(tmp_path / "film.dcm", RAMP, **tags))
    data = rewritten(record, syntax, preamble, meta)
    assert is_dicom_bytes(data)
    assert close(decode_film_bytes(data, 40), linear(1000, 500))
    assert is_lateral_dicom(data)
    (tmp_path / "old.dcm").write_bytes(data)
    assert close(load_film_file(tmp_path / "old.dcm", 40), linear(1000, 500))


def test_the_content_tells_the_format_whatever_the_name(tmp_path):
    for kind in ("PNG", "JPEG", "TIFF"):
        (tmp_path / "film.dcm").write_bytes(encoded(GREY, kind))
        assert (load_film_file(tmp_path / "film.dcm", 40) == decode_film_bytes(encoded(GREY, kind), 40)).all()
    path = dicom(tmp_path / "film.png", RAMP)
    assert (load_film_file(path, 40) == SHOWN).all()


def test_what_begins_otherwise_is_not_dicom():
    for start in (b"II*\0\x08\0\0\0", b"BM\x08\0\0\0\0\0", b"\x08\0\0\x10aaaa", b"\0\x08abcdef"):
        assert not is_dicom_bytes(start + bytes(200))
    assert not any(map(is_dicom_bytes, (b"", b"\x08\0", b"\x08\0\x05\0")))


def test_deflated(tmp_path):
    record = pydicom.dcmread(dicom(tmp_path / "film.dcm", RAMP, WindowCenter=1000, WindowWidth=500, ViewPosition="LL"))
    data = rewritten(record, DeflatedExplicitVRLittleEndian)
    assert close(decode_film_bytes(data, 40), linear(1000, 500))
    assert is_lateral_dicom(data)
    with pytest.raises(ValueError, match="not a readable DICOM film"):
        decode_film_bytes(data[:-100], 40)


def lossless_jpeg(pixels, predictor=1) -> bytes:
    """Encode 16 bits by JPEG's lossless process (ITU-T T.81, annex H), with codes of 5 bits for the 17 categories."""
    bits, before = [], 1 << 15
    for y, row in enumerate(pixels.tolist()):
        for x, value in enumerate(row):
            if y or x:
                before = row[x - 1] if x else int(pixels[y - 1, 0])
                before = int(pixels[y - 1, x]) if predictor == 2 and y else before
            difference = (value - before + 32768) % 65536 - 32768
            size = 16 if difference == -32768 else abs(difference).bit_length()
            bits.append(f"{size:05b}")
            if 0 < size < 16:
                bits.append(f"{difference if difference > 0 else difference + 2**size - 1:0{size}b}")
    stream = "".join(bits)
    stream += "1" * (-len(stream) % 8)
    coded = int(stream, 2).to_bytes(len(stream) // 8, "big").replace(b"\xff", b"\xff\0")
    frame = struct.pack(">HHBHHB3B", 0xFFC3, 11, 16, *pixels.shape, 1, 1, 0x11, 0)
    codes = struct.pack(">HHB16B17B", 0xFFC4, 36, 0, *(17 * (n == 5) for n in range(1, 17)), *range(17))
    scan = struct.pack(">HHB2B3B", 0xFFDA, 8, 1, 1, 0, predictor, 0, 0)
    return b"\xff\xd8" + frame + codes + scan + coded + b"\xff\xd9"


def compressed(tmp_path, syntax, stream, name="packed.dcm", **tags):
    record = pydicom.dcmread(dicom(tmp_path / "film.dcm", RAMP, **tags))
    record.file_meta.TransferSyntaxUID, record.PixelData = syntax, encapsulate([stream])
    record.save_as(tmp_path / name)
    return tmp_path / name


@pytest.mark.parametrize(("syntax", "predictor"), [(JPEGLosslessSV1, 1), (JPEGLossless, 1), (JPEGLossless, 2)])
def test_lossless_jpeg_is_decoded(tmp_path, syntax, predictor):
    pytest.importorskip("libjpeg")
    window = {"WindowCenter": 1000, "WindowWidth": 500}
    path = compressed(tmp_path, syntax, lossless_jpeg(RAMP, predictor), **window)
    assert close(load_film_file(path, 40), linear(1000, 500))


def test_jpeg_ls_is_decoded():
    """Two of pydicom's own files hold the same pixels."""
    pytest.importorskip("libjpeg")
    plain, packed = (get_testdata_file(f"MR_small{name}.dcm", read=False) for name in ("", "_jpeg_ls_lossless"))
    with open(plain, "rb") as one, open(packed, "rb") as two:
        assert (decode_film_bytes(one.read(), 40) == decode_film_bytes(two.read(), 40)).all()


def test_what_to_install_for_compressed_films(tmp_path):
    """A process without the extra's decoders."""
    paths = [
        compressed(tmp_path, JPEGLSLossless, b"\xff\xd8\xff\xd9", "one.dcm"),
        compressed(tmp_path, JPEGLosslessSV1, lossless_jpeg(RAMP), "two.dcm"),
    ]
    script = (
        "import sys, pathlib\n"
        "for name in ('pylibjpeg', 'libjpeg', 'openjpeg', 'gdcm', 'jpeg_ls'): sys.modules[name] = None\n"
        "from amrg.data.image_io import load_film_file\n"
        "for path in sys.argv[1:]:\n"
        "    try: load_film_file(pathlib.Path(path), 40)\n"
        "    except ValueError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, *map(str, paths)], capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert len(lines) == 2
    assert all(line.endswith('pip install "amrg[dicom]"') for line in lines)
    assert lines[0].startswith("no decoder for a film compressed as JPEG-LS Lossless")
    assert lines[1].startswith("no decoder for a film compressed as JPEG Lossless")


def test_damaged_compressed_films_are_refused(tmp_path):
    for syntax, stream in (
        (JPEGLSLossless, b"no decoder reads this"),
        (JPEGLosslessSV1, lossless_jpeg(RAMP)[:200]),
        (RLELossless, b"\1\0\0\0" * 16),
    ):
        with pytest.raises(ValueError, match=r"not a readable DICOM film|cut off"):
            load_film_file(compressed(tmp_path, syntax, stream), 40)


def test_sizes_are_refused_before_the_pixels_are_decoded(tmp_path):
    refused(tmp_path, "of 60 frames is not one grey film", NumberOfFrames=60)
    refused(tmp_path, "of 3 colours is not one grey film", SamplesPerPixel=3, PhotometricInterpretation="RGB")
    refused(tmp_path, "65535 × 65535 pixels", Rows=65535, Columns=65535)
    refused(tmp_path, "of 16 bits, more than 100 MB", Rows=8000, Columns=8000)
    refused(tmp_path, "on a side", Rows=1, Columns=60_000)
    # a stream larger than its tags say
    large = struct.pack(">HHHBHHB3B", 0xFFD8, 0xFFC3, 11, 16, 60_000, 60_000, 1, 1, 0x11, 0) + b"\xff\xd9"
    with pytest.raises(ValueError, match="60000 × 60000 pixels"):
        load_film_file(compressed(tmp_path, JPEGLosslessSV1, large), 40)
    scans = lossless_jpeg(RAMP)[:-2] + struct.pack(">HHB2B3B", 0xFFDA, 8, 1, 1, 0, 1, 0, 0) * 200 + b"\xff\xd9"
    with pytest.raises(ValueError, match="more than 100 scans"):
        load_film_file(compressed(tmp_path, JPEGLosslessSV1, scans), 40)


def png(image, **options) -> bytes:
    with io.BytesIO() as file:
        image.save(file, "PNG", **options)
        return file.getvalue()


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("unicode", [False, True])
def test_a_png_with_a_long_text(packed, unicode):
    words = PngImagePlugin.PngInfo()
    text = "".join(np.random.default_rng(0).choice(list("abcdefgh \n"), 3_000_000))
    (words.add_itxt if unicode else words.add_text)("comment", text, zip=packed)
    data = png(Image.fromarray(GREY), pnginfo=words)
    assert len(data) > 1_000_000
    assert (decode_film_bytes(data, 40) == GREY).all()


def test_repeated_scans_of_a_jpeg_are_refused():
    with io.BytesIO() as file:
        Image.fromarray(chest_film(0)).save(file, "JPEG", progressive=True)
        data = file.getvalue()
    assert decode_film_bytes(data, 224).shape == chest_film(0).shape
    last = data[data.rindex(b"\xff\xda") : -2]
    with pytest.raises(ValueError, match="more than 100 scans"):
        decode_film_bytes(data[:-2] + last * 200 + data[-2:], 224)


def test_a_flat_film_is_refused(tmp_path):
    flat = np.full((400, 400), 900, np.uint16)
    refused(tmp_path, "a flat image: its pixels have one grey value", flat)
    refused(tmp_path, "a flat image", ModalityLUTSequence=[table(np.full(3000, 7), 0, 12)])
    spot = flat.copy()
    spot[7, 9] = 60_000  # a hot pixel
    refused(tmp_path, "a flat image", spot)
    for image in (flat, spot, np.zeros((400, 400), np.uint8)):
        Image.fromarray(image).save(tmp_path / "flat.png")
        with pytest.raises(ValueError, match="a flat image"):
            load_film_file(tmp_path / "flat.png", 40)
    with pytest.raises(NotAFilm, match="one grey value"):  # `amrg write` says so itself, and --force writes its report
        read_own_study([("flat", np.zeros((400, 400), np.uint8))], 64)
    check_chest_film(png(Image.fromarray(chest_film(0))), chest_film(0))


def deep_png(width, height) -> bytes:
    """A black PNG of 16 bits, written without its pixels in memory."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packer, row = zlib.compressobj(9), bytes(1 + 2 * width)
    pixels = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 16, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def bombs(tmp_path):
    """Small files that would take gigabytes, with what is said of them."""
    yield "square.png", deep_png(8000, 8000), "8000 × 8000 pixels of 16 bits"
    yield "wide.png", deep_png(64_000_000, 1), "on a side"
    yield "high.png", deep_png(1, 60_000_000 // 40), "on a side"
    record = pydicom.dcmread(dicom(tmp_path / "film.dcm", RAMP))
    plain = rewritten(record, DeflatedExplicitVRLittleEndian)
    body = 132 + struct.unpack("<I", plain[140:144])[0] + 12
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    inner = zlib.decompress(plain[body:], -zlib.MAX_WBITS)
    place = inner.index(b"\xe0\x7f\x10\0")  # of the pixels; a private element of 1 GB before them
    packed = packer.compress(inner[:place] + struct.pack("<HH2sHI", 0x0029, 0x1010, b"OB", 0, 10**9))
    packed += b"".join(packer.compress(bytes(10**6)) for _ in range(1000))
    yield "deflated.dcm", plain[:body] + packed + packer.compress(inner[place:]) + packer.flush(), "deflated"
    segment = b"\x81\0" * 65_536  # 8 MB of zeros in RLE
    header = struct.pack("<16I", 2, 64, 64 + len(segment), *[0] * 13)
    record.file_meta.TransferSyntaxUID = RLELossless
    record.PixelData = encapsulate([header + 2 * segment] * 60)
    record.Rows, record.Columns, record.NumberOfFrames = 4096, 2048, 60
    record.save_as(tmp_path / "frames.dcm")
    yield "frames.dcm", (tmp_path / "frames.dcm").read_bytes(), "60 frames"


def test_decoder_bombs_take_no_memory(tmp_path):
    """In a process of its own, as ``prepare`` and as ``write`` read them; its peak against that of a small film."""
    script = (
        "import sys, pathlib\n"
        "from amrg.data.image_io import load_film_file\n"
        "from amrg.data.own_studies import read_own_study\n"
        "status = pathlib.Path('/proc/self/status')\n"  # ru_maxrss would begin with that of the parent process
        "peak = lambda: int(status.read_text().split('VmHWM:')[1].split()[0]) / 1024\n"
        "small, *bombs = map(pathlib.Path, sys.argv[1:])\n"
        "load_film_file(small, 40), read_own_study([('', small)], 40, force=True)\n"
        "before = peak()\n"
        "for path in bombs:\n"
        "    for read in (lambda: load_film_file(path, 224), lambda: read_own_study([('', path)], 224, force=True)):\n"
        "        try: read(); print('read')\n"
        "        except ValueError as error: print(path.name, round(peak() - before), error)\n"
    )
    paths, expected = [dicom(tmp_path / "small.dcm", RAMP)], []
    for name, data, said in bombs(tmp_path):
        assert len(data) < (20_000_000 if name == "frames.dcm" else 1_000_000), name
        paths.append(tmp_path / name)
        paths[-1].write_bytes(data)
        expected += [(name, said)] * 2
    done = subprocess.run([sys.executable, "-c", script, *paths], capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    for line, (name, said) in zip(lines, expected, strict=True):
        assert line.startswith(name), lines
        assert said in line, lines
        assert int(line.split()[1]) < 300, lines  # MB
