import io
import json
import multiprocessing
import os
import signal
import tarfile
import time
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image

from amrg.config import DataConfig
from amrg.data import image_ops, stream
from amrg.data.shard_cache import ShardFiles
from amrg.data.shards import INDEX, exit_with_parent, prepare_shards, read_split_index
from amrg.data.stream import (
    MAX_READERS,
    Stream,
    iter_split_samples,
    load_split_studies,
    num_split_studies,
    reader_processes,
)
from amrg.errors import UserError
from tests.data.test_shards import TinySource


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """53 train studies in 8 shards."""
    folder = tmp_path_factory.mktemp("data")
    prepare_shards(TinySource(53, 3, 2), DataConfig(image_size=8, shard_size=7, workers=1), folder, seed=0)
    return folder


@pytest.fixture
def copy(data, tmp_path):
    """A copy that a test may damage."""
    (tmp_path / "shards").mkdir()
    for path in (data / "shards").iterdir():
        (tmp_path / "shards" / path.name).write_bytes(path.read_bytes())
    (tmp_path / "index.parquet").write_bytes((data / "index.parquet").read_bytes())
    return tmp_path


def keys(batches):
    return [[sample.study.key for sample in batch] for batch in batches]


def flat(batches):
    return [key for batch in keys(batches) for key in batch]


def damage(folder, row, change):
    path = folder / "shards" / f"{row['shard']}.tar"
    content = bytearray(path.read_bytes())
    change(content, row["offset"], row["size"])
    path.write_bytes(content)


def flip(content, offset, size):
    content[offset + size // 2] ^= 0x40


@pytest.mark.parametrize("batch_size", [8, 12])
def test_any_world_sees_the_same_global_batches(data, batch_size):
    alone = Stream(data, "train", batch_size, seed=3)
    for epoch in range(3):
        whole = keys(alone.epoch(epoch))
        assert len(whole) == alone.steps_per_epoch == 53 // batch_size
        assert all(len(batch) == batch_size for batch in whole)
        for world in (1, 2, 4):
            ranks = [keys(Stream(data, "train", batch_size, 3, rank, world).epoch(epoch)) for rank in range(world)]
            for step, batch in enumerate(whole):
                parts = [rank[step] for rank in ranks]
                assert {len(part) for part in parts} == {batch_size // world}
                assert sorted(key for part in parts for key in part) == sorted(batch)


def test_each_study_at_most_once_an_epoch_and_other_ones_left_out_each_time(data):
    stream = Stream(data, "train", 8, seed=0)
    everything = {study.key for study in load_split_studies(data, "train")}
    left_out = []
    for epoch in range(4):
        seen = flat(stream.epoch(epoch))
        assert len(set(seen)) == len(seen) == 48
        assert set(seen) <= everything
        left_out.append(frozenset(everything - set(seen)))
    assert len(set(left_out)) > 1


def test_order_follows_seed_and_epoch_alone(data):
    first = keys(Stream(data, "train", 8, seed=1).epoch(0))
    stream = Stream(data, "train", 8, seed=1)
    list(stream.epoch(4))
    assert keys(stream.epoch(0)) == first
    assert keys(stream.epoch(1)) != first
    assert keys(Stream(data, "train", 8, seed=2).epoch(0)) != first


def test_resumes_at_any_batch_with_another_world_size(data):
    whole = keys(Stream(data, "train", 8, seed=1).epoch(2))
    for start in range(len(whole) + 1):
        ranks = [keys(Stream(data, "train", 8, 1, rank, 2).epoch(2, start)) for rank in range(2)]
        joined = [sorted(a + b) for a, b in zip(*ranks, strict=True)]
        assert joined == [sorted(batch) for batch in whole[start:]]


@pytest.mark.parametrize(("world", "readers", "start"), [(1, 1, 0), (2, 3, 2)])
def test_reader_processes_change_nothing(copy, world, readers, start):
    damage(copy, read_split_index(copy, "train").to_pylist()[20], flip)
    for rank in range(world):
        plain, ahead = (Stream(copy, "train", 8, 1, rank, world, 0.05, readers=n) for n in (0, readers))
        for epoch in range(3 if world == 1 else 1):
            assert keys(ahead.epoch(epoch, start)) == keys(plain.epoch(epoch, start))
        assert ahead.corrupt == plain.corrupt


def _start_reader(pipe):
    fork = multiprocessing.get_context("fork")
    reader = fork.Process(target=lambda: (exit_with_parent(), time.sleep(100)))
    reader.start()
    pipe.send(reader.pid)
    time.sleep(100)


def test_a_reader_ends_with_a_killed_rank():
    context = multiprocessing.get_context("forkserver")
    here, there = context.Pipe()
    rank = context.Process(target=_start_reader, args=(there,))
    rank.start()
    there.close()
    here.recv()
    os.kill(rank.pid, signal.SIGKILL)
    assert here.poll(50)  # the reader held the last copy of the pipe's other end
    with pytest.raises(EOFError):
        here.recv()


def mutate(content, generator):
    """A shard with one seeded fault: bytes flipped or zeroed, a piece cut out, moved or doubled, or an end cut off."""
    size = len(content)
    start, length = int(generator.integers(size)), int(generator.integers(1, 3000))
    piece = content[start : start + length]
    kind = generator.integers(6)
    if kind == 0:
        content[start] ^= 1 << int(generator.integers(8))
    elif kind == 1:
        content[start : start + length] = bytes(len(piece))
    elif kind == 2:
        del content[start : start + length]
    elif kind == 3:
        del content[start:]
    elif kind == 4:
        content[start:start] = piece
    else:
        there = int(generator.integers(size))
        content[start : start + length], content[there:there] = b"", piece


def test_two_hundred_mutated_shards_lose_nothing_silently(copy):
    """Every sample of the index is read as it was written, or refused."""
    rows = [row for row in read_split_index(copy, "train").to_pylist() if row["shard"] == "train-000000"]
    path = copy / "shards" / "train-000000.tar"
    original = path.read_bytes()
    truth = {row["key"]: stream._load(ShardFiles(copy), row) for row in rows}
    refused = 0
    for seed in range(200):
        content = bytearray(original)
        mutate(content, np.random.default_rng(seed))
        path.write_bytes(content)
        for row in rows:
            try:
                found = stream._load(ShardFiles(copy), row)
            except ValueError:
                refused += 1
                continue
            assert found.study == truth[row["key"]].study
            assert all((a == b).all() for a, b in zip(found.views, truth[row["key"]].views, strict=True))
        tolerant = Stream(copy, "train", 8, seed, max_corrupt_fraction=1.0)
        try:
            assert all(len(batch) == 8 for batch in tolerant.epoch(0))
        except UserError as error:
            assert "a whole lane" in str(error)  # noqa: PT017
        assert len(tolerant.corrupt) <= len(rows)
    assert 200 <= refused < 200 * len(rows)
    path.write_bytes(original)


def test_a_lane_reads_shard_after_shard(data):
    shard = {row["key"]: row["shard"] for row in read_split_index(data, "train").to_pylist()}
    lane = [batch[0] for batch in keys(Stream(data, "train", 2, seed=0).epoch(0))]
    changes = sum(shard[a] != shard[b] for a, b in pairwise(lane))
    assert changes <= 4  # 26 samples of shards of 7


def test_lanes_are_the_largest_divisor_of_the_batch(data):
    assert [Stream(data, "train", size, 0).lanes for size in (1, 6, 32, 53)] == [1, 6, 32, 53]
    assert max(n for n in range(1, 65) if 96 % n == 0) == 48


@pytest.mark.parametrize("world", [3, 16])
def test_ranks_that_do_not_fit_are_refused(data, world):
    with pytest.raises(UserError, match="lanes"):
        Stream(data, "train", 8, 0, 0, world)


def test_less_than_one_batch_is_refused(data):
    with pytest.raises(UserError, match="less than one batch"):
        Stream(data, "val", 4, 0)


def test_a_damaged_sample_is_skipped_counted_named_and_replaced(copy, caplog):
    row = read_split_index(copy, "train").to_pylist()[20]
    damage(copy, row, flip)
    clean = {world: [] for world in (1, 2)}
    for world in clean:
        for rank in range(world):
            stream = Stream(copy, "train", 8, 0, rank, world, max_corrupt_fraction=0.05)
            batches = keys(batch for epoch in range(3) for batch in stream.epoch(epoch))
            assert all(len(batch) == 8 // world for batch in batches)
            assert row["key"] not in {key for batch in batches for key in batch}
            assert set(stream.corrupt) <= {row["key"]}
            clean[world].append(batches)
    joined = [sorted(a + b) for a, b in zip(*clean[2], strict=True)]
    assert joined == [sorted(batch) for batch in clean[1][0]]
    assert "sha256" in caplog.text
    assert row["key"] not in caplog.text


def test_above_the_tolerated_fraction_the_run_stops(copy):
    for row in read_split_index(copy, "train").to_pylist()[:10]:
        damage(copy, row, flip)
    stream = Stream(copy, "train", 8, 0, max_corrupt_fraction=0.051)
    with pytest.raises(UserError, match=r"more than the 2\.7 tolerated.*amrg prepare") as caught:
        list(stream.epoch(0))
    assert "\n" not in str(caught.value)


def cut(content, offset, size):
    del content[offset + size // 2 :]


@pytest.mark.parametrize("change", [flip, cut])
def test_sequential_reading_stops_at_damage_and_names_the_shard(copy, change):
    row = read_split_index(copy, "val").to_pylist()[1]
    damage(copy, row, change)
    samples = iter_split_samples(copy, "val")
    next(samples)
    with pytest.raises(UserError, match=r"val-000000\.tar: .*amrg prepare") as caught:
        next(samples)
    assert "\n" not in str(caught.value)
    assert row["key"] not in str(caught.value)


def test_two_samples_swapped_inside_a_shard_are_noticed(copy):
    first, second = read_split_index(copy, "test").to_pylist()
    path = copy / "shards" / f"{first['shard']}.tar"
    content = path.read_bytes()
    middle, end = second["offset"], second["offset"] + second["size"]
    path.write_bytes(content[middle:end] + content[:middle] + content[end:])
    with pytest.raises(UserError, match="sha256"):
        list(iter_split_samples(copy, "test"))


def test_a_missing_shard_or_index_is_one_clear_line(copy):
    (copy / "shards" / "test-000000.tar").unlink()
    with pytest.raises(UserError, match="test-000000"):
        list(iter_split_samples(copy, "test"))
    (copy / "index.parquet").write_bytes(b"PAR1 not a table")
    with pytest.raises(UserError, match="no readable index"):
        num_split_studies(copy, "test")
    (copy / "index.parquet").unlink()
    with pytest.raises(UserError, match="no readable index"):
        load_split_studies(copy, "train")


def test_an_unknown_split_is_refused(data):
    with pytest.raises(UserError, match="split `validation` has no studies"):
        num_split_studies(data, "validation")


def _foreign(folder, members):
    """A shard of one sample whose index fits its bytes, whatever the members hold."""
    import hashlib

    import pyarrow as pa
    import pyarrow.parquet as pq

    (folder / "shards").mkdir()
    path = folder / "shards" / "val-000000.tar"
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    data = path.read_bytes()
    row = {"split": "val", "shard": "val-000000", "key": "a", "offset": 0, "size": len(data)}
    row["sha256"] = hashlib.sha256(data).hexdigest()
    pq.write_table(pa.Table.from_pylist([row], schema=INDEX), folder / "index.parquet")


def _members(data):
    sample = next(iter_split_samples(data, "val"))
    record = {name: getattr(sample.study, name) for name in ("group", "split", "report", "labels")}
    record |= {"key": "a", "masks": {}}
    return {"a.0.jpg": image_ops.encode_film_jpeg(sample.views[0]), "a.json": json.dumps(record).encode()}


def test_foreign_shards_are_read_when_they_follow_the_format(data, tmp_path):
    _foreign(tmp_path, _members(data))
    assert [sample.study.key for sample in iter_split_samples(tmp_path, "val")] == ["a"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.0.jpg", b"not an image", "not a readable image"),
        ("a.0.jpg", None, "no film"),
        ("a.json", b"\xff{", "not a sample"),
        ("a.json", b'{"key": "a"}', "not a sample"),
        ("a.json", None, "not a sample"),
        ("b.json", b"{}", "not a sample|another sample"),
    ],
)
def test_foreign_shards_with_broken_members_are_one_clear_line(data, tmp_path, name, content, message):
    members = _members(data) | {name: content}
    if name == "b.json":
        members = {"b.json": members["a.json"], "b.0.jpg": members["a.0.jpg"]}
    _foreign(tmp_path, {name: content for name, content in members.items() if content is not None})
    with pytest.raises(UserError, match=message) as caught:
        list(iter_split_samples(tmp_path, "val"))
    assert "\n" not in str(caught.value)


def test_an_image_bomb_is_refused_before_it_is_decoded():
    file = io.BytesIO()
    Image.new("1", (9_000, 9_000)).save(file, "PNG")
    assert len(file.getvalue()) < 100_000
    with pytest.raises(ValueError, match="9000 × 9000"):
        image_ops.decode_film_jpeg(file.getvalue())


def test_a_truncated_jpeg_is_refused():
    data = image_ops.encode_film_jpeg(np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8))
    for stop in (0, 10, len(data) // 2, len(data) - 20):
        with pytest.raises(ValueError, match="not a readable image"):
            image_ops.decode_film_jpeg(data[:stop])


def test_letterbox_keeps_the_whole_film_and_its_proportions():
    film = np.full((20, 40), 200, np.uint8)
    square = image_ops.letterbox_to_square(film, 20)
    assert square.shape == (20, 20)
    np.testing.assert_array_equal(square[5:15], 200)
    assert square.sum() == 200 * 10 * 20
    same = np.random.default_rng(0).integers(0, 256, (20, 20), np.uint8)
    np.testing.assert_array_equal(image_ops.letterbox_to_square(same, 20), same)
    mask = np.zeros((40, 20), np.bool_)
    mask[:20] = True
    np.testing.assert_array_equal(np.flatnonzero(image_ops.letterbox_to_square(mask, 20).any(1)), np.arange(10))
    views = image_ops.to_model_input([film, film.T], 10)
    assert views.shape == (2, 10, 10)
    assert views.dtype == np.uint8


@pytest.mark.parametrize(("shape", "stored"), [((30, 20), (15, 10)), ((20, 33), (10, 16)), ((8, 9), (8, 9))])
def test_shrink_sets_the_short_side_and_never_enlarges(shape, stored):
    assert image_ops.downscale_short_side(np.zeros(shape, np.uint8), 10).shape == stored
    assert image_ops.downscale_short_side(np.zeros(shape, np.bool_), 10).shape == stored


@pytest.mark.parametrize(
    ("gpus", "cores", "ranks", "expected"),
    [(0, 32, None, 0), (4, 32, "4", 7), (2, 2, "2", 1), (1, 96, None, MAX_READERS), (1, 12, "1", 11)],
)
def test_how_many_processes_read_beside_a_gpu(monkeypatch, gpus, cores, ranks, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(cores)))
    monkeypatch.delenv("LOCAL_SIZE", raising=False)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    if ranks:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", ranks)
    assert reader_processes("auto") == expected
    assert reader_processes(3) == 3
