"""Copies of a data artefact's shards and index without some studies."""

import io
import os
import shutil
import tarfile
from collections.abc import Collection
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from amrg.errors import UserError

TABLE = "index.parquet"


def link_or_copy(source: Path, target: Path) -> None:
    """Give a file a second name, or copy it where the disk knows no second names."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def copy_without_studies(data: Path, studies: Collection[tuple[str, str]], target: Path) -> list[bytes]:
    """Write ``shards/`` and ``index.parquet`` of a data artefact without some studies; return their samples.

    Shards without such a study are not read. The other samples stay bit for bit, at other offsets.

    Args:
        data: data artefact.
        studies: key and patient group of each study to leave out.
        target: receives the files.

    Raises:
        UserError: a shard that holds such a study is not on this machine.
    """
    table = pq.read_table(data / TABLE)
    rows = table.select(["shard", "key", "group", "offset", "size"]).to_pylist()
    gone = [(row["key"], row["group"]) in studies for row in rows]
    offsets = [row["offset"] for row in rows]
    samples: list[bytes] = []
    touched = {row["shard"] for row, leave in zip(rows, gone, strict=True) if leave}
    for path in sorted((data / "shards").glob("*.tar")):
        if path.stem not in touched:
            link_or_copy(path, target / "shards" / path.name)
    for shard in sorted(touched):
        path = data / "shards" / f"{shard}.tar"
        if not path.is_file():
            raise UserError(f"{path} is not on this machine: fetch the shards of the mirror first, then forget")
        numbers = sorted((n for n, row in enumerate(rows) if row["shard"] == shard), key=lambda n: rows[n]["offset"])
        content = path.read_bytes()
        kept: list[bytes] = []
        end = rows[numbers[-1]]["offset"] + rows[numbers[-1]]["size"]
        for number in numbers:
            sample = content[rows[number]["offset"] : rows[number]["offset"] + rows[number]["size"]]
            if gone[number]:
                samples.append(sample)
            else:
                offsets[number] = sum(map(len, kept))
                kept.append(sample)
        if kept:
            (target / "shards").mkdir(parents=True, exist_ok=True)
            (target / "shards" / path.name).write_bytes(b"".join([*kept, content[end:]]))
    left = table.set_column(table.schema.get_field_index("offset"), "offset", pa.array(offsets, pa.int64()))
    target.mkdir(parents=True, exist_ok=True)
    pq.write_table(left.filter(pa.array([not leave for leave in gone])), target / TABLE)
    return samples


def film_fingerprints(sample: bytes) -> list[bytes]:
    """Return 64 bytes from the middle of each film of a sample, where its pixels are."""
    with tarfile.open(fileobj=io.BytesIO(sample + bytes(1024)), mode="r:") as tar:
        films = [tar.extractfile(member) for member in tar if member.name.endswith(".jpg")]
        contents = [film.read() for film in films if film is not None]
    return [content[len(content) // 2 :][:64] for content in contents]
