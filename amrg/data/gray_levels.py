"""Gray levels of a film: every value of its file, and their scaling to 8 bits."""

from dataclasses import dataclass
from typing import Self

import numpy as np

#: Percentiles of a film of more than 8 bits that span at least half of its range, unless some pixels are outliers.
INLIERS = (0.05, 99.95)
#: Percentiles between which a film must have at least one step of 255, if a DICOM window suits it.
VISIBLE = (1.0, 99.0)
#: Gray values of the levels of an image of 8 bits.
_EIGHT_BIT = np.arange(256, dtype=np.uint8)


@dataclass(frozen=True)
class FilmLevels:
    """A film with all gray levels of its file.

    Attributes:
        index: level of each pixel, unsigned integers [H, W].
        gray: gray value of each level as models read it, uint8 [N]; 0 is black.
        values: stored value of each level, float64 [N], ascending.
    """

    index: np.ndarray
    gray: np.ndarray
    values: np.ndarray

    @classmethod
    def of_gray(cls, film: np.ndarray) -> Self:
        """Return the levels of a film of 8 bits, uint8 [H, W]."""
        return cls(film, _EIGHT_BIT, _EIGHT_BIT.astype(np.float64))

    @property
    def film(self) -> np.ndarray:
        """Film as models read it, uint8 [H, W]."""
        return self.index if self.gray is _EIGHT_BIT else self.gray[self.index]


def scale_to_8_bit(pixels: np.ndarray, clip_outliers: bool = True) -> np.ndarray:
    """Scale [darkest, brightest] to [0, 255]; a flat image becomes 0.

    Args:
        pixels: [H, W].
        clip_outliers: where a few pixels, such as a hot one, squeeze the others into less than half of the range,
            scale [0.05th, 99.95th percentile] instead and clip. Other images do not depend on it.

    Raises:
        ValueError: a pixel is NaN or infinite.
    """
    values, counts, index = count_levels(pixels)
    return scale_levels(values, counts, clip_outliers)[index]


def count_levels(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the values of an image, float64 [N], the number of pixels of each [N], and the index of each pixel [H, W].

    Values are mapped instead of pixels, which takes less time and memory. Some of them may belong to no pixel.
    """
    if pixels.dtype.kind in "iu":
        low, high = pixels.min(), pixels.max()
        if int(high) - int(low) < 2**16:
            index = pixels - low
            index = index.view(f"u{index.itemsize}") if index.dtype.kind == "i" else index  # int16 overflows, rightly
            rows = max(1, 2**20 // pixels.shape[1])
            parts = (index[top : top + rows].ravel() for top in range(0, len(index), rows))
            counts = np.zeros(int(high) - int(low) + 1, np.int64)
            for part in parts:  # bincount needs 8 bytes a pixel
                counts += np.bincount(part, minlength=len(counts))
            return np.arange(len(counts)) + float(low), counts, index
    values, index, counts = np.unique(pixels, return_inverse=True, return_counts=True)
    return values.astype(np.float64), counts, index.reshape(pixels.shape)


def scale_levels(values: np.ndarray, counts: np.ndarray, clip_outliers: bool = True) -> np.ndarray:
    """Do what ``scale_to_8_bit`` says with values of which each has a number of pixels; returns uint8 [N]."""
    present = values[counts > 0]
    low, high = float(present.min()), float(present.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ValueError("pixels that are NaN or infinite")
    if clip_outliers:
        inner_low, inner_high = level_percentiles(values, counts, INLIERS)
        if 0 < inner_high - inner_low < (high - low) / 2:
            low, high = inner_low, inner_high
    scaled = (values.clip(low, high) - low) * (255.0 / (high - low)) if high > low else np.zeros_like(values)
    return np.round(scaled).astype(np.uint8)


def level_percentiles(values: np.ndarray, counts: np.ndarray, percentiles: tuple[float, float]) -> np.ndarray:
    """Return the percentiles of values of which each has a number of pixels, interpolated as by ``np.percentile``."""
    order = np.argsort(values)
    ordered, last = values[order], counts[order].cumsum()
    ranks = np.array(percentiles) / 100 * (last[-1] - 1)
    below, above = (ordered[np.searchsorted(last, end(ranks), side="right")] for end in (np.floor, np.ceil))
    return below + (above - below) * (ranks - np.floor(ranks))
