"""Where the shards of a data artefact lie: in its folder or, behind fsspec, in a mirror seen through a bounded cache.

``amrg mirror DATA URL`` copies the shards to ``s3://…``, ``gs://…`` or any other URL that fsspec knows, and notes it in
the artefact. From then on a copy of the artefact without ``shards/`` is enough: what is read comes from the mirror,
shard by shard, into the folder ``AMRG_CACHE`` (default ``~/.cache/amrg/shards``), where at most ``AMRG_CACHE_GB``
(default 50) stay; the shard that was not read for the longest time goes first. Both are variables of the environment
because they belong to a machine, not to a run.
"""

import fcntl
import hashlib
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from amrg.artifacts import LOGS
from amrg.errors import UserError
from amrg.progress import echo, track

CACHE, CACHE_GB = "AMRG_CACHE", "AMRG_CACHE_GB"
_MIRROR_FILE = "mirror"  # under logs/: where a copy lies is no part of what the data are
_EXTRAS = {"s3": "s3", "gs": "gs", "gcs": "gs"}  # protocol → extra of this package that brings its file system
_ATTEMPTS = 3  # another process may make room between our finding a shard and opening it
_STALE = 3600.0  # seconds after which a download that stands still belongs to a process that died


class ShardFiles:
    """Bytes of the shards of one data artefact, wherever they lie. Picklable.

    Args:
        folder: the artefact.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "shards"
        note = folder / LOGS / _MIRROR_FILE
        self._cache = _Cache(note.read_text().strip()) if note.exists() else None

    def read(self, shard: str, offset: int, size: int) -> bytes:
        """``size`` bytes of a shard from ``offset`` on; fewer where it ends.

        Raises:
            UserError: the shard is neither here nor in the mirror.
        """
        try:
            return _read_range(self._folder / f"{shard}.tar", offset, size)
        except FileNotFoundError:
            if self._cache is None:
                raise
        for _ in range(_ATTEMPTS):
            try:
                return _read_range(self._cache.path(f"{shard}.tar"), offset, size)
            except FileNotFoundError:
                continue
        raise UserError(
            f"{self._cache.folder} is emptied faster than shards are read: raise {CACHE_GB}, or take fewer readers"
        )


def mirror(folder: Path, url: str) -> None:
    """Copy the shards of a data artefact to ``url`` (those that are there already are kept), and note it.

    Raises:
        UserError: the shards are not here, or the place cannot be written.
    """
    shards = sorted((folder / "shards").glob("*.tar"))
    if not shards:
        raise UserError(f"{folder} has no shards of its own: mirror it where `amrg prepare` made it")
    with _user_errors(url):
        system, root = _open(url)
        there = {Path(entry["name"]).name: entry["size"] for entry in _listing(system, root)}
        todo = [path for path in shards if there.get(path.name) != path.stat().st_size]
        for path in track(todo, "copying shards", len(shards), len(shards) - len(todo)):
            system.put_file(str(path), f"{root}/{path.name}")
    note = folder / LOGS / _MIRROR_FILE
    note.parent.mkdir(exist_ok=True)
    note.write_text(url + "\n")
    echo(f"{len(shards)} shards lie at {url}; {folder / 'shards'} may be removed where disk is short")


class _Cache:
    """Files of a URL, brought here when they are asked for. Any number of processes may share the folder."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.folder = Path(os.environ.get(CACHE, "~/.cache/amrg/shards")).expanduser()
        try:
            self.most_bytes = int(float(os.environ.get(CACHE_GB, "50")) * 1e9)
        except ValueError:
            raise UserError(f"{CACHE_GB} is {os.environ[CACHE_GB]!r}: give a number of gigabytes") from None

    def path(self, name: str) -> Path:
        """The local copy of a file; it may be gone by the time it is opened."""
        path = self.folder / f"{hashlib.sha256(self.url.encode()).hexdigest()[:8]}-{name}"
        try:
            os.utime(path)  # was read just now
        except FileNotFoundError:
            self._fetch(name, path)
        return path

    def _fetch(self, name: str, path: Path) -> None:
        with _user_errors(f"{self.url}/{name}"):
            system, root = _open(self.url)
            remote = f"{root}/{name}"
            size = system.size(remote)
            self._evict(size)
            partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
            system.get_file(remote, str(partial))
            if partial.stat().st_size != size:
                raise OSError("it arrived cut short")
            partial.replace(path)

    def _evict(self, size: int) -> None:
        """Remove what was read longest ago, until ``size`` more bytes fit."""
        if size > self.most_bytes:
            raise UserError(f"{CACHE_GB} leaves {self.most_bytes:,} bytes, less than one shard of {size:,}: raise it")
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            files = sorted((entry.stat().st_mtime, entry.stat().st_size, entry.path) for entry in _tars(self.folder))
            total = sum(length for _, length, _ in files)
            for read, length, name in files:
                if total + size <= self.most_bytes:
                    return
                if not name.endswith(".partial") or read < time.time() - _STALE:
                    os.unlink(name)
                    total -= length


def _tars(folder: Path) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        return [entry for entry in entries if ".tar" in entry.name]


def _read_range(path: Path, offset: int, size: int) -> bytes:
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(size)


def _open(url: str) -> tuple[Any, str]:
    """fsspec's file system and the path in it."""
    import fsspec

    system, root = fsspec.url_to_fs(url)
    return system, root.rstrip("/")


def _listing(system: Any, root: str) -> list[dict[str, Any]]:
    try:
        return system.ls(root, detail=True)
    except FileNotFoundError:
        system.makedirs(root, exist_ok=True)
        return []


@contextmanager
def _user_errors(url: str) -> Iterator[None]:
    protocol = url.split("://")[0]
    try:
        yield
    except UserError:
        raise
    except ImportError:
        extra = _EXTRAS.get(protocol)
        remedy = f"`pip install 'amrg[{extra}]'`" if extra else "install the package that fsspec names for it"
        raise UserError(f"{url} needs a file system for {protocol}://: {remedy}") from None
    except Exception as error:  # every file system behind fsspec has errors of its own
        if isinstance(error, FileNotFoundError):
            raise UserError(f"{url} is not there: copy the shards with `amrg mirror DATA URL`") from None
        reason = type(error).__name__
        raise UserError(f"{url} cannot be used ({reason}): check the address and your access to it") from None
