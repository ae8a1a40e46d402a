"""The artefacts of a run, found from any folder of it."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from amrg.artifacts import MANIFEST, Artifact, open_artifact, open_artifact_input
from amrg.banks.bank import REPORTS, VISUAL, MemoryBank
from amrg.config import (
    BanksConfig,
    Config,
    DataConfig,
    GenerateConfig,
    GraphConfig,
    MemoryConfig,
    Stage2Config,
)
from amrg.config_files import read_config_section
from amrg.data.film_checks import is_lateral_view
from amrg.errors import UserError
from amrg.progress import print_on_rank_0

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
        from amrg.models.training_distance import FILE  # takes a second, and a mistyped path is told without it

        artifacts = [self.data, self.stage1, self.banks, self.stage2, *([self.reports] if self.reports else [])]
        found = {one.warning for one in artifacts if one.warning}
        found |= {f"WARNING: {failure}" for one in artifacts for failure in one.failures}
        if not (self.stage2.path / FILE).exists():
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
    if banks is None:
        return chain
    other = open_artifact(banks, "banks")
    refuse_other_banks(chain, other)
    return replace(chain, banks=other)


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
