"""Limits of what is read from a file of an image, so that none can exhaust the memory or hang a reader."""

from amrg.data.image_ops import MAX_PIXELS

#: Longest side in pixels, and largest size in memory of the decoded pixels: 7,000 × 7,000 of 16 bits.
MAX_SIDE = 20_000
MAX_BYTES = 100_000_000
#: A progressive JPEG has some ten scans. Each further one costs as much time as the first, and a hundred bytes.
MAX_SCANS = 100
#: Marker at the beginning of each scan.
JPEG_SCAN = b"\xff\xda"


def check_image_size(width: int, height: int, pixel_bytes: int) -> None:
    """Raise ValueError if an image is too large to be decoded.

    Args:
        width, height: in pixels, as its header says.
        pixel_bytes: size of a decoded pixel.
    """
    size = f"image of {width} × {height} pixels"
    if width * height > MAX_PIXELS:
        raise ValueError(f"{size}, more than {MAX_PIXELS} are refused")
    if max(width, height) > MAX_SIDE:
        raise ValueError(f"{size}, more than {MAX_SIDE} on a side are refused")
    if width * height * pixel_bytes > MAX_BYTES:
        raise ValueError(f"{size} of {pixel_bytes * 8} bits, more than {MAX_BYTES // 10**6} MB are refused")


def check_jpeg_scans(stream: bytes) -> None:
    """Raise ValueError if a JPEG stream may have more than ``MAX_SCANS`` scans."""
    if stream.count(JPEG_SCAN) > MAX_SCANS:
        raise ValueError(f"a JPEG image of more than {MAX_SCANS} scans is refused")
