"""Steps of a sweep with a shared cache of vision features: variants with the same frozen stage 1 reuse them."""

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
from amrg.training.stage2_batches import SCRATCH

#: Cache folder in the folder of all experiments; may be removed at any time.
CACHE_DIR = "seen"


def run_step_with_vision_cache(verb: str, config: Config) -> None:
    """Run ``pipeline.run_pipeline_step``, with vision features that another variant encoded with the same weights."""
    needs_films = verb in ("stage2", "generate") and not config.stage2.train_vision
    pipeline.run_pipeline_step(verb, config, partial(_make, verb) if needs_films else None)


def _make(verb: str, config: Config, inputs: dict[str, Path], folder: Path) -> None:
    kept = pipeline.artifact_root(config) / "experiments" / CACHE_DIR / _vision_fingerprint(config, inputs)
    _copy(kept, folder / SCRATCH)
    pipeline.STEPS[verb].run(config, inputs, folder)
    _copy(folder / SCRATCH, kept)


def _vision_fingerprint(config: Config, inputs: dict[str, Path]) -> str:
    """Hash everything that determines the features: films, stage 1, precision, grid pooling, activation-map method."""
    hashes = [open_artifact(inputs[kind], kind).hash for kind in ("data", "stage1")]
    how = [
        config.stage2.dtype,
        config.decoder.use_visual_tokens,
        config.decoder.max_visual_tokens,
        config.banks.mining.method,
        *(["with wordless"] if "films" in config.decoder.prior else []),
    ]
    return hashlib.sha256(json.dumps([*hashes, *how]).encode()).hexdigest()[:10]


def _copy(source: Path, target: Path) -> None:
    """Copy the cached features of each split. A cached split is complete once its step has finished."""
    for split in ("train", "val", "test"):
        if (source / split).is_dir() and not (target / split).exists():
            unfinished = target / f"{split}.{os.getpid()}"
            shutil.copytree(source / split, unfinished)
            with contextlib.suppress(OSError):  # another job renamed its copy first
                unfinished.rename(target / split)
            shutil.rmtree(unfinished, ignore_errors=True)
