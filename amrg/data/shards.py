"""Studies to WebDataset shards, with an index that says where each sample lies and what its bytes hash to.

``shards/<split>-<number>.tar`` holds whole samples of one split, the members of a sample side by side:
``<key>.0.jpg`` (``.1.jpg`` … for further views), ``<key>.<finding>.mask.png`` where the true extent is known, and
``<key>.json``. ``index.parquet`` has one row per sample (``INDEX``), in the order of the shards.

The bytes are a function of the source, the configuration and the seed: not of the number of workers, nor of how often
the work was interrupted.
"""

import hashlib
import json
import multiprocessing
import os
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import webdataset as wds

from amrg.artifacts import file_hash
from amrg.config import DataConfig
from amrg.data.data_card import write_data_card
from amrg.data.image_ops import downscale, encode_film, encode_mask
from amrg.data.labels import LABELS
from amrg.data.studies import SPLITS, Source, Study, StudyImages
from amrg.errors import UserError
from amrg.progress import echo, track

#: One row per sample. ``offset`` and ``size`` are bytes of the tar (headers and padding included), so that one sample
#: can be read, and checked against ``sha256``, without its neighbours.
INDEX = pa.schema(
    {
        "split": pa.string(),
        "shard": pa.string(),
        "key": pa.string(),
        "group": pa.string(),
        "offset": pa.int64(),
        "size": pa.int64(),
        "sha256": pa.string(),
        "views": pa.int32(),
        "labels": pa.struct({label: pa.float32() for label in LABELS}),
        "report": pa.string(),
        "projections": pa.list_(pa.string()),
        "prior": pa.string(),
    }
)


NAMED = 20  # bad studies named in a message; statistics.json has more


@dataclass(frozen=True)
class Shard:
    """What one worker writes in one go."""

    name: str
    studies: list[Study]


#: Has a shard written (``write_shard``, after ``init_shard_writer``).
SubmitShard = Callable[[Shard], "Future[None]"]
#: Those who write the shards of a source, for as long as they are needed.
ShardExecutor = Callable[[Source, DataConfig, Path], AbstractContextManager[SubmitShard]]


def prepare(source: Source, config: DataConfig, folder: Path, seed: int, writers: ShardExecutor | None = None) -> None:
    """Write the shards and the index of a data set; shards that an interrupted run finished are kept.

    Args:
        source: the data set; pickled once for each of ``config.workers`` processes.
        config: ``image_size`` (short side of the stored films), ``shard_size``, ``max_bad_fraction`` and ``workers``
            are read.
        folder: receives ``shards/``, ``index.parquet``, ``statistics.json`` and ``card.md``;
            ``scratch/`` is only needed to go on after an interruption.
        seed: studies are shuffled before they are cut into shards, so that each shard is a fair sample of its split.
        writers: who writes the shards; None: ``config.workers`` processes of this machine.

    Raises:
        UserError: a split is empty, two studies share a key, too many films are unreadable, the disk is full.
    """
    plan = _plan(source.studies(), config.shard_size, seed)
    try:
        for name in ("shards", "scratch"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        todo = [shard for shard in plan if not _is_whole(shard, folder)]
        with (writers or _processes)(source, config, folder) as submit:
            futures = [submit(shard) for shard in todo]
            for future in track(as_completed(futures), "writing shards", total=len(plan), done=len(plan) - len(todo)):
                future.result()
        notes = [json.loads(_shard_record_path(shard, folder).read_text()) for shard in plan]
        rows = [row for note in notes for row in note["rows"]]
        skipped = [one for note in notes for one in note["skipped"]]
        _check_skipped(skipped, len(rows) + len(skipped), config.max_corrupt_fraction)
        for path in {*(folder / "shards").iterdir()} - {_tar(shard, folder) for shard in plan}:
            path.unlink()  # of an interrupted run on a data set that has changed since
        temporary = folder / "scratch" / f"index.{os.getpid()}"
        write_data_card(rows, skipped, getattr(source, "left_out", {}), config, folder)
        pq.write_table(pa.Table.from_pylist(rows, schema=INDEX), temporary)
        temporary.replace(folder / "index.parquet")
    except BrokenProcessPool:
        raise UserError(
            "a worker died while writing shards (out of memory?): start again, finished shards are kept; "
            "--data.workers 1 needs the least memory"
        ) from None
    except OSError as error:
        raise UserError(f"cannot write shards to {folder}: {error.strerror or type(error).__name__}") from None


def read_index(folder: Path, split: str, columns: list[str] | None = None, with_wordless: bool = False) -> pa.Table:
    """The index rows of one split, in stored order.

    Args:
        folder: a data artefact.
        split: of it.
        columns: of ``INDEX``; None: all.
        with_wordless: also studies without a text, which stage 1 alone uses.

    Raises:
        UserError: there is no readable index, or the split is empty or unknown.
    """
    path = folder / "index.parquet"
    try:
        wanted = pc.field("split") == split
        if not with_wordless:
            wanted &= (pc.field("report") != "") | pc.field("report").is_null()  # null: told by the sample alone
        table = pq.read_table(path, columns=columns, filters=wanted)
    except (OSError, pa.ArrowException) as error:
        raise UserError(
            f"no readable index at {path} ({type(error).__name__}): make the data artefact with `amrg prepare CONFIG`"
        ) from None
    if not table.num_rows:
        raise UserError(f"{path}: the split `{split}` has no studies (splits: {', '.join(SPLITS)})")
    return table


def hash_key(key: str) -> str:
    """A name for a study that may stand in logs and error messages."""
    return hashlib.sha256(key.encode()).hexdigest()[:12]


def _plan(studies: list[Study], shard_size: int, seed: int) -> list[Shard]:
    repeated = [key for key, times in Counter(study.key for study in studies).items() if times > 1]
    if repeated:
        raise UserError(f"the data source gives {len(repeated)} keys to more than one study: keys must be unique")
    plan = []
    for number, split in enumerate(SPLITS):
        members = [study for study in studies if study.split == split]
        if not members:
            raise UserError(f"the split `{split}` is empty: check data.path and data.{split}_studies")
        order = np.random.default_rng([seed, number]).permutation(len(members))
        for start in range(0, len(members), shard_size):
            chosen = [members[i] for i in order[start : start + shard_size]]
            plan.append(Shard(f"{split}-{start // shard_size:06d}", chosen))
    return plan


def _check_skipped(skipped: list[dict[str, str]], total: int, fraction: float) -> None:
    """Name what was left out; stop where it is too much."""
    if not skipped:
        return
    named = ", ".join(f"{one['key']} ({one['reason']})" for one in skipped[:NAMED])
    if len(skipped) > fraction * total:
        raise UserError(
            f"{len(skipped)} of {total} studies cannot be read, more than data.max_corrupt_fraction {fraction}; "
            f"hashed keys: {named}; repair them (`amrg doctor` says which), or raise the fraction, then start again"
        )
    echo(f"left out, films or labels that cannot be read: {len(skipped)} of {total} studies; hashed keys: {named}")


def _tar(shard: Shard, folder: Path) -> Path:
    return folder / "shards" / f"{shard.name}.tar"


def _shard_record_path(shard: Shard, folder: Path) -> Path:
    """Index rows of one shard; written after the tar, so that they stand for a whole shard."""
    return folder / "scratch" / f"{shard.name}.json"


def _is_whole(shard: Shard, folder: Path) -> bool:
    try:
        notes = json.loads(_shard_record_path(shard, folder).read_text())
        left_out = {one["key"] for one in notes["skipped"]}
        expected = [study.key for study in shard.studies if hash_key(study.key) not in left_out]
        return [row["key"] for row in notes["rows"]] == expected and file_hash(_tar(shard, folder)) == notes["sha256"]
    except (OSError, ValueError, KeyError):
        return False


# ---- in the worker processes ----

_source: Source
_image_size: int
_folder: Path


@contextmanager
def _processes(source: Source, config: DataConfig, folder: Path) -> Iterator[SubmitShard]:
    """Fresh processes with one numerical thread each: bytes must not depend on how many threads summed something."""
    threads = {name: os.environ.get(name) for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
    pool = ProcessPoolExecutor(
        config.workers,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_start_worker,
        initargs=(source, config.image_size, folder),
    )
    os.environ.update(dict.fromkeys(threads, "1"))
    try:
        yield lambda shard: pool.submit(write_shard, shard)
    finally:
        pool.shutdown(cancel_futures=True)
        for name, value in threads.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def init_shard_writer(source: Source, image_size: int, folder: Path) -> None:
    """What a process must know before it writes shards."""
    global _source, _image_size, _folder
    _source, _image_size, _folder = source, image_size, folder


def _start_worker(source: Source, image_size: int, folder: Path) -> None:
    init_shard_writer(source, image_size, folder)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def die_with_parent() -> None:  # a killed parent cannot stop its pool, whose workers would wait for ever
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=die_with_parent, daemon=True).start()


def write_shard(shard: Shard) -> None:
    """Write one shard and the notes that stand for it, whole."""
    # The process id keeps a worker that outlives a killed run for a moment out of the next run's way.
    temporary = _folder / "scratch" / f"{shard.name}.{os.getpid()}"
    rows: list[dict[str, Any]] = []
    skipped: list[dict[str, str]] = []
    with temporary.open("wb") as file, wds.TarWriter(file, encoder=False, user="", group="", mtime=0) as tar:
        for study in shard.studies:
            offset = tar.tarstream.offset
            try:
                films = _load_images(study)
            except (OSError, ValueError) as error:
                skipped.append({"key": hash_key(study.key), "reason": _reason(error)})
                continue
            tar.write(_members(study, films))
            place = {"shard": shard.name, "offset": offset, "size": tar.tarstream.offset - offset}
            rows.append(place | {"views": len(films.views)} | _record(study))
    data = temporary.read_bytes()
    for row in rows:
        row["sha256"] = hashlib.sha256(data[row["offset"] : row["offset"] + row["size"]]).hexdigest()
    temporary.replace(_tar(shard, _folder))
    notes = {"sha256": hashlib.sha256(data).hexdigest(), "rows": rows, "skipped": skipped}
    temporary.write_text(json.dumps(notes))
    temporary.replace(_shard_record_path(shard, _folder))


def _load_images(study: Study) -> StudyImages:
    if study.load_error:
        raise ValueError(study.load_error)
    films = _source.films(study)
    assert films.views, "a study without films"
    assert all(mask.shape == films.views[0].shape for mask in films.masks.values()), "a mask of another size"
    return films


def _reason(error: OSError | ValueError) -> str:
    """Why a film could not be read, without a path in it."""
    return type(error).__name__ if isinstance(error, OSError) else str(error)


def _members(study: Study, films: StudyImages) -> dict[str, Any]:
    """One sample as webdataset writes it: members by suffix."""
    assert re.fullmatch(r"[\w-]+", study.key, re.ASCII), "a key that is not safe in a tar"
    slugs = {finding: re.sub(r"[^a-z0-9]+", "-", finding.lower()) for finding in films.masks}
    assert len(set(slugs.values())) == len(slugs), "two masks of one name"
    members: dict[str, Any] = {"__key__": study.key}
    for number, view in enumerate(films.views):
        members[f"{number}.jpg"] = encode_film(downscale(view, _image_size))
    for finding, mask in films.masks.items():
        members[f"{slugs[finding]}.mask.png"] = encode_mask(downscale(mask, _image_size))
    record = _record(study) | {"masks": {slug: finding for finding, slug in slugs.items()}}
    members["json"] = json.dumps(record, ensure_ascii=False).encode()
    return members


def _record(study: Study) -> dict[str, Any]:
    told = {name: getattr(study, name) for name in ("key", "group", "split", "report", "labels", "prior")}
    return told | {"projections": list(study.views)}
