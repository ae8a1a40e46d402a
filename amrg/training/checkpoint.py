"""Checkpoints of a run in progress: safetensors and JSON, written atomically in the background.

``<folder>/step-00000123/`` holds ``weights`` (trainable weights and buffers), ``optimizer`` (its moments), ``best``
(the weights of the best epoch so far) and ``state.json``, which has the hash of each of the others. It is written under
another name, flushed and renamed; only then are older checkpoints removed. A checkpoint that is found is therefore
complete. If a disk has damaged the newest one, the previous one is used. Frozen weights are not saved:
``frozen_fingerprint`` detects a resumed run with other frozen weights. Random state is not saved either, because the
randomness of a step is a function of (seed, step, rank).
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

from amrg.artifacts import sha256_of_file
from amrg.banks.bank import REPORTS, VISUAL, MemoryBank
from amrg.errors import UserError
from amrg.models.zero3 import hash_of_weights
from amrg.progress import print_on_rank_0

WEIGHTS, OPTIMIZER, BEST, STATE = "weights.safetensors", "optimizer.safetensors", "best.safetensors", "state.json"


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint on disk."""

    path: Path

    @property
    def state(self) -> dict[str, Any]:
        """State of the loop at this step."""
        return json.loads((self.path / STATE).read_text())["state"]

    def weights(self) -> dict[str, Tensor]:
        """Read the trained weights."""
        return load_file(self.path / WEIGHTS)

    def optimizer(self) -> dict[str, Tensor]:
        """Read the moments of the optimizer."""
        return load_file(self.path / OPTIMIZER)

    def best(self) -> dict[str, Tensor]:
        """Weights of the best epoch so far (absent before the first epoch has ended)."""
        return load_file(self.path / BEST)

    def first_corrupt_file(self) -> str | None:
        """Return the first file whose hash differs from the recorded one, or None."""
        try:
            content = json.loads((self.path / STATE).read_text())
            if content["state_sha256"] != _hash(content["state"]):
                return STATE
            hashes = content["sha256"]
            return next((name for name, known in hashes.items() if sha256_of_file(self.path / name) != known), None)
        except FileNotFoundError as missing:
            return Path(missing.filename).name
        except (OSError, ValueError, KeyError, TypeError):
            return STATE


def find_latest_valid(folder: Path) -> Checkpoint | None:
    """Return the newest undamaged checkpoint of a folder, None if it has none; damaged ones are reported.

    Raises:
        UserError: all checkpoints are damaged.
    """
    found = _all(folder)
    for checkpoint in reversed(found):
        damage = checkpoint.first_corrupt_file()
        if damage is None:
            return checkpoint
        print_on_rank_0(f"{checkpoint.path}: {damage} is damaged; looking for an earlier checkpoint")
    if found:
        raise UserError(f"all checkpoints in {folder} are damaged: remove the folder to start anew")
    return None


def remove_newer_than(found: Checkpoint) -> None:
    """Remove the checkpoints that are newer than the resumed one; they were found damaged."""
    for checkpoint in _all(found.path.parent):
        if checkpoint.path.name > found.path.name:
            _remove(checkpoint.path)


def latest_unverified(folder: Path) -> Checkpoint:
    """Return the newest checkpoint of a folder without checking its hashes."""
    return _all(folder)[-1]


def _all(folder: Path) -> list[Checkpoint]:
    return [Checkpoint(path) for path in sorted(folder.glob("step-*[0-9]"))]


class AsyncCheckpointWriter:
    """Writer of a run's checkpoints in a thread, one at a time, on one rank; ``error`` holds the error of a failure.

    Args:
        folder: folder of the checkpoints.
        keep: number of checkpoints to keep.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        self._folder, self._keep = folder, keep
        self._thread: threading.Thread | None = None
        self.error: str | None = None

    def save(
        self, weights: dict[str, Tensor], optimizer: dict[str, Tensor], state: dict[str, Any], is_best: bool
    ) -> None:
        """Start writing the checkpoint of ``state["step"]`` when the previous one is written.

        After an error nothing more is written, because the run is about to end.

        Args:
            weights: trainable weights and buffers by name, on the CPU; must not be changed afterwards.
            optimizer: moments by ``<weight name>.<moment>``; must not be changed either.
            state: JSON-serialisable cursor; ``step`` is the number of completed optimizer steps.
            is_best: these weights are the best so far; otherwise the best of the previous checkpoint is kept.
        """
        self.wait()
        if self.error is None:
            # Not a daemon, so that a process that ends for another reason still finishes writing.
            self._thread = threading.Thread(target=self._write, args=(weights, optimizer, state, is_best))
            self._thread.start()

    def wait(self) -> None:
        """Wait until nothing is being written."""
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
            save_checkpoint(self._folder, weights, optimizer, state, is_best, self._keep)
        except (OSError, SafetensorError, ValueError) as error:
            reason = (error.strerror if isinstance(error, OSError) else None) or " ".join(str(error).split())
            self.error = (
                f"cannot write the checkpoint of step {state['step']} to {self._folder}: {reason}; those before it are "
                "whole: put it right, and the same command goes on from there"
            )
        except BaseException as error:
            self.error = f"cannot write the checkpoint of step {state['step']}: {type(error).__name__}: {error}"
            raise


def save_checkpoint(
    folder: Path,
    weights: dict[str, Tensor],
    optimizer: dict[str, Tensor],
    state: dict[str, Any],
    is_best: bool,
    keep: int = 1,
) -> None:
    """Write a checkpoint and remove all but the ``keep`` newest; arguments as for ``AsyncCheckpointWriter.save``.

    Raises:
        OSError, SafetensorError: writing failed; the partial checkpoint is removed, older ones are kept.
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
    _remove(final)  # an earlier checkpoint of this step was damaged or newer than the resumed one
    os.rename(partial, final)
    _flush(folder)
    kept = {final, *earlier[::-1][: keep - 1]}
    for path in folder.iterdir():
        if path not in kept:
            _remove(path)


def _fill(
    partial: Path, weights: dict[str, Tensor], optimizer: dict[str, Tensor], state: dict[str, Any], before: Path | None
) -> None:
    """Write and flush all files of a checkpoint; the best weights are those of ``before``, or ``weights`` if None."""
    partial.mkdir()
    save_file(weights, partial / WEIGHTS)
    save_file(optimizer, partial / OPTIMIZER)
    best = partial / WEIGHTS if before is None else before / BEST
    if best.exists():
        os.link(best, partial / BEST)
    hashes = {path.name: sha256_of_file(path) for path in sorted(partial.iterdir())}
    content = {"state": state, "state_sha256": _hash(state), "sha256": hashes}
    (partial / STATE).write_text(json.dumps(content))
    for path in (*partial.iterdir(), partial):
        _flush(path)


def _remove(path: Path) -> None:
    """Rename a checkpoint before removing it, so that no partial checkpoint is ever found."""
    if path.exists():
        gone = path.with_name(f"{path.name.removesuffix('.gone')}.gone")
        path.rename(gone)
        shutil.rmtree(gone)


def _hash(state: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()


def hashes_of_inputs(seed: int, batch_size: int, data: Path, banks: Path | None = None) -> dict[str, str]:
    """Hashes of the inputs that determine the batches and the memories of a run."""
    hashes = {"seed": str(seed), "batch size": str(batch_size), "data": sha256_of_file(data / "index.parquet")}
    if banks is not None:
        hashes |= {f"rows of the {name} bank": MemoryBank.open(banks / name).content_hash for name in (VISUAL, REPORTS)}
    return hashes


def frozen_fingerprint(model: nn.Module) -> str:
    """Hash all frozen weights of a model. Every rank must call this."""
    return hash_of_weights((name, weight) for name, weight in model.named_parameters() if not weight.requires_grad)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
