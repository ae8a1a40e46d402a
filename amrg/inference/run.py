"""The artefacts of a run, found from any folder of it, and its generator."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError

from amrg import distributed
from amrg.artifacts import MANIFEST, Artifact, open_artifact, open_artifact_input
from amrg.banks.bank import NO_GROUP, REPORTS, VISUAL, MemoryBank
from amrg.config import (
    BanksConfig,
    Config,
    DataConfig,
    DecoderConfig,
    GenerateConfig,
    GraphConfig,
    MemoryConfig,
    Stage2Config,
)
from amrg.config_files import read_config_section
from amrg.data.context import Context
from amrg.data.film_checks import is_lateral_view, view_kinds_of_films
from amrg.data.labels import FINDINGS, LABELS
from amrg.data.own_studies import GivenPrior, StudyFilms, read_given_context, read_own_study
from amrg.data.prior import Prior
from amrg.data.text.sections import report_target_text
from amrg.errors import UserError
from amrg.inference.generate import HEADS, open_composer
from amrg.inference.report_writer import Recorder, ReportWriter
from amrg.models.composer import Composer
from amrg.models.detail_heads import AttributeHeads
from amrg.models.graph_guide import GraphGuide
from amrg.models.open_banks import open_memory_banks
from amrg.models.prior import PriorFilms
from amrg.models.report_generator import ReportGenerator
from amrg.models.training_distance import FILE as DISTANCE_FILE
from amrg.models.vision import films_to_tensor
from amrg.models.vision_output import VisionOutput
from amrg.precision import autocast
from amrg.progress import print_on_rank_0
from amrg.training.calibration import CALIBRATION
from amrg.training.retrieved_text import RetrievedText, open_retrieved_text
from amrg.training.stage2 import MODEL
from amrg.training.vision_cache import round_like_cache

#: Of commands that load a generator.
BASE_MODEL: dict[str, Any] = {
    "metavar": "FOLDER",
    "dest": "base_model",
    "help": "base model of the decoder, where it has moved",
}

#: Of commands that read one memory.
BANKS: dict[str, Any] = {
    "type": Path,
    "metavar": "BANKS",
    "help": "a banks artefact of the same stage 1, such as another hospital's, that is retrieved from instead",
}

#: Kinds that a run can be opened by: each names all the rest as its inputs. The first is preferred.
HEAD_KINDS = ("scores", "reports", "stage2")
#: Setting of a reports artefact that holds no reports: it names the banks that a run was given after training.
UNWRITTEN = "unwritten"

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
        head = self.reports or self.stage2
        chosen = head.manifest["inputs"]["banks"]["hash"] != self.banks.hash
        return head.path.resolve().name + (f"+{self.banks.path.resolve().name}" if chosen else "")

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
                data=read_config_section(DataConfig, {"source": self.data.manifest["config"]["source"]}, "data"),
                banks=read_config_section(BanksConfig, self.banks.manifest["config"], "banks"),
                memory=read_config_section(MemoryConfig, stage2["memory"], "memory"),
                stage2=read_config_section(Stage2Config, {"dtype": stage2["stage2"]["dtype"]}, "stage2"),
                generate=read_config_section(
                    GenerateConfig, self.reports.manifest["config"] if self.reports else {"num_beams": 1}, "generate"
                ),
                graph=read_config_section(
                    GraphConfig, self.reports.manifest["config"].get("graph", {}) if self.reports else {}, "graph"
                ),
            )
        except (KeyError, ValidationError):
            raise UserError(
                f"{self.stage2.path.parent}: its artefacts were made with settings that this version does not know: "
                "make them again with `amrg run`"
            ) from None


def find_run_artifacts(run: Path, base_model: str | None = None, banks: Path | None = None) -> RunArtifacts:
    """Find the artefacts of a run.

    Args:
        run: a scores, reports or stage2 artefact, or a folder of artefacts, of which the newest scores are opened (if
            there are none, the newest reports; if there are none, the newest generator). Reports of a control
            (``generate.memory shuffled``) and their scores are passed over where there are others. A memory that was
            changed after the newest scores were made (``amrg.memory``) comes before them.
        base_model: folder of the decoder's base model, if it has moved since training.
        banks: a banks artefact that is retrieved from instead of the run's own.

    Raises:
        UserError: ``run`` is none of these; an input is missing, was changed, or lies outside the run's folder; or
            ``banks`` were not made by its stage 1.
    """
    head = _open(run if (run / MANIFEST).is_file() else _newest(run))
    found = {name: open_artifact_input(head, name) for name in head.manifest["inputs"]}
    found[head.kind] = head
    missing = [kind for kind in ("data", "stage1", "banks", "stage2") if kind not in found]
    if missing:
        raise UserError(f"{head.path} does not name its {', '.join(missing)}: make it again with `amrg run`")
    chain = RunArtifacts(
        found["data"], found["stage1"], found["banks"], found["stage2"], found.get("reports"), base_model
    )
    return chain if banks is None else chain_with_banks(chain, open_artifact(banks, "banks"))


def chain_with_banks(chain: RunArtifacts, banks: Artifact) -> RunArtifacts:
    """Return a run that retrieves from other banks; raises UserError if its stage 1 did not make them."""
    refuse_other_banks(chain, banks)
    return replace(chain, banks=banks)


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


def _newest(run: Path) -> Path:
    if not run.is_dir():
        raise UserError(f"no run at {run}: give a folder made by `amrg run`, such as runs/demo")
    for kind in HEAD_KINDS:
        manifests = {*run.glob(f"{kind}-*/{MANIFEST}")}
        if kind == HEAD_KINDS[0]:
            manifests |= {path for path in run.glob(f"reports-*/{MANIFEST}") if holds_no_reports(path.parent)}
        found = [path.parent for path in sorted(manifests, key=lambda path: (path.stat().st_mtime_ns, path))]
        if found:
            chosen = next((path for path in reversed(found) if not _is_control(path)), found[-1])
            if len(found) > 1:
                print_on_rank_0(
                    f"{run} has {len(found)} {kind} artefacts: {chosen.name} is used; give the folder of another for it"
                )
            return chosen
    raise UserError(f"{run} holds no report generator: train one with `amrg run CONFIG`, or give another folder")


def holds_no_reports(path: Path) -> bool:
    """Return whether a reports artefact holds no reports, only the settings and the memory of a run."""
    try:
        return bool(json.loads((path / MANIFEST).read_text())["config"].get(UNWRITTEN))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def refuse_other_banks(chain: RunArtifacts, banks: Artifact) -> None:
    """Raise UserError if banks were not made by the stage 1 and the text encoder of a run."""
    made_by = banks.manifest["inputs"].get("stage1", {}).get("hash")
    if made_by != chain.stage1.hash:
        raise UserError(
            f"{banks.path} was made by another stage 1 ({str(made_by)[:12]}) than {chain.stage2.path} uses "
            f"({chain.stage1.hash[:12]}): `amrg bank add {chain.stage2.path.parent} DATA --alone` makes banks with it"
        )
    for name in (VISUAL, REPORTS):
        own, other = (MemoryBank.open(one.path / name) for one in (chain.banks, banks))
        differing = [
            f"{what} {b!s:.20} instead of {a!s:.20}"
            for what, a, b in (
                ("rows of width", own.dim, other.dim),
                *(
                    (key, own.header["about"].get(key), other.header["about"].get(key))
                    for key in ("encoder", "pooling", "weights_sha256")
                ),
            )
            if a != b
        ]
        if differing:
            raise UserError(f"{other.folder} does not fit the run: {', '.join(differing)}")


def _is_control(path: Path) -> bool:
    """Return whether reports, or those that scores are of, were written with memory or context not their own."""
    try:
        manifest = json.loads((path / MANIFEST).read_text())
        if manifest["kind"] == "scores":
            manifest = json.loads((path.parent / manifest["inputs"]["reports"]["path"] / MANIFEST).read_text())
        whose = {manifest["config"].get(name, "own") for name in ("memory", "context", "prior")}
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
