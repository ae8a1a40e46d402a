"""``amrg doctor PATH``: is this copy of a data set whole, and what to do about it."""

import argparse
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from amrg.data.dataset_checks import examine


def main(arguments: list[str]) -> None:
    """Print one table of what is fine and what to do. Exit code 1 where something is not fine."""
    parser = argparse.ArgumentParser(prog="amrg doctor", description=__doc__)
    parser.add_argument("path", type=Path, help="the folder that data.path names")
    root = parser.parse_args(arguments).path
    source, checks = examine(root)
    table = Table("", "checked", "found", "what to do", title=f"{root}: {source}", title_justify="left")
    for check in checks:
        table.add_row(
            "✓" if check.fine else "✗", check.what, check.found, check.advice, style="" if check.fine else "red"
        )
    console = Console(soft_wrap=not sys.stdout.isatty())
    console.print(table)
    wrong = sum(not check.fine for check in checks)
    console.print("all is fine" if not wrong else f"{wrong} of {len(checks)} checks found something")
    if wrong:
        sys.exit(1)
