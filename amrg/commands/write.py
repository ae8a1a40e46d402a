"""``amrg write RUN STUDY ...``: write reports for films (PNG, JPEG, DICOM) with the generator of a run.

STUDY is a film (PNG, JPEG or DICOM), or a folder with the films of one study. Reports go to stdout as they are
written: as text, or with --json as one JSON line a study, with stage 1's probabilities and the memory rows behind it.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from amrg.data.image_io import read_film
from amrg.errors import UserError
from amrg.inference.run import BASE_MODEL, LoadedRun, RunArtifacts, open_run
from amrg.pages import EMBEDDED_DATA_NOTICE, NOT_CLINICAL_NOTICE
from amrg.progress import echo, track


def main(arguments: list[str]) -> None:
    """Print a report for each study; unreadable studies are named, and the exit code is 2 if there are any."""
    parser = argparse.ArgumentParser(
        prog="amrg write", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="runs/NAME, or one of its scores, reports or stage2 artefacts")
    parser.add_argument("studies", type=Path, metavar="study", nargs="+", help="a film, or a folder of a study's films")
    parser.add_argument("--json", action="store_true", help="one JSON line a study")
    parser.add_argument("--decoder.model", **BASE_MODEL)
    options = parser.parse_args(arguments)
    chain, requested = open_run(options.run, options.base_model), len(options.studies)
    embedded = [EMBEDDED_DATA_NOTICE] if chain.config.data.source == "openi_drr" else []
    for warning in (NOT_CLINICAL_NOTICE, *embedded, *chain.warnings):
        echo(warning)
    written = 0
    for line in write(chain, options.studies):
        if options.json:
            print(json.dumps(line, ensure_ascii=False), flush=True)
        else:
            print(f"{line['study']}: {line['generated']}" if requested > 1 else line["generated"], flush=True)
        written += 1
    if written < requested:
        raise UserError(
            f"{requested - written} of {requested} studies could not be read (named above) and have no report"
        )


def write(chain: RunArtifacts, studies: Sequence[Path]) -> Iterator[dict[str, Any]]:
    """Generate a record for each study, in order; unreadable studies are named on stderr and left out.

    Yields:
        ``{study}`` and the fields of ``LoadedRun.generate_records``.
    """
    run = LoadedRun(chain)
    readable = (
        (study, films) for study in track(studies, "writing reports") if (films := _films(study, run.image_size))
    )
    while batch := list(islice(readable, run.batch_size)):
        records = run.generate_records([films for _, films in batch])
        for (study, _), record in zip(batch, records, strict=True):
            yield {"study": str(study), **record}


def _films(study: Path, size: int) -> list[np.ndarray]:
    """Read the films of a study, uint8 [H, W] each, in the order of their names.

    If one cannot be read, the list is empty and the reason is printed.
    """
    try:
        paths = sorted(path for path in study.iterdir() if path.is_file()) if study.is_dir() else [study]
        films = [read_film(path.read_bytes(), size) for path in paths]
    except (OSError, ValueError) as error:
        echo(f"{study} is left out: {error.strerror if isinstance(error, OSError) else error}")
        return []
    if not films:
        echo(f"{study} is left out: the folder holds no film")
    return films
