"""``amrg write RUN STUDY ...``: write reports for films with the generator of a run.

STUDY is a film (PNG, JPEG, DICOM, TIFF, BMP or WebP); a folder, in which each folder that holds films is a study; a CSV
with the columns study and film; or a .txt with the path of a film or folder in each line. Paths in these files are
relative to them. A CSV may also have the columns indication, technique, comparison, age and sex, and prior_report,
prior (films of the earlier study, several separated by `;`) and prior_days, which are the options of these names for
one study, and with --bank the column bank. Other files in folders are skipped. Reports go to stdout as they are
written: as text, or with --json as one JSON line a study, with stage 1's probabilities and the memory rows behind it.
With --out they go to a file as JSON lines; the same command continues an interrupted one.
"""

import argparse
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from itertools import groupby, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from amrg.artifacts import Artifact, open_artifact
from amrg.data.context import CONTEXT_FIELDS
from amrg.data.own_studies import (
    PRIOR_COLUMNS,
    GivenPrior,
    StudyFiles,
    StudyFilms,
    find_own_studies,
    printable_file_name,
    read_given_context,
    read_given_prior,
    read_own_study,
)
from amrg.data.text.sections import IMPRESSION_MARK
from amrg.errors import UserError
from amrg.inference.run_artifacts import BASE_MODEL, RunArtifacts, find_run_artifacts, refuse_other_banks
from amrg.pages import EMBEDDED_DATA_NOTICE, NOT_CLINICAL_NOTICE
from amrg.progress import print_on_rank_0, track_progress

if TYPE_CHECKING:
    from amrg.inference.run import LoadedRun

UNLIKE_TRAINING = (
    "unlike the films that this model was trained on (distance {training_distance:.1f}, threshold "
    "{training_distance_threshold:.1f}): do not rely on its report"
)
_NAMED = 5  # skipped files that are named
_START = b'{"study": '  # of each line


def main(arguments: list[str]) -> None:
    """Print a report for each study; those left out are named, and the exit code is 2 if there are any."""
    options = _parser().parse_args(arguments)
    chain = find_run_artifacts(options.run, options.base_model)
    embedded = [EMBEDDED_DATA_NOTICE] if chain.config.data.source == "openi_drr" else []
    for warning in (NOT_CLINICAL_NOTICE, *embedded, *chain.warnings):
        print_on_rank_0(warning)
    studies, skipped = find_own_studies(options.studies, options.one_study)
    context = read_given_context({name: getattr(options, name) or "" for name in CONTEXT_FIELDS}, "--")
    if context:
        if len(studies) != 1:
            raise UserError(
                f"--indication, --age and the like are of one study, and there are {len(studies)}: give a CSV with the "
                f"columns study, film and {', '.join(CONTEXT_FIELDS)}"
            )
        studies = [replace(studies[0], context=context.filled(studies[0].context))]
    prior = read_given_prior(_report(options.prior_report), options.prior, options.prior_days or "", "--prior-days")
    if prior:
        if len(studies) != 1:
            raise UserError(
                f"--prior-report and --prior are of one study, and there are {len(studies)}: give a CSV with the "
                f"columns study, film and {', '.join(PRIOR_COLUMNS)}"
            )
        studies = [replace(studies[0], prior=prior)]
    if skipped:
        names = sorted(set(skipped))
        more = f" and {len(names) - _NAMED} other names" if len(names) > _NAMED else ""
        print_on_rank_0(f"files that are no films are skipped: {len(skipped)} ({', '.join(names[:_NAMED])}{more})")
    memories = _open_memories(chain, options.bank, {study.memory for study in studies})
    models = {replace(chain, banks=one).model for one in (memories or {"": chain.banks}).values()}
    finished = _finished(options.out, models) if options.out else set()
    remaining = [study for study in studies if study.name not in finished]
    if len(remaining) < len(studies):
        print_on_rank_0(f"{len(studies) - len(remaining)} of {len(studies)} studies are already in {options.out}")
    left_out = len(remaining)
    for line in write_own_studies(chain, remaining, options.force, memories) if remaining else ():
        if line.get("unlike_training"):
            print_on_rank_0(f"{line['study']}: {UNLIKE_TRAINING.format(**line)}")
        if options.out:
            with options.out.open("a", encoding="utf-8") as file:  # closed, and so written, after each study
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
        elif options.json:
            print(json.dumps(line, ensure_ascii=False), flush=True)
        else:
            unsure = " ".join(one["text"] for one in line.get("unsure", []))
            text = f"{_text(line)}{f' [Not sure: {unsure}]' if unsure else ''}"
            print(f"{line['study']}: {text}" if len(studies) > 1 else text, flush=True)
        left_out -= 1
    if left_out:
        raise UserError(
            f"{left_out} of {len(studies)} studies could not be read or are refused (named above) and have no report"
        )


def _text(line: dict[str, Any]) -> str:
    """Return the report of a line; an impression that it tells apart begins a line."""
    if not (impression := line.get("sections", {}).get("impression")):
        return str(line["generated"])
    return f"{line['sections']['findings']}\n{IMPRESSION_MARK} {impression}"


def write_own_studies(
    chain: RunArtifacts,
    studies: Sequence[StudyFiles],
    force: bool = False,
    memories: Mapping[str, Artifact] | None = None,
) -> Iterator[dict[str, Any]]:
    """Generate a record for each study, in order; those that are unreadable or refused are named and left out.

    Args:
        chain: the run.
        studies: their files.
        force: write reports also for what is refused as no film.
        memories: banks by ``StudyFiles.memory``, "" for studies that name none; None: the run's own for all.

    Yields:
        ``{study, model}``, the fields of ``LoadedRun.generate_records`` (``prior`` is whether an earlier study was
        read), ``context``, the names of the fields that were known and read, if the run reads any, and with ``force``
        for what would have been refused ``forced``: why.
    """
    from amrg.inference.run import LoadedRun

    chosen = {"": chain.banks} if memories is None else memories
    load = cache(lambda name: LoadedRun(replace(chain, banks=chosen[name])))
    for name, some in groupby(studies, lambda study: study.memory if memories else ""):
        yield from _write_with(load(name), list(some), force)


def _write_with(run: "LoadedRun", studies: Sequence[StudyFiles], force: bool) -> Iterator[dict[str, Any]]:
    """Generate the records of ``write_own_studies`` with one memory."""
    chain = run.artifacts
    given = [name for name in CONTEXT_FIELDS if any(study.context.text(name) for study in studies)]
    if unread := [name for name in given if name not in run.context_fields]:
        print_on_rank_0(
            f"this run does not read {', '.join(unread)}, which is left out (decoder.context of its training, "
            "generate.recall_context of its reports)"
        )
    if any(study.prior for study in studies) and not run.prior_parts:
        print_on_rank_0("this run does not read an earlier study, which is left out (decoder.prior of its training)")
    readable = (
        (study, *found)
        for study in track_progress(studies, "writing reports")
        if (found := _read(study, run, chain, force))
    )
    while batch := list(islice(readable, run.batch_size)):
        contexts = [study.context.filled(read.context) for study, read, _ in batch]
        records = run.generate_records(
            [read.films for _, read, _ in batch],
            contexts,
            [prior for *_, prior in batch],
            [read.views for _, read, _ in batch],
        )
        for (study, read, _), context, record in zip(batch, contexts, records, strict=True):
            known = {"context": [name for name in run.context_fields if context.text(name)]}
            forced = {"forced": "; ".join(read.forced)} if read.forced else {}
            known = known if run.context_fields else {}
            yield {"study": study.name, "model": chain.model, **record, **known, **forced}


def _open_memories(chain: RunArtifacts, given: Sequence[str], chosen: set[str]) -> dict[str, Artifact] | None:
    """Open the banks of --bank by what studies name; those that name none read all of them, mixed.

    Raises:
        UserError: a name is given twice or to nothing, a study names another, or banks do not fit the run.
    """
    pairs = [one.partition("=") for one in given]
    named = {name: Path(path) for name, equals, path in pairs if name and equals and path and "+" not in name}
    if len(named) < len(given):
        raise UserError("--bank takes NAME=BANKS, each name once and without +")
    if unknown := sorted({part for name in chosen - {""} for part in name.split("+")} - named.keys()):
        raise UserError(f"a study's bank {', '.join(unknown)} is none of --bank {' '.join(named) or '(none is given)'}")
    if not named:
        return None
    banks = {name: open_artifact(path, "banks") for name, path in named.items()}
    for one in banks.values():
        refuse_other_banks(chain, one)
    from amrg.memory.changes import mix_bank_folders

    everything = "+".join(named)
    found = {}
    for name in chosen:
        parts = [banks[part] for part in dict.fromkeys((name or everything).split("+"))]
        found[name] = parts[0] if len(parts) == 1 else mix_bank_folders(chain, parts)
    return found


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="amrg write", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="runs/NAME, or one of its scores, reports or stage2 artefacts")
    parser.add_argument("studies", type=Path, metavar="study", nargs="+", help="a film, folder, CSV or .txt, as above")
    parser.add_argument("--json", action="store_true", help="one JSON line a study")
    parser.add_argument("--out", type=Path, metavar="FILE.jsonl", help="append JSON lines; skip the studies in it")
    parser.add_argument("--one-study", action="store_true", help="a study may have any number of films")
    parser.add_argument(
        "--bank", action="append", default=[], metavar="NAME=BANKS",
        help="retrieve from these banks instead, such as another hospital's; of several, each study from those that "
        "the CSV's column bank names (NAME or NAME+NAME), or from all",
    )  # fmt: skip
    parser.add_argument("--force", action="store_true", help="write also for what is refused as no chest film")
    for name in CONTEXT_FIELDS:
        what = "in years" if name == "age" else "female or male" if name == "sex" else "a text"
        parser.add_argument(f"--{name}", help=f"clinical context, {what}, for a run that reads it; of one study")
    parser.add_argument(
        "--prior-report", metavar="TEXT", help="report of the earlier study, or a .txt with it, for a run that reads it"
    )
    parser.add_argument(
        "--prior", type=Path, metavar="FILM", action="append", default=[],
        help="a film of the earlier study, for a run that reads it; may be given several times",
    )  # fmt: skip
    parser.add_argument("--prior-days", metavar="N", help="days between the earlier study and this one")
    parser.add_argument("--decoder.model", **BASE_MODEL)
    return parser


def _report(given: str | None) -> str:
    """Return a report that is given as a text, or as the path of a .txt."""
    if not given or not given.lower().endswith(".txt"):
        return given or ""
    try:
        return Path(given).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--prior-report: the .txt cannot be read ({type(error).__name__})") from None


def _read(
    study: StudyFiles, run: "LoadedRun", chain: RunArtifacts, force: bool
) -> tuple[StudyFilms, GivenPrior | None] | None:
    """Read a study and its earlier one; None, with the reason printed, if it is left out."""
    named = [
        ("" if printable_file_name(str(film)) == study.name else printable_file_name(film.name), film)
        for film in study.films
    ]
    try:
        if study.fault:
            raise ValueError(study.fault)
        read = read_own_study(named, run.image_size, chain.frontal_only, force)
        prior = run.read_prior(study.prior, force)
    except (ValueError, UserError) as error:
        print_on_rank_0(f"{study.name} is left out: {error}")
        return None
    for note in read.notes:
        print_on_rank_0(f"{study.name}: a film is left out: {note}")
    for reason in read.forced:
        print_on_rank_0(f"{study.name} is forced: {reason}")
    return read, prior


def _finished(out: Path, allowed: set[str]) -> set[str]:
    """Return the studies that a file of reports of these models holds; a cut last line is removed.

    Raises:
        UserError: it cannot be read or written, or holds something else.
    """
    try:
        with out.open("a+b") as file:  # fails now where it could not be written later
            file.seek(0)
            data = file.read()
    except OSError as error:
        raise UserError(f"{out}: {error.strerror}") from None
    complete = data.rfind(b"\n") + 1
    cut = data[complete:]
    try:
        lines = [json.loads(line) for line in data[:complete].splitlines()]
        studies, models = {line["study"] for line in lines}, {str(line["model"]) for line in lines}
        if cut[: len(_START)] != _START[: len(cut)]:
            raise ValueError
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{out} does not hold lines of `amrg write`: give another file to --out") from None
    if models - allowed:
        raise UserError(
            f"{out} holds reports of {', '.join(sorted(models - allowed))}, not of {', '.join(sorted(allowed))}: give "
            "another file to --out"
        )
    if cut:  # not before it is known to be ours: any other file must stay as it is
        os.truncate(out, complete)
    return studies
