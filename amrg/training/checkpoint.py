"""Checkpoints of a run in progress: safetensors and JSON, written whole or not at all.

``<folder>/step-00000123/`` holds ``weights`` (trainable weights and buffers), ``optimizer`` (its moments), ``best``
(the weights of the best epoch so far) and ``state.json``. It is written under another name, flushed and renamed; only
then the one before it goes. So whatever is found is whole, and the newest is the one to go on from.
"""

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

WEIGHTS, OPTIMIZER, BEST, STATE = "weights.safetensors", "optimizer.safetensors", "best.safetensors", "state.json"


@dataclass(frozen=True)
class Checkpoint:
    """One whole checkpoint on disk."""

    path: Path

    @property
    def state(self) -> dict[str, Any]:
        return json.loads((self.path / STATE).read_text())

    def weights(self) -> dict[str, Tensor]:
        return load_file(self.path / WEIGHTS)

    def optimizer(self) -> dict[str, Tensor]:
        return load_file(self.path / OPTIMIZER)

    def best(self) -> dict[str, Tensor]:
        """Weights of the best epoch so far (absent before the first epoch has ended)."""
        return load_file(self.path / BEST)


def latest(folder: Path) -> Checkpoint | None:
    """The newest whole checkpoint of a folder."""
    found = sorted(folder.glob("step-*[0-9]"))
    return Checkpoint(found[-1]) if found else None


def save(
    folder: Path, weights: dict[str, Tensor], optimizer: dict[str, Tensor], state: dict[str, Any], is_best: bool
) -> None:
    """Write the checkpoint of ``state["step"]`` and remove older ones. To be called on one rank.

    Args:
        folder: where checkpoints live.
        weights: trainable weights and buffers by name.
        optimizer: moments by ``<weight name>.<moment>``.
        state: JSON-able cursor; ``step`` is the number of optimiser steps done.
        is_best: these weights are the best so far; otherwise the best of the previous checkpoint is kept.
    """
    folder.mkdir(parents=True, exist_ok=True)
    previous = latest(folder)
    final = folder / f"step-{state['step']:08d}"
    partial = folder / f"{final.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    save_file(weights, partial / WEIGHTS)
    save_file(optimizer, partial / OPTIMIZER)
    best = partial / WEIGHTS if is_best else previous and previous.path / BEST
    if best and best.exists():
        os.link(best, partial / BEST)
    (partial / STATE).write_text(json.dumps(state))
    for path in (*partial.iterdir(), partial):
        _flush(path)
    os.rename(partial, final)
    _flush(folder)
    for path in folder.iterdir():
        if path != final:
            shutil.rmtree(path)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
