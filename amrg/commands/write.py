"""``amrg write RUN STUDY ...``: write reports for films with the generator of a run.

STUDY is a film (PNG, JPEG, DICOM, TIFF, BMP or WebP); a folder, in which each folder that holds films is a study; a CSV
with the columns study and film; or a .txt with the path of a film or folder in each line. Paths in these files are
relative to them. A CSV may also have the columns indication, technique, comparison, age and sex, which are the options
of these names for one study. Other files in folders are skipped. Reports go to stdout as they are written: as text, or
with --json as one JSON line a study, with stage 1's probabilities and the memory rows behind it. With --out they go to
a file as JSON lines; the same command continues an interrupted one.
"""

import argparse
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from amrg.data.context import CONTEXT_FIELDS
from amrg.data.own_studies import (
    StudyFiles,
    StudyFilms,
    find_studies,
    printable,
    read_given_context,
    read_study,
)
from amrg.data.text.sections import IMPRESSION_MARK
from amrg.errors import UserError
from amrg.inference.run import BASE_MODEL, LoadedRun, RunArtifacts, open_run
from amrg.pages import EMBEDDED_DATA_NOTICE, NOT_CLINICAL_NOTICE
from amrg.progress import echo, track

UNLIKE_TRAINING = (
    "unlike the films that this model was trained on (distance {training_distance:.1f}, threshold "
    "{training_distance_threshold:.1f}): do not rely on its report"
)
_NAMED = 5  # skipped files that are named
_START = b'{"study": '  # of each line


def main(arguments: list[str]) -> None:
    """Print a report for each study; those left out are named, and the exit code is 2 if there are any."""
    options = _parser().parse_args(arguments)
    chain = open_run(options.run, options.base_model)
    embedded = [EMBEDDED_DATA_NOTICE] if chain.config.data.source == "openi_drr" else []
    for warning in (NOT_CLINICAL_NOTICE, *embedded, *chain.warnings):
        echo(warning)
    studies, skipped = find_studies(options.studies, options.one_study)
    context = read_given_context({name: getattr(options, name) or "" for name in CONTEXT_FIELDS}, "--")
    if context:
        if len(studies) != 1:
            raise UserError(
                f"--indication, --age and the like are of one study, and there are {len(studies)}: give a CSV with the "
                f"columns study, film and {', '.join(CONTEXT_FIELDS)}"
            )
        studies = [replace(studies[0], context=context.filled(studies[0].context))]
    if skipped:
        names = sorted(set(skipped))
        more = f" and {len(names) - _NAMED} other names" if len(names) > _NAMED else ""
        echo(f"files that are no films are skipped: {len(skipped)} ({', '.join(names[:_NAMED])}{more})")
    finished = _finished(options.out, chain.model) if options.out else set()
    remaining = [study for study in studies if study.name not in finished]
    if len(remaining) < len(studies):
        echo(f"{len(studies) - len(remaining)} of {len(studies)} studies are already in {options.out}")
    left_out = len(remaining)
    for line in write(chain, remaining, options.force) if remaining else ():
        if line.get("unlike_training"):
            echo(f"{line['study']}: {UNLIKE_TRAINING.format(**line)}")
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


def write(chain: RunArtifacts, studies: Sequence[StudyFiles], force: bool = False) -> Iterator[dict[str, Any]]:
    """Generate a record for each study, in order; those that are unreadable or refused are named and left out.

    Args:
        chain: the run.
        studies: their files.
        force: write reports also for what is refused as no film.

    Yields:
        ``{study, model}``, the fields of ``LoadedRun.generate_records``, ``context``, the names of the fields that were
        known and read, if the run reads any, and with ``force`` for what would have been
        refused ``forced``: why.
    """
    run = LoadedRun(chain)
    given = [name for name in CONTEXT_FIELDS if any(study.context.text(name) for study in studies)]
    if unread := [name for name in given if name not in run.context_fields]:
        echo(f"this run does not read {', '.join(unread)}, which is left out (decoder.context of its training)")
    readable = (
        (study, read) for study in track(studies, "writing reports") if (read := _read(study, run, chain, force))
    )
    while batch := list(islice(readable, run.batch_size)):
        contexts = [study.context.filled(read.context) for study, read in batch]
        records = run.generate_records([read.films for _, read in batch], contexts, [read.views for _, read in batch])
        for (study, read), context, record in zip(batch, contexts, records, strict=True):
            known = {"context": [name for name in run.context_fields if context.text(name)]}
            forced = {"forced": "; ".join(read.forced)} if read.forced else {}
            known = known if run.context_fields else {}
            yield {"study": study.name, "model": chain.model, **record, **known, **forced}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="amrg write", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="runs/NAME, or one of its scores, reports or stage2 artefacts")
    parser.add_argument("studies", type=Path, metavar="study", nargs="+", help="a film, folder, CSV or .txt, as above")
    parser.add_argument("--json", action="store_true", help="one JSON line a study")
    parser.add_argument("--out", type=Path, metavar="FILE.jsonl", help="append JSON lines; skip the studies in it")
    parser.add_argument("--one-study", action="store_true", help="a study may have any number of films")
    parser.add_argument("--force", action="store_true", help="write also for what is refused as no chest film")
    for name in CONTEXT_FIELDS:
        what = "in years" if name == "age" else "female or male" if name == "sex" else "a text"
        parser.add_argument(f"--{name}", help=f"clinical context, {what}, for a run that reads it; of one study")
    parser.add_argument("--decoder.model", **BASE_MODEL)
    return parser


def _read(study: StudyFiles, run: LoadedRun, chain: RunArtifacts, force: bool) -> StudyFilms | None:
    """Read the films of a study; None, with the reason printed, if it is left out."""
    named = [("" if printable(str(film)) == study.name else printable(film.name), film) for film in study.films]
    try:
        if study.fault:
            raise ValueError(study.fault)
        read = read_study(named, run.image_size, chain.frontal_only, force)
    except ValueError as error:
        echo(f"{study.name} is left out: {error}")
        return None
    for note in read.notes:
        echo(f"{study.name}: a film is left out: {note}")
    for reason in read.forced:
        echo(f"{study.name} is forced: {reason}")
    return read


def _finished(out: Path, model: str) -> set[str]:
    """Return the studies that a file of reports of this model holds; a cut last line is removed.

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
    if models - {model}:
        raise UserError(
            f"{out} holds reports of {', '.join(sorted(models - {model}))}, not of {model}: give another file to --out"
        )
    if cut:  # not before it is known to be ours: any other file must stay as it is
        os.truncate(out, complete)
    return studies
