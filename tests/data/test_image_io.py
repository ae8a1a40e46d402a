"""Films as data sets store them: the same film from every kind of file."""

import contextlib
import io
import random
import struct
import zlib

import numpy as np
import pydicom
import pytest
from PIL import Image, TiffImagePlugin
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

from amrg.data.gray_levels import scale_to_8_bit
from amrg.data.image_io import decode_film_bytes, load_film_file
from tests.made_films import chest_film

GREY = np.add.outer(np.arange(40), 3 * np.arange(60)).astype(np.uint8)  # 40 × 60, 0 … 216


def dicom(path, pixels, **more):
    """A DICOM file of a grey film."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=["film"])
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    record = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    bits = pixels.dtype.itemsize * 8
    record.Rows, record.Columns, record.SamplesPerPixel = *pixels.shape, 1
    record.BitsAllocated = record.BitsStored = bits
    record.HighBit, record.PixelRepresentation = bits - 1, 0
    record.PhotometricInterpretation = "MONOCHROME2"
    record.PixelData = pixels.tobytes()
    for name, value in more.items():
        setattr(record, name, value)
    record.save_as(path)
    return path


def test_png_of_every_depth(tmp_path) -> None:
    deep = GREY.astype(np.uint16) * 256 + 17
    for name, image in {
        "grey": Image.fromarray(GREY),
        "rgb": Image.fromarray(GREY).convert("RGB"),
        "rgba": Image.fromarray(GREY).convert("RGBA"),
        "palette": Image.fromarray(GREY // 216 * 255).convert("P"),
        "deep": Image.fromarray(deep),
    }.items():
        image.save(tmp_path / f"{name}.png")
    for name in ("grey", "rgb", "rgba"):
        assert (load_film_file(tmp_path / f"{name}.png", 40) == GREY).all()
    expected = np.round((deep - 17.0) / (216 * 256) * 255)
    assert (load_film_file(tmp_path / "deep.png", 40) == expected).all()


def test_jpeg_colour_models_rotation_and_reduced_decoding(tmp_path) -> None:
    for mode in ("L", "RGB", "CMYK"):
        Image.fromarray(GREY).convert(mode).save(tmp_path / "film.jpg", quality=98)
        assert np.abs(load_film_file(tmp_path / "film.jpg", 40).astype(int) - GREY).max() <= 4, mode
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90° clockwise
    Image.fromarray(GREY).save(tmp_path / "turned.jpg", quality=98, exif=exif)
    assert np.abs(load_film_file(tmp_path / "turned.jpg", 40).astype(int) - np.rot90(GREY, -1)).max() <= 4
    large = np.kron(GREY, np.ones((8, 8), np.uint8))
    Image.fromarray(large).save(tmp_path / "large.jpg", quality=98)
    assert load_film_file(tmp_path / "large.jpg", 80).shape == (80, 120)
    assert load_film_file(tmp_path / "large.jpg", 81).shape == (160, 240)
    assert load_film_file(tmp_path / "large.jpg", 4000).shape == (320, 480)


def test_dicom_is_windowed_rescaled_and_upright_in_grey(tmp_path) -> None:
    deep = GREY.astype(np.uint16) * 10
    assert (load_film_file(dicom(tmp_path / "plain.dcm", GREY), 40) == scale_to_8_bit(GREY.astype(float))).all()
    negative = load_film_file(dicom(tmp_path / "one.dcm", deep, PhotometricInterpretation="MONOCHROME1"), 40)
    assert (negative == 255 - scale_to_8_bit(GREY.astype(float))).all()
    window = {"WindowCenter": 1000, "WindowWidth": 500, "RescaleSlope": 1, "RescaleIntercept": 0}
    windowed = load_film_file(dicom(tmp_path / "window.dcm", deep, **window), 40)
    # DICOM PS3.3 C.11.2.1.2, linear
    x = deep.astype(float)
    expected = np.clip((x - 999.5) / 499 + 0.5, 0, 1) * 255
    assert np.abs(windowed - expected).max() <= 1
    shifted = {"WindowCenter": 900, "WindowWidth": 500, "RescaleSlope": 1, "RescaleIntercept": -100}
    assert np.abs(load_film_file(dicom(tmp_path / "shift.dcm", deep, **shifted), 40).astype(int) - windowed).max() <= 1


def test_the_two_tags_of_inverted_grey_invert_once(tmp_path) -> None:
    upright = load_film_file(dicom(tmp_path / "plain.dcm", GREY), 40)
    for grey, shape, inverted in (
        ("MONOCHROME2", "IDENTITY", False),
        ("MONOCHROME2", "INVERSE", True),
        ("MONOCHROME1", "INVERSE", True),
        ("MONOCHROME1", "IDENTITY", True),
    ):
        path = dicom(tmp_path / "film.dcm", GREY, PhotometricInterpretation=grey, PresentationLUTShape=shape)
        assert (load_film_file(path, 40) == (255 - upright if inverted else upright)).all(), (grey, shape)


def encoded(pixels, kind, **options) -> bytes:
    with io.BytesIO() as file:
        Image.fromarray(pixels).save(file, kind, **options)
        return file.getvalue()


def test_further_formats() -> None:
    assert (decode_film_bytes(encoded(GREY, "TIFF"), 40) == GREY).all()
    assert (decode_film_bytes(encoded(GREY, "BMP"), 40) == GREY).all()
    assert (decode_film_bytes(encoded(GREY, "WEBP", lossless=True), 40) == GREY).all()
    deep = GREY.astype(np.uint16) * 256 + 17
    expected = np.round((deep - 17.0) / (216 * 256) * 255)
    assert (decode_film_bytes(encoded(deep, "TIFF"), 40) == expected).all()
    white_is_zero = TiffImagePlugin.ImageFileDirectory_v2()
    white_is_zero[262] = 0
    assert (decode_film_bytes(encoded(deep, "TIFF", tiffinfo=white_is_zero), 40) == 255 - expected).all()
    pages = [Image.fromarray(GREY), Image.fromarray(GREY)]
    with pytest.raises(ValueError, match="a TIFF image of 2 frames is not one film"):
        decode_film_bytes(encoded(GREY, "TIFF", save_all=True, append_images=pages[1:]), 40)
    with pytest.raises(ValueError, match="not PNG, JPEG, DICOM, TIFF, BMP or WebP"):
        decode_film_bytes(encoded(GREY, "GIF"), 40)


@pytest.mark.parametrize("kind", ["TIFF", "BMP", "WEBP", "PNG"])
def test_a_damaged_image_is_read_or_refused(kind, recwarn) -> None:
    whole, chance = encoded(GREY, kind), random.Random(0)
    for _ in range(300):
        damaged = bytearray(whole)
        for place in chance.sample(range(len(whole)), 3):
            damaged[place] = chance.randrange(256)
        with contextlib.suppress(ValueError):
            assert (
                decode_film_bytes(bytes(damaged[: chance.choice([None, chance.randrange(len(whole))])]), 40).ndim == 2
            )


@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_whose_header_claims_more_than_it_holds_is_refused(tmp_path, progressive) -> None:
    """Of the rows that are not there, libjpeg makes gray ones and warns, which Pillow does not tell."""
    data = encoded(chest_film(0), "JPEG", progressive=progressive)
    start = data.index(b"\xff\xc2" if progressive else b"\xff\xc0") + 5
    for height, width in ((7900, 7900), (448, 224), (260, 224)):
        lying = data[:start] + struct.pack(">HH", height, width) + data[start + 4 :]
        (tmp_path / "film.jpg").write_bytes(lying)
        with pytest.raises(ValueError, match="a JPEG image whose data end before its last rows"):
            load_film_file(tmp_path / "film.jpg", 64)
    assert decode_film_bytes(data, 224).shape == (224, 224)


def test_a_hot_pixel_does_not_darken_the_film(tmp_path) -> None:
    """Of the values 0 … 9,998 and one more the percentiles are the 5.9995th and the 9,995.0005th smallest value."""
    film = np.arange(10000, dtype=np.uint16).reshape(100, 100)
    plain = scale_to_8_bit(film.astype(float))
    assert (plain == np.round(film * (255 / 9999))).all()
    film[-1, -1] = 15000  # the others still have two thirds of the range
    assert (scale_to_8_bit(film.astype(float)) == np.round(film * (255 / 15000))).all()
    film[-1, -1] = 65535
    low, high = 4.9995, 9994.0005
    expected = np.round((film.clip(low, high) - low) * (255 / (high - low)))
    assert expected[50, 0] == 128
    assert expected[-1, -1] == 255
    assert (decode_film_bytes(encoded(film, "PNG"), 40) == expected).all()
    assert (load_film_file(dicom(tmp_path / "film.dcm", film), 40) == expected).all()
    # a window says itself what is bright
    window = {"WindowCenter": 32768, "WindowWidth": 65536}
    windowed = load_film_file(dicom(tmp_path / "window.dcm", film, **window), 40)
    assert windowed[50, 0] == np.round(5000 * 255 / 65535)


def bomb() -> bytes:
    """A PNG of a few bytes that claims 60,000 × 60,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 60000, 60000, 8, 0, 0, 0, 0)) + chunk(
        b"IDAT", zlib.compress(b"")
    ) + chunk(b"IEND", b"")  # fmt: skip


def jpeg() -> bytes:
    with io.BytesIO() as file:
        Image.fromarray(GREY).save(file, "JPEG")
        return file.getvalue()


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("empty.jpg", b""), ("cut.jpg", jpeg()[:300]), ("zeros.jpg", bytes(500)), ("text.png", b"a page of html"),
        ("bomb.png", bomb()), ("cut.dcm", b"\0" * 128 + b"DICM" + b"\1\2\3"), ("none.dcm", b"nothing"),
    ],
)  # fmt: skip
def test_what_is_no_film_is_refused(tmp_path, name, data) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match=r"image|DICOM"):
        load_film_file(tmp_path / name, 40)


def test_dicom_without_one_grey_film_is_refused(tmp_path) -> None:
    path = dicom(tmp_path / "film.dcm", GREY)
    record = pydicom.dcmread(path)
    del record.PixelData
    record.save_as(tmp_path / "empty.dcm")
    with pytest.raises(ValueError, match="without pixels"):
        load_film_file(tmp_path / "empty.dcm", 40)


def test_what_a_dicom_says_of_the_patient_is_not_quoted(tmp_path, recwarn, caplog) -> None:
    """pydicom would warn of a value that is no identifier, and print it."""
    data = dicom(tmp_path / "film.dcm", GREY).read_bytes()
    misplaced = data.replace(b"1.2.840.10008.5.1.4.1.1.7", b"Doe^Jane.0008.5.1.4.1.1.7")
    assert misplaced != data
    assert decode_film_bytes(misplaced, 40).shape == GREY.shape
    assert "Doe" not in caplog.text + "".join(str(warning.message) for warning in recwarn)


def test_a_damaged_dicom_is_read_or_refused_without_a_warning(tmp_path, recwarn, caplog) -> None:
    whole = dicom(tmp_path / "film.dcm", GREY, WindowCenter=100, WindowWidth=50).read_bytes()
    chance = random.Random(0)
    refused = 0
    for _ in range(400):
        damaged = bytearray(whole)
        for place in chance.sample(range(132, len(whole)), 3):
            damaged[place] = chance.randrange(256)
        try:
            assert (
                decode_film_bytes(bytes(damaged[: chance.choice([None, chance.randrange(len(whole))])]), 40).ndim == 2
            )
        except ValueError:
            refused += 1
    assert 100 < refused < 400
    assert not recwarn.list
    assert not caplog.text


def test_absurd_numbers_of_a_dicom_give_no_warning(tmp_path, recwarn, capfd) -> None:
    absurd = {"RescaleSlope": "1e300", "RescaleIntercept": "-1e308", "WindowCenter": "1e308", "WindowWidth": "1e-300"}
    for name in absurd:
        path = dicom(tmp_path / "film.dcm", GREY, **{name: absurd[name]})
        assert decode_film_bytes(path.read_bytes(), 40).shape == GREY.shape
    assert decode_film_bytes(dicom(tmp_path / "film.dcm", GREY, **absurd).read_bytes(), 40).shape == GREY.shape
    assert not recwarn.list
    assert capfd.readouterr() == ("", "")


def test_pixels_that_are_not_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="NaN"):
        scale_to_8_bit(np.array([[0.0, np.nan]]))
    assert not scale_to_8_bit(np.full((3, 3), 7.0)).any()
