"""``amrg doctor PATH``: check a copy of a data set before it is prepared, and list repairs."""

import argparse
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from amrg.data.dataset_checks import check_dataset


def main(arguments: list[str]) -> None:
    """Print a table of the checks and repairs; exit code 1 if a check fails."""
    parser = argparse.ArgumentParser(prog="amrg doctor", description=__doc__)
    parser.add_argument("path", type=Path, help="the folder that data.path names")
    root = parser.parse_args(arguments).path
    source, checks = check_dataset(root)
    table = Table("", "checked", "found", "what to do", title=f"{root}: {source}", title_justify="left")
    for check in checks:
        table.add_row("✓" if check.ok else "✗", check.what, check.result, check.remedy, style="" if check.ok else "red")
    console = Console(soft_wrap=not sys.stdout.isatty())
    console.print(table)
    wrong = sum(not check.ok for check in checks)
    console.print("all is fine" if not wrong else f"{wrong} of {len(checks)} checks found something")
    if wrong:
        sys.exit(1)
