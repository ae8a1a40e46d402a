"""``amrg inspect ARTEFACT``: show the kind, the provenance and a few rows of an artefact folder."""

import argparse
import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from amrg.artifacts import LOGS, MANIFEST, Artifact, folder_content_hash, open_artifact
from amrg.errors import UserError

ROWS = 5
#: Columns that hold what patients' reports say; shown on request only.
TEXT_COLUMNS = {"report", "text", "reference", "generated"}


def main(arguments: list[str]) -> None:
    """Print the description of an artefact."""
    parser = argparse.ArgumentParser(prog="amrg inspect", description=__doc__)
    parser.add_argument("artefact", type=Path, help="a folder made by one of the verbs")
    parser.add_argument("--verify", action="store_true", help="hash every file again and compare with the manifest")
    parser.add_argument("--show-text", action="store_true", help="show report texts too")
    options = parser.parse_args(arguments)
    artifact = _open(options.artefact)
    console = Console(soft_wrap=True)
    console.print(_summary(artifact))
    if options.verify:
        _verify(artifact)
        console.print("content hash verified")
    for path in sorted(artifact.path.rglob("*")):
        if LOGS in path.relative_to(artifact.path).parts:
            continue
        table = _rows(path, options.show_text)
        if table:
            console.print(table)


def _open(path: Path) -> Artifact:
    try:
        kind = json.loads((path / MANIFEST).read_text())["kind"]
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{path} is not an artefact: it has no readable {MANIFEST}") from None
    return open_artifact(path, kind)


def _verify(artifact: Artifact) -> None:
    found = folder_content_hash(artifact.path)
    if found != artifact.hash:
        raise UserError(
            f"{artifact.path} was changed after it was made (content hash {found[:12]}, "
            f"manifest {artifact.hash[:12]}): delete the folder and make it again"
        )


def _summary(artifact: Artifact) -> Table:
    table = Table("artefact", str(artifact.path), title_justify="left")
    manifest = artifact.manifest
    table.add_row("kind", f"{artifact.kind} (format {manifest['format_version']})")
    table.add_row("content hash", artifact.hash)
    if artifact.warning:
        table.add_row("MARK", artifact.warning, style="bold red")
    for failure in artifact.failures:
        table.add_row("FAILED", failure, style="bold red")
    for name, source in manifest["inputs"].items():
        table.add_row(f"made from {name}", f"{source['path']} ({source['hash'][:12]})")
    table.add_row("seed", str(manifest["seed"]))
    table.add_row("settings", json.dumps(manifest["config"]))
    table.add_row("packages", ", ".join(f"{name} {number}" for name, number in manifest["packages"].items()))
    files = [path for path in artifact.path.rglob("*") if path.is_file()]
    table.add_row("size", f"{len(files)} files, {sum(path.stat().st_size for path in files) / 1e6:.1f} MB")
    return table


def _rows(path: Path, show_text: bool) -> Table | None:
    """The first rows of a table file, or the top level of a small JSON file."""
    if path.suffix == ".parquet":
        import pyarrow.parquet as pq

        file = pq.ParquetFile(path)
        rows = next(file.iter_batches(batch_size=ROWS)).to_pylist() if file.metadata.num_rows else []
        return _table(f"{path.name}: {file.metadata.num_rows} rows", rows, show_text)
    if path.suffix == ".jsonl":
        lines = path.read_text().splitlines()
        return _table(f"{path.name}: {len(lines)} lines", [json.loads(line) for line in lines[:ROWS]], show_text)
    if path.suffix == ".json" and path.name != MANIFEST and path.stat().st_size < 20_000:
        content = json.loads(path.read_text())
        rows = [{"key": key, "value": value} for key, value in content.items()] if isinstance(content, dict) else []
        return _table(path.name, rows, show_text) if rows else None
    return None


def _table(title: str, rows: list[dict[str, Any]], show_text: bool) -> Table:
    columns = list(dict.fromkeys(column for row in rows for column in row))
    columns = [column for column in columns if show_text or column not in TEXT_COLUMNS]
    table = Table(*columns, title=title, title_justify="left")
    for row in rows:
        table.add_row(*(_short(row.get(column)) for column in columns))
    return table


def _short(value: Any, limit: int = 60) -> str:
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return text if len(text) <= limit else text[: limit - 1] + "…"
