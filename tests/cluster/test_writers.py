"""Shards that Ray tasks write are those of the processes of one machine."""

from pathlib import Path

from amrg.artifacts import folder_content_hash
from amrg.data.shards import ShardExecutor, prepare_shards
from tests.cluster import linux_namespaces
from tests.cluster.writers_worker import CONFIG, SIZES
from tests.data.test_shards import TinySource

SCRIPT = Path(__file__).with_name("writers_worker.py")


def test_the_bytes_are_the_same_though_a_writer_was_killed(tmp_path: Path, writer_processes: ShardExecutor) -> None:
    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    ours.mkdir()
    prepare_shards(TinySource(*SIZES), CONFIG, ours, 0, writer_processes)
    done = linux_namespaces.run(tmp_path, str(SCRIPT), str(theirs))
    assert done.returncode == 0, done.stderr
    for folder in ("shards", "index.parquet"):
        assert (theirs / folder).exists()
    for scratch in (ours / "scratch", theirs / "scratch"):
        for path in scratch.iterdir():
            path.unlink()  # a killed writer leaves its half there until the artefact is sealed
    assert folder_content_hash(theirs) == folder_content_hash(ours)
