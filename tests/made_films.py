"""Made-up chest films that pass the checks of ``amrg.data.film_checks``."""

import io

import numpy as np
from PIL import Image


def chest_film(seed: int | list[int], height: int = 224, width: int = 224) -> np.ndarray:
    """Two dark lungs crossed by ribs, a heart, and some noise."""
    chance = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width] / [[[height]], [[width]]]
    shift, size = chance.uniform(-0.03, 0.03), chance.uniform(0.9, 1.1)
    body = 150 + 50 * np.cos(3 * (x - 0.5)) - 20 * np.abs(y - 0.5)
    for middle in (0.29, 0.71):
        distance = ((y - 0.48) / (0.36 * size)) ** 2 + ((x - middle - shift) / 0.17) ** 2
        lung = 1 / (1 + np.exp(9 * (distance - 1)))
        body -= lung * (85 - 22 * np.sin(2 * np.pi * (9 * y + 4 * np.abs(x - 0.5) + shift)))
    body += 60 * np.exp(-(((y - 0.62) / 0.16) ** 2) - ((x - 0.54) / (0.12 * size)) ** 2)
    body += 12 * np.sin(2 * np.pi * 17 * y) * np.exp(-(((x - 0.5 - shift) / 0.03) ** 2))  # the spine
    return (body + chance.normal(0, 5, body.shape)).clip(0, 255).astype(np.uint8)


def encoded(image: np.ndarray | Image.Image, kind: str = "PNG") -> bytes:
    with io.BytesIO() as file:
        (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(file, kind)
        return file.getvalue()
