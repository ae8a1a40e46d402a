"""Encoding and decoding of films and masks, and their conversion to square model inputs."""

import io
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image

JPEG_QUALITY = 95

#: Larger images are refused before decoding, since a few bytes can declare gigabytes. The largest radiographs today
#: (4,280 × 3,520 pixels) have a quarter of this.
MAX_PIXELS = 64_000_000


def encode_film_jpeg(film: np.ndarray) -> bytes:
    """Encode a grey film, uint8 [H, W], as JPEG."""
    assert film.ndim == 2, film.shape
    assert film.dtype == np.uint8, film.dtype
    return _encode(Image.fromarray(film), "JPEG", quality=JPEG_QUALITY)


def decode_film_jpeg(data: bytes) -> np.ndarray:
    """Decode a stored film to grey uint8 [H, W].

    Raises:
        ValueError: the image is incomplete, or declares more than ``MAX_PIXELS`` pixels.
    """
    image = _open(data)
    if image.format != "JPEG":
        return np.asarray(_load(image).convert("L"))
    from torchvision.io import ImageReadMode, decode_jpeg  # takes a second, and most processes decode no film

    try:  # a third faster than PIL, bit-identical, and without a copy
        return decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), ImageReadMode.GRAY)[0].numpy()
    except RuntimeError:
        raise ValueError("not a readable image (cut or damaged JPEG)") from None


def encode_mask_png(mask: np.ndarray) -> bytes:
    """Encode a mask, bool [H, W], as 1-bit PNG."""
    assert mask.ndim == 2, mask.shape
    assert mask.dtype == np.bool_, mask.dtype
    return _encode(Image.fromarray(mask), "PNG")


def decode_mask_png(data: bytes) -> np.ndarray:
    """Decode a stored mask to bool [H, W]. Raises ValueError like ``decode_film_jpeg``."""
    return np.asarray(_load(_open(data)).convert("1"))


def downscale_short_side(image: np.ndarray, short_side: int) -> np.ndarray:
    """Scale a film or mask down to ``short_side`` pixels on its short side; smaller ones are returned unchanged."""
    scale = short_side / min(image.shape)
    return image if scale >= 1 else _resize(image, round(image.shape[0] * scale), round(image.shape[1] * scale))


def letterbox_to_square(image: np.ndarray, size: int) -> np.ndarray:
    """Scale a film or mask to fit a square [size, size], centered, and pad with 0.

    Nothing is cropped (a center crop loses the costophrenic angles of wide films, where effusions show) and nothing is
    stretched (heart size is judged by a ratio of widths).
    """
    scale = size / max(image.shape)
    height, width = (max(1, round(side * scale)) for side in image.shape)
    top, left = (size - height) // 2, (size - width) // 2
    square = np.zeros((size, size), image.dtype)
    square[top : top + height, left : left + width] = _resize(image, height, width)
    return square


def to_model_input(views: Sequence[np.ndarray], size: int) -> np.ndarray:
    """Stack the films of a study, each uint8 [H, W], to uint8 [views, size, size] (see ``letterbox_to_square``)."""
    return np.stack([letterbox_to_square(view, size) for view in views])


def _resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    if image.shape == (height, width):
        return image
    if image.dtype == np.bool_:  # a pixel is in the lesion if at least half of its area is
        area = Image.fromarray(image.astype(np.uint8) * 255).resize((width, height), Image.Resampling.BOX)
        return np.asarray(area) >= 128
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))


def _encode(image: Image.Image, kind: str, **options: int) -> bytes:
    with io.BytesIO() as file:
        image.save(file, kind, **options)
        return file.getvalue()


def _open(data: bytes) -> Image.Image:
    """Open an image; only the header is read."""
    try:
        image = Image.open(io.BytesIO(data), formats=("JPEG", "PNG"))
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"not a readable image ({type(error).__name__})") from None
    if image.width * image.height > MAX_PIXELS:
        raise ValueError(f"image of {image.width} × {image.height} pixels, more than {MAX_PIXELS} are refused")
    return image


def _load(image: Image.Image) -> Image.Image:
    try:
        image.load()
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:  # PIL raises SyntaxError on a broken PNG
        raise ValueError(f"not a readable image ({type(error).__name__})") from None
    return image
