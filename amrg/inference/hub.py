"""A run as one folder for a model hub (``amrg export RUN --hub FOLDER``), and its class for ``AutoModel``.

``amrg write FOLDER film.png`` and ``amrg.load_run`` read the folder: a run without training data, logs and reports.
"""

import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants, snapshot_download
from transformers import PretrainedConfig

from amrg.artifacts import MANIFEST, Artifact, atomic_path, open_artifact, open_artifact_input
from amrg.banks.bank import REPORTS, VISUAL, MemoryBank
from amrg.banks.transforms import without_texts
from amrg.errors import UserError
from amrg.inference.run import Film, LoadedRun, load_run
from amrg.inference.run_artifacts import RunArtifacts

#: What inference reads of each artefact, besides its manifest.
_FILES = {
    "data": (),
    "stage1": ("thresholds.json", "scores.json"),
    "banks": (),
    "stage2": ("model", "calibration", "training_distance.safetensors"),
    "reports": ("map", "head", "graph.parquet"),
}
_MODULE = "modeling_am_mrg"
_NO_TEXTS = "the texts of its memory were left out: every sentence is the decoder's own"


class AMRGConfig(PretrainedConfig):
    """Configuration of a hub folder; all settings are in the manifests of its artefacts."""

    model_type = "am_mrg"


class AMRGModel:
    """The report generator of a hub folder, for ``AutoModel.from_pretrained(folder, trust_remote_code=True)``."""

    config_class = AMRGConfig

    def __init__(self, run: LoadedRun, config: AMRGConfig) -> None:
        self.run, self.config = run, config

    @classmethod
    def from_pretrained(cls, name: str | Path, *, config: AMRGConfig, **options: Any) -> "AMRGModel":
        """Load a folder, or a repository of the hub (``revision``, ``cache_dir`` and ``token`` are passed on)."""
        folder = Path(name)
        if not folder.is_dir():
            chosen = {key: options[key] for key in ("revision", "cache_dir", "token") if key in options}
            folder = Path(snapshot_download(str(name), **chosen))
        return cls(load_run(folder), config)

    @classmethod
    def register_for_auto_class(cls, auto_class: str) -> None:
        """Do nothing: ``AutoModel`` calls it so that a copy that is saved again would hold this class's code."""

    def generate(self, studies: Sequence[Film | Sequence[Film]]) -> list[str]:
        """Write one report per study (``LoadedRun.generate``)."""
        return self.run.generate(studies)


def export_hub_folder(chain: RunArtifacts, folder: Path, without_reports: bool = False) -> None:
    """Write a run as a folder for a model hub.

    Args:
        chain: the run. Its reports give the settings of generation and are not copied themselves.
        folder: a new folder.
        without_reports: leave out the texts, keys and groups of the rows of the banks. The decoder then words every
            finding, which changes the reports.

    Raises:
        UserError: the folder exists, there are no reports yet, or the decoder reads retrieved texts that are left out.
    """
    if folder.exists():
        raise UserError(f"{folder} exists: delete it or choose another name")
    if chain.reports is None:
        raise UserError(f"{chain.stage2.path.parent} has no reports yet, whose settings are exported: `amrg generate`")
    decoder = chain.stage2.manifest["config"]["decoder"]
    if without_reports and decoder.get("use_retrieved_text"):
        raise UserError("its decoder reads retrieved sentences (decoder.use_retrieved_text): it needs their texts")
    with atomic_path(folder) as partial:
        for name, files in _FILES.items():
            artifact: Artifact = getattr(chain, name)
            _copy(artifact, partial / artifact.path.name, files)
        for bank in (VISUAL, REPORTS):
            source, target = chain.banks.path / bank, partial / chain.banks.path.name / bank
            if without_reports:
                without_texts(MemoryBank.open(source), target)
            else:
                shutil.copytree(source, target)
        if without_reports:
            _let_the_decoder_write(partial / chain.reports.path.name / MANIFEST)
        entry = {"model_type": AMRGConfig.model_type, "architectures": [AMRGModel.__name__]}
        classes = {"AutoConfig": f"{_MODULE}.{AMRGConfig.__name__}", "AutoModel": f"{_MODULE}.{AMRGModel.__name__}"}
        (partial / "config.json").write_text(json.dumps(entry | {"auto_map": classes}, indent=2) + "\n")
        (partial / f"{_MODULE}.py").write_text(
            "# Needs the package: pip install amrg\n"
            f"from amrg.inference.hub import {AMRGConfig.__name__}, {AMRGModel.__name__}  # noqa: F401\n"
        )
        (partial / "README.md").write_text(_card(chain, without_reports))


def push_hub_folder(folder: Path, repository: str) -> None:
    """Upload a hub folder to a private repository, which is made if there is none.

    Raises:
        UserError: the hub cannot be reached or refuses.
    """
    api = HfApi(endpoint=constants.ENDPOINT)
    try:
        api.create_repo(repository, private=True, exist_ok=True)
        api.upload_folder(repo_id=repository, folder_path=folder)
    except Exception as error:  # whichever HTTP library the hub's client uses raises errors of its own
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"cannot push to {repository}: {reason}; {folder} is whole, `hf upload` takes it too") from None


def _copy(artifact: Artifact, target: Path, files: Sequence[str]) -> None:
    """Copy parts of an artefact that exist, and its manifest without folders of this machine."""
    target.mkdir(parents=True)
    text = json.dumps(artifact.manifest, indent=2)
    if artifact.kind == "data":
        text = re.sub(r'"/(?:[^"/\\]+/)*([^"/\\]+)"', r'"\1"', text)
    (target / MANIFEST).write_text(text + "\n")
    for name in files:
        source = artifact.path / name
        if source.is_dir():
            shutil.copytree(source, target / name)
        elif source.exists():
            shutil.copyfile(source, target / name)


def _let_the_decoder_write(path: Path) -> None:
    """Change the settings of generation to those that need no texts of memory, and mark the artefact."""
    manifest = json.loads(path.read_text())
    if manifest["config"]["outline_source"] == "retrieved":
        manifest["config"] |= {"outline_source": "classifier", "memory": "own"}
        for name in ("recall_context", "context_sharpness"):
            manifest["config"].pop(name, None)
        manifest["mark"] = "; ".join([*([manifest["mark"]] if manifest.get("mark") else []), _NO_TEXTS])
    path.write_text(json.dumps(manifest, indent=2) + "\n")


def _card(chain: RunArtifacts, without_reports: bool) -> str:
    """Return stage 2's model card with what a hub shows: use, warnings, memory, and scores if there are any."""
    card = (chain.stage2.path / "model" / "README.md").read_text()
    warnings = [*chain.warnings, *([_NO_TEXTS] if without_reports else [])]
    memory = (
        "The folder holds vectors and hashes of the memory's rows, without texts, studies and patients."
        if without_reports
        else "The memory holds texts and contexts of train reports: share it only with those who may read the data."
    )
    use = (
        "## Use\n\nNot for clinical use.\n\n```\npip install amrg\namrg write FOLDER film.png\n```\n\n"
        "Or in Python, without custom code `amrg.load_run(folder)`, or "
        '`AutoModel.from_pretrained(folder, trust_remote_code=True)`; both have `generate(["film.png"])`.\n\n'
        f"## Memory\n\n{memory}\n"
    )
    marks = "".join(f"\n- {warning}" for warning in warnings)
    parts = [card.rstrip(), use, f"## Warnings\n{marks}\n" if marks else "", _scores(chain)]
    return "\n\n".join(part.strip() for part in parts if part) + "\n"


def _scores(chain: RunArtifacts) -> str:
    """Return a table of the scores of the run's reports with 95 % intervals; empty without scores of them."""
    assert chain.reports is not None
    for path in sorted(chain.reports.path.parent.glob("scores-*")):
        scores = open_artifact(path, "scores")
        if open_artifact_input(scores, "reports").path == chain.reports.path.resolve():
            return _table(json.loads((path / "scores.json").read_text()))
    return ""


def _table(content: dict[str, Any]) -> str:
    scores = content.get("systems", {}).get("model")
    if scores is None:  # of a former version
        return ""
    rows = [f"| clinical F1 micro-13 | {scores['clinical']['micro_13']['f1']:.3f} | |"] + [
        f"| {name} | {value['value']:.3f} | [{value['interval'][0]:.3f}, {value['interval'][1]:.3f}] |"
        for name, value in {**scores["language"], **scores["details"]}.items()
        if isinstance(value, dict) and isinstance(value["value"], float) and None not in value["interval"]
    ]
    head = f"## Scores\n\n{content['studies']} {content['split']} studies; 95 % intervals over patients.\n"
    return "\n".join([head, "| score | value | interval |", "|---|---|---|", *rows])
