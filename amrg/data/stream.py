"""Shards to samples: one after the other (``read``), or as shuffled global batches for training (``Stream``)."""

import hashlib
import io
import json
import logging
import tarfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import torch
from torch.utils.data import DataLoader, Dataset
from webdataset.tariterators import group_by_keys, tar_file_expander

from amrg.data.image_ops import decode_film, decode_mask
from amrg.data.labels import LABELS
from amrg.data.shard_cache import ShardFiles
from amrg.data.shards import hash_key, read_index
from amrg.data.studies import Study
from amrg.errors import UserError

logger = logging.getLogger(__name__)

MAX_LANES = 64
#: Bad samples that are named one by one in the log; the rest is counted.
MAX_LOGGED = 10

#: Batches among which samples are sorted when a stream groups them by length.
SORT_WINDOW = 16

_PLACE = ["shard", "key", "offset", "size", "sha256"]


@dataclass(frozen=True)
class Sample:
    """A study with its pixels.

    Attributes:
        study: report and labels.
        views: films, uint8 [H, W] each.
        masks: true extent of findings on the first view, bool [H, W] by finding; empty where it is not known.
    """

    study: Study
    views: list[np.ndarray]
    masks: dict[str, np.ndarray]


#: One rank's part of a batch (None where a whole lane is damaged), and the damaged rows met on the way.
RankBatch = tuple[Any, dict[int, str]]
#: What a rank's samples of a batch become where they are decoded: stacked, padded. Picklable.
Collate = Callable[[list[Sample]], Any]


class RankBatches(Protocol):
    """A rank's parts of the batches of an epoch; can be pickled, and gives the same wherever it is asked.

    Attributes:
        samples: in one part.
    """

    samples: int

    def __getitem__(self, step: int) -> RankBatch: ...


#: Gives the parts of some steps in their order, read by whom it likes, as far ahead as it likes.
Fetch = Callable[[RankBatches, range], Iterable[RankBatch]]

_FETCH: ContextVar[Fetch | None] = ContextVar("fetch", default=None)


@contextmanager
def use_fetcher(fetch: Fetch) -> Iterator[None]:
    """Within the block ``fetch`` gets the parts of every ``Stream``, which starts no reader processes of its own."""
    token = _FETCH.set(fetch)
    try:
        yield
    finally:
        _FETCH.reset(token)


def fetch_sequentially(parts: RankBatches, steps: range) -> Iterable[RankBatch]:
    """Read a part when it is asked for."""
    return map(parts.__getitem__, steps)


def num_lanes(batch_size: int) -> int:
    """Lanes that a global batch is read in: its largest divisor up to ``MAX_LANES``."""
    return max(n for n in range(1, min(batch_size, MAX_LANES) + 1) if batch_size % n == 0)


# Studies without a text are passed over unless they are asked for (``with_wordless``): stage 1 alone uses them.


def num_studies(folder: Path, split: str, with_wordless: bool = False) -> int:
    """Number of studies of a split."""
    return read_index(folder, split, ["split"], with_wordless).num_rows


def load_studies(folder: Path, split: str, with_wordless: bool = False) -> list[Study]:
    """The studies of a split in index order, without a film being opened."""
    columns = ["key", "group", "split", "report", "labels", "projections", "prior"]
    return [_study(row) for row in read_index(folder, split, columns, with_wordless).to_pylist()]


def num_views(folder: Path, split: str, with_wordless: bool = False) -> list[int]:
    """Number of films of each study of a split, in index order."""
    return read_index(folder, split, ["views"], with_wordless)["views"].to_pylist()


def iter_samples(
    folder: Path, split: str, numbers: Sequence[int] | None = None, with_wordless: bool = False
) -> Iterator[Sample]:
    """The samples with these numbers in the index of a split, or every one in index order.

    Raises:
        UserError: a sample is damaged; the message names its shard.
    """
    files, rows = ShardFiles(folder), read_index(folder, split, _PLACE, with_wordless)
    if numbers is not None:
        rows = rows.take(pa.array(numbers, pa.int64()))
    for row in rows.to_pylist():
        yield _load_or_user_error(files, folder, row)


class SampleLookup:
    """The samples of a split by the key of their study, each read when it is asked for."""

    def __init__(self, folder: Path, split: str) -> None:
        self._folder, self._files, self._rows = folder, ShardFiles(folder), read_index(folder, split, _PLACE)
        self._numbers = {key: number for number, key in enumerate(self._rows["key"].to_pylist())}

    def __getitem__(self, key: str) -> Sample:
        """Raises KeyError where there is no such study; UserError where its sample is damaged."""
        return _load_or_user_error(self._files, self._folder, _row(self._rows, self._numbers[key]))


class Stream:
    """Shuffled batches of a split, the same for any number of ranks, and resumable at any batch.

    The order is a function of (seed, epoch) alone: shards are shuffled, and samples inside each. This sequence is cut
    into lanes of equal length, and a global batch takes the same number of samples from the head of every lane, so
    a lane reads shard after shard. Rank r of W serves the lanes congruent to r. The number of lanes is the largest
    divisor of the batch size up to ``MAX_LANES``, however few shards there are: a lane may be less than a shard.

    Each sample comes at most once an epoch. The last samples of the sequence, fewer than a batch, are left out, other
    ones in each epoch. A damaged sample is skipped, counted in ``bad``, named in the log, and its place taken by the
    next good one of its lane, so that batches stay full.

    With ``lengths`` the samples of a batch are of like length: in every lane, each stretch of ``SORT_WINDOW`` batches
    is sorted, and its batches are shuffled again.

    Args:
        folder: a data artefact.
        split: usually ``train``.
        batch_size: samples of a global batch, over all ranks.
        seed: of the order.
        rank: this process.
        world: number of processes; must divide the number of lanes.
        max_corrupt_fraction: of this rank's share of the split; with more damaged samples than that, reading stops.
        readers: processes that read ahead for this rank; 0 reads when a batch is asked for.
        collate: applied to this rank's samples of a batch, in the reader processes where there are any; its tensors
            are pinned where there is a GPU.
        lengths: of each sample of the split, in index order.
        with_wordless: also studies without a text.

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
    ) -> None:
        self.corrupt: dict[str, str] = {}
        self.lanes = num_lanes(batch_size)
        self._folder, self._seed, self._rank, self._world = folder, seed, rank, world
        self._rows = read_index(folder, split, _PLACE, with_wordless)
        self._shards = _runs(self._rows["shard"].to_numpy())
        self._per_lane = batch_size // self.lanes
        self.steps_per_epoch = len(self._rows) // batch_size
        self._readers, self._collate = readers, collate
        self._lengths = None if lengths is None else np.asarray(lengths)
        self._max_corrupt = max_corrupt_fraction * len(self._rows) / world
        if not self.steps_per_epoch:
            raise UserError(
                f"the split `{split}` has {len(self._rows)} studies, less than one batch of {batch_size}: "
                "lower the batch size"
            )
        if self.lanes % world:
            raise UserError(
                f"a batch of {batch_size} is read in {self.lanes} lanes, which {world} ranks cannot share evenly: "
                f"choose a batch size that is a multiple of {world}"
            )

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Any]:
        """This rank's part of each global batch of an epoch (what ``collate`` gave), from batch ``start`` on."""
        batches = _Batches(self._folder, self._rows, self._lanes(epoch), self._per_lane, self._collate)
        steps = range(start, self.steps_per_epoch)
        # Each step is a function of its number: readers change who reads it, not what comes or in which order.
        fetch = _FETCH.get() or (self._fetch_ahead if self._readers else fetch_sequentially)
        for found, bad in fetch(batches, steps):
            for number, reason in bad.items():
                self._skip(number, reason)
            if found is None:
                raise UserError(f"{self._folder}: a whole lane of samples is damaged; {_REMEDY}")
            yield found

    def _fetch_ahead(self, parts: Any, steps: range) -> Iterable[RankBatch]:
        """By reader processes of this rank's own."""
        return DataLoader(
            parts,
            batch_size=None,
            sampler=steps,
            num_workers=self._readers,
            multiprocessing_context="spawn",
            collate_fn=_identity,
            pin_memory=torch.cuda.is_available(),
        )

    def _lanes(self, epoch: int) -> list[np.ndarray]:
        """The index rows of this rank's lanes in an epoch."""
        order = self._order(epoch)
        length = len(order) // self.lanes
        lanes = [order[lane * length : (lane + 1) * length] for lane in range(self._rank, self.lanes, self._world)]
        if self._lengths is None:
            return lanes
        return [group_by_length(lane, self._lengths, self._per_lane, [self._seed, epoch]) for lane in lanes]

    def _order(self, epoch: int) -> np.ndarray:
        """The index rows in the order of an epoch: shards shuffled, then rows inside each. int64 [rows]"""
        generator = np.random.default_rng([self._seed, epoch])
        return np.concatenate(
            [generator.permutation(self._shards[i]) for i in generator.permutation(len(self._shards))]
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
    """One rank's parts of the batches of an epoch by their number."""

    def __init__(self, folder: Path, rows: pa.Table, lanes: list[np.ndarray], per_lane: int, collate: Collate) -> None:
        self._files, self._rows, self._lanes = ShardFiles(folder), rows, lanes
        self._per_lane, self._collate = per_lane, collate
        self.samples = len(lanes) * per_lane

    def __getitem__(self, step: int) -> RankBatch:
        bad: dict[int, str] = {}
        positions = range(step * self._per_lane, (step + 1) * self._per_lane)
        found = [self._next_readable(lane, position, bad) for lane in self._lanes for position in positions]
        samples = [sample for sample in found if sample is not None]
        return (self._collate(samples) if len(samples) == len(found) else None), bad

    def _next_readable(self, lane: np.ndarray, position: int, bad: dict[int, str]) -> Sample | None:
        """The sample at a position of a lane, or the next one (from its end on to its start) that can be read."""
        for shift in range(len(lane)):
            number = int(lane[(position + shift) % len(lane)])
            if number in bad:
                continue
            try:
                return _load(self._files, _row(self._rows, number))
            except ValueError as error:
                bad[number] = str(error)
        return None


def group_by_length(order: np.ndarray, lengths: np.ndarray, size: int, seed: list[int]) -> np.ndarray:
    """An order in which each ``size`` samples that follow one another are of like length.

    Every stretch of ``SORT_WINDOW`` × ``size`` samples is sorted and cut into batches, which are shuffled; what is left
    of a batch stays at the end. Which batch comes when follows from ``seed`` alone: parallel lanes put like with like.
    """
    generator = np.random.default_rng([*seed, 1])
    whole = len(order) // size * size
    result = []
    for start in range(0, whole, SORT_WINDOW * size):
        stretch = order[start : min(start + SORT_WINDOW * size, whole)]
        batches = stretch[np.argsort(lengths[stretch], kind="stable")].reshape(-1, size)
        result.append(batches[generator.permutation(len(batches))].flatten())
    return np.concatenate([*result, order[whole:]])


def _row(rows: pa.Table, number: int) -> dict[str, Any]:
    return rows.slice(number, 1).to_pylist()[0]


def _identity(batch: Any) -> Any:
    return batch


_REMEDY = "delete this data artefact and make it again with `amrg prepare CONFIG`"


def _runs(shards: np.ndarray) -> list[np.ndarray]:
    """Row numbers of each shard, from the shard's name in each row."""
    return np.split(np.arange(len(shards)), np.flatnonzero(shards[1:] != shards[:-1]) + 1)


def _tar(folder: Path, row: dict[str, Any]) -> Path:
    return folder / "shards" / f"{row['shard']}.tar"


def _corruption_message(row: dict[str, Any], error: ValueError | str) -> str:
    return f"sample {hash_key(row['key'])} (hashed key) at byte {row['offset']} is damaged: {error}"


def _load_or_user_error(files: ShardFiles, folder: Path, row: dict[str, Any]) -> Sample:
    """``_load``, damage being the user's to repair."""
    try:
        return _load(files, row)
    except ValueError as error:
        raise UserError(f"{_tar(folder, row)}: {_corruption_message(row, error)}; {_REMEDY}") from None


def _load(files: ShardFiles, row: dict[str, Any]) -> Sample:
    """Read one sample where the index says it lies.

    Raises:
        ValueError: it is not what was written, or cannot be decoded.
        UserError: its shard is not there.
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
    """The members of one sample, as they lie in the tar. Raises ValueError when they are no sample of this key."""
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
    pixels = {finding: decode_mask(content) for finding, content in masks.items()}
    return Sample(study, [decode_film(content) for content in films], pixels)


def _study(record: dict[str, Any]) -> Study:
    labels = {label: record["labels"][label] for label in LABELS}
    projections = tuple(record.get("projections") or ())
    return Study(
        record["key"], record["group"], record["split"], record["report"], labels, projections, record.get("prior", "")
    )
