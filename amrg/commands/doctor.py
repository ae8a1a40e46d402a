"""``amrg doctor PATH``: check a copy of a data set before it is prepared, and list repairs."""

import argparse
import csv
import os
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from amrg.data.check_report import Check
from amrg.data.dataset_checks import check_dataset
from amrg.data.shards import hash_study_key
from amrg.errors import UserError

#: Columns of the file of ``--list``.
COLUMNS = ("check", "hashed", "exact", "reason")


def main(arguments: list[str]) -> None:
    """Print a table of the checks and repairs; exit code 1 if a check fails."""
    parser = argparse.ArgumentParser(prog="amrg doctor", description=__doc__)
    parser.add_argument("path", type=Path, help="the folder that data.path names")
    parser.add_argument(
        "--list",
        type=Path,
        metavar="FILE",
        help="read all reports and films, not a sample, and write the exact path or name of each thing that is wrong, "
        "tab-separated; the file names patients",
    )
    options = parser.parse_args(arguments)
    root = options.path.expanduser()
    source, checks = check_dataset(root, every=options.list is not None)
    table = Table("", "checked", "found", "what to do", title=f"{root}: {source}", title_justify="left")
    for check in checks:
        mark, style = ("✗", "red") if not check.ok else ("!", "yellow") if check.remedy else ("✓", "")
        table.add_row(mark, check.what, check.result, check.remedy, style=style)
    console = Console(soft_wrap=not sys.stdout.isatty())
    console.print(table)
    if options.list:
        console.print(
            f"{_write_list(checks, options.list)} lines in {options.list}, which names patients", markup=False
        )
    wrong = sum(not check.ok for check in checks)
    remarks = sum(check.ok and bool(check.remedy) for check in checks)
    fine = "all is fine" + (f"; {remarks} of {len(checks)} checks have a remark (!)" if remarks else "")
    console.print(fine if not wrong else f"{wrong} of {len(checks)} checks found something")
    if wrong:
        sys.exit(1)


def _write_list(checks: list[Check], path: Path) -> int:
    """Write what the checks found, for the owner of the file alone; return the number of lines below the header."""
    rows = [(check.what, hash_study_key(one.key), one.exact, one.reason) for check in checks for one in check.found]
    try:
        with open(
            os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8", newline=""
        ) as file:
            writer = csv.writer(file, delimiter="\t", lineterminator="\n")
            writer.writerows([COLUMNS, *rows])
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from None
    return len(rows)
