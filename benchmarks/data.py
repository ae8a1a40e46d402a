"""Films a second, ours beside what one would write by hand, on the same films in one run: python -m benchmarks.data.

Preparing: full-size JPEGs to what is stored. Streaming: stored films to batches. The hand-written way of both decodes
with PIL and resizes with the image processor of transformers, on its PIL or its torchvision back end; the floor of
streaming decodes the same bytes and nothing else. One process, one core of work each.
"""

import argparse
import io
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import ViTImageProcessor, ViTImageProcessorPil

from amrg.config import DataConfig
from amrg.data.image_io import load_film_file
from amrg.data.image_ops import decode_film_jpeg, downscale_short_side, encode_film_jpeg
from amrg.data.labels import LABELS
from amrg.data.shards import prepare_shards
from amrg.data.stream import Stream
from amrg.data.studies import SPLITS, Study, StudyImages

FULL = (3056, 2544)  # rows and columns of a common radiograph
STORED = 512


class SyntheticSource:
    """Smooth noise with the size of stored films. Implements ``amrg.data.studies.Source``."""

    def __init__(self, count: int) -> None:
        self.count = count

    def studies(self) -> list[Study]:
        """Return ``count`` training studies, one for each other split."""
        blank = dict.fromkeys(LABELS)
        return [
            Study(f"{split}-{number}", f"p{number}", split, "The lungs are clear.", blank)
            for split in SPLITS
            for number in range(self.count if split == "train" else 1)
        ]

    def films(self, study: Study) -> StudyImages:
        """Return one film of a study."""
        return StudyImages([smooth(int(study.key.split("-")[1]), (round(STORED * FULL[0] / FULL[1]), STORED))])


def smooth(seed: int, shape: tuple[int, int]) -> np.ndarray:
    """A grey film with structure at several scales and some noise, uint8."""
    generator = np.random.default_rng(seed)
    film = np.zeros(shape)
    for cells in (4, 16, 64):
        coarse = Image.fromarray(generator.normal(0, 60 / cells**0.5, (cells, cells)).astype(np.float32))
        film += np.asarray(coarse.resize(shape[::-1], Image.Resampling.BICUBIC))
    return np.clip(128 + film + generator.normal(0, 2, shape), 0, 255).astype(np.uint8)


def rate(action: Callable[[], int]) -> float:
    """Films a second, the best of three runs."""
    best = 0.0
    for _ in range(3):
        began = time.perf_counter()
        best = max(best, action() / (time.perf_counter() - began))
    return best


def pil_baseline(films: Sequence[bytes], size: int) -> dict[str, float]:
    """Films a second of the hand-written way, by back end of the processor."""

    def run(processor: Any) -> int:
        for data in films:
            processor(Image.open(io.BytesIO(data)).convert("RGB"), return_tensors="pt")
        return len(films)

    square = {"height": size, "width": size}
    back_ends = {"PIL": ViTImageProcessorPil(size=square), "torchvision": ViTImageProcessor(size=square)}
    return {name: rate(partial(run, processor)) for name, processor in back_ends.items()}


def print_speedups(what: str, amrg_rate: float, hand: dict[str, float]) -> None:
    """Print our rate and its ratio to each written by hand."""
    print(f"{what}: ours {amrg_rate:.1f}/s")
    for name, hand_rate in hand.items():
        print(f"  by hand, {name} back end {hand_rate:.1f}/s: ours is {amrg_rate / hand_rate:.1f} times as fast")


def preparing(folder: Path, count: int) -> None:
    """Full-size JPEG files to stored bytes."""
    paths = []
    for number in range(count):
        path = folder / f"{number}.jpg"
        Image.fromarray(smooth(number, FULL)).save(path, quality=90)
        paths.append(path)

    def with_amrg() -> int:
        for path in paths:
            encode_film_jpeg(downscale_short_side(load_film_file(path, STORED), STORED))
        return count

    hand = pil_baseline([path.read_bytes() for path in paths], STORED)
    print_speedups(f"preparing {FULL[1]} × {FULL[0]} JPEGs", rate(with_amrg), hand)


def streaming(folder: Path, count: int) -> None:
    """Stored films to batches of samples."""
    prepare_shards(SyntheticSource(count), DataConfig(image_size=STORED, shard_size=64, workers=1), folder, 0)
    stream = Stream(folder, "train", 8, 0)
    films = [encode_film_jpeg(view) for batch in stream.epoch(0) for sample in batch for view in sample.views]

    def bare(decode: Callable[[bytes], Any]) -> int:
        for data in films:
            decode(data)
        return len(films)

    def with_amrg() -> int:
        return sum(len(batch) for batch in stream.epoch(0))

    our_rate = rate(with_amrg)
    print_speedups(f"streaming {STORED}-pixel films", our_rate, pil_baseline(films, 224))
    for name, decode in (("PIL", lambda data: Image.open(io.BytesIO(data)).load()), ("our decoder", decode_film_jpeg)):
        alone = rate(partial(bare, decode))
        print(f"  decoding alone, {name} {alone:.1f}/s: ours reaches {our_rate / alone:.2f} of it")


def main() -> None:
    """Time preparation and streaming."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--films", type=int, default=128, help="stored films; an eighth as many full-size ones")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        preparing(Path(folder), max(options.films // 8, 1))
        streaming(Path(folder) / "data", options.films)


if __name__ == "__main__":
    main()
