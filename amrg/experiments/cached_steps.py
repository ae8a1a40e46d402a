"""Steps as a sweep makes them: what a frozen stage 1 sees of the films is computed for one variant and kept for all."""

import contextlib
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
CACHE_DIR = "seen"


def run_step_with_vision_cache(verb: str, config: Config) -> None:
    """``pipeline.run_step``, without looking at films that another variant looked at with the same eyes."""
    looks = verb in ("stage2", "generate") and not config.stage2.train_vision
    pipeline.run_step(verb, config, partial(_make, verb) if looks else None)


def _make(verb: str, config: Config, inputs: dict[str, Path], folder: Path) -> None:
    kept = pipeline.root(config) / "experiments" / CACHE_DIR / _vision_fingerprint(config, inputs)
    _copy(kept, folder / SCRATCH)
    pipeline.STEPS[verb].run(config, inputs, folder)
    _copy(folder / SCRATCH, kept)


def _vision_fingerprint(config: Config, inputs: dict[str, Path]) -> str:
    """A name for all that decides what is seen: films, stage 1, precision, pooling of the grid, map of the regions."""
    hashes = [open_artifact(inputs[kind], kind).hash for kind in ("data", "stage1")]
    how = [
        config.stage2.dtype,
        config.decoder.use_visual_tokens,
        config.decoder.max_visual_tokens,
        config.banks.mining.method,
    ]
    return hashlib.sha256(json.dumps([*hashes, *how]).encode()).hexdigest()[:10]


def _copy(source: Path, target: Path) -> None:
    """Copy what ``Seen`` keeps of each split: all of it is there once a step has been made."""
    for split in ("train", "val", "test"):
        if (source / split).is_dir() and not (target / split).exists():
            unfinished = target / f"{split}.{os.getpid()}"
            shutil.copytree(source / split, unfinished)
            with contextlib.suppress(OSError):  # another job was first
                unfinished.rename(target / split)
            shutil.rmtree(unfinished, ignore_errors=True)
