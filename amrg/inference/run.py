"""The artefacts of a run, found from any folder of it, and its generator."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError

from amrg import distributed
from amrg.artifacts import MANIFEST, Artifact, open_artifact, open_input
from amrg.banks.bank import NO_GROUP
from amrg.config import BanksConfig, Config, DataConfig, GenerateConfig, MemoryConfig, Stage2Config, read_section
from amrg.data.context import Context
from amrg.data.film_checks import is_lateral_view, view_kinds
from amrg.data.labels import FINDINGS, LABELS
from amrg.data.own_studies import StudyFilms, read_given_context, read_study
from amrg.errors import UserError
from amrg.inference.generate import HEADS, Recorder, generate_reports, open_composer
from amrg.models.composer import Composer
from amrg.models.detail_heads import AttributeHeads
from amrg.models.open_banks import open_banks
from amrg.models.report_generator import ReportGenerator
from amrg.models.training_distance import FILE as DISTANCE_FILE
from amrg.models.vision import to_tensor
from amrg.precision import autocast
from amrg.progress import echo
from amrg.training.calibration import CALIBRATION
from amrg.training.retrieved_text import RetrievedText, open_text
from amrg.training.stage2 import MODEL
from amrg.training.vision_cache import round_like_cache

#: Of commands that load a generator.
BASE_MODEL: dict[str, Any] = {
    "metavar": "FOLDER",
    "dest": "base_model",
    "help": "base model of the decoder, where it has moved",
}

#: Kinds that a run can be opened by: each names all the rest as its inputs. The first is preferred.
HEAD_KINDS = ("scores", "reports", "stage2")

#: A film: uint8 [H, W], 0 is black, or the path of a file (``amrg.data.image_io.FORMATS``).
Film = np.ndarray | str | Path


@dataclass(frozen=True)
class RunArtifacts:
    """The artefacts of one report generator.

    Attributes:
        reports: None if none were generated yet.
        base_model: folder of the decoder's base model; None: the one that it had in training.
    """

    data: Artifact
    stage1: Artifact
    banks: Artifact
    stage2: Artifact
    reports: Artifact | None
    base_model: str | None = None

    @property
    def name(self) -> str:
        """Name of the run: the folder of its artefacts."""
        return self.stage2.path.resolve().parent.name

    @property
    def model(self) -> str:
        """Name of the artefact that determines the reports: the generator and the settings it writes with."""
        return (self.reports or self.stage2).path.resolve().name

    @property
    def warnings(self) -> list[str]:
        """Warnings that everything made from the artefacts carries."""
        artifacts = [self.data, self.stage1, self.banks, self.stage2, *([self.reports] if self.reports else [])]
        found = {one.warning for one in artifacts if one.warning}
        found |= {f"WARNING: {failure}" for one in artifacts for failure in one.failures}
        if not (self.stage2.path / DISTANCE_FILE).exists():
            found.add("stage 2 was made by a former version: films that are unlike the training films are not told")
        return sorted(found)

    @property
    def frontal_only(self) -> bool:
        """Whether the films of the data have no lateral ones among them, as far as the settings tell."""
        settings = self.data.manifest["config"]
        views = settings.get("views", ())
        chosen = bool(views) and not any(map(is_lateral_view, views))
        rendered = settings.get("source") == "openi_drr" and not settings.get("lateral_films")  # PA films alone
        return chosen or rendered

    @property
    def config(self) -> Config:
        """The settings that the viewer reads, as recorded in the artefacts."""
        try:
            stage2 = self.stage2.manifest["config"]
            return Config(
                name=self.name,
                data=read_section(DataConfig, {"source": self.data.manifest["config"]["source"]}, "data"),
                banks=read_section(BanksConfig, self.banks.manifest["config"], "banks"),
                memory=read_section(MemoryConfig, stage2["memory"], "memory"),
                stage2=read_section(Stage2Config, {"dtype": stage2["stage2"]["dtype"]}, "stage2"),
                generate=read_section(
                    GenerateConfig, self.reports.manifest["config"] if self.reports else {"num_beams": 1}, "generate"
                ),
            )
        except (KeyError, ValidationError):
            raise UserError(
                f"{self.stage2.path.parent}: its artefacts were made with settings that this version does not know: "
                "make them again with `amrg run`"
            ) from None


def open_run(run: Path, base_model: str | None = None) -> RunArtifacts:
    """Find the artefacts of a run.

    Args:
        run: a scores, reports or stage2 artefact, or a folder of artefacts, of which the newest scores are opened (if
            there are none, the newest reports; if there are none, the newest generator). Reports of a control
            (``generate.memory shuffled``) and their scores are passed over where there are others.
        base_model: folder of the decoder's base model, if it has moved since training.

    Raises:
        UserError: ``run`` is none of these; an input is missing, was changed, or lies outside the run's folder.
    """
    head = _open(run if (run / MANIFEST).is_file() else _newest(run))
    found = {name: open_input(head, name) for name in head.manifest["inputs"]}
    found[head.kind] = head
    missing = [kind for kind in ("data", "stage1", "banks", "stage2") if kind not in found]
    if missing:
        raise UserError(f"{head.path} does not name its {', '.join(missing)}: make it again with `amrg run`")
    return RunArtifacts(
        found["data"], found["stage1"], found["banks"], found["stage2"], found.get("reports"), base_model
    )


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
    memories = open_banks(config, chain.banks.path, batch_size)
    model = ReportGenerator.from_pretrained(chain.stage2.path / MODEL, memories, base_model=chain.base_model)
    model = model.to(distributed.device())
    calibration = chain.stage2.path / CALIBRATION / config.generate.split
    text = open_text(model, chain.banks.path, calibration)
    if chain.reports is None:
        return model, None, text
    names = HEADS.get(config.generate.support, ()) if config.generate.outline_source == "retrieved" else ()
    heads = {name: AttributeHeads.load(chain.reports.path / name) for name in names}
    return model, open_composer(config, chain.banks.path, calibration, heads), text


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
        self._model, self._composer, self._text = open_generator(artifacts, self.batch_size)
        self._recorder = Recorder.open(self._model, artifacts.banks.path, artifacts.stage2.path)
        self.image_size = self._model.stage1.image_size

    @property
    def context_fields(self) -> tuple[str, ...]:
        """Fields of the clinical context that the run reads (``decoder.context``)."""
        return self._model.settings.context

    def generate(
        self,
        studies: Sequence[Film | Sequence[Film]],
        force: bool = False,
        contexts: Sequence[Mapping[str, Any]] | None = None,
    ) -> list[str]:
        """Write one report per study.

        Args:
            studies: one film each, or the films of all views of a study.
            force: write also for what is refused as no chest film (``amrg.data.film_checks``), and print why.
            contexts: clinical context of each study, such as ``{"indication": "cough", "age": 63}``, of which the run
                reads ``context_fields``. DICOM films tell age and sex themselves.

        Raises:
            UserError: a film cannot be read, or is refused; an age or sex is none, or there are too few contexts.
        """
        if contexts is not None and len(contexts) != len(studies):
            raise UserError(f"{len(contexts)} contexts for {len(studies)} studies: give one for each, {{}} for none")
        read = [self._read(study, force) for study in studies]
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
                [study.films for study in read[part]], known[part], [study.views for study in read[part]]
            )
        ]

    def generate_records(
        self,
        studies: Sequence[Sequence[np.ndarray]],
        contexts: Sequence[Context] | None = None,
        views: Sequence[Sequence[str]] | None = None,
    ) -> list[dict[str, Any]]:
        """Write the reports of a batch: ``{findings: {name: probability}}`` and the fields of ``generate_reports``.

        Args:
            studies: at most ``batch_size``, each with at least one film, uint8 [H, W].
            contexts: clinical context of each study; None: no context.
            views: view of each film (``amrg.data.film_checks.view_kinds``); None: unknown.
        """
        films = [film for study in studies for film in study]
        images = to_tensor(films, self.image_size).to(distributed.device())
        group_B = torch.full((len(studies),), NO_GROUP, device=distributed.device())
        with torch.no_grad(), autocast(self._config.stage2.dtype):
            counts = [len(study) for study in studies]
            given = zip([()] * len(counts) if views is None else views, counts, strict=True)
            kinds = [kind for one in given for kind in view_kinds(*one)]
            vision = round_like_cache(self._model.encode_images(images, counts, kinds))
        records = generate_reports(
            self._model,
            vision,
            group_B,
            self._config,
            self._recorder,
            self._composer,
            self._text,
            contexts=contexts,
        )
        return [
            {"findings": {name: round(probability_Q[LABELS.index(name)], 4) for name in FINDINGS}, **record}
            for probability_Q, record in zip(vision.logits_BQ.sigmoid().tolist(), records, strict=True)
        ]

    def _read(self, study: Film | Sequence[Film], force: bool) -> StudyFilms:
        films = [study] if isinstance(study, Film) else list(study)
        if not films:
            raise UserError("a study without films has no report")
        for film in films:
            if isinstance(film, np.ndarray) and (film.dtype != np.uint8 or film.ndim != 2 or not film.size):
                raise UserError(f"a film is a uint8 array [H, W], not {film.dtype} {list(film.shape)}")
        named = [("" if isinstance(film, np.ndarray) else str(film), film) for film in films]
        try:
            read = read_study(named, self.image_size, self.artifacts.frontal_only, force)
        except ValueError as error:
            raise UserError(str(error)) from None
        for note in (*read.notes, *(f"forced: {reason}" for reason in read.forced)):
            echo(note)
        return read


def load_run(run: str | Path, base_model: str | None = None) -> LoadedRun:
    """Load the report generator of a run. Not for clinical use.

    ``load_run("runs/demo").generate(["film.png"])`` returns the report that `amrg write runs/demo film.png` prints.

    Args:
        run: a folder of artefacts, or a scores, reports or stage2 artefact in it.
        base_model: folder of the decoder's base model, if it has moved since training.

    Raises:
        UserError: ``run`` is none of these, or an artefact is missing or damaged.
    """
    return LoadedRun(open_run(Path(run), base_model))


def _newest(run: Path) -> Path:
    if not run.is_dir():
        raise UserError(f"no run at {run}: give a folder made by `amrg run`, such as runs/demo")
    for kind in HEAD_KINDS:
        manifests = sorted(run.glob(f"{kind}-*/{MANIFEST}"), key=lambda path: (path.stat().st_mtime_ns, path))
        found = [path.parent for path in manifests]
        if found:
            chosen = next((path for path in reversed(found) if not _is_control(path)), found[-1])
            if len(found) > 1:
                echo(
                    f"{run} has {len(found)} {kind} artefacts: {chosen.name} is used; give the folder of another for it"
                )
            return chosen
    raise UserError(f"{run} holds no report generator: train one with `amrg run CONFIG`, or give another folder")


def _is_control(path: Path) -> bool:
    """Return whether reports, or those that scores are of, were written with memory or context not their own."""
    try:
        manifest = json.loads((path / MANIFEST).read_text())
        if manifest["kind"] == "scores":
            manifest = json.loads((path.parent / manifest["inputs"]["reports"]["path"] / MANIFEST).read_text())
        whose = {manifest["config"].get(name, "own") for name in ("memory", "context")}
        return manifest["kind"] == "reports" and whose != {"own"}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False  # opening it will say what is wrong with it


def _open(path: Path) -> Artifact:
    try:
        kind = json.loads((path / MANIFEST).read_text())["kind"]
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{path} is not an artefact: it has no readable {MANIFEST}") from None
    if kind not in HEAD_KINDS:
        raise UserError(
            f"{path} holds a {kind} artefact: give one of {', '.join(HEAD_KINDS)}, or the folder of the run"
        )
    return open_artifact(path, kind)
