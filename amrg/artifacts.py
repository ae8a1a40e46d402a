"""Artefacts: folders that say what they are, where they came from, and that are never seen half written.

An artefact lives at ``<root>/<kind>-<identity>``: the identity is a hash of the kind, its format version, the part of
the configuration that shapes it, the seed and the content hashes of its inputs. So the same work done again finds the
folder and is a no-op, changed work gets a folder of its own, and nothing that was written is lost.
"""

import fcntl
import hashlib
import json
import os
import shutil
import stat
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from amrg import __version__
from amrg.errors import UserError
from amrg.progress import print_on_rank_0

MANIFEST = "manifest.json"
LOCK = ".lock"
#: In the folder of a run: changes of ``amrg bank forget`` that must be carried out before anything is read.
FORGETTING = ".forget/journal.json"

#: Left out of the content hash: what holds times (``logs``) ...
LOGS = "logs"
#: ... and removed when the artefact is whole: what only a resumed step needs.
SCRATCH = ("checkpoints", "scratch")
#: What everything made from an artefact must be told.
_MARK, _FAILURES = "MARK", "FAILURES"

#: Does something for each of some items, here (``map``) or on many machines; what came of it, in the items' order.
#: What is done must be picklable, and what it writes must not depend on where it is done.
MapFn = Callable[[Callable[[Any], Any], Sequence[Any]], Iterable[Any]]

_PACKAGES = ("torch", "transformers", "peft", "deepspeed", "timm", "webdataset", "numpy", "scipy", "pillow")


class ArtifactLocked(UserError):
    """Another process is making the same artefact."""


@dataclass(frozen=True)
class Artifact:
    """A finished folder and its manifest."""

    path: Path
    manifest: dict[str, Any]

    @property
    def kind(self) -> str:
        """Kind of the artefact, such as ``stage1``."""
        return self.manifest["kind"]

    @property
    def hash(self) -> str:
        """SHA-256 over the names and contents of its files (``logs`` and the manifest itself left out)."""
        return self.manifest["content_hash"]

    @property
    def identity_hash(self) -> str:
        """Hash that stands for it in the identities of what is made from it: ``hash``, or what it was at first.

        The two differ after ``amrg bank forget``, so that `amrg run` finds the trained artefacts of the run again.
        """
        return self.manifest.get("identity_hash", self.hash)

    @property
    def warning(self) -> str | None:
        """A warning that everything made from this artefact must carry, such as a bank that holds test rows."""
        return self.manifest.get("mark")

    @property
    def failures(self) -> list[str]:
        """What failed in training, in the step itself or in one of its inputs (``add_artifact_failure``)."""
        return self.manifest.get("failures", [])


@dataclass(frozen=True)
class Recipe:
    """The kind, settings, inputs and seed that identify an artefact.

    Attributes:
        entry: settings as written into the manifest, where they are not those of ``config``.
    """

    kind: str
    version: int
    config: dict[str, Any]
    inputs: dict[str, Artifact]
    seed: int
    entry: dict[str, Any] | None = None

    @property
    def identity(self) -> str:
        """Ten hexadecimal digits of the hash of everything that determines the content."""
        inputs = {name: artifact.identity_hash for name, artifact in self.inputs.items()}
        return _sha256_json([self.kind, self.version, self.config, self.seed, inputs])[:10]

    def path(self, root: Path) -> Path:
        """Folder of this artefact under ``root``."""
        return root / f"{self.kind}-{self.identity}"


def open_artifact(path: Path, kind: str) -> Artifact:
    """Open a finished artefact of the given kind.

    Raises:
        UserError: it is missing, half written, unreadable or of another kind.
    """
    if (path.parent / FORGETTING).exists():
        raise UserError(f"{path.parent}: `amrg bank forget` was interrupted: give the same command again")
    if not path.is_dir():
        raise UserError(f"no {kind} artefact at {path}: make it with `amrg {verb_for_kind(kind)} CONFIG`")
    try:
        manifest = json.loads((path / MANIFEST).read_text())
        found = manifest["kind"]
        manifest["content_hash"], manifest["inputs"], manifest["config"]
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(
            f"{path} is not an artefact (no readable {MANIFEST}): give a folder made by `amrg {verb_for_kind(kind)}`"
        ) from None
    if found != kind:
        needed = f"a {kind} artefact is needed: make one with `amrg {verb_for_kind(kind)}`"
        raise UserError(f"{path} holds a {found} artefact where {needed}")
    return Artifact(path, manifest)


def open_artifact_input(artifact: Artifact, name: str) -> Artifact:
    """An input of an artefact: beside it, and what it was made from.

    Raises:
        UserError: the artefact has no such input; it lies elsewhere, is missing, or was changed since.
    """
    recorded = artifact.manifest["inputs"].get(name)
    if recorded is None:
        raise UserError(f"{artifact.path} does not name its {name}: make it again with `amrg run`")
    run_folder = artifact.path.resolve().parent
    path = (run_folder / recorded["path"]).resolve()
    if path.parent != run_folder:
        raise UserError(
            f"{artifact.path} names an input outside the folder of its run ({recorded['path']}): not opened"
        )
    found = open_artifact(path, recorded["kind"])
    if found.hash != recorded["hash"]:
        raise UserError(f"{path} is no longer what {artifact.path} was made from: make it again with `amrg run`")
    return found


def verb_for_kind(kind: str) -> str:
    """The verb that makes artefacts of this kind."""
    return {"data": "prepare", "graph": "graph show", "reports": "generate", "scores": "evaluate"}.get(kind, kind)


def find_artifact(root: Path, recipe: Recipe) -> Artifact | None:
    """The finished artefact of a recipe, or None when it is still to be made."""
    path = recipe.path(root)
    return open_artifact(path, recipe.kind) if path.is_dir() else None


@contextmanager
def build_artifact(root: Path, recipe: Recipe, is_lead_rank: bool = True) -> Iterator[Path]:
    """Give the folder to write into, and seal it when the block ends without an exception.

    The folder is ``<final name>.partial``: it is kept when the work is interrupted, and given again on the next start,
    so that a step can go on from what lies there. Of several ranks only the lead locks and seals it.

    Raises:
        UserError: the folder cannot be written.
        Busy: another process is making the same artefact.
    """
    final = recipe.path(root)
    partial = final.with_name(final.name + ".partial")
    try:
        partial.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to {root}: {error.strerror}; choose another folder with --runs") from None
    if not is_lead_rank:
        yield partial
        return
    with _locked(partial):
        if any(path.name != LOCK for path in partial.iterdir()):
            print_on_rank_0(f"{recipe.kind}: going on with what an interrupted run left")
        yield partial
        _finalize(partial, final, recipe)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    with (folder / LOCK).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ArtifactLocked(f"another process is writing {folder}: wait for it or stop it") from None
        yield


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Give a name to write a file or folder under; it gets its own when the block ends without an exception.

    Where several write the same at once, one of them stays.
    """
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}.partial")
    temporary.parent.mkdir(parents=True, exist_ok=True)
    yield temporary
    try:
        temporary.rename(path)
    except OSError:
        if not path.is_dir():
            raise
        shutil.rmtree(temporary)


def add_artifact_warning(folder: Path, warning: str) -> None:
    """Put a mark on an artefact that is being made: all that is made from it, scores included, carries it."""
    (folder / _MARK).write_text(warning + "\n")


def add_artifact_failure(folder: Path, failure: str) -> None:
    """Print that a step has failed although it ended, and record it in its artefact and all that is made from it."""
    print_on_rank_0(f"WARNING: {failure}")
    path = folder / _FAILURES
    if not path.exists() or failure not in path.read_text().splitlines():  # else an interrupted run has recorded it
        with path.open("a") as file:
            file.write(failure + "\n")


def _finalize(partial: Path, final: Path, recipe: Recipe) -> None:
    """Hash, describe and rename a finished folder."""
    for name in SCRATCH:
        shutil.rmtree(partial / name, ignore_errors=True)
    usual = (partial / LOCK).stat().st_mode  # as the umask has it; safetensors and tempfile write for the owner alone
    for path in partial.rglob("*"):
        if path.is_file() and not path.is_symlink() and usual & ~path.stat().st_mode:
            path.chmod(stat.S_IMODE(path.stat().st_mode | usual))
    (partial / LOCK).unlink()
    marks = [artifact.warning for artifact in recipe.inputs.values() if artifact.warning]
    own_mark = partial / _MARK
    if own_mark.exists():
        marks.append(own_mark.read_text().strip())
    failures = [failure for artifact in recipe.inputs.values() for failure in artifact.failures]
    if (partial / _FAILURES).exists():
        failures += (partial / _FAILURES).read_text().splitlines()
    manifest = {
        "kind": recipe.kind,
        "format_version": recipe.version,
        "content_hash": folder_content_hash(partial),
        "inputs": {
            name: {"kind": artifact.kind, "path": os.path.relpath(artifact.path, final.parent), "hash": artifact.hash}
            for name, artifact in recipe.inputs.items()
        },
        "config": recipe.config if recipe.entry is None else recipe.entry,
        "seed": recipe.seed,
        "packages": {"amrg": __version__, **_package_versions()},
    }
    if marks:
        manifest["mark"] = "; ".join(sorted(set(marks)))
    if failures:
        manifest["failures"] = list(dict.fromkeys(failures))
    # The manifest is written last: a folder with a manifest is whole.
    (partial / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
    os.rename(partial, final)


def folder_content_hash(folder: Path) -> str:
    """SHA-256 over (relative path, SHA-256 of content) of every file, in path order."""
    files = sorted(
        path
        for path in folder.rglob("*")
        if path.is_file() and path.name != MANIFEST and LOGS not in path.relative_to(folder).parts
    )
    return _sha256_json([[path.relative_to(folder).as_posix(), sha256_of_file(path)] for path in files])


def sha256_of_file(path: Path) -> str:
    """SHA-256 of one file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sha256_json(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _package_versions() -> dict[str, str]:
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions
