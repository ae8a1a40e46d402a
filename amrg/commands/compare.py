"""``amrg compare RUN RUN ...``: compare the scores of runs with paired tests by patient.

RUN is a scores or a reports artefact, or a file of reports with one JSON object per line: key, group (the patient),
reference, generated. Every run is compared with the first, over the same studies, patients kept together. Metrics with
learned weights are compared if `amrg evaluate` could compute them for the scores artefacts of both runs.
"""

import argparse
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from amrg.errors import UserError
from amrg.evaluation.comparison import Difference, ReportSet, compare_with_first, read_run_reports, run_display_name
from amrg.evaluation.radeval_metrics import NAMES as LEARNED

#: Shown unless all are asked for.
SHOWN = (
    "F1 micro-13",
    "F1 macro-13",
    "F1 example-13",
    "F1 micro-14",
    "F1 micro-5",
    "F1 micro-13 with details",
    "F1 macro-13 with details",
    "side exact",
    "side opposite",
    "zone exact",
    "severity exact",
    "device kind",
    "unsupported details",
    "contradicting reports",
    "BLEU-1",
    "BLEU-4",
    "ROUGE-L",
    "CIDEr",
    *LEARNED,
)


def main(arguments: list[str]) -> None:
    """Print one table for each run after the first."""
    parser = argparse.ArgumentParser(
        prog="amrg compare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--resamples", type=int, default=2000, help="of bootstrap and permutation test (default 2000)")
    parser.add_argument("--seed", type=int, default=0, help="of both (default 0)")
    parser.add_argument("--all", action="store_true", help="every average and both readings of uncertain findings")
    parser.add_argument("--json", type=Path, help="write all differences to this file too")
    options = parser.parse_args(arguments)
    if len(options.runs) < 2:
        raise UserError("one run alone cannot be compared: give two or more")
    if options.resamples < 1:
        raise UserError(f"--resamples {options.resamples}: at least 1 is needed")
    first, *others = [read_run_reports(path) for path in _distinct_names(options.runs)]
    found = compare_with_first(first, others, options.resamples, options.seed)
    if options.json:
        _write(options.json, first, found, options)
    console = Console()
    for run, rows in found.items():
        console.print(_table(first, run, rows, options.all))
    console.print(
        f"{len(first.reports)} studies of {len({r.group for r in first.reports})} patients, which are kept together; "
        f"95%: paired bootstrap, p: permutation test, {options.resamples} resamples each; "
        f"Holm: p corrected for all {sum(map(len, found.values()))} tests",
        soft_wrap=True,
    )


def _distinct_names(paths: list[Path]) -> list[Path]:
    resolved = [path.resolve() for path in paths]
    if len({run_display_name(path) for path in resolved}) < len(resolved):
        raise UserError("two of the runs have the same name: a run is not compared with itself; rename a copied folder")
    return resolved


def _table(first: ReportSet, other: str, rows: Mapping[str, Difference], everything: bool) -> Table:
    title = f"{other} against {first.name}"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, padding=0)
    table.add_column("")
    for head in ("first", "other", "difference", "95%", "p", "Holm"):
        table.add_column(head, justify="right", no_wrap=True)
    for name, d in rows.items():
        if everything or name in SHOWN:
            low, high = d.interval
            scores = (
                f"{d.baseline:.3f}",
                f"{d.candidate:.3f}",
                f"{d.candidate - d.baseline:+.3f}",
                f"{low:+.3f} – {high:+.3f}",
            )
            table.add_row(name, *scores, f"{d.p:.4f}", f"{d.holm:.4f}")
    return table


def _write(
    path: Path, first: ReportSet, found: Mapping[str, Mapping[str, Difference]], options: argparse.Namespace
) -> None:
    content = {
        "first": first.name,
        "studies": len(first.reports),
        "patients": len({report.group for report in first.reports}),
        "resamples": options.resamples,
        "seed": options.seed,
        "runs": {run: {name: asdict(d) for name, d in rows.items()} for run, rows in found.items()},
    }
    try:
        path.write_text(json.dumps(content, indent=2) + "\n")
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from None
