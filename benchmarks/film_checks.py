"""Measure how far films are from the thresholds of `amrg.data.film_checks`: ``python -m benchmarks.film_checks DIR``.

Prints smallest and largest value of each quantity over the films of a folder, as they are and changed as films may be,
and names every film that would be refused.
"""

import argparse
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
from PIL import Image

from amrg.data.film_checks import NotAFilm, check_chest_film, check_film_pixels, measure_structure
from amrg.data.image_io import decode_film_bytes
from amrg.data.own_studies import find_own_studies
from amrg.progress import print_on_rank_0, track_progress


def variants(film: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """Yield a film, uint8 [H, W], as it is and as it may look after handling, each with its name."""
    height, width = film.shape
    image, scale = Image.fromarray(film), 0.65**-0.5
    yield "as it is", film
    yield "turned by 90°", np.rot90(film)
    yield "inverted", 255 - film
    yield "turned by 15° on black", np.asarray(image.rotate(15, Image.Resampling.BILINEAR, expand=True))
    yield "turned by 15° on white", np.asarray(image.rotate(15, Image.Resampling.BILINEAR, expand=True, fillcolor=255))
    top, left = height * 3 // 20, width * 3 // 20
    yield "cropped to 70 %", film[top : height - top, left : width - left]
    for name, value in (("black", 0), ("white", 255)):
        framed = np.full((round(height * scale), round(width * scale)), value, np.uint8)
        top, left = (framed.shape[0] - height) // 2, (framed.shape[1] - width) // 2
        framed[top : top + height, left : left + width] = film
        yield f"35 % {name} border", framed
    marked = film.copy()
    marked[height // 20 : height // 8, width // 20 : width // 8] = 255
    yield "white marker", marked


def main() -> None:
    """Print the table, and the films that are refused."""
    parser = argparse.ArgumentParser(prog="benchmarks.film_checks", description=__doc__)
    parser.add_argument("folder", type=Path, nargs="+")
    studies, _ = find_own_studies(parser.parse_args().folder, one_study=True)
    paths = [path for study in studies for path in study.films]
    found: dict[str, list[dict[str, float]]] = {}
    for path in track_progress(paths, "measuring films"):
        data = path.read_bytes()
        film = decode_film_bytes(data, 224)
        for name, changed in variants(film):
            found.setdefault(name, []).append(asdict(measure_structure(changed)))
            try:
                check_film_pixels(changed) if changed is not film else check_chest_film(data, film)
            except NotAFilm as error:
                print_on_rank_0(f"{path}, {name}, is refused: {error}")
    print(f"{len(paths)} films", *next(iter(found.values()))[0], sep=" | ")
    for name, rows in found.items():
        ranges = (f"{min(r[k] for r in rows):.3g} – {max(r[k] for r in rows):.3g}" for k in rows[0])
        print(name, *ranges, sep=" | ")


if __name__ == "__main__":
    main()
