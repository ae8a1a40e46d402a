"""``amrg bank COMMAND ...``: build, merge, show and search memory banks; change those of a run.

`add`, `swap` and `forget` change the memory of a trained run without training it (docs/memory-banks.md).
"""

import argparse
import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from amrg.cli_config import ArgumentParser
from amrg.data.studies import SPLITS
from amrg.errors import UserError

_RUN = "runs/NAME, or one of its scores, reports or stage2 artefacts"
_Command = Callable[[str, Callable[[argparse.Namespace], None], str], argparse.ArgumentParser]
_SHOWN = ("row", "cosine", "finding", "split", "source", "score")


def main(arguments: Sequence[str]) -> None:
    """Run one of the commands; each reads banks and writes new folders."""
    parser = ArgumentParser(prog="amrg bank", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, parser_class=ArgumentParser)

    def command(name: str, action: Callable[[argparse.Namespace], None], about: str) -> argparse.ArgumentParser:
        one = commands.add_parser(name, help=about, description=about)
        one.set_defaults(action=action)
        return one

    _add_bank_commands(command)
    _add_run_commands(command)
    options = parser.parse_args(arguments)
    options.action(options)


def _add_bank_commands(command: _Command) -> None:
    """Declare the commands that read banks and write new ones."""
    dtypes = ("float32", "bfloat16", "float16", "int8")
    build = command("build", _build, "a bank from vectors you have")
    build.add_argument("vectors", type=Path, help=".npy, or .safetensors with a tensor `rows`: [N, D]")
    build.add_argument("provenance", type=Path, help=".parquet or .jsonl: key, group, split, source, … of each row")
    build.add_argument("folder", type=Path, help="of the new bank")
    build.add_argument("--dtype", choices=dtypes, default="float32", help="of the stored rows")
    build.add_argument("--allow-split", nargs="+", default=["train"], help="splits accepted; others than train leak")
    build.add_argument("--encoder", help="that made the vectors; banks of different ones do not merge")
    merge = command("merge", _merge, "all rows of several banks, one after the other")
    merge.add_argument("banks", type=Path, nargs="+")
    merge.add_argument("--to", type=Path, required=True, help="folder of the new bank")
    subset = command("subset", _subset, "some rows of a bank, filtered, de-duplicated, sampled, quantised")
    subset.add_argument("bank", type=Path)
    subset.add_argument("--to", type=Path, required=True, help="folder of the new bank")
    subset.add_argument("--splits", nargs="+", help="keep rows of these splits")
    subset.add_argument("--findings", nargs="+", help="keep rows filed under any of these")
    subset.add_argument("--sources", nargs="+", help="keep region, report, sentence or disease_token rows")
    subset.add_argument("--duplicates", type=float, metavar="COSINE", help="drop rows this near to an earlier one")
    subset.add_argument("--rows", type=int, help="sample so many")
    subset.add_argument(
        "--sampling", choices=("proportional", "uniform", "stratified", "k-center"), default="proportional"
    )
    subset.add_argument("--seed", type=int, default=0, help="of the sampling")
    subset.add_argument("--dtype", choices=dtypes, help="store in another dtype")
    verify = command("verify", _verify, "read everything, hash it again, name the first wrong row")
    verify.add_argument("banks", type=Path, nargs="+")
    show = command("show", _show, "composition of a bank by finding and split")
    show.add_argument("bank", type=Path)
    show.add_argument("--plot", type=Path, metavar="FILE", help="draw it, as PNG or SVG")
    search = command("search", _search, "the rows nearest to one of them, or to a text")
    search.add_argument("bank", type=Path)
    what = search.add_mutually_exclusive_group(required=True)
    what.add_argument("--row", type=int, help="number of a row")
    what.add_argument("--text", help="a text, encoded as the bank's rows were")
    search.add_argument("--count", type=int, default=10, help="how many")
    search.add_argument("--show-text", action="store_true", help="show what reports say")


def _add_run_commands(command: _Command) -> None:
    """Declare the commands that change the memory of a run."""
    add = command("add", _add, "studies become rows of both banks of a run, without training")
    add.add_argument("run", type=Path, help=_RUN)
    add.add_argument("data", type=Path, help="studies with reports, as `amrg prepare` makes them")
    add.add_argument(
        "--splits",
        nargs="+",
        choices=SPLITS,
        default=["train"],
        help="of the data; others than train are marked",
    )
    add.add_argument("--alone", action="store_true", help="banks of these studies alone; the run keeps its own")
    swap = command("swap", _swap, "a run uses other banks that its stage 1 made, without training")
    swap.add_argument("run", type=Path, help=_RUN)
    swap.add_argument("banks", type=Path, help="a banks artefact, here or of another run")
    forget = command("forget", _forget, "remove studies from everything in the folder of a run; deletes its reports")
    forget.add_argument("run", type=Path, help="runs/NAME")
    which = forget.add_mutually_exclusive_group(required=True)
    which.add_argument("--patient", help="number of a patient in the data set, or the group that banks show")
    which.add_argument("--study", help="key of a study")
    which.add_argument("--where", metavar="COLUMN=PATTERN", help="such as dataset=site_b or key=b-*")
    forget.add_argument("--key", type=Path, required=True, metavar="FILE", help="secret bytes that sign the record")
    forget.add_argument("--named", action="store_true", help="write the patient, study or pattern into the record")
    record = command("record", _record, "verify the record of what was forgotten, and show it")
    record.add_argument("run", type=Path, help="runs/NAME")
    record.add_argument("--key", type=Path, required=True, metavar="FILE", help="the secret bytes that signed it")
    record.add_argument("--patient", help="show the lines of this patient, as it was given to `forget`")


def _add(options: argparse.Namespace) -> None:
    from amrg.artifacts import open_artifact
    from amrg.inference.run_artifacts import find_run_artifacts
    from amrg.memory.changes import add_studies_to_banks, write_memory_head

    chain = find_run_artifacts(options.run)
    banks = add_studies_to_banks(chain, open_artifact(options.data, "data"), options.splits, options.alone)
    for name in ("visual", "reports"):
        rows, before = len(_open(banks.path / name)), 0 if options.alone else len(_open(chain.banks.path / name))
        print(f"{banks.path / name}: {rows} rows, {rows - before} of them new")
    if not options.alone:
        print(f"{chain.name} uses these banks from now on: {write_memory_head(chain, banks).path}")


def _swap(options: argparse.Namespace) -> None:
    from amrg.artifacts import open_artifact
    from amrg.inference.run_artifacts import find_run_artifacts
    from amrg.memory.changes import swap_run_banks

    chain = find_run_artifacts(options.run)
    head = swap_run_banks(chain, open_artifact(options.banks, "banks"))
    print(f"{chain.name} uses {options.banks} from now on: {head.path}")


def _forget(options: argparse.Namespace) -> None:
    from amrg.memory.forget import Selection, forget_studies
    from amrg.memory.record import RECORD, read_secret_key

    key = read_secret_key(options.key)
    by = next(name for name in ("patient", "study", "where") if getattr(options, name) is not None)
    entry = forget_studies(options.run, Selection(by, getattr(options, by)), key, options.named)
    if entry is None:
        print(f"{options.run}: what an interrupted `forget` had begun is done")
        return
    counts = "{studies} studies of {patients} patients are gone".format(**entry)
    print(f"{options.run}: {counts}: {json.dumps(entry['rows'])}")
    print("searched {files} files, {bytes} bytes, for {patterns} patterns: none left".format(**entry["searched"]))
    print(f"signed in {options.run / RECORD}")
    print("not touched: trained weights, the original data, backups, exports, and services that still run")


def _record(options: argparse.Namespace) -> None:
    from amrg.memory.record import RECORD, keyed_text_hash, read_secret_key, verify_record

    key = read_secret_key(options.key)
    entries = verify_record(key, options.run / RECORD)
    if options.patient is not None:
        subject = keyed_text_hash(key, f"patient {options.patient}")
        entries = [entry for entry in entries if entry["subject"] == subject]
    print(f"{len(entries)} lines, each as it was signed")
    for entry in entries:
        print(json.dumps(entry))


def _build(options: argparse.Namespace) -> None:
    from amrg.banks.bank import DTYPES
    from amrg.banks.writer import BankWriter

    vectors, origins = _vectors(options.vectors), _origins(options.provenance)
    _fresh(options.folder)
    with BankWriter(
        options.folder, vectors.shape[1], dtype=DTYPES[options.dtype], allow_split=options.allow_split,
        encoder_info={"encoder": options.encoder} if options.encoder else {},
    ) as writer:  # fmt: skip
        start = 0
        for block in origins:
            rows = vectors[start : start + len(block)]
            if len(rows) < len(block):
                raise UserError(f"{options.provenance} tells of more rows than {options.vectors} has ({len(vectors)})")
            writer.add(_tensor(rows), block)
            start += len(block)
        if start != len(vectors):
            raise UserError(f"{options.vectors} has {len(vectors)} rows, {options.provenance} tells of {start}")
    _done(options.folder)


def _merge(options: argparse.Namespace) -> None:
    from amrg.banks.transforms import merge_banks

    merge_banks([_open(path) for path in options.banks], options.to)
    _done(options.to)


def _subset(options: argparse.Namespace) -> None:
    from amrg.banks.bank import DTYPES
    from amrg.banks.transforms import RowSelection, write_bank_subset

    def several(values: list[str] | None) -> tuple[str, ...] | None:
        return None if values is None else tuple(values)

    choice = RowSelection(
        several(options.splits), several(options.findings), several(options.sources), options.duplicates, options.rows,
        options.sampling, options.seed,
    )  # fmt: skip
    write_bank_subset(_open(options.bank), choice, options.to, None if options.dtype is None else DTYPES[options.dtype])
    _done(options.to)


def _verify(options: argparse.Namespace) -> None:
    for path in options.banks:
        bank = _open(path)
        bank.verify()
        print(f"{path}: {len(bank)} rows are as they were written ({bank.content_hash[:12]})")


def _show(options: argparse.Namespace) -> None:
    bank = _open(options.bank)
    counts: Counter[tuple[str, str]] = Counter()
    for start in range(0, len(bank), 65536):
        table = bank.provenance_rows(start, min(start + 65536, len(bank)), ["findings", "split"])
        for row in table.to_pylist():
            counts.update((finding, row["split"]) for finding in row["findings"] or ["none"])
    splits = sorted(bank.header["splits"])
    total = {name: sum(counts[name, split] for split in splits) for name, _ in counts}
    findings = sorted(total, key=lambda name: (-total[name], name))
    console = Console(soft_wrap=True)
    header = bank.header
    console.print(f"{options.bank}: {len(bank):,} rows of {bank.dim} numbers, {header['dtype']}", highlight=False)
    console.print(f"content hash {bank.content_hash}", highlight=False)
    shown = Table("finding", *splits, "", title="rows by finding (a row may have several) and split")
    for name in findings:
        numbers = [counts[name, split] for split in splits]
        shown.add_row(name, *map(str, numbers), "█" * math.ceil(30 * total[name] / max(total.values())))
    console.print(shown)
    if options.plot:
        _draw(options.plot, findings, splits, counts, f"{options.bank.name}: {len(bank):,} rows")
        console.print(f"drawn: {options.plot}", highlight=False)


def _draw(path: Path, findings: list[str], splits: list[str], counts: Counter[tuple[str, str]], title: str) -> None:
    """Draw one horizontal bar per finding, splits stacked."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 0.32 * len(findings) + 1.2), layout="constrained")
    left = [0] * len(findings)
    for split in splits:
        numbers = [counts[name, split] for name in findings]
        axes.barh(findings, numbers, left=left, label=split)
        left = [a + b for a, b in zip(left, numbers, strict=True)]
    axes.invert_yaxis()
    axes.set(xlabel="rows", title=title)
    axes.legend(frameon=False)
    try:
        figure.savefig(path, dpi=150)
    except (OSError, ValueError) as error:
        raise UserError(f"--plot {path} cannot be written ({type(error).__name__}): give a .png or .svg file") from None


def _search(options: argparse.Namespace) -> None:
    import torch

    bank = _open(options.bank)
    if options.row is not None and not 0 <= options.row < len(bank):
        raise UserError(f"{options.bank} has rows 0 to {len(bank) - 1}, not {options.row}")
    query = bank.dequantized(options.row, options.row + 1) if options.row is not None else _encoded(bank, options.text)
    unit = torch.nn.functional.normalize(query)[0]
    best: list[tuple[float, int]] = []
    for start in range(0, len(bank), 65536):
        block = torch.nn.functional.normalize(bank.dequantized(start, min(start + 65536, len(bank))))
        cosines, rows = (block @ unit).topk(min(options.count + 1, len(block)))
        best += zip(cosines.tolist(), (rows + start).tolist(), strict=True)
        best = sorted(best, key=lambda pair: (-pair[0], pair[1]))[: options.count + 1]
    best = [pair for pair in best if pair[1] != options.row][: options.count]
    table = Table(*_SHOWN, *(["text"] if options.show_text else []))
    for cosine, row in best:
        origin = bank.provenance_rows(row, row + 1).to_pylist()[0]
        cells = [
            str(row), f"{cosine:.4f}", ", ".join(origin["findings"] or []), origin["split"], origin["source"],
            "" if origin["score"] is None else f"{origin['score']:.3f}",
        ]  # fmt: skip
        table.add_row(*cells, *([origin["text"] or ""] if options.show_text else []))
    Console(soft_wrap=True).print(table)


def _encoded(bank: Any, text: str) -> Any:
    from amrg.banks.bank import normalize_to_rows
    from amrg.models.text_encoder import TextEncoder

    name = bank.header["about"].get("encoder")
    if name is None:
        raise UserError(f"{bank.folder} was not made from texts: search it with --row")
    pooling = bank.header["about"].get("pooling", "auto")
    return normalize_to_rows(TextEncoder(name, 256, pooling=pooling).encode([text]), bank)


def _open(path: Path) -> Any:
    from amrg.banks.bank import MemoryBank

    return MemoryBank.open(path)


def _fresh(folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is not empty: give the new bank a folder of its own")


def _done(folder: Path) -> None:
    bank = _open(folder)
    print(f"{folder}: {len(bank)} rows of {bank.dim} numbers, {bank.header['dtype']}, {bank.content_hash[:12]}")


def _vectors(path: Path) -> Any:
    """Open the vectors [N, D]; an .npy file is memory-mapped."""
    import numpy as np
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        vectors = np.load(path, mmap_mode="r") if path.suffix == ".npy" else load_file(path)["rows"]
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise UserError(
            f"{path} holds no vectors ({type(error).__name__}): .npy, or .safetensors with `rows`"
        ) from None
    if vectors.ndim != 2:
        raise UserError(f"{path}: vectors [N, D] expected, found {list(vectors.shape)}")
    return vectors


def _tensor(rows: Any) -> Any:
    import numpy as np
    import torch

    return torch.from_numpy(np.array(rows, dtype=np.float32))


def _origins(path: Path) -> Iterator[list[dict[str, Any]]]:
    """Yield blocks of checked provenance rows."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    first = 0
    try:
        for batch in pq.ParquetFile(path).iter_batches(8192) if path.suffix == ".parquet" else _lines(path):
            block = batch.to_pylist() if isinstance(batch, pa.RecordBatch) else batch
            yield [_checked(row, path, first + number) for number, row in enumerate(block)]
            first += len(block)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise UserError(f"{path} is not readable provenance ({type(error).__name__}): .parquet or .jsonl") from None


def _lines(path: Path) -> Iterator[list[dict[str, Any]]]:
    with path.open(encoding="utf-8-sig") as file:
        block: list[dict[str, Any]] = []
        for line in filter(str.strip, file):
            block.append(json.loads(line))
            if len(block) == 8192:
                yield block
                block = []
        yield block


def _checked(row: Any, path: Path, number: int) -> dict[str, Any]:
    from amrg.banks.bank import SOURCES, USER_COLUMNS
    from amrg.data.context import CONTEXT_FIELDS

    if not isinstance(row, dict):
        raise UserError(f"{path}: row {number} is no object with the columns {', '.join(USER_COLUMNS)}")
    values = {name: row.get(name) for name in USER_COLUMNS}
    for name in ("key", "group", "split", "source"):
        if not isinstance(values[name], str):
            raise UserError(f"{path}: row {number} has no text in `{name}`")
    if values["source"] not in SOURCES:
        raise UserError(f"{path}: row {number}: source {values['source']!r} is none of {', '.join(SOURCES)}")
    context = values["context"] if values["context"] is not None else {}
    if not isinstance(context, dict) or context.keys() - CONTEXT_FIELDS or not all(map(_is_text, context.values())):
        raise UserError(f"{path}: row {number}: `context` may have texts of {', '.join(CONTEXT_FIELDS)}")
    try:
        json.dumps(values, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise UserError(f"{path}: row {number} holds half of a surrogate pair, which is no character") from None
    return values


def _is_text(value: Any) -> bool:
    return value is None or isinstance(value, str)
