"""A made-up data set that a classifier can learn in seconds: a bright square on grey noise is a consolidation."""

from pathlib import Path

import numpy as np

from amrg.config import BanksConfig, Config, DataConfig, MiningConfig, Stage1Config, VisionConfig
from amrg.data.labels import LABELS, NO_FINDING
from amrg.data.shards import prepare_shards
from amrg.data.studies import Study, StudyImages

SIZE = 64  # pixels: a fine grid of 4×4
FINDING = "Consolidation"
SIZES = {"train": 24, "val": 10, "test": 10}
CONFIG = Config(
    data=DataConfig(image_size=SIZE, shard_size=8, workers=1),
    vision=VisionConfig(image_size=SIZE, embed_dim=32, depths=(1, 1), query_dim=32, qformer_layers=1, qformer_heads=2),
    stage1=Stage1Config(epochs=2, batch_size=8, augmented_copies=2),
    banks=BanksConfig(mining=MiningConfig(regions_per_finding=7, normal_regions=9)),
)


class Squares:
    """Every second study has the finding; its square covers one cell. Every fourth has a second film, mirrored."""

    def studies(self) -> list[Study]:
        return [
            Study(f"{split}-{i}", f"patient-{split}-{i // 2}", split, report(i), _labels(i % 2 == 0))
            for split, size in SIZES.items()
            for i in range(size)
        ]

    def films(self, study: Study) -> StudyImages:
        generator = np.random.default_rng(list(study.key.encode()))
        film = generator.normal(90, 12, (SIZE, SIZE))
        if study.labels[FINDING] != 1:
            return StudyImages([film.clip(0, 255).astype(np.uint8)])
        mask = np.zeros((SIZE, SIZE), bool)
        y, x = generator.integers(0, 4, 2) * 16
        mask[y : y + 16, x : x + 16] = True
        shown = (film + 110 * mask).clip(0, 255).astype(np.uint8)
        second = [shown[:, ::-1].copy()] if int(study.key.split("-")[1]) % 4 == 0 else []
        return StudyImages([shown, *second], {FINDING: mask})


def report(number: int) -> str:
    """Of a study; those with the finding state it in a sentence of their own."""
    return f"{f'Consolidation {number}. ' if number % 2 == 0 else ''}Heart size is normal."


def _labels(present: bool) -> dict[str, float | None]:
    labels: dict[str, float | None] = dict.fromkeys(LABELS)
    labels[FINDING if present else NO_FINDING] = 1.0
    return labels


def prepare_squares(folder: Path) -> Path:
    """Write the shards into ``folder``."""
    prepare_shards(Squares(), CONFIG.data, folder, seed=0)
    return folder
