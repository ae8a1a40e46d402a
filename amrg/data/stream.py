"""Reading of samples from shards: in index order (``iter_split_samples``), or in shuffled batches (``Stream``)."""

import hashlib
import io
import json
import logging
import multiprocessing
import os
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import pyarrow as pa
import torch
from torch.utils.data import DataLoader, Dataset
from webdataset.tariterators import group_by_keys, tar_file_expander

from amrg.data.context import Context
from amrg.data.image_ops import decode_film_jpeg, decode_mask_png
from amrg.data.labels import LABELS
from amrg.data.shard_cache import ShardFiles
from amrg.data.shards import OPTIONAL, exit_with_parent, hash_study_key, read_split_index
from amrg.data.studies import Study
from amrg.distributed import world_size
from amrg.errors import UserError
from amrg.progress import print_on_rank_0

logger = logging.getLogger(__name__)

MAX_LANES = 64
#: Damaged samples that are logged one by one; the others are counted.
MAX_LOGGED = 10

#: Modules that the server of reader processes imports before it forks them.
READER_IMPORTS = [__name__, "torchvision.io"]
#: Most reader processes that ``auto`` takes for a rank.
MAX_READERS = 16
#: Number of consecutive batches whose samples are sorted by length together.
SORT_WINDOW = 16

_PLACE = ["shard", "key", "offset", "size", "sha256"]


@dataclass(frozen=True)
class Sample:
    """A study with its pixels.

    Attributes:
        study: report and labels.
        views: films, uint8 [H, W] each.
        masks: true extent of each finding on the first view, bool [H, W]; empty if unknown.
    """

    study: Study
    views: list[np.ndarray]
    masks: dict[str, np.ndarray]


#: One rank's part of a batch (None if all samples of a lane are damaged), and the reasons of damaged rows by number.
RankBatch = tuple[Any, dict[int, str]]
#: Combines a rank's samples of a batch (stacks, pads) in the process that decodes them. Picklable.
Collate = Callable[[list[Sample]], Any]


class RankBatches(Protocol):
    """A rank's parts of the batches of an epoch. Picklable; every process reads the same parts.

    Attributes:
        samples: number of samples in one part.
    """

    samples: int

    def __getitem__(self, step: int) -> RankBatch: ...


#: Yields the parts of some steps in order; it may read them in other processes and ahead of time.
Fetch = Callable[[RankBatches, range], Iterable[RankBatch]]

_FETCH: ContextVar[Fetch | None] = ContextVar("fetch", default=None)


@contextmanager
def use_shard_fetcher(fetch: Fetch) -> Iterator[None]:
    """Let every ``Stream`` in the block read through ``fetch`` instead of its own reader processes."""
    token = _FETCH.set(fetch)
    try:
        yield
    finally:
        _FETCH.reset(token)


def fetch_sequentially(parts: RankBatches, steps: range) -> Iterable[RankBatch]:
    """Read each part in this process when it is requested."""
    return map(parts.__getitem__, steps)


def num_batch_lanes(batch_size: int) -> int:
    """Return the number of lanes of a global batch: its largest divisor up to ``MAX_LANES``."""
    return max(n for n in range(1, min(batch_size, MAX_LANES) + 1) if batch_size % n == 0)


# Studies without a text are skipped unless ``with_wordless`` is set: only stage 1 uses them.


def num_split_studies(folder: Path, split: str, with_wordless: bool = False) -> int:
    """Return the number of studies of a split."""
    return read_split_index(folder, split, ["split"], with_wordless).num_rows


def load_split_studies(folder: Path, split: str, with_wordless: bool = False) -> list[Study]:
    """Read the studies of a split in index order, without opening a film."""
    columns = ["key", "group", "split", "report", "labels", "projections", "prior", *OPTIONAL.names]
    return [_study(row) for row in read_split_index(folder, split, columns, with_wordless).to_pylist()]


def num_films_by_study(folder: Path, split: str, with_wordless: bool = False) -> list[int]:
    """Return the number of films of each study of a split, in index order."""
    return read_split_index(folder, split, ["views"], with_wordless)["views"].to_pylist()


def study_weights(
    folder: Path, split: str, weights: Mapping[str, float], with_wordless: bool = False
) -> np.ndarray | None:
    """Return the weight of each study of a split by its data set, float64 [N]; None without weights.

    Args:
        folder: data artefact.
        split: name of the split.
        weights: weight of each data set (``DataConfig.weights``); empty if all are 1.
        with_wordless: whether to include studies without a text.
    """
    if not weights:
        return None
    names = read_split_index(folder, split, ["dataset"], with_wordless)["dataset"].to_pylist()
    return np.array([weights[name] for name in names])


def draw_epoch_counts(weights_N: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """Draw how often each study is seen in an epoch, int64 [N]; the sum is the same for all epochs.

    A study is seen as often as the whole part of its weight says. Of the studies of one weight a random share, the
    fraction of the weight, is seen once more.
    """
    generator = np.random.default_rng([seed, epoch, 2])
    counts_N = np.floor(weights_N).astype(np.int64)
    for weight in np.unique(weights_N):
        members = np.flatnonzero(weights_N == weight)
        counts_N[generator.permutation(members)[: round((weight % 1) * len(members))]] += 1
    return counts_N


def draw_epoch_rows(size: int, weights_N: np.ndarray | None, seed: int, epoch: int) -> np.ndarray:
    """Return the row of each sample of an epoch, in the order of the rows, int64; every row once without weights."""
    rows_N = np.arange(size)
    return rows_N if weights_N is None else np.repeat(rows_N, draw_epoch_counts(weights_N, seed, epoch))


def iter_split_samples(
    folder: Path, split: str, numbers: Sequence[int] | None = None, with_wordless: bool = False
) -> Iterator[Sample]:
    """Yield the samples with these numbers in the index of a split, or all samples in index order.

    Raises:
        UserError: a sample is damaged; the message names its shard.
    """
    files, rows = ShardFiles(folder), read_split_index(folder, split, _PLACE, with_wordless)
    if numbers is not None:
        rows = rows.take(pa.array(numbers, pa.int64()))
    for row in rows.to_pylist():
        yield _load_or_user_error(files, folder, row)


class SampleLookup:
    """Mapping from the key of a study to its sample, which is read on access.

    Args:
        folder: a data artefact.
        split: its split.
        online: as of ``ShardFiles``.
    """

    def __init__(self, folder: Path, split: str, online: bool = True) -> None:
        self._folder, self._files, self._rows = (
            folder,
            ShardFiles(folder, online),
            read_split_index(folder, split, _PLACE),
        )
        self._numbers = {key: number for number, key in enumerate(self._rows["key"].to_pylist())}

    def __getitem__(self, key: str) -> Sample:
        """Return the sample of a study. Raises KeyError if it does not exist, UserError if its sample is damaged."""
        return _load_or_user_error(self._files, self._folder, _row(self._rows, self._numbers[key]))


def reader_processes(setting: int | Literal["auto"]) -> int:
    """Number of processes that read ahead for a rank.

    Args:
        setting: the number; ``auto``: with a GPU the rank's share of the cores that this process may use, less one,
            at least 1 and at most ``MAX_READERS``. Without a GPU 0, because the training itself needs the cores.
    """
    if setting != "auto":
        return setting
    if not torch.cuda.is_available():
        return 0
    local = os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE")
    ranks = int(local) if local else min(world_size(), torch.cuda.device_count())
    return min(max(len(os.sched_getaffinity(0)) // ranks - 1, 1), MAX_READERS)


@cache
def _report_readers(readers: int) -> None:
    print_on_rank_0(f"{readers} processes of each rank read films ahead (data.loader_workers)")


class Stream:
    """Shuffled batches of a split, the same for any number of ranks, and resumable at any batch.

    The order depends on (seed, epoch) only: shards are shuffled, then samples inside each shard. This sequence is
    divided into lanes of equal length, and a global batch takes the same number of samples from the head of every lane,
    so that a lane reads one shard after the other. Rank r of W reads the lanes congruent to r. The number of lanes is
    the largest divisor of the batch size up to ``MAX_LANES``; with few shards a lane may be less than a shard.

    Each sample occurs at most once per epoch, or as often as its weight says, first all the
    first times. The last samples of the sequence, fewer than a batch, are left out; they
    differ between epochs. A damaged sample is skipped, recorded in ``corrupt`` and logged, and the next readable sample
    of its lane takes its place, so that batches stay full.

    With ``lengths`` the samples of a batch are of similar length: in every lane, each window of ``SORT_WINDOW`` batches
    is sorted, and its batches are shuffled again.

    Args:
        folder: data artefact.
        split: usually ``train``.
        batch_size: number of samples of a global batch, over all ranks.
        seed: seed of the order.
        rank: number of this process.
        world: number of processes; must divide the number of lanes.
        max_corrupt_fraction: reading stops with more damaged samples than this fraction of the rank's share.
        readers: number of processes that read ahead for this rank; 0 reads on request.
        collate: applied to this rank's samples of a batch, in the reader processes if there are any; its tensors are
            pinned if there is a GPU.
        lengths: length of each sample of the split, in index order.
        with_wordless: whether to include studies without a text.
        weights: weight of each sample of the split, in index order (``draw_epoch_counts``); None: each is seen once.

    Raises:
        UserError: the split has less than one batch, the ranks do not fit the lanes, or too many samples are damaged.
    """

    def __init__(
        self,
        folder: Path,
        split: str,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
        max_corrupt_fraction: float = 0.01,
        readers: int = 0,
        collate: Collate = list,
        lengths: Sequence[int] | None = None,
        with_wordless: bool = False,
        weights: np.ndarray | None = None,
    ) -> None:
        self.corrupt: dict[str, str] = {}
        self.lanes = num_batch_lanes(batch_size)
        self._folder, self._seed, self._rank, self._world = folder, seed, rank, world
        self._rows = read_split_index(folder, split, _PLACE, with_wordless)
        self._shards = _runs(self._rows["shard"].to_numpy())
        self._per_lane = batch_size // self.lanes
        self._weights = weights
        samples = len(draw_epoch_rows(len(self._rows), weights, seed, 0))
        self.steps_per_epoch = samples // batch_size
        self._readers, self._collate = readers, collate
        self._lengths = None if lengths is None else np.asarray(lengths)
        self._max_corrupt = max_corrupt_fraction * len(self._rows) / world
        if not self.steps_per_epoch:
            raise UserError(
                f"the split `{split}` has {samples} studies, less than one batch of {batch_size}: lower the batch size"
            )
        if self.lanes % world:
            raise UserError(
                f"a batch of {batch_size} is read in {self.lanes} lanes, which {world} ranks cannot share evenly: "
                f"choose a batch size that is a multiple of {world}"
            )

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Any]:
        """Yield this rank's collated part of each global batch of an epoch, from batch ``start`` on."""
        batches = _Batches(self._folder, self._rows, self._lanes(epoch), self._per_lane, self._collate)
        steps = range(start, self.steps_per_epoch)
        # A step depends on its number only, so readers change neither its content nor the order.
        fetch = _FETCH.get() or (self._fetch_ahead if self._readers else fetch_sequentially)
        for part, corrupt in fetch(batches, steps):
            for number, reason in corrupt.items():
                self._skip(number, reason)
            if part is None:
                raise UserError(f"{self._folder}: a whole lane of samples is damaged; {_REMEDY}")
            yield part

    def _fetch_ahead(self, parts: Any, steps: range) -> Iterable[RankBatch]:
        """Read parts in reader processes of this rank, forked in each epoch from a server that imports torch once."""
        _report_readers(self._readers)
        # A fork of this process would share the locks of its threads, and could not use CUDA.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(READER_IMPORTS)
        return DataLoader(
            parts,
            batch_size=None,
            sampler=steps,
            num_workers=self._readers,
            multiprocessing_context=context,
            worker_init_fn=partial(_start_reader, dict(os.environ)),
            collate_fn=_identity,
            pin_memory=torch.cuda.is_available(),
        )

    def _lanes(self, epoch: int) -> list[np.ndarray]:
        """Return the index rows of this rank's lanes in an epoch."""
        order = self._order(epoch)
        length = len(order) // self.lanes
        lanes = [order[lane * length : (lane + 1) * length] for lane in range(self._rank, self.lanes, self._world)]
        if self._lengths is None:
            return lanes
        return [group_by_length(lane, self._lengths, self._per_lane, [self._seed, epoch]) for lane in lanes]

    def _order(self, epoch: int) -> np.ndarray:
        """Return the index rows in the order of an epoch, int64: shards are shuffled, then rows inside each."""
        generator = np.random.default_rng([self._seed, epoch])
        passes = [self._shards]
        if self._weights is not None:
            counts = draw_epoch_counts(self._weights, self._seed, epoch)
            passes = [[rows[counts[rows] > k] for rows in self._shards] for k in range(counts.max())]
        return np.concatenate(
            [generator.permutation(shards[i]) for shards in passes for i in generator.permutation(len(shards))]
        )

    def _skip(self, number: int, reason: str) -> None:
        row = _row(self._rows, number)
        if row["key"] in self.corrupt:
            return
        self.corrupt[row["key"]] = reason
        if len(self.corrupt) <= MAX_LOGGED:
            logger.warning("skipped: %s.tar: %s", row["shard"], _corruption_message(row, reason))
        if len(self.corrupt) == MAX_LOGGED:
            logger.warning("further damaged samples are counted, not named")
        if len(self.corrupt) > self._max_corrupt:
            raise UserError(
                f"{_tar(self._folder, row)}: {_corruption_message(row, reason)}; {len(self.corrupt)} such samples are "
                f"more than the {self._max_corrupt:.1f} tolerated; {_REMEDY}"
            )


class _Batches(Dataset[RankBatch]):
    """One rank's parts of the batches of an epoch, by number."""

    def __init__(self, folder: Path, rows: pa.Table, lanes: list[np.ndarray], per_lane: int, collate: Collate) -> None:
        self._files, self._rows, self._lanes = ShardFiles(folder), rows, lanes
        self._per_lane, self._collate = per_lane, collate
        self.samples = len(lanes) * per_lane

    def __getitem__(self, step: int) -> RankBatch:
        corrupt: dict[int, str] = {}
        positions = range(step * self._per_lane, (step + 1) * self._per_lane)
        found = [self._next_readable(lane, position, corrupt) for lane in self._lanes for position in positions]
        samples = [sample for sample in found if sample is not None]
        return (self._collate(samples) if len(samples) == len(found) else None), corrupt

    def _next_readable(self, lane: np.ndarray, position: int, corrupt: dict[int, str]) -> Sample | None:
        """Return the sample at a position of a lane, or the next readable one (cyclically); None if there is none."""
        for shift in range(len(lane)):
            number = int(lane[(position + shift) % len(lane)])
            if number in corrupt:
                continue
            try:
                return _load(self._files, _row(self._rows, number))
            except ValueError as error:
                corrupt[number] = str(error)
        return None


def group_by_length(order: np.ndarray, lengths: np.ndarray, size: int, seed: list[int]) -> np.ndarray:
    """Reorder samples so that each batch of ``size`` has samples of similar length.

    Every window of ``SORT_WINDOW`` × ``size`` samples is sorted and divided into batches, which are shuffled; an
    incomplete batch stays at the end. The order of batches depends on ``seed`` only, so that the parts of a global
    batch in parallel lanes are of similar length.
    """
    generator = np.random.default_rng([*seed, 1])
    complete = len(order) // size * size
    result = []
    for start in range(0, complete, SORT_WINDOW * size):
        window = order[start : min(start + SORT_WINDOW * size, complete)]
        batches = window[np.argsort(lengths[window], kind="stable")].reshape(-1, size)
        result.append(batches[generator.permutation(len(batches))].flatten())
    return np.concatenate([*result, order[complete:]])


def _row(rows: pa.Table, number: int) -> dict[str, Any]:
    return rows.slice(number, 1).to_pylist()[0]


def _identity(batch: Any) -> Any:
    return batch


def _start_reader(environment: dict[str, str], reader: int) -> None:
    os.environ.update(environment)  # the server has that of its own start, perhaps without the keys of a bucket
    exit_with_parent()


_REMEDY = "delete this data artefact and make it again with `amrg prepare CONFIG`"


def _runs(shards: np.ndarray) -> list[np.ndarray]:
    """Return the row numbers of each shard, given the shard's name in each row."""
    return np.split(np.arange(len(shards)), np.flatnonzero(shards[1:] != shards[:-1]) + 1)


def _tar(folder: Path, row: dict[str, Any]) -> Path:
    return folder / "shards" / f"{row['shard']}.tar"


def _corruption_message(row: dict[str, Any], error: ValueError | str) -> str:
    return f"sample {hash_study_key(row['key'])} (hashed key) at byte {row['offset']} is damaged: {error}"


def _load_or_user_error(files: ShardFiles, folder: Path, row: dict[str, Any]) -> Sample:
    """Load a sample; damage raises UserError with a remedy."""
    try:
        return _load(files, row)
    except ValueError as error:
        raise UserError(f"{_tar(folder, row)}: {_corruption_message(row, error)}; {_REMEDY}") from None


def _load(files: ShardFiles, row: dict[str, Any]) -> Sample:
    """Read one sample at its position in the index.

    Raises:
        ValueError: the bytes differ from those written, or cannot be decoded.
        UserError: the shard is missing.
    """
    try:
        data = files.read(row["shard"], row["offset"], row["size"])
    except OSError as error:
        raise UserError(f"{row['shard']}.tar: {error.strerror}; {_REMEDY}") from None
    if len(data) < row["size"]:
        raise ValueError("the shard ends in the middle of it")
    if hashlib.sha256(data).hexdigest() != row["sha256"]:
        raise ValueError("its bytes are not those of the index (sha256)")
    return _decode(data, row["key"])


def _decode(data: bytes, key: str) -> Sample:
    """Decode the tar members of one sample. Raises ValueError if they are not the sample of this key."""
    try:
        members: dict[str, Any] = next(group_by_keys(tar_file_expander([{"url": "", "stream": io.BytesIO(data)}])))
        record = json.loads(members["json"])
        films = [members[f"{number}.jpg"] for number in range(sum(name.endswith(".jpg") for name in members))]
        masks = {finding: members[f"{slug}.mask.png"] for slug, finding in record["masks"].items()}
        study = _study(record)
    except (StopIteration, tarfile.TarError, ValueError, KeyError, TypeError, AssertionError) as error:
        raise ValueError(f"its members are not a sample ({type(error).__name__})") from None
    if not study.key == members["__key__"] == key or not films:
        raise ValueError("it is another sample, or has no film")
    pixels = {finding: decode_mask_png(content) for finding, content in masks.items()}
    return Sample(study, [decode_film_jpeg(content) for content in films], pixels)


def _study(record: dict[str, Any]) -> Study:
    labels = {label: record["labels"][label] for label in LABELS}
    projections = tuple(record.get("projections") or ())
    return Study(
        record["key"], record["group"], record["split"], record["report"], labels, projections, record.get("prior", ""),
        unlabelled=tuple(record.get("unlabelled") or ()), dataset=record.get("dataset") or "",
        context=Context(**(record.get("context") or {})),
        prior_days=record.get("prior_days"), prior_report=record.get("prior_report") or "",
        impression=record.get("impression") or "",
        changes={finding: change for finding, change in (record.get("changes") or {}).items() if change},
    )  # fmt: skip
