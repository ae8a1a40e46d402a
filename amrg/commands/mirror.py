"""``amrg mirror DATA URL``: copy the shards of a data artefact to object storage, to be read from there.

URL is s3://…, gs://… or anything else that fsspec knows. Credentials are those that its file system finds.
"""

import argparse
from pathlib import Path

from amrg.artifacts import open_artifact
from amrg.data.shard_cache import mirror_shards


def main(arguments: list[str]) -> None:
    """Copy the files that the target lacks."""
    parser = argparse.ArgumentParser(prog="amrg mirror", description=__doc__)
    parser.add_argument("data", type=Path, help="a data artefact: runs/…/data-…")
    parser.add_argument("url", help="folder of the copy")
    options = parser.parse_args(arguments)
    mirror_shards(open_artifact(options.data, "data").path, options.url)
