"""Which artefacts a run consists of, found from any folder of it, and its generator."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from amrg import distributed
from amrg.artifacts import MANIFEST, Artifact, open_artifact, open_input
from amrg.config import BanksConfig, Config, DataConfig, GenerateConfig, MemoryConfig, Stage2Config, read_section
from amrg.errors import UserError
from amrg.inference.generate import HEADS, open_composer
from amrg.models.composer import Composer
from amrg.models.detail_heads import AttributeHeads
from amrg.models.open_banks import open_banks
from amrg.models.report_generator import ReportGenerator
from amrg.training.calibration import CALIBRATION
from amrg.training.retrieved_text import RetrievedText, open_text
from amrg.training.stage2 import MODEL

#: Of commands that load a generator.
BASE_MODEL: dict[str, Any] = {
    "metavar": "FOLDER",
    "dest": "base_model",
    "help": "base model of the decoder, where it has moved",
}

#: Kinds that a run can be opened by: each names all the rest as its inputs. The first is preferred.
HEAD_KINDS = ("scores", "reports", "stage2")


@dataclass(frozen=True)
class RunArtifacts:
    """The artefacts behind one report generator; ``reports`` is None where none were generated yet.

    ``base_model`` is where the language model's base is, None: where it was in training.
    """

    data: Artifact
    stage1: Artifact
    banks: Artifact
    stage2: Artifact
    reports: Artifact | None
    base_model: str | None = None

    @property
    def name(self) -> str:
        """Of the run: of the folder in which the artefacts lie."""
        return self.stage2.path.resolve().parent.name

    @property
    def warnings(self) -> list[str]:
        """Warnings that everything made from the artefacts carries."""
        return sorted({one.warning for one in (self.data, self.stage1, self.banks, self.stage2) if one.warning})

    @property
    def config(self) -> Config:
        """The settings that the viewer reads, as the artefacts were made with them."""
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
    """The artefacts of a run.

    Args:
        run: a scores, reports or stage2 artefact, or a folder of artefacts: then its newest scores (or, where there
            are none, reports or generator).
        base_model: folder of the language model's base, where it is no longer where it was in training.

    Raises:
        UserError: it is none of these, an input is missing or was changed, or lies outside the run's folder.
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
    chain: RunArtifacts, studies_together: int
) -> tuple[ReportGenerator, Composer | None, RetrievedText | None]:
    """The generator of a run, what begins its reports where the decoder does not, and the text that it reads, if any.

    Without reports, what ``generate`` would say is not known: the decoder begins.

    Raises:
        UserError: an artefact is not what it should be.
    """
    config = chain.config
    memories = open_banks(config, chain.banks.path, studies_together)
    model = ReportGenerator.from_pretrained(chain.stage2.path / MODEL, memories, base_model=chain.base_model)
    model = model.to(distributed.device())
    calibration = chain.stage2.path / CALIBRATION / config.generate.split
    text = open_text(model, chain.banks.path, calibration)
    if chain.reports is None:
        return model, None, text
    names = HEADS.get(config.generate.support, ()) if config.generate.outline_source == "retrieved" else ()
    heads = {name: AttributeHeads.load(chain.reports.path / name) for name in names}
    return model, open_composer(config, chain.banks.path, calibration, heads), text


def _newest(run: Path) -> Path:
    if not run.is_dir():
        raise UserError(f"no run at {run}: give a folder made by `amrg run`, such as runs/demo")
    for kind in HEAD_KINDS:
        manifests = sorted(run.glob(f"{kind}-*/{MANIFEST}"), key=lambda path: (path.stat().st_mtime_ns, path))
        if manifests:
            return manifests[-1].parent
    raise UserError(f"{run} holds no report generator: train one with `amrg run CONFIG`, or give another folder")


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
