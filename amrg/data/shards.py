"""Writing of studies to WebDataset shards, with an index of the position and hash of each sample.

``shards/<split>-<number>.tar`` holds complete samples of one split. The members of a sample are adjacent:
``<key>.0.jpg`` (``.1.jpg`` … for further views), ``<key>.<finding>.mask.png`` if the true extent is known, and
``<key>.json``. ``index.parquet`` has one row per sample (``INDEX``), in the order of the shards.

The bytes depend on the source, the configuration and the seed only, not on the number of workers or on interruptions.
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
from dataclasses import asdict, dataclass, replace
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import webdataset as wds

from amrg.artifacts import sha256_of_file
from amrg.config import DataConfig
from amrg.data.context import CONTEXT_FIELDS
from amrg.data.data_card import write_data_card
from amrg.data.image_ops import downscale_short_side, encode_film_jpeg, encode_mask_png
from amrg.data.labels import FINDINGS, LABELS
from amrg.data.projection import ByProjection
from amrg.data.studies import SPLITS, Source, Study, StudyImages
from amrg.errors import UserError
from amrg.progress import print_on_rank_0, track_progress

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

#: Columns that only some data sets need; others are indexed as before there were these.
OPTIONAL = pa.schema(
    {
        "dataset": pa.string(),
        "unlabelled": pa.list_(pa.string()),
        "context": pa.struct({name: pa.int32() if name == "age" else pa.string() for name in CONTEXT_FIELDS}),
        "prior_days": pa.int32(),
        "prior_report": pa.string(),
        "changes": pa.struct({finding: pa.string() for finding in FINDINGS}),
        "impression": pa.string(),
    }
)

NAMED = 20  # bad studies named in a message; statistics.json has more


@dataclass(frozen=True)
class Shard:
    """Studies of one shard, written by one worker."""

    name: str
    studies: list[Study]


#: Submits a shard to a writer, which runs ``write_shard_files`` after ``init_shard_writer``.
SubmitShard = Callable[[Shard], "Future[None]"]
#: Opens the writers of the shards of a source.
ShardExecutor = Callable[[Source, DataConfig, Path], AbstractContextManager[SubmitShard]]


def prepare_shards(
    source: Source, config: DataConfig, folder: Path, seed: int, writers: ShardExecutor | None = None
) -> None:
    """Write the shards and the index of a data set; finished shards of an interrupted run are kept.

    Args:
        source: the data set; pickled once per worker process. Of films whose view it does not tell, those that look
            frontal come first (``ByProjection``).
        config: ``image_size`` (short side of the stored films), ``shard_size``, ``max_corrupt_fraction`` and
            ``workers`` are read.
        folder: receives ``shards/``, ``index.parquet``, ``statistics.json`` and ``card.md``;
            ``scratch/`` is only needed to resume after an interruption.
        seed: seed of the shuffle before studies are divided into shards, so that each shard is a random sample of its
            split.
        writers: writers of the shards; None starts ``config.workers`` processes on this machine.

    Raises:
        UserError: a split is empty, two studies share a key, too many films are unreadable, the disk is full.
    """
    plan = _plan(source.studies(), config.shard_size, seed)
    try:
        for name in ("shards", "scratch"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        ordered = ByProjection(source, config.source, seed)
        todo = [shard for shard in plan if not _is_complete(shard, folder)]
        with (writers or _processes)(ordered, config, folder) as submit:
            futures = [submit(shard) for shard in todo]
            for future in track_progress(
                as_completed(futures), "writing shards", total=len(plan), done=len(plan) - len(todo)
            ):
                future.result()
        records = [json.loads(_shard_record_path(shard, folder).read_text()) for shard in plan]
        rows = [row for record in records for row in record["rows"]]
        skipped = [one for record in records for one in record["skipped"]]
        _check_skipped(skipped, len(rows) + len(skipped), config.max_corrupt_fraction)
        filled = {_tar(shard, folder) for shard, record in zip(plan, records, strict=True) if record["rows"]}
        for path in {*(folder / "shards").iterdir()} - filled:
            path.unlink()  # without a sample, or left by an interrupted run on a data set that has changed since
        temporary = folder / "scratch" / f"index.{os.getpid()}"
        views = _predicted_views(ordered, [one for record in records for one in record.get("predicted", ())], config)
        write_data_card(rows, skipped, getattr(source, "left_out", {}), views, config, folder)
        more = [field for field in OPTIONAL if any(field.name in row for row in rows)]
        pq.write_table(pa.Table.from_pylist(rows, schema=pa.schema([*INDEX, *more])), temporary)
        temporary.replace(folder / "index.parquet")
    except BrokenProcessPool:
        raise UserError(
            "a worker died while writing shards (out of memory?): start again, finished shards are kept; "
            "--data.workers 1 needs the least memory"
        ) from None
    except OSError as error:
        raise UserError(f"cannot write shards to {folder}: {error.strerror or type(error).__name__}") from None


def read_split_index(
    folder: Path, split: str, columns: list[str] | None = None, with_wordless: bool = False
) -> pa.Table:
    """Read the index rows of one split, in stored order.

    Args:
        folder: data artefact.
        split: one of ``SPLITS``.
        columns: columns of ``INDEX`` and ``OPTIONAL``, of which missing ones are left out; None reads all.
        with_wordless: whether to include studies without a text, which only stage 1 uses.

    Raises:
        UserError: the index is missing or unreadable, or the split is empty or unknown.
    """
    path = folder / "index.parquet"
    try:
        wanted = pc.field("split") == split
        if not with_wordless:
            wanted &= (pc.field("report") != "") | pc.field("report").is_null()  # null: only the sample has the report
        if columns is not None and {*columns} & {*OPTIONAL.names}:
            names = pq.read_schema(path).names
            columns = [column for column in columns if column in names or column not in OPTIONAL.names]
        table = pq.read_table(path, columns=columns, filters=wanted)
    except (OSError, pa.ArrowException) as error:
        raise UserError(
            f"no readable index at {path} ({type(error).__name__}): make the data artefact with `amrg prepare CONFIG`"
        ) from None
    if not table.num_rows:
        raise UserError(f"{path}: the split `{split}` has no studies (splits: {', '.join(SPLITS)})")
    return table


def hash_study_key(key: str) -> str:
    """Hash the key of a study for logs and error messages."""
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
    """Print the skipped studies; raise UserError if they are more than ``fraction`` of all."""
    if not skipped:
        return
    named = ", ".join(f"{one['key']} ({one['reason']})" for one in skipped[:NAMED])
    if len(skipped) > fraction * total:
        raise UserError(
            f"{len(skipped)} of {total} studies cannot be read, more than data.max_corrupt_fraction {fraction}; "
            f"hashed keys: {named}; repair them (`amrg doctor PATH --list FILE` writes which), or raise the fraction, "
            "then start again"
        )
    print_on_rank_0(
        f"left out, films or labels that cannot be read: {len(skipped)} of {total} studies; hashed keys: {named}"
    )


def _predicted_views(
    source: ByProjection, predicted: list[dict[str, Any]], config: DataConfig
) -> dict[str, dict[str, Any]]:
    """Return the classifier of each data set, and of how many films and studies it decided."""
    found: dict[str, Counter[str]] = {name: Counter() for name in source.summary}
    for one in predicted:
        found[one["dataset"] or config.source].update(one["counts"])
    names = ("looks_frontal", "looks_lateral", "other_first_film")
    return {name: how | {what: found[name][what] for what in names} for name, how in source.summary.items()}


def _tar(shard: Shard, folder: Path) -> Path:
    return folder / "shards" / f"{shard.name}.tar"


def _shard_record_path(shard: Shard, folder: Path) -> Path:
    """Return the path of the record of one shard, written after the tar: an existing record marks a complete shard."""
    return folder / "scratch" / f"{shard.name}.json"


def _is_complete(shard: Shard, folder: Path) -> bool:
    try:
        record = json.loads(_shard_record_path(shard, folder).read_text())
        skipped = {one["key"] for one in record["skipped"]}
        expected = [study.key for study in shard.studies if hash_study_key(study.key) not in skipped]
        if [row["key"] for row in record["rows"]] != expected:
            return False
        return not expected or sha256_of_file(_tar(shard, folder)) == record["sha256"]
    except (OSError, ValueError, KeyError):
        return False


# ---- in the worker processes ----

_source: Source
_image_size: int
_folder: Path


@contextmanager
def _processes(source: Source, config: DataConfig, folder: Path) -> Iterator[SubmitShard]:
    """Start fresh processes with one numerical thread each, so that bytes do not depend on the number of threads."""
    threads = {name: os.environ.get(name) for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
    pool = ProcessPoolExecutor(
        config.workers,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_start_worker,
        initargs=(source, config.image_size, folder),
    )
    os.environ.update(dict.fromkeys(threads, "1"))
    try:
        yield lambda shard: pool.submit(write_shard_files, shard)
    finally:
        pool.shutdown(cancel_futures=True)
        for name, value in threads.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def init_shard_writer(source: Source, image_size: int, folder: Path) -> None:
    """Set the globals of a writer process."""
    global _source, _image_size, _folder
    _source, _image_size, _folder = source, image_size, folder


def _start_worker(source: Source, image_size: int, folder: Path) -> None:
    init_shard_writer(source, image_size, folder)
    exit_with_parent()


def exit_with_parent() -> None:
    """End this process with the one that asked for it: a killed one cannot stop its pool, which would wait forever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    sentinel = parent.sentinel

    def exit_after() -> None:
        wait([sentinel])
        os._exit(1)

    threading.Thread(target=exit_after, daemon=True).start()


def write_shard_files(shard: Shard) -> None:
    """Write one shard and its record, each atomically."""
    # The process id separates the file from that of a worker that briefly outlives a killed run.
    temporary = _folder / "scratch" / f"{shard.name}.{os.getpid()}"
    rows: list[dict[str, Any]] = []
    skipped: list[dict[str, str]] = []
    predicted: list[dict[str, Any]] = []
    with temporary.open("wb") as file, wds.TarWriter(file, encoder=False, user="", group="", mtime=0) as tar:
        for study in shard.studies:
            offset = tar.tarstream.offset
            try:
                films = _load_images(study)
            except (OSError, ValueError) as error:
                skipped.append({"key": hash_study_key(study.key), "reason": _reason(error)})
                continue
            if films.order:
                study = replace(study, views=tuple(study.views[place] for place in films.order if study.views))
                frontal, lateral = films.predicted
                counts = {
                    "looks_frontal": frontal,
                    "looks_lateral": lateral,
                    "other_first_film": int(films.order[0] > 0),
                }
                predicted.append({"dataset": study.dataset, "counts": counts})
            study = replace(study, context=study.context.filled(films.context))
            tar.write(_members(study, films))
            location = {"shard": shard.name, "offset": offset, "size": tar.tarstream.offset - offset}
            rows.append(location | {"views": len(films.views)} | _record(study))
    data = temporary.read_bytes()
    for row in rows:
        row["sha256"] = hashlib.sha256(data[row["offset"] : row["offset"] + row["size"]]).hexdigest()
    temporary.replace(_tar(shard, _folder))
    record = {"sha256": hashlib.sha256(data).hexdigest(), "rows": rows, "skipped": skipped, "predicted": predicted}
    temporary.write_text(json.dumps(record))
    temporary.replace(_shard_record_path(shard, _folder))


def _load_images(study: Study) -> StudyImages:
    if study.load_error:
        raise ValueError(study.load_error)
    films = _source.films(study)
    assert films.views, "a study without films"
    assert all(mask.shape == films.views[0].shape for mask in films.masks.values()), "a mask of another size"
    return films


def _reason(error: OSError | ValueError) -> str:
    """Return why a film could not be read, without its path."""
    return type(error).__name__ if isinstance(error, OSError) else str(error)


def _members(study: Study, films: StudyImages) -> dict[str, Any]:
    """Return one sample for ``webdataset.TarWriter``: members by suffix."""
    assert re.fullmatch(r"[\w-]+", study.key, re.ASCII), "a key that is not safe in a tar"
    slugs = {finding: re.sub(r"[^a-z0-9]+", "-", finding.lower()) for finding in films.masks}
    assert len(set(slugs.values())) == len(slugs), "two masks of one name"
    members: dict[str, Any] = {"__key__": study.key}
    for number, view in enumerate(films.views):
        members[f"{number}.jpg"] = encode_film_jpeg(downscale_short_side(view, _image_size))
    for finding, mask in films.masks.items():
        members[f"{slugs[finding]}.mask.png"] = encode_mask_png(downscale_short_side(mask, _image_size))
    record = _record(study) | {"masks": {slug: finding for finding, slug in slugs.items()}}
    members["json"] = json.dumps(record, ensure_ascii=False).encode()
    return members


def _record(study: Study) -> dict[str, Any]:
    record = {name: getattr(study, name) for name in ("key", "group", "split", "report", "labels", "prior")}
    context = asdict(study.context) if study.context else {}
    optional = {"dataset": study.dataset, "unlabelled": list(study.unlabelled), "context": context}
    optional |= {"prior_report": study.prior_report, "changes": dict(study.changes), "impression": study.impression}
    record |= {"projections": list(study.views)} | {name: value for name, value in optional.items() if value}
    return record if study.prior_days is None else record | {"prior_days": study.prior_days}
