"""Checkpoints of a run in progress: safetensors and JSON, written whole or not at all, while training goes on.

``<folder>/step-00000123/`` holds ``weights`` (trainable weights and buffers), ``optimizer`` (its moments), ``best``
(the weights of the best epoch so far) and ``state.json``, which has the hash of each of the others. It is written under
another name, flushed and renamed; only then older ones go. So whatever is found is whole; should a disk have damaged
the newest one nevertheless, the one before it is used. Frozen weights are in none: ``fingerprint`` tells whether those
that a resumed run starts from are the same.
"""

import hashlib
import json
import os
import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from amrg.artifacts import file_hash
from amrg.errors import UserError
from amrg.memory.bank import HEADER, REPORTS, VISUAL
from amrg.progress import say

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

    def damage(self) -> str | None:
        """The first file that is not what was written, or None."""
        try:
            hashes = self.state["sha256"]
            return next((name for name, known in hashes.items() if file_hash(self.path / name) != known), None)
        except (OSError, ValueError, KeyError):
            return STATE


def latest(folder: Path) -> Checkpoint | None:
    """The newest checkpoint of a folder that is as it was written; one that is not is named and passed over.

    Raises:
        UserError: there are checkpoints, and all of them are damaged.
    """
    found = [Checkpoint(path) for path in sorted(folder.glob("step-*[0-9]"), reverse=True)]
    for checkpoint in found:
        damage = checkpoint.damage()
        if damage is None:
            return checkpoint
        say(f"{checkpoint.path}: {damage} is damaged; looking for an earlier checkpoint")
    if found:
        raise UserError(f"all checkpoints in {folder} are damaged: remove the folder to start anew")
    return None


class Writer:
    """Writes checkpoints of one run in a thread, one at a time. For one rank only.

    Args:
        folder: where checkpoints live.
        keep: how many of the newest stay.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        self._folder, self._keep = folder, keep
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None

    def save(
        self, weights: dict[str, Tensor], optimizer: dict[str, Tensor], state: dict[str, Any], is_best: bool
    ) -> None:
        """Begin to write the checkpoint of ``state["step"]``, once the one before it is written.

        Args:
            weights: trainable weights and buffers by name, on the CPU; not to be changed afterwards.
            optimizer: moments by ``<weight name>.<moment>``, likewise.
            state: JSON-able cursor; ``step`` is the number of optimiser steps done.
            is_best: these weights are the best so far; otherwise the best of the previous checkpoint is kept.

        Raises:
            UserError: the one before could not be written.
        """
        self.wait()
        self._pending = self._thread.submit(save, self._folder, weights, optimizer, state, is_best, self._keep)

    def failed(self) -> bool:
        """Whether the last one is known to have failed."""
        return self._pending is not None and self._pending.done() and self._pending.exception() is not None

    def wait(self) -> None:
        """Until nothing is being written.

        Raises:
            UserError: it could not be written.
        """
        pending, self._pending = self._pending, None
        if pending is None:
            return
        try:
            pending.result()
        except OSError as error:
            raise UserError(
                f"cannot write a checkpoint to {self._folder}: {error.strerror or type(error).__name__}; "
                "the ones before it are whole: make room, and the same command goes on from there"
            ) from None


def save(
    folder: Path,
    weights: dict[str, Tensor],
    optimizer: dict[str, Tensor],
    state: dict[str, Any],
    is_best: bool,
    keep: int = 1,
) -> None:
    """Write one checkpoint, and remove all but the ``keep`` newest; see ``Writer.save``."""
    folder.mkdir(parents=True, exist_ok=True)
    earlier = [path for path in sorted(folder.glob("step-*[0-9]")) if path.name < f"step-{state['step']:08d}"]
    final = folder / f"step-{state['step']:08d}"
    partial = folder / f"{final.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        save_file(weights, partial / WEIGHTS)
        save_file(optimizer, partial / OPTIMIZER)
    except Exception as error:  # safetensors has an exception of its own for what the disk refuses
        shutil.rmtree(partial, ignore_errors=True)
        raise OSError(None, str(error)) from None
    best = partial / WEIGHTS if is_best else earlier and earlier[-1] / BEST
    if best and best.exists():
        os.link(best, partial / BEST)
    hashes = {path.name: file_hash(path) for path in partial.iterdir()}
    (partial / STATE).write_text(json.dumps({**state, "sha256": hashes}))
    for path in (*partial.iterdir(), partial):
        _flush(path)
    shutil.rmtree(final, ignore_errors=True)  # a damaged one of this step
    os.rename(partial, final)
    _flush(folder)
    kept = {final, *earlier[len(earlier) - keep + 1 :]} if keep > 1 else {final}
    for path in folder.iterdir():
        if path not in kept:
            shutil.rmtree(path)


def made_from(seed: int, batch_size: int, data: Path, banks: Path | None = None) -> dict[str, str]:
    """Hashes of what decides the batches and the memories of a run."""
    told = {"seed": str(seed), "batch size": str(batch_size), "data": file_hash(data / "index.parquet")}
    if banks is not None:
        told |= {f"rows of the {name} bank": file_hash(banks / name / HEADER) for name in (VISUAL, REPORTS)}
    return told


def fingerprint(model: nn.Module) -> str:
    """A hash of the weights that are not trained: names, shapes, contents. To be taken before ZeRO parts them."""
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}".encode())
            digest.update(parameter.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
