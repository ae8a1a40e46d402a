"""The chain of steps: what each reads, which part of the configuration shapes it, and which function does it.

prepare → stage1 → banks → stage2 → generate → evaluate

A configuration that uses the knowledge graph has the step ``graph`` after ``prepare``.
"""

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

from amrg.artifacts import MANIFEST, Artifact, Recipe, build_artifact, find_artifact, open_artifact, sha256_of_file
from amrg.config import Config, Stage1Config, Stage2Config
from amrg.config_files import config_to_dict
from amrg.data.text import cleaning, labeler, sections, sites, statements
from amrg.errors import TrainingFailure, UserError, collect_errors
from amrg.launcher import check_launcher
from amrg.preflight import Run, describe_machine, examine_steps
from amrg.progress import print_on_rank_0
from amrg.training import deepspeed_config, deepspeed_json

#: Writes a step's outputs: configuration, folders of the inputs by their kind, the folder to write into.
StepFunction = Callable[[Config, dict[str, Path], Path], None]

#: Raised when the readers of copies of data sets would read the same copy in another way.
_READER = 2
#: File of a data artefact: SHA-256 of the table of one's own that it was made from.
_TABLE = "table.sha256"

#: Raised when films whose view is not told would be put in another order; of no matter to sources that tell all views
#: or none.
_PROJECTION = 1
_ALL_OR_NONE = ("openi_drr", "openi", "iu_xray", "iu_kaggle", "vindr_cxr")

#: Settings of a stage beside its DeepSpeed JSON that change nothing of what is learned.
_ENGINE = ("activation_checkpointing", "compile", "num_sample_reports")


@dataclass(frozen=True)
class Step:
    """One verb.

    Attributes:
        kind: what it makes.
        version: format of its output; raised when the same inputs and configuration would give something else.
        settings: the part of the configuration that decides what it makes (not how fast); its manifest tells them.
        inputs: kinds of the artefacts it reads.
        run: writes the outputs into the given folder.
        distributed: all ranks of a run make it together; else the first makes it and the others wait.
        learned: of a training, ``settings`` without what the engine may do in another way; these identify the artefact.
        reads_graph: whether it reads the knowledge graph, too.
    """

    kind: str
    version: int
    settings: Callable[[Config], dict[str, Any]]
    inputs: tuple[str, ...]
    run: StepFunction
    distributed: bool = False
    learned: Callable[[Config], dict[str, Any]] | None = None
    reads_graph: Callable[[Config], bool] = lambda _: False

    def input_kinds(self, config: Config) -> tuple[str, ...]:
        """Kinds of the artefacts that it reads with a configuration."""
        return (*self.inputs, "graph") if self.reads_graph(config) else self.inputs


def artifact_root(config: Config) -> Path:
    """The folder of all artefacts of a configuration."""
    return Path(config.runs) / config.name


def step_recipe(verb: str, config: Config) -> Recipe:
    """What the verb would make; opens its inputs (UserError names the command that makes a missing one)."""
    step = ALL_STEPS[verb]
    inputs = {kind: _existing(kind, config) for kind in step.input_kinds(config)}
    if config.generate.banks and verb in ("generate", "evaluate"):
        inputs["banks"] = _changed_banks(config, inputs)
    settings = step.settings(config)
    identifying = settings if step.learned is None else step.learned(config)
    return Recipe(step.kind, step.version, identifying, inputs, config.seed, settings)


def graph_step_recipe(config: Config, data: Artifact) -> Recipe:
    """What the step of the graph would make of a data artefact."""
    step = ALL_STEPS[GRAPH]
    return Recipe(step.kind, step.version, step.settings(config), {"data": data}, config.seed)


def run_pipeline_step(verb: str, config: Config, make: StepFunction | None = None, strict: bool = False) -> Artifact:
    """Make the verb's artefact, or say that it is there already. Every rank of a distributed run calls this.

    Args:
        verb: of ``STEPS``.
        config: of the run.
        make: does the step's work in another place; it must write the same as the step's own.
        strict: raise if training has failed, here or before.

    Raises:
        TrainingFailure: with ``strict``, the artefact has failures; it is kept.
    """
    artifact = _make(verb, config, make)
    if strict:
        refuse_failures(verb, artifact)
    return artifact


def refuse_failures(verb: str, artifact: Artifact) -> None:
    """Raise TrainingFailure, a line for each failure of the artefact, if it has any; print what could not be judged."""
    if artifact.failures:
        raise TrainingFailure("\n".join(f"{verb}: {failure}" for failure in artifact.failures))
    if verb == "evaluate":
        from amrg.evaluation.evaluate import too_few_studies

        if note := too_few_studies(artifact.path):
            print_on_rank_0(f"{verb}: {note}")


def _make(verb: str, config: Config, make: StepFunction | None) -> Artifact:
    """Make the verb's artefact, or return the one that is there."""
    plan = step_recipe(verb, config)
    made = find_artifact(artifact_root(config), plan)
    if made:
        print_on_rank_0(f"{verb}: already made, nothing to do: {made.path}")
        if verb == "prepare" and (changed := _changed_table(config, made.path)):
            print_on_rank_0(f"WARNING: {changed}")
        return made
    lead = os.environ.get("RANK", "0") == "0"
    step = ALL_STEPS[verb]
    if not (lead or step.distributed):
        while not plan.path(
            artifact_root(config)
        ).is_dir():  # the launcher ends this rank, too, should the first one fail
            time.sleep(1.0)
        return _existing(plan.kind, config)
    print_on_rank_0(f"{verb}: making {plan.path(artifact_root(config))}")
    with build_artifact(artifact_root(config), plan, is_lead_rank=lead) as folder:
        (make or step.run)(config, {kind: artifact.path for kind, artifact in plan.inputs.items()}, folder)
        if step.distributed:
            _barrier()  # no rank still reads what sealing removes
    if step.distributed:
        _barrier()  # no rank looks for the artefact before it is sealed
    return _existing(plan.kind, config)


def _barrier() -> None:
    from torch import distributed

    if distributed.is_available() and distributed.is_initialized():
        distributed.barrier()


def verbs_up_to(config: Config, last: str = "evaluate") -> list[str]:
    """Return the verbs of a configuration's chain up to and including ``last``."""
    verbs = list(STEPS)[: list(STEPS).index(last) + 1]
    return [*verbs[:1], GRAPH, *verbs[1:]] if config.graph.used and len(verbs) > 1 else verbs


def run_pipeline(config: Config, last: str = "evaluate", strict: bool = False) -> Artifact:
    """Run the whole pipeline; finished steps are reused.

    Every rank of a distributed run calls this.

    Args:
        config: of the run.
        last: the step to end with.
        strict: as for ``run_pipeline_step``.
    """
    verbs = verbs_up_to(config, last)
    check_before_start(verbs, config)
    return [run_pipeline_step(verb, config, strict=strict) for verb in verbs][-1]


def check_before_start(verbs: Sequence[str], config: Config, workers: int | None = None) -> None:
    """Tell, before anything is made, all that the steps would lack; those whose artefact is there lack nothing.

    The first rank of a distributed run does it for all.

    Args:
        verbs: to be done, in their order.
        config: of the run.
        workers: processes on other machines that will train; None: this one and the other ranks of its launcher.

    Raises:
        UserError: something is missing or wrong; a line for each.
    """
    if workers is None:
        check_launcher()
    if os.environ.get("RANK", "0") != "0":
        return
    faults = collect_errors(*(partial(ALL_STEPS[verb].settings, config) for verb in verbs))
    missing: list[str] = []
    begun = 0
    for verb in verbs:
        try:
            plan = step_recipe(verb, config)
        except UserError as error:
            if not missing:  # else an earlier step makes its inputs
                faults.append(str(error))
            missing.append(verb)
            continue
        if find_artifact(artifact_root(config), plan) is None:
            missing.append(verb)
            partial_files = (
                plan.path(artifact_root(config))
                .with_name(plan.path(artifact_root(config)).name + ".partial")
                .rglob("*")
            )
            begun += sum(path.stat().st_size for path in partial_files if path.is_file())
    if missing:
        ranks = int(os.environ.get("WORLD_SIZE", "1")) if workers is None else workers
        data = step_recipe("prepare", config).path(artifact_root(config))
        machine = describe_machine(Path(config.runs).absolute()) if workers is None else None
        found, warnings = examine_steps(missing, Run(config, data if data.is_dir() else None, ranks, machine, begun))
        faults += found
        for warning in warnings:
            print_on_rank_0(warning)
    if faults:
        raise UserError("\n".join(dict.fromkeys(faults)))


def describe_step(verb: str, config: Config) -> str:
    """What `--dry-run` prints for one verb."""
    step = ALL_STEPS[verb]
    try:
        plan = step_recipe(verb, config)
    except UserError as error:
        return f"{verb}: would make a {step.kind} artefact, but not yet: {error}"
    made = find_artifact(artifact_root(config), plan)
    return f"{verb}: {'is there' if made else 'would make'}: {plan.path(artifact_root(config))}"


def _existing(kind: str, config: Config) -> Artifact:
    verb = next(verb for verb, step in ALL_STEPS.items() if step.kind == kind)
    plan = step_recipe(verb, config)
    path = plan.path(artifact_root(config))
    if kind == "stage2" and not path.is_dir():
        path = _trained_elsewhere(config) or path
    return open_artifact(path, kind)


def _changed_banks(config: Config, inputs: dict[str, Artifact]) -> Artifact:
    """Open the banks of ``generate.banks``."""
    from amrg.inference.run_artifacts import RunArtifacts, refuse_other_banks

    banks = open_artifact(Path(config.generate.banks or ""), "banks")
    if banks.path.resolve().parent != artifact_root(config).resolve():
        raise UserError(
            f"generate.banks {banks.path} is not in {artifact_root(config)}: `amrg bank swap` copies it there"
        )
    run = RunArtifacts(inputs["data"], inputs["stage1"], inputs["banks"], inputs["stage2"], None)
    refuse_other_banks(run, banks)
    return banks


def _trained_elsewhere(config: Config) -> Path | None:
    """The one stage 2 that differs only in where its frozen base was; loading it compares the fingerprint."""
    if config.decoder.tuning == "full":
        return None
    found = []
    for path in artifact_root(config).glob(f"stage2-*/{MANIFEST}"):
        before = open_artifact(path.parent, "stage2").manifest["config"]["decoder"]["model"]
        as_trained = replace(config, decoder=replace(config.decoder, model=before))
        if step_recipe("stage2", as_trained).path(artifact_root(config)) == path.parent:
            found.append(path.parent)
    return found[0] if len(found) == 1 else None


# Each step imports what it needs when it runs, so that the command starts at once. The first lines of the
# docstrings are those of `amrg --help` (amrg/cli.py).


def _prepare(config: Config, inputs: dict[str, Path], folder: Path) -> None:
    """Convert studies on disk to shards."""
    from amrg.data.shards import prepare_shards
    from amrg.data.sources import open_data_source
    from amrg.data.sources.table import find_table_file

    source = open_data_source(config.data, config.seed)
    if config.data.source == "table":
        (folder / _TABLE).write_text(sha256_of_file(find_table_file(config.data)) + "\n")
    prepare_shards(source, config.data, folder, config.seed)


def _changed_table(config: Config, data: Path) -> str | None:
    """Return what is wrong if a table of one's own is not the one that was prepared; later steps need no table."""
    from amrg.data.sources.table import find_table_file

    recorded = data / _TABLE
    try:
        if not recorded.is_file() or sha256_of_file(find_table_file(config.data)) == recorded.read_text().strip():
            return None
    except UserError:  # moved away since
        return None
    return f"{find_table_file(config.data).name} has changed since this was made; delete the folder to prepare it again"


def _graph(config: Config, inputs: dict[str, Path], folder: Path) -> None:
    """Count what the train reports state, as a knowledge graph."""
    from amrg.graph.build import build_report_graph

    build_report_graph(config.graph, inputs["data"], folder, config.seed)


def _stage1(config: Config, inputs: dict[str, Path], folder: Path) -> None:
    """Train the 14-label classifier with its disease queries."""
    from amrg.training.stage1 import train_stage1

    train_stage1(config, inputs["data"], folder, inputs.get("graph"))


def _banks(config: Config, inputs: dict[str, Path], folder: Path) -> None:
    """Mine disease-aware regions and encode the train reports into memory banks."""
    from amrg.mining.build_banks import build_memory_banks

    build_memory_banks(config, inputs["data"], inputs["stage1"], folder)


def _stage2(config: Config, inputs: dict[str, Path], folder: Path) -> None:
    """Train the report generator."""
    from amrg.training.stage2 import train_stage2

    train_stage2(config, inputs["data"], inputs["stage1"], inputs["banks"], folder)


def _generate(config: Config, inputs: dict[str, Path], folder: Path) -> None:
    """Write a report for each held-out study."""
    from amrg.inference.generate import generate_reports_file

    data, stage1, banks, stage2 = (inputs[kind] for kind in ("data", "stage1", "banks", "stage2"))
    generate_reports_file(config, data, stage1, banks, stage2, folder, inputs.get("graph"))


def _evaluate(config: Config, inputs: dict[str, Path], folder: Path) -> None:
    """Score the reports; write scores.json and a result page."""
    from amrg.evaluation.evaluate import evaluate_reports

    evaluate_reports(
        config, inputs["data"], inputs["stage1"], inputs["banks"], inputs["stage2"], inputs["reports"], folder
    )


def _data_settings(config: Config) -> dict[str, Any]:
    settings = config_to_dict(config.data)
    for name in ("workers", "loader_workers"):  # decide how fast, not what
        del settings[name]
    for part in settings.get("mix", ()):
        del part["weight"]  # of training
    if not settings["views"]:
        del settings["views"]  # all films, as before there was the setting
    settings["text"] = f"cleaning {cleaning.VERSION}, sections {sections.VERSION}"
    if config.data.source in ("mimic_cxr", "chexpert_plus"):
        settings["wordless"] = "labelled"  # what became of studies without a text once was another
    if config.data.source != "openi_drr":  # its labels are experts' and it reads no copy of a user's
        settings |= {"labeler": labeler.VERSION, "reader": _READER}
    if config.data.source not in _ALL_OR_NONE and not config.data.views:  # films without a view are left out with it
        settings["projection"] = _PROJECTION
    return settings


def _graph_settings(config: Config) -> dict[str, Any]:
    settings: dict[str, Any] = {"labeler": labeler.VERSION, "statements": statements.VERSION, "sites": sites.VERSION}
    if config.graph.curated:
        if not Path(config.graph.curated).is_file():
            raise UserError(f"graph.curated {config.graph.curated} is no file: give a CSV or TSV file")
        settings |= {
            "curated": Path(config.graph.curated).name,
            "curated_sha256": sha256_of_file(Path(config.graph.curated)),
        }
    return settings | ({"shuffled": True} if config.graph.shuffled else {})


def _stage1_settings(config: Config) -> dict[str, Any]:
    settings: dict[str, Any] = {"vision": config_to_dict(config.vision.resolved), "stage1": _with_engine(config.stage1)}
    settings |= _weights(config) | ({"graph_queries": True} if config.graph.queries else {})
    if config.vision.qformer_init:
        from amrg.model_files import find_weights_file

        weights = find_weights_file(Path(config.vision.qformer_init), "vision.qformer_init").resolve()
        settings["qformer_init_sha256"] = _fingerprint(weights, weights.stat().st_mtime_ns)
    return settings


def _stage1_learned(config: Config) -> dict[str, Any]:
    anywhere = config_to_dict(replace(config.vision.resolved, qformer_init=None))  # its fingerprint tells what it holds
    return {**_stage1_settings(config), "vision": anywhere, "stage1": _without_engine(config.stage1, 0)}


def _weights(config: Config) -> dict[str, Any]:
    """The weights of mixed data sets in training, where they are not all 1."""
    return {"data_weights": config.data.weights} if config.data.weights else {}


@cache  # some hundred megabytes, asked for by every later step
def _fingerprint(path: Path, changed: int) -> str:
    """SHA-256 of a file that was last changed at the given time."""
    return sha256_of_file(path)


def _banks_settings(config: Config) -> dict[str, Any]:
    # The labeler files sentences under what they state.
    return {**config_to_dict(config.banks), "labeler": labeler.VERSION, "statements": statements.VERSION}


def _stage2_settings(config: Config) -> dict[str, Any]:
    settings: dict[str, Any] = {"memory": config_to_dict(config.memory), "decoder": config_to_dict(config.decoder)}
    if config.decoder.chat_template == "none":  # the prompt alone, as before there were the settings
        del settings["decoder"]["chat_template"], settings["decoder"]["system_prompt"]
    if config.decoder.predict_outline:
        settings["labeler"] = labeler.VERSION  # it writes the outlines
    return {**settings, "stage2": _with_engine(config.stage2)} | _weights(config)


def _stage2_learned(config: Config) -> dict[str, Any]:
    return {**_stage2_settings(config), "stage2": _without_engine(config.stage2, 1)}


def _evaluate_settings(config: Config) -> dict[str, Any]:
    return {**config_to_dict(config.evaluate), "labeler": labeler.VERSION, "statements": statements.VERSION}


def _generate_settings(config: Config) -> dict[str, Any]:
    settings = config_to_dict(config.generate)
    for name in ("ds_config", "compile"):  # decide how weights are held and what runs, not what is written
        del settings[name]
    settings.pop("banks", None)  # an input tells them
    if not config.generate.query_context:
        for name in ("recall_context", "context_sharpness"):  # only composed reports have recalled words
            settings.pop(name, None)
    if not settings["abstain"]:
        del settings["abstain"]  # every finding is stated, as before there was the setting
    if config.generate.outline_source != "decoder":
        if not config.decoder.predict_outline:
            raise UserError(
                f"generate.outline_source {config.generate.outline_source} begins reports with an outline, which "
                "this decoder does not learn: say decoder.predict_outline true, or generate.outline_source decoder"
            )
        settings["labeler"] = labeler.VERSION  # it tells what reports and the sentences of memory state
        settings["statements"] = statements.VERSION
    if config.graph.guides_reports:
        settings["graph"] = {"retrieval": config.graph.retrieval, "check": config.graph.check}
        if config.graph.retrieval == "weight":
            settings["graph"]["retrieval_weight"] = config.graph.retrieval_weight
    return settings


def _with_engine(stage: Stage1Config | Stage2Config) -> dict[str, Any]:
    """A stage's settings with the content of its DeepSpeed JSON, not the name."""
    return {**config_to_dict(stage), "ds_config": deepspeed_json.load_ds_config(stage.ds_config)}


def _without_engine(stage: Stage1Config | Stage2Config, zero: int) -> dict[str, Any]:
    """A stage's settings with those of the engine at their defaults: they decide how it trains, not what it learns.

    At their defaults, and not left out, so that artefacts made while they counted keep their names; ``zero`` is the
    ZeRO stage of the default.
    """
    defaults = {name: getattr(type(stage), name) for name in _ENGINE if hasattr(stage, name)}
    return {
        **config_to_dict(stage),
        **defaults,
        "ds_config": deepspeed_config.keys_that_change_training(deepspeed_json.load_ds_config(stage.ds_config), zero),
    }


STEPS: dict[str, Step] = {
    "prepare": Step("data", 4, _data_settings, (), _prepare),
    "stage1": Step("stage1", 2, _stage1_settings, ("data",), _stage1, True, _stage1_learned, lambda c: c.graph.queries),
    "banks": Step("banks", 5, _banks_settings, ("data", "stage1"), _banks),
    "stage2": Step("stage2", 5, _stage2_settings, ("data", "stage1", "banks"), _stage2, True, _stage2_learned),
    "generate": Step(
        "reports",
        6,
        _generate_settings,
        ("data", "stage1", "banks", "stage2"),
        _generate,
        distributed=True,
        reads_graph=lambda config: config.graph.guides_reports,
    ),
    "evaluate": Step("scores", 7, _evaluate_settings, ("data", "stage1", "banks", "stage2", "reports"), _evaluate),
}

#: Step of the knowledge graph, which only a configuration with such a setting has.
GRAPH = "graph"
ALL_STEPS: dict[str, Step] = {**STEPS, GRAPH: Step("graph", 1, _graph_settings, ("data",), _graph)}
