import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import webdataset as wds
from PIL import Image

from amrg.artifacts import folder_content_hash
from amrg.config import DataConfig
from amrg.data.labels import LABELS
from amrg.data.shards import hash_study_key, prepare_shards, read_split_index
from amrg.data.stream import iter_split_samples, load_split_studies, num_split_studies
from amrg.data.studies import Study, StudyImages
from amrg.errors import UserError

CONFIG = DataConfig(image_size=24, shard_size=4, workers=2)


def study(number, split):
    labels = dict.fromkeys(LABELS, None) | {"Lung Opacity": float(number % 2), "Edema": -1.0}
    return Study(f"s-{number:03d}", f"patient{number // 2}", split, f"Report {number}: naïve “text”.", labels)


class TinySource:
    """Noise films, a function of the study's key alone, after ``delay`` seconds; one study may fail, or never come."""

    def __init__(self, train=10, val=3, test=2, delay=0.0, hang=None, fail=None):
        splits = ["train"] * train + ["val"] * val + ["test"] * test
        self.items = [study(number, split) for number, split in enumerate(splits)]
        self.delay, self.hang, self.fail = delay, hang, fail

    def studies(self):
        return self.items

    def films(self, study):
        time.sleep(self.delay)
        while study.key == self.hang:
            time.sleep(1)
        if study.key == self.fail:
            raise OSError("/secret/path/of/patient.dcm")
        rng = np.random.default_rng(int(study.key[2:]))
        views = [rng.integers(0, 256, (24, 30), np.uint8) for _ in range(1 + int(study.key[2:]) % 2)]
        masks = {"Lung Opacity": rng.random((24, 30)) > 0.5} if int(study.key[2:]) % 3 == 0 else {}
        return StudyImages(views, masks)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, writer_processes):
    folder = tmp_path_factory.mktemp("data")
    prepare_shards(TinySource(), CONFIG, folder, 5, writer_processes)
    return folder


def bytes_of(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "scratch" not in path.parts
    }


def test_every_study_comes_back_as_it_went_in(prepared):
    source = TinySource()
    for split, number in (("train", 10), ("val", 3), ("test", 2)):
        wanted = {item.key: item for item in source.studies() if item.split == split}
        samples = list(iter_split_samples(prepared, split))
        assert {sample.study.key: sample.study for sample in samples} == wanted
        assert [sample.study for sample in samples] == load_split_studies(prepared, split)
        assert num_split_studies(prepared, split) == len(samples) == number
        for sample in samples:
            films = source.films(sample.study)
            assert len(sample.views) == len(films.views)
            for view, original in zip(sample.views, films.views, strict=True):
                assert view.dtype == np.uint8
                # what PIL alone makes of the same film, stored as JPEG of quality 95
                file = io.BytesIO()
                Image.fromarray(original).save(file, "JPEG", quality=95)
                np.testing.assert_array_equal(view, np.asarray(Image.open(file)))
            assert sample.masks.keys() == films.masks.keys()
            for finding, mask in films.masks.items():
                np.testing.assert_array_equal(sample.masks[finding], mask)


def test_shards_are_webdataset_tars_of_bounded_size(prepared):
    sizes = {}
    for path in sorted((prepared / "shards").iterdir()):
        split = path.name.split("-")[0]
        samples = list(wds.WebDataset(str(path), shardshuffle=False).decode("l8"))
        sizes[path.name] = len(samples)
        for sample in samples:
            assert sample["json"]["split"] == split
            assert sample["json"]["key"] == sample["__key__"]
            assert sample["0.jpg"].shape == (24, 30)
    assert sizes == {
        "test-000000.tar": 2,
        "train-000000.tar": 4,
        "train-000001.tar": 4,
        "train-000002.tar": 2,
        "val-000000.tar": 3,
    }


def test_index_says_where_each_sample_lies(prepared):
    for split in ("train", "val", "test"):
        for row in read_split_index(prepared, split).to_pylist():
            data = (prepared / "shards" / f"{row['shard']}.tar").read_bytes()
            part = data[row["offset"] : row["offset"] + row["size"]]
            assert hashlib.sha256(part).hexdigest() == row["sha256"]
            with tarfile.open(fileobj=io.BytesIO(part)) as tar:
                names = tar.getnames()
            assert {name.split(".")[0] for name in names} == {row["key"]}
            assert sum(name.endswith(".jpg") for name in names) == row["views"]


def test_bytes_do_not_depend_on_the_number_of_workers(prepared, tmp_path, writer_processes):
    prepare_shards(TinySource(), replace(CONFIG, workers=1), tmp_path, 5, writer_processes)
    assert bytes_of(tmp_path) == bytes_of(prepared)
    for folder in (prepared, tmp_path):
        for path in (folder / "scratch").iterdir():  # sealing an artefact removes it
            path.unlink()
    assert folder_content_hash(tmp_path) == folder_content_hash(prepared)


def test_another_seed_deals_the_studies_anew_and_films_have_the_configured_short_side(prepared, tmp_path):
    prepare_shards(TinySource(), replace(CONFIG, image_size=12), tmp_path, seed=6)
    order = [[item.key for item in load_split_studies(folder, "train")] for folder in (prepared, tmp_path)]
    assert order[0] != order[1]
    assert sorted(order[0]) == sorted(order[1])
    for sample in iter_split_samples(tmp_path, "train"):
        assert sample.views[0].shape == (12, 15)
        assert all(mask.shape == (12, 15) for mask in sample.masks.values())


def test_a_killed_run_goes_on_without_redoing_whole_shards(prepared, tmp_path):
    script = (
        "import sys; from pathlib import Path; sys.path.insert(0, sys.argv[2])\n"
        "from test_shards import *\n"
        "if __name__ == '__main__': prepare_shards(TinySource(hang='s-006'), CONFIG, Path(sys.argv[1]), seed=5)\n"
    )
    (tmp_path / "run.py").write_text(script)
    folder = tmp_path / "data"
    process = subprocess.Popen(
        [sys.executable, tmp_path / "run.py", folder, Path(__file__).parent], start_new_session=True
    )
    while not list(folder.glob("scratch/*.json")):
        assert process.poll() is None
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)  # its workers, too: one of them waits for a film
    process.wait()
    assert not (folder / "index.parquet").exists()
    finished = {path: path.stat().st_mtime_ns for path in folder.glob("scratch/*.json")}
    assert 0 < len(finished) < 5
    broken = next(iter(finished)).stem  # a finished shard that was damaged since is made again
    (folder / "shards" / f"{broken}.tar").write_bytes(b"cut")
    (folder / "shards" / "train-000099.tar").write_bytes(b"of studies that are gone")
    prepare_shards(TinySource(), CONFIG, folder, seed=5)
    assert bytes_of(folder) == bytes_of(prepared)
    kept = [path for path, written in finished.items() if path.stat().st_mtime_ns == written]
    assert sorted(kept) == sorted(path for path in finished if path.stem != broken)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (TinySource(val=0), "the split `val` is empty"),
        (TinySource(fail="s-004"), "cannot be read"),
    ],
)
def test_what_a_user_can_put_right_is_one_line_without_names(source, message, tmp_path, writer_processes):
    with pytest.raises(UserError, match=message) as caught:
        prepare_shards(source, replace(CONFIG, workers=1), tmp_path, 0, writer_processes)
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)
    assert "s-004" not in str(caught.value)
    assert not (tmp_path / "index.parquet").exists()


def test_films_that_cannot_be_read_are_left_out_and_counted(prepared, tmp_path, capsys):
    prepare_shards(TinySource(fail="s-004"), replace(CONFIG, workers=1, max_corrupt_fraction=0.1), tmp_path, seed=5)
    keys = [[item.key for item in load_split_studies(folder, "train")] for folder in (prepared, tmp_path)]
    assert keys[1] == [key for key in keys[0] if key != "s-004"]
    assert [sample.study.key for sample in iter_split_samples(tmp_path, "train")] == keys[1]
    statistics = json.loads((tmp_path / "statistics.json").read_text())
    assert sum(statistics["skipped"].values()) == 1
    assert statistics["skipped_studies"] == [hash_study_key("s-004")]
    assert statistics["splits"]["train"]["studies"] == len(keys[1])
    assert hash_study_key("s-004") in capsys.readouterr().err
    before = bytes_of(tmp_path)
    prepare_shards(TinySource(fail="s-004"), replace(CONFIG, workers=1, max_corrupt_fraction=0.1), tmp_path, seed=5)
    assert bytes_of(tmp_path) == before
    assert "| train | 9 |" in (tmp_path / "card.md").read_text()


def test_keys_must_be_unique(tmp_path):
    source = TinySource()
    source.items.append(source.items[0])
    with pytest.raises(UserError, match="more than one study"):
        prepare_shards(source, replace(CONFIG, workers=1), tmp_path, seed=0)


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "shards").write_text("")
    with pytest.raises(UserError, match="cannot write shards"):
        prepare_shards(TinySource(), CONFIG, tmp_path, seed=0)


def test_labels_are_stored_by_name(prepared):
    for item in load_split_studies(prepared, "train"):
        number = int(item.key[2:])
        assert item.labels == study(number, "train").labels
    record = json.loads(next(iter(wds.WebDataset(str(prepared / "shards/val-000000.tar"), shardshuffle=False)))["json"])
    assert list(record["labels"]) == list(LABELS)
