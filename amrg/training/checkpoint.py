"""Checkpoints of a run in progress: safetensors and JSON, written whole or not at all, while training goes on.

``<folder>/step-00000123/`` holds ``weights`` (trainable weights and buffers), ``optimizer`` (its moments), ``best``
(the weights of the best epoch so far) and ``state.json``, which has the hash of each of the others. It is written under
another name, flushed and renamed; only then older ones go. So whatever is found is whole; should a disk have damaged
the newest one nevertheless, the one before it is used. Frozen weights are in none: ``frozen_fingerprint`` tells whether
those that a resumed run starts from are the same. No random state is in one either: all randomness of a step follows
from (seed, step, rank).
"""

import hashlib
import json
import os
import shutil
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from amrg.artifacts import file_hash
from amrg.banks.bank import REPORTS, VISUAL, MemoryBank
from amrg.errors import UserError
from amrg.models.zero3 import weights_hash
from amrg.progress import echo

WEIGHTS, OPTIMIZER, BEST, STATE = "weights.safetensors", "optimizer.safetensors", "best.safetensors", "state.json"


@dataclass(frozen=True)
class Checkpoint:
    """One whole checkpoint on disk."""

    path: Path

    @property
    def state(self) -> dict[str, Any]:
        return json.loads((self.path / STATE).read_text())["state"]

    def weights(self) -> dict[str, Tensor]:
        return load_file(self.path / WEIGHTS)

    def optimizer(self) -> dict[str, Tensor]:
        return load_file(self.path / OPTIMIZER)

    def best(self) -> dict[str, Tensor]:
        """Weights of the best epoch so far (absent before the first epoch has ended)."""
        return load_file(self.path / BEST)

    def first_corrupt_file(self) -> str | None:
        """The first file that is not what was written, or None."""
        try:
            content = json.loads((self.path / STATE).read_text())
            if content["state_sha256"] != _hash(content["state"]):
                return STATE
            hashes = content["sha256"]
            return next((name for name, known in hashes.items() if file_hash(self.path / name) != known), None)
        except FileNotFoundError as missing:
            return Path(missing.filename).name
        except (OSError, ValueError, KeyError, TypeError):
            return STATE


def latest_valid(folder: Path) -> Checkpoint | None:
    """The newest checkpoint of a folder that is as it was written; one that is not is named and passed over.

    Raises:
        UserError: there are checkpoints, and all of them are damaged.
    """
    found = _all(folder)
    for checkpoint in reversed(found):
        damage = checkpoint.first_corrupt_file()
        if damage is None:
            return checkpoint
        echo(f"{checkpoint.path}: {damage} is damaged; looking for an earlier checkpoint")
    if found:
        raise UserError(f"all checkpoints in {folder} are damaged: remove the folder to start anew")
    return None


def remove_newer_than(found: Checkpoint) -> None:
    """Remove newer checkpoints than the one that is gone on from: they were found damaged."""
    for checkpoint in _all(found.path.parent):
        if checkpoint.path.name > found.path.name:
            _remove(checkpoint.path)


def latest_unverified(folder: Path) -> Checkpoint:
    """The newest checkpoint of a folder that has some, unread: for what was written a moment ago."""
    return _all(folder)[-1]


def _all(folder: Path) -> list[Checkpoint]:
    return [Checkpoint(path) for path in sorted(folder.glob("step-*[0-9]"))]


class AsyncCheckpointWriter:
    """Writes checkpoints of one run in a thread, one at a time. For one rank only; an error is told by ``error``.

    Args:
        folder: where checkpoints live.
        keep: how many of the newest stay.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        self._folder, self._keep = folder, keep
        self._thread: threading.Thread | None = None
        self.error: str | None = None

    def save(
        self, weights: dict[str, Tensor], optimizer: dict[str, Tensor], state: dict[str, Any], is_best: bool
    ) -> None:
        """Begin to write the checkpoint of ``state["step"]``, once the one before it is written.

        Nothing more is written after an error: the run is about to end.

        Args:
            weights: trainable weights and buffers by name, on the CPU; not to be changed afterwards.
            optimizer: moments by ``<weight name>.<moment>``, likewise.
            state: JSON-able cursor; ``step`` is the number of optimiser steps done.
            is_best: these weights are the best so far; otherwise the best of the previous checkpoint is kept.
        """
        self.wait()
        if self.error is None:
            # Not a daemon: a process that ends for another reason still finishes what it writes.
            self._thread = threading.Thread(target=self._write, args=(weights, optimizer, state, is_best))
            self._thread.start()

    def wait(self) -> None:
        """Until nothing is being written."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _write(
        self, weights: dict[str, Tensor], optimizer: dict[str, Tensor], state: dict[str, Any], is_best: bool
    ) -> None:
        try:
            unfit = [name for name, value in (weights | optimizer).items() if not value.isfinite().all()]
            if unfit:
                raise ValueError(f"{unfit[0]} has values that are not finite")
            save(self._folder, weights, optimizer, state, is_best, self._keep)
        except (OSError, SafetensorError, ValueError) as error:
            reason = (error.strerror if isinstance(error, OSError) else None) or " ".join(str(error).split())
            self.error = (
                f"cannot write the checkpoint of step {state['step']} to {self._folder}: {reason}; those before it are "
                "whole: put it right, and the same command goes on from there"
            )
        except BaseException as error:
            self.error = f"cannot write the checkpoint of step {state['step']}: {type(error).__name__}: {error}"
            raise


def save(
    folder: Path,
    weights: dict[str, Tensor],
    optimizer: dict[str, Tensor],
    state: dict[str, Any],
    is_best: bool,
    keep: int = 1,
) -> None:
    """Write one checkpoint, and remove all but the ``keep`` newest; see ``Writer.save``.

    Raises:
        OSError, SafetensorError: the disk refuses; nothing of the new checkpoint is left, nothing older is gone.
    """
    folder.mkdir(parents=True, exist_ok=True)
    final = folder / f"step-{state['step']:08d}"
    earlier = [checkpoint.path for checkpoint in _all(folder) if checkpoint.path.name < final.name]
    partial = folder / f"{final.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        _fill(partial, weights, optimizer, state, None if is_best else earlier[-1] if earlier else None)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    _remove(final)  # this step was saved before, and found damaged or gone back behind
    os.rename(partial, final)
    _flush(folder)
    kept = {final, *earlier[::-1][: keep - 1]}
    for path in folder.iterdir():
        if path not in kept:
            _remove(path)


def _fill(
    partial: Path, weights: dict[str, Tensor], optimizer: dict[str, Tensor], state: dict[str, Any], before: Path | None
) -> None:
    """All files of a checkpoint, on disk; the best weights are those of ``before``, or these where it is None."""
    partial.mkdir()
    save_file(weights, partial / WEIGHTS)
    save_file(optimizer, partial / OPTIMIZER)
    best = partial / WEIGHTS if before is None else before / BEST
    if best.exists():
        os.link(best, partial / BEST)
    hashes = {path.name: file_hash(path) for path in sorted(partial.iterdir())}
    content = {"state": state, "state_sha256": _hash(state), "sha256": hashes}
    (partial / STATE).write_text(json.dumps(content))
    for path in (*partial.iterdir(), partial):
        _flush(path)


def _remove(path: Path) -> None:
    """Remove a checkpoint so that it is never found half removed."""
    if path.exists():
        gone = path.with_name(f"{path.name.removesuffix('.gone')}.gone")
        path.rename(gone)
        shutil.rmtree(gone)


def _hash(state: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()


def input_hashes(seed: int, batch_size: int, data: Path, banks: Path | None = None) -> dict[str, str]:
    """Hashes of what decides the batches and the memories of a run."""
    told = {"seed": str(seed), "batch size": str(batch_size), "data": file_hash(data / "index.parquet")}
    if banks is not None:
        told |= {f"rows of the {name} bank": MemoryBank.open(banks / name).content_hash for name in (VISUAL, REPORTS)}
    return told


def frozen_fingerprint(model: nn.Module) -> str:
    """A hash of all weights of a model that are not trained. Every rank must call this."""
    return weights_hash((name, weight) for name, weight in model.named_parameters() if not weight.requires_grad)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
