"""Access to the shards of a data artefact: in its folder, or in a mirror behind fsspec with a bounded local cache.

``amrg mirror DATA URL`` copies the shards to ``s3://…``, ``gs://…`` or any other URL that fsspec supports, and stores
the URL in the artefact. After that a copy of the artefact without ``shards/`` is enough. Shards are fetched from the
mirror into the folder ``AMRG_CACHE`` (default ``~/.cache/amrg/shards``), with at most ``AMRG_CACHE_GB`` gigabytes
(default 50). The least recently read shard is removed first. Both are environment variables because they belong to a
machine, not to a run.
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
from amrg.progress import print_on_rank_0, track_progress

CACHE, CACHE_GB = "AMRG_CACHE", "AMRG_CACHE_GB"
_MIRROR_FILE = "mirror"  # under logs/: the location of a copy is not part of the identity of the data
_EXTRAS = {"s3": "s3", "gs": "gs", "gcs": "gs"}  # protocol → extra of this package that installs its file system
_ATTEMPTS = 3  # another process may evict a shard before it is opened here
_STALE = 3600.0  # seconds without progress after which a download counts as abandoned


class ShardFiles:
    """Reader of the shards of one data artefact, local or mirrored. Picklable.

    Args:
        folder: the data artefact.
        online: read what is not local from the mirror. The artefact names its URL, which may be anybody's in a run that
            was received from others.
    """

    def __init__(self, folder: Path, online: bool = True) -> None:
        self._folder, self._online = folder / "shards", online
        note = folder / LOGS / _MIRROR_FILE
        self._cache = _Cache(note.read_text().strip()) if note.exists() else None

    def read(self, shard: str, offset: int, size: int) -> bytes:
        """Read ``size`` bytes of a shard from ``offset``; fewer at its end.

        Raises:
            UserError: the shard is neither local nor in the mirror, or the mirror is not to be read.
        """
        try:
            return _read_range(self._folder / f"{shard}.tar", offset, size)
        except FileNotFoundError:
            if self._cache is None:
                raise
            if not self._online:
                url = self._cache.url
                raise UserError(f"{shard}.tar is not on this machine, but at {url}: --online reads it") from None
        for _ in range(_ATTEMPTS):
            try:
                return _read_range(self._cache.path(f"{shard}.tar"), offset, size)
            except FileNotFoundError:
                continue
        raise UserError(
            f"{self._cache.folder} is emptied faster than shards are read: raise {CACHE_GB}, or take fewer readers"
        )


def mirror_shards(folder: Path, url: str) -> None:
    """Copy the shards of a data artefact to ``url``, skipping existing ones, and store the URL in the artefact.

    Raises:
        UserError: the shards are not local, or the URL cannot be written.
    """
    shards = sorted((folder / "shards").glob("*.tar"))
    if not shards:
        raise UserError(f"{folder} has no shards of its own: mirror it where `amrg prepare` made it")
    with _user_errors(url):
        system, root = _open(url)
        remote_sizes = {Path(entry["name"]).name: entry["size"] for entry in _listing(system, root)}
        todo = [path for path in shards if remote_sizes.get(path.name) != path.stat().st_size]
        for path in track_progress(todo, "copying shards", len(shards), len(shards) - len(todo)):
            system.put_file(str(path), f"{root}/{path.name}")
    note = folder / LOGS / _MIRROR_FILE
    note.parent.mkdir(exist_ok=True)
    note.write_text(url + "\n")
    print_on_rank_0(f"{len(shards)} shards lie at {url}; {folder / 'shards'} may be removed where disk is short")


class _Cache:
    """Local cache of the files of a URL, fetched on demand. Any number of processes may share the folder."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.folder = Path(os.environ.get(CACHE, "~/.cache/amrg/shards")).expanduser()
        try:
            self.most_bytes = int(float(os.environ.get(CACHE_GB, "50")) * 1e9)
        except ValueError:
            raise UserError(f"{CACHE_GB} is {os.environ[CACHE_GB]!r}: give a number of gigabytes") from None

    def path(self, name: str) -> Path:
        """Return the local copy of a file, fetched if missing; it may be evicted before it is opened."""
        path = self.folder / f"{hashlib.sha256(self.url.encode()).hexdigest()[:8]}-{name}"
        try:
            os.utime(path)  # the modification time is the time of the last read
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
        """Remove the least recently read files until ``size`` more bytes fit."""
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
    """Return the fsspec file system of a URL and the path in it."""
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
