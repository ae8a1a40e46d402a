"""The generator of a run."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from amrg import distributed
from amrg.banks.bank import NO_GROUP
from amrg.config import (
    DecoderConfig,
    GenerateConfig,
)
from amrg.data.context import Context
from amrg.data.film_checks import view_kinds_of_films
from amrg.data.labels import FINDINGS, LABELS
from amrg.data.own_studies import GivenPrior, StudyFilms, read_given_context, read_own_study
from amrg.data.prior import Prior
from amrg.data.text.sections import report_target_text
from amrg.errors import UserError
from amrg.inference.generate import HEADS, open_composer
from amrg.inference.report_writer import Recorder, ReportWriter
from amrg.inference.run_artifacts import RunArtifacts, find_run_artifacts
from amrg.models.composer import Composer
from amrg.models.detail_heads import AttributeHeads
from amrg.models.graph_guide import GraphGuide
from amrg.models.open_banks import open_memory_banks
from amrg.models.prior import PriorFilms
from amrg.models.report_generator import ReportGenerator
from amrg.models.vision import films_to_tensor
from amrg.models.vision_output import VisionOutput
from amrg.precision import autocast
from amrg.progress import print_on_rank_0
from amrg.training.calibration import CALIBRATION
from amrg.training.retrieved_text import RetrievedText, open_retrieved_text
from amrg.training.stage2 import MODEL
from amrg.training.vision_cache import round_like_cache

#: A film: uint8 [H, W], 0 is black, or the path of a file (``amrg.data.image_io.FORMATS``).
Film = np.ndarray | str | Path


def open_generator(
    chain: RunArtifacts, batch_size: int
) -> tuple[ReportGenerator, Composer | None, RetrievedText | None]:
    """Load the generator of a run, the composer of its outlines, and the composer of the text that the decoder reads.

    Both composers are None where the run has none. Without reports the outline's settings are unknown, so that the
    decoder writes the whole report.

    Args:
        chain: the run.
        batch_size: studies that are generated at a time.

    Raises:
        UserError: an artefact is damaged or of another kind.
    """
    config = chain.config
    memories = open_memory_banks(config, chain.banks.path, batch_size)
    model = ReportGenerator.from_pretrained(chain.stage2.path / MODEL, memories, base_model=chain.base_model)
    model = model.to(distributed.local_device())
    calibration = chain.stage2.path / CALIBRATION / config.generate.split
    text = open_retrieved_text(model, chain.banks.path, calibration)
    if chain.reports is None:
        return model, None, text
    names = HEADS.get(config.generate.support, ()) if config.generate.outline_source == "retrieved" else ()
    heads = {name: AttributeHeads.load(chain.reports.path / name) for name in names}
    guide = GraphGuide.open(config.graph, chain.reports.path)
    comparing = bool(model.settings.prior)
    return model, open_composer(config, chain.banks.path, calibration, heads, guide, comparing), text


def read_context_fields(decoder: DecoderConfig, generate: GenerateConfig) -> tuple[str, ...]:
    """Return the fields of the context that the decoder reads, and those that only ask the memories."""
    return tuple(dict.fromkeys((*decoder.context, *generate.recall_context)))


class LoadedRun:
    """The report generator of a run, ready to write. Not for clinical use.

    Attributes:
        artifacts: the artefacts of the run; ``artifacts.warnings`` apply to every report.
        batch_size: studies that are generated at a time.
        image_size: side of the model's input, in pixels.

    Raises:
        UserError: an artefact is damaged or of another kind.
    """

    def __init__(self, artifacts: RunArtifacts) -> None:
        self.artifacts = artifacts
        self._config = artifacts.config
        self.batch_size = self._config.generate.batch_size
        self._model, composer, text = open_generator(artifacts, self.batch_size)
        recorder = Recorder.open(self._model, artifacts.banks.path, artifacts.stage2.path)
        guide = GraphGuide.open(self._config.graph, (artifacts.reports or artifacts.stage2).path)
        self._writer = ReportWriter(self._model, self._config, recorder, composer, text, guide)
        self.image_size = self._model.stage1.image_size

    @property
    def context_fields(self) -> tuple[str, ...]:
        """Fields of the clinical context that the run reads (``read_context_fields``)."""
        return read_context_fields(self._model.settings, self._config.generate)

    @property
    def prior_parts(self) -> tuple[str, ...]:
        """What the run reads of an earlier study (``decoder.prior``)."""
        return self._model.settings.prior

    def generate(
        self,
        studies: Sequence[Film | Sequence[Film]],
        force: bool = False,
        contexts: Sequence[Mapping[str, Any]] | None = None,
        priors: Sequence[GivenPrior | None] | None = None,
    ) -> list[str]:
        """Write one report per study.

        Args:
            studies: one film each, or the films of all views of a study.
            force: write also for what is refused as no chest film (``amrg.data.film_checks``), and print why.
            contexts: clinical context of each study, such as ``{"indication": "cough", "age": 63}``, of which the run
                reads ``context_fields``. DICOM films tell age and sex themselves.
            priors: earlier study of each study, such as ``GivenPrior("Small effusion.", ["earlier.png"], days=30)``, of
                which the run reads ``prior_parts``.

        Raises:
            UserError: a film cannot be read, or is refused; an age or sex is none; contexts or priors are too few.
        """
        if contexts is not None and len(contexts) != len(studies):
            raise UserError(f"{len(contexts)} contexts for {len(studies)} studies: give one for each, {{}} for none")
        if priors is not None and len(priors) != len(studies):
            raise UserError(f"{len(priors)} priors for {len(studies)} studies: give one for each, None for none")
        read = [self._read(study, force) for study in studies]
        earlier = [self.read_prior(one, force) for one in priors or [None] * len(studies)]
        given = [
            read_given_context({name: str(value) for name, value in one.items() if value is not None}, "contexts: ")
            for one in contexts or [{}] * len(studies)
        ]
        known = [one.filled(study.context) for one, study in zip(given, read, strict=True)]
        parts = [slice(first, first + self.batch_size) for first in range(0, len(read), self.batch_size)]
        return [
            record["generated"]
            for part in parts
            for record in self.generate_records(
                [study.films for study in read[part]],
                known[part],
                earlier[part],
                [study.views for study in read[part]],
            )
        ]

    def generate_records(
        self,
        studies: Sequence[Sequence[np.ndarray]],
        contexts: Sequence[Context] | None = None,
        priors: Sequence[GivenPrior | None] | None = None,
        views: Sequence[Sequence[str]] | None = None,
    ) -> list[dict[str, Any]]:
        """Write the reports of a batch: ``{findings: {name: probability}}`` and the entries of ``ReportWriter.write``.

        Args:
            studies: at most ``batch_size``, each with at least one film, uint8 [H, W].
            contexts: clinical context of each study; None: no context.
            priors: earlier study of each study, from ``read_prior``; None: no earlier study.
            views: view of each film (``amrg.data.film_checks.view_kinds_of_films``); None: unknown.
        """
        group_B = torch.full((len(studies),), NO_GROUP, device=distributed.local_device())
        vision = self._encode(studies, views)
        records = self._writer.write(
            vision, group_B, contexts=contexts, priors=self._priors(priors or [None] * len(studies))
        )
        return [
            {"findings": {name: round(probability_Q[LABELS.index(name)], 4) for name in FINDINGS}, **record}
            for probability_Q, record in zip(vision.logits_BQ.sigmoid().tolist(), records, strict=True)
        ]

    def read_prior(self, prior: GivenPrior | None, force: bool = False) -> GivenPrior | None:
        """Read the films of an earlier study, and of its report the sections that the run writes.

        Returns:
            what the run reads of it; None if that is nothing.

        Raises:
            UserError: a film cannot be read, or is refused.
        """
        if prior is None:
            return None
        films, views = prior.films, prior.views
        if "films" not in self.prior_parts:
            films, views = (), ()
        elif films and not views:  # not read before
            read = self._read(list(films), force)
            films, views = read.films, read.views
        sections = self.artifacts.data.manifest["config"]["sections"]
        report = report_target_text(prior.report, sections) if "report" in self.prior_parts else ""
        return GivenPrior(report, films, prior.days, views) if len(films) or report else None

    def _encode(self, studies: Sequence[Sequence[np.ndarray]], views: Sequence[Sequence[str]] | None) -> VisionOutput:
        """Encode the films of studies, whose views may be known."""
        images = films_to_tensor([film for study in studies for film in study], self.image_size).to(
            distributed.local_device()
        )
        counts = [len(study) for study in studies]
        given = zip([()] * len(counts) if views is None else views, counts, strict=True)
        kinds = [kind for one in given for kind in view_kinds_of_films(*one)]
        with torch.no_grad(), autocast(self._config.stage2.dtype):
            return round_like_cache(self._model.encode_images(images, counts, kinds))

    def _priors(self, given: Sequence[GivenPrior | None]) -> tuple[list[Prior | None], PriorFilms | None] | None:
        """Return the earlier studies for ``ReportWriter.write``; None if the run reads no earlier studies."""
        if not self.prior_parts:
            return None
        priors = [None if one is None else Prior(report=one.report, days=one.days) for one in given]
        if "films" not in self.prior_parts:
            return priors, None
        shown = [one for one in given if one is not None and one.films]
        encoded = None
        if shown:
            arrays = [[film for film in one.films if isinstance(film, np.ndarray)] for one in shown]
            encoded = self._encode(arrays, [one.views for one in shown])
        given_B = torch.tensor(
            [one is not None and bool(one.films) for one in given], device=distributed.local_device()
        )
        return priors, PriorFilms.scattered(encoded, given_B, self._model.vision_output_shapes)

    def _read(self, study: Film | Sequence[Film], force: bool) -> StudyFilms:
        films = [study] if isinstance(study, Film) else list(study)
        if not films:
            raise UserError("a study without films has no report")
        for film in films:
            if isinstance(film, np.ndarray) and (film.dtype != np.uint8 or film.ndim != 2 or not film.size):
                raise UserError(f"a film is a uint8 array [H, W], not {film.dtype} {list(film.shape)}")
        named = [("" if isinstance(film, np.ndarray) else str(film), film) for film in films]
        try:
            read = read_own_study(named, self.image_size, self.artifacts.frontal_only, force)
        except ValueError as error:
            raise UserError(str(error)) from None
        for note in (*read.notes, *(f"forced: {reason}" for reason in read.forced)):
            print_on_rank_0(note)
        return read


def load_run(run: str | Path, base_model: str | None = None, banks: str | Path | None = None) -> LoadedRun:
    """Load the report generator of a run. Not for clinical use.

    ``load_run("runs/demo").generate(["film.png"])`` returns the report that `amrg write runs/demo film.png` prints.

    Args:
        run: a folder of artefacts, or a scores, reports or stage2 artefact in it.
        base_model: folder of the decoder's base model, if it has moved since training.
        banks: as of ``find_run_artifacts``, such as another hospital's.

    Raises:
        UserError: ``run`` is none of these, or an artefact is missing or damaged.
    """
    return LoadedRun(find_run_artifacts(Path(run), base_model, None if banks is None else Path(banks)))
