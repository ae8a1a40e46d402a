"""``amrg export REPORTS FILE``: write reports for ReXrank, or with ``--hub FOLDER`` the model for a hub.

FILE is in the format of the ReXrank leaderboard. With ``--onto`` the reports go into one of ReXrank's own test set
files, as a submission needs it; without, the references are those of REPORTS. The file holds report texts.

``amrg export RUN --hub FOLDER`` writes the model of a run, its memory and a card as a folder for a model hub, which
``amrg write FOLDER film.png`` reads. ``--push USER/NAME`` also uploads it, to a private repository.
"""

import argparse
import json
import os
from pathlib import Path

from amrg.artifacts import Artifact, open_artifact, open_artifact_input
from amrg.errors import UserError
from amrg.evaluation import rexrank
from amrg.evaluation.reports import FILE, parse_reports
from amrg.inference.run_artifacts import find_run_artifacts
from amrg.progress import print_on_rank_0


def main(arguments: list[str]) -> None:
    """Write the file; an existing one is kept."""
    parser = argparse.ArgumentParser(
        prog="amrg export", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("reports", type=Path, metavar="REPORTS", help="a reports artefact; with --hub any run")
    parser.add_argument("file", type=Path, metavar="FILE", nargs="?", help="the JSON file to write")
    parser.add_argument(
        "--onto", type=Path, metavar="FILE", help="a ReXrank test set, such as ReXRank_MIMICCXR_test.json"
    )
    parser.add_argument("--hub", type=Path, metavar="FOLDER", help="write the model and its memory as a new folder")
    parser.add_argument(
        "--without-reports",
        action="store_true",
        help="of the memory's rows only vectors and hashes: no text, no patient",
    )
    parser.add_argument("--push", metavar="USER/NAME", help="upload the folder to this repository of the hub")
    options = parser.parse_args(arguments)
    if (options.hub is None) == (options.file is None):
        parser.error("give FILE for ReXrank, or --hub FOLDER for a model hub")
    if options.hub:
        if options.onto:
            parser.error("--onto belongs to FILE, not to --hub")
        from amrg.inference.hub import export_hub_folder, push_hub_folder

        export_hub_folder(find_run_artifacts(options.reports), options.hub, options.without_reports)
        print_on_rank_0(f"the model is in {options.hub}; its README.md says what it is")
        if options.push:
            push_hub_folder(options.hub, options.push)
            print_on_rank_0(f"pushed to {options.push}, a private repository")
        return
    if options.without_reports or options.push:
        parser.error("--without-reports and --push belong to --hub")
    artifact = open_artifact(options.reports, "reports")
    reports = list(parse_reports(artifact.path / FILE).values())
    if options.onto:
        content = rexrank.fill_test_set(rexrank.read_test_set(options.onto), reports)
    else:
        content = rexrank.rexrank_submission(reports, _sections(artifact))
    _write(options.file, json.dumps(content, indent=4, ensure_ascii=False) + "\n")
    print_on_rank_0(f"{len(content)} studies in {options.file}")


def _sections(reports: Artifact) -> str:
    return open_artifact_input(reports, "data").manifest["config"].get("sections", "findings")


def _write(path: Path, text: str) -> None:
    if path.exists():
        raise UserError(f"{path} exists: delete it or choose another name")
    partial = path.with_name(path.name + ".partial")
    try:
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from None
