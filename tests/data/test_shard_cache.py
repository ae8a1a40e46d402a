"""Shards behind fsspec, read through a bounded cache; S3 is moto's server, a real one, on loopback."""

import dataclasses
import os
import shutil
from pathlib import Path

import pytest

from amrg.artifacts import folder_content_hash
from amrg.config import DataConfig
from amrg.data import shard_cache
from amrg.data.shard_cache import ShardFiles, mirror_shards
from amrg.data.shards import prepare_shards, read_split_index
from amrg.data.stream import SampleLookup, Stream, iter_split_samples, load_split_studies
from amrg.errors import UserError
from tests.data.test_shards import TinySource


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    prepare_shards(TinySource(53, 3, 2), DataConfig(image_size=8, shard_size=7, workers=1), folder, seed=0)
    return folder


@pytest.fixture(scope="module")
def bucket():
    """A bucket, and an environment that points at its server."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        }.items():
            patch.setenv(name, value)
        import s3fs

        s3fs.S3FileSystem().mkdir("films")
        yield "s3://films"
    server.stop()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The cache's folder."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("AMRG_CACHE", str(folder))
    monkeypatch.setenv("AMRG_CACHE_GB", "1")
    return folder


def emptied(data, tmp_path, url):
    """A copy of the artefact without shards, whose mirror is ``url``."""
    (tmp_path / "full").mkdir()
    shutil.copytree(data / "shards", tmp_path / "full" / "shards")
    shutil.copy(data / "index.parquet", tmp_path / "full")
    before = folder_content_hash(tmp_path / "full")
    mirror_shards(tmp_path / "full", url)
    assert folder_content_hash(tmp_path / "full") == before  # where a copy lies is no part of the data
    shutil.rmtree(tmp_path / "full" / "shards")
    return tmp_path / "full"


def keys(stream):
    return [[sample.study.key for sample in batch] for batch in stream.epoch(0)]


@pytest.mark.parametrize("readers", [0, 2])
def test_a_stream_from_s3_is_the_stream_from_disk(data, bucket, cache, tmp_path, readers):
    away = emptied(data, tmp_path, f"{bucket}/{readers}")
    found = keys(Stream(away, "train", 8, 1, readers=readers))
    assert found == keys(Stream(data, "train", 8, 1))
    local, remote = list(iter_split_samples(data, "val")), list(iter_split_samples(away, "val"))
    assert [dataclasses.replace(s.study) for s in remote] == [s.study for s in local]
    assert all((a.views[0] == b.views[0]).all() for a, b in zip(local, remote, strict=True))
    assert not list(cache.glob("*.partial"))


def test_the_cache_stays_below_its_bound_and_keeps_what_was_read_last(data, cache, tmp_path, monkeypatch):
    away = emptied(data, tmp_path, f"file://{tmp_path}/mirror")
    sizes = {path.name: path.stat().st_size for path in (data / "shards").iterdir()}
    most = 2 * max(sizes.values())
    monkeypatch.setenv("AMRG_CACHE_GB", str(most / 1e9))
    files = ShardFiles(away)
    fetched = []
    fetch = shard_cache._Cache._fetch
    monkeypatch.setattr(
        shard_cache._Cache, "_fetch", lambda self, name, path: fetched.append(name) or fetch(self, name, path)
    )
    for number, age in ((0, 30), (1, 20), (0, 10), (2, 0), (0, 0)):
        files.read(f"train-{number:06d}", 0, 10)
        (kept,) = cache.glob(f"*train-{number:06d}.tar")
        os.utime(kept, (1e9 - age, 1e9 - age))
        assert sum(path.stat().st_size for path in cache.glob("*.tar")) <= most
    assert fetched == ["train-000000.tar", "train-000001.tar", "train-000002.tar"]  # 1 made room for 2, 0 stayed


def test_a_mirror_is_not_read_unless_it_may_be(data, cache, tmp_path, monkeypatch):
    away = emptied(data, tmp_path, f"file://{tmp_path}/mirror")
    key = load_split_studies(data, "val")[0].key
    monkeypatch.setattr(shard_cache._Cache, "_fetch", lambda *_: pytest.fail("it was asked"))
    with pytest.raises(UserError, match=r"val-000000.tar is not on this machine, but at file:.*: --online reads it"):
        SampleLookup(away, "val", online=False)[key]
    assert SampleLookup(data, "val", online=False)[key].study.key == key


def test_mirroring_again_copies_only_what_is_not_there(data, tmp_path, capsys):
    shutil.copytree(data, tmp_path / "data")
    copy = tmp_path / "mirror"
    mirror_shards(tmp_path / "data", f"file://{copy}")
    first, second = sorted(copy.iterdir())[:2]
    first.write_bytes(b"cut")
    second_time = second.stat().st_mtime_ns
    mirror_shards(tmp_path / "data", f"file://{copy}")
    assert first.read_bytes() == (data / "shards" / first.name).read_bytes()
    assert second.stat().st_mtime_ns == second_time


def test_damage_in_the_mirror_is_met_like_damage_on_disk(data, cache, tmp_path):
    away = emptied(data, tmp_path, f"file://{tmp_path}/mirror")
    row = read_split_index(away, "train").to_pylist()[20]
    path = tmp_path / "mirror" / f"{row['shard']}.tar"
    content = bytearray(path.read_bytes())
    content[row["offset"] + row["size"] // 2] ^= 0x40
    path.write_bytes(content)
    stream = Stream(away, "train", 8, 0, max_corrupt_fraction=0.05)
    batches = [[s.study.key for s in batch] for epoch in range(2) for batch in stream.epoch(epoch)]
    assert set(stream.corrupt) == {row["key"]}
    assert all(len(batch) == 8 for batch in batches)


@pytest.mark.parametrize(
    ("url", "limit", "message"),
    [
        ("file://{}/nothing", "1", "is not there: copy the shards with `amrg mirror"),
        ("gs://bucket/data", "1", r"pip install 'amrg\[gs\]'"),
        ("file://{}/mirror", "0.000001", "less than one shard"),
        ("file://{}/mirror", "many", "AMRG_CACHE_GB is 'many'"),
        ("nonsense://x", "1", "cannot be used"),
    ],
)
def test_what_can_go_wrong_is_one_line(data, cache, tmp_path, monkeypatch, url, limit, message):
    away = emptied(data, tmp_path, f"file://{tmp_path}/mirror")
    Path(away / "logs" / "mirror").write_text(url.format(tmp_path))
    monkeypatch.setenv("AMRG_CACHE_GB", limit)
    with pytest.raises(UserError, match=message) as caught:
        next(iter_split_samples(away, "train"))
    assert "\n" not in str(caught.value)


def test_an_artefact_without_shards_cannot_be_mirrored(tmp_path):
    with pytest.raises(UserError, match="no shards of its own"):
        mirror_shards(tmp_path, f"file://{tmp_path}/x")
