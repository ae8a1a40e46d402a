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
import torch

from amrg import distributed
from amrg.banks.bank import NO_GROUP
from amrg.data.image_io import read_film
from amrg.data.labels import FINDINGS, LABELS
from amrg.errors import UserError
from amrg.inference.generate import Recorder, generate_reports
from amrg.inference.run import BASE_MODEL, RunArtifacts, open_generator, open_run
from amrg.models.vision import to_tensor
from amrg.pages import EMBEDDED_DATA_NOTICE, NOT_CLINICAL_NOTICE
from amrg.precision import autocast
from amrg.progress import echo, track
from amrg.training.vision_cache import round_like_cache


def main(arguments: list[str]) -> None:
    """Write a report for each study; those that cannot be read are named, and the exit code tells of them."""
    parser = argparse.ArgumentParser(
        prog="amrg write", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="runs/NAME, or one of its scores, reports or stage2 artefacts")
    parser.add_argument("studies", type=Path, metavar="study", nargs="+", help="a film, or a folder of a study's films")
    parser.add_argument("--json", action="store_true", help="one JSON line a study")
    parser.add_argument("--decoder.model", **BASE_MODEL)
    options = parser.parse_args(arguments)
    chain, asked = open_run(options.run, options.base_model), len(options.studies)
    embedded = [EMBEDDED_DATA_NOTICE] if chain.config.data.source == "openi_drr" else []
    for warning in (NOT_CLINICAL_NOTICE, *embedded, *chain.warnings):
        echo(warning)
    written = 0
    for line in write(chain, options.studies):
        if options.json:
            print(json.dumps(line, ensure_ascii=False), flush=True)
        else:
            print(f"{line['study']}: {line['generated']}" if asked > 1 else line["generated"], flush=True)
        written += 1
    if written < asked:
        raise UserError(f"{asked - written} of {asked} studies could not be read (named above) and have no report")


def write(chain: RunArtifacts, studies: Sequence[Path]) -> Iterator[dict[str, Any]]:
    """A line for each study, in order; one that cannot be read is named to the user and left out.

    Yields:
        ``{study, findings: {name: probability}}`` and what ``generate_reports`` gives, as in ``reports.jsonl``.
    """
    config = chain.config
    model, composer, text = open_generator(chain, config.generate.batch_size)
    recorder = Recorder.open(model, chain.banks.path)
    size = model.stage1.config.image_size
    readable = ((study, films) for study in track(studies, "writing reports") if (films := _films(study, size)))
    while batch := list(islice(readable, config.generate.batch_size)):
        images = to_tensor([film for _, films in batch for film in films], size).to(distributed.device())
        group_B = torch.full((len(batch),), NO_GROUP, device=distributed.device())
        with torch.no_grad(), autocast(config.stage2.dtype):
            sight = round_like_cache(model.encode_images(images, [len(films) for _, films in batch]))
        lines = generate_reports(model, sight, group_B, config, recorder, composer, text)
        for (study, _), sure_Q, line in zip(batch, sight.logits_BQ.sigmoid().tolist(), lines, strict=True):
            findings = {name: round(sure_Q[LABELS.index(name)], 4) for name in FINDINGS}
            yield {"study": str(study), "findings": findings, **line}


def _films(study: Path, size: int) -> list[np.ndarray]:
    """The films of a study, uint8 [H, W] each, in the order of their names.

    None of them, and the user is told why, if one is no film.
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
