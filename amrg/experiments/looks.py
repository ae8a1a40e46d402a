"""Steps as a sweep makes them: what a frozen stage 1 sees of the films is computed for one variant and kept for all."""

import hashlib
import json
import os
import shutil
from functools import partial
from pathlib import Path

from amrg import pipeline
from amrg.artifacts import open_artifact
from amrg.config import Config
from amrg.training.stage2 import SCRATCH

#: In the folder of all experiments; may be removed at any time.
KEPT = "seen"


def make_step(verb: str, config: Config) -> None:
    """``pipeline.run_step``, without looking at films that another variant looked at with the same eyes."""
    looks = verb in ("stage2", "generate") and not config.stage2.train_vision
    pipeline.run_step(verb, config, partial(_make, verb) if looks else None)


def _make(verb: str, config: Config, inputs: dict[str, Path], folder: Path) -> None:
    kept = pipeline.root(config) / "experiments" / KEPT / _eyes(config, inputs)
    _copy(kept, folder / SCRATCH)
    pipeline.STEPS[verb].make(config, inputs, folder)
    _copy(folder / SCRATCH, kept)


def _eyes(config: Config, inputs: dict[str, Path]) -> str:
    """A name for all that decides what is seen: films, stage 1, precision, and how the grid is pooled."""
    hashes = [open_artifact(inputs[kind], kind).hash for kind in ("data", "stage1")]
    pooled = [config.decoder.use_visual, config.decoder.visual_tokens]
    return hashlib.sha256(json.dumps([*hashes, config.stage2.dtype, *pooled]).encode()).hexdigest()[:10]


def _copy(source: Path, target: Path) -> None:
    """Copy what ``FeatureCache`` keeps of each split, its counter last: with that it is whole."""
    for split in ("train", "val", "test"):
        if (source / f"{split}.done").exists() and not (target / split).exists():
            target.mkdir(parents=True, exist_ok=True)
            for name in (split, f"{split}.done"):
                unfinished = target / f"{name}.{os.getpid()}"
                shutil.copyfile(source / name, unfinished)
                os.replace(unfinished, target / name)
