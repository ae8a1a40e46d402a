"""``amrg export REPORTS FILE``: export generated reports in the format of the ReXrank leaderboard.

With ``--onto`` the reports go into one of ReXrank's own test set files, as a submission needs it; without, the
references are those of REPORTS. The file holds report texts.
"""

import argparse
import json
import os
from pathlib import Path

from amrg.artifacts import Artifact, open_artifact, open_input
from amrg.errors import UserError
from amrg.evaluation import rexrank
from amrg.evaluation.reports import FILE, parse_reports
from amrg.progress import echo


def main(arguments: list[str]) -> None:
    """Write the file; an existing one is kept."""
    parser = argparse.ArgumentParser(
        prog="amrg export", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("reports", type=Path, metavar="REPORTS", help="a reports artefact")
    parser.add_argument("file", type=Path, metavar="FILE", help="the JSON file to write")
    parser.add_argument(
        "--onto", type=Path, metavar="FILE", help="a ReXrank test set, such as ReXRank_MIMICCXR_test.json"
    )
    options = parser.parse_args(arguments)
    artifact = open_artifact(options.reports, "reports")
    reports = list(parse_reports(artifact.path / FILE).values())
    if options.onto:
        content = rexrank.fill_test_set(rexrank.read_test_set(options.onto), reports)
    else:
        content = rexrank.to_rexrank(reports, _sections(artifact))
    _write(options.file, json.dumps(content, indent=4, ensure_ascii=False) + "\n")
    echo(f"{len(content)} studies in {options.file}")


def _sections(reports: Artifact) -> str:
    return open_input(reports, "data").manifest["config"].get("sections", "findings")


def _write(path: Path, text: str) -> None:
    if path.exists():
        raise UserError(f"{path} exists: delete it or choose another name")
    partial = path.with_name(path.name + ".partial")
    try:
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from None
