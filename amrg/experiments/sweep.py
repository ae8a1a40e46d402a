"""Run variants of a configuration over several seeds, up to generated reports, and forecast the time.

A step that another variant or an earlier, interrupted start made is found by its content and not repeated.
"""

import itertools
import json
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from amrg import pipeline
from amrg.artifacts import Artifact, find_artifact, open_artifact
from amrg.config import Config
from amrg.config_files import config_from_dict, config_to_dict
from amrg.errors import UserError
from amrg.experiments.cached_steps import run_step_with_vision_cache
from amrg.experiments.jobs import Jobs
from amrg.inference.run_artifacts import RunArtifacts
from amrg.memory.changes import add_studies_to_banks
from amrg.planning.format import format_duration
from amrg.progress import print_on_rank_0

TIMES = "times.json"
LAST, PAGE = "generate", "page"


@dataclass(frozen=True)
class Variant:
    """One row of an experiment's table.

    Attributes:
        name: name in the table.
        changes: changed settings by dotted name.
        copy_top_k: if positive, the model's reports are replaced by the most typical full report among those of this
            many heaviest retrieved rows.
        added: changed settings of the data whose train studies become rows of the banks after training.
        x: position on the plot's axis if the variants are steps of one number.
    """

    name: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    copy_top_k: int = 0
    added: Mapping[str, Any] = field(default_factory=dict)
    x: float | None = None


@dataclass(frozen=True)
class VariantOutputs:
    """Artefacts of one seed of one variant, by kind."""

    variant: Variant
    seed: int
    artifacts: dict[str, Artifact]

    def path(self, kind: str) -> Path:
        """Folder of the artefact of a kind."""
        return self.artifacts[kind].path


@dataclass(frozen=True)
class Forecast:
    """Forecast of one step: remaining count, and seconds per step with ``jobs`` concurrent jobs (None if unknown)."""

    verb: str
    count: int
    one: float | None
    jobs: int = 1

    @property
    def all(self) -> float | None:
        """Seconds for all remaining steps if no job waits for another."""
        if not self.count:
            return 0.0
        return None if self.one is None else self.one * self.count / min(self.jobs, self.count)


class _Times:
    """Measured seconds of the steps in this folder, by timing key; thread-safe."""

    def __init__(self, file: Path) -> None:
        self._file, self._lock = file, threading.Lock()
        self._seconds: dict[str, list[float]] = json.loads(file.read_text()) if file.exists() else {}

    def median(self, name: str) -> float | None:
        """Return the median seconds; None before the first measurement."""
        return median(self._seconds[name]) if self._seconds.get(name) else None

    def note(self, name: str, seconds: float) -> None:
        with self._lock:
            self._seconds.setdefault(name, []).append(round(seconds, 1))
            self._file.parent.mkdir(parents=True, exist_ok=True)
            self._file.write_text(json.dumps(self._seconds, indent=2) + "\n")


def with_overrides(config: Config, changes: Mapping[str, Any]) -> Config:
    """Replace settings by dotted name; unknown names and values are refused."""
    content = config_to_dict(config)
    for name, value in changes.items():
        *sections, last = name.split(".")
        section = content
        for part in sections:
            section = section[part]
        section[last] = value
    return config_from_dict(content, "experiment")


def config_with_seed(config: Config, variant: Variant, seed: int) -> Config:
    """Return a variant's configuration with another seed of stage 2; data, stage 1 and banks keep the run's seed.

    Seed 0 is the configured run, so that an earlier ``amrg run`` is reused.
    """
    own = config.seed if config.stage2.seed is None else config.stage2.seed
    return with_overrides(config, {**variant.changes, **({"stage2.seed": own + seed} if seed else {})})


class Sweep:
    """Runs variants × seeds up to generated reports, and records the time of each step on this machine.

    Args:
        config: base configuration of the variants.
        experiments: variants per experiment; the forecast covers all of them.
        seeds: number of stage-2 trainings per variant, for each experiment.
        jobs: number of concurrent steps; times are recorded separately for each number.
    """

    def __init__(
        self, config: Config, experiments: Sequence[Sequence[Variant]], seeds: Sequence[int], jobs: int = 1
    ) -> None:
        self.config, self.jobs = config, jobs
        self._experiments = list(zip(experiments, seeds, strict=True))
        self._pages = len(experiments)  # still to be written
        self._times = _Times(experiments_dir(config) / TIMES)
        self._jobs: Jobs | None = None
        self._ahead: dict[tuple[Config, str], Future[dict[str, Artifact]]] = {}
        self._locks: defaultdict[Path, threading.Lock] = defaultdict(threading.Lock)

    def submit_all(self, jobs: Jobs) -> None:
        """Submit all steps to ``jobs``, in the order in which ``run`` will request them."""
        self._jobs = jobs
        for variants, seeds in self._experiments:
            # All variants of one seed, then the next seed: concurrent steps rarely wait for the same bank.
            for seed, variant in itertools.product(range(seeds), variants):
                config = config_with_seed(self.config, variant, seed)
                key = config, json.dumps(variant.added)
                if key not in self._ahead:
                    self._ahead[key] = jobs.submit(
                        self._chain, config, f"{variant.name}, seed {seed}", LAST, variant.added
                    )

    def run(self, variant: Variant, seeds: int) -> list[VariantOutputs]:
        """Run the seeds of a variant; raises the steps' UserError."""
        return [self._one(variant, seed) for seed in range(seeds)]

    def base_run(self) -> VariantOutputs:
        """Run the configuration itself up to the banks, without training stage 2."""
        return VariantOutputs(Variant("as configured"), 0, self._chain(self.config, "as configured", "banks"))

    @contextmanager
    def timed_page(self) -> Iterator[None]:
        """Time the scoring and writing of an experiment's page."""
        start = time.monotonic()
        yield
        self._pages -= 1
        self._times.note(self._timing_key(PAGE, self.jobs), time.monotonic() - start)

    def _one(self, variant: Variant, seed: int) -> VariantOutputs:
        config = config_with_seed(self.config, variant, seed)
        ahead = self._ahead.get((config, json.dumps(variant.added)))
        name = f"{variant.name}, seed {seed}"
        made = ahead.result() if ahead else self._chain(config, name, added=variant.added)
        return VariantOutputs(variant, seed, made)

    def _chain(
        self, config: Config, name: str, last: str = LAST, added: Mapping[str, Any] | None = None
    ) -> dict[str, Artifact]:
        verbs = pipeline.verbs_up_to(config, "stage2" if added else last)
        made = {one.kind: one for one in (self._step(verb, config, name) for verb in verbs)}
        if added:
            later = self._step("prepare", with_overrides(config, added), name)
            with self._locks[pipeline.artifact_root(config)]:
                run = RunArtifacts(made["data"], made["stage1"], made["banks"], made["stage2"], None)
                made["banks"] = add_studies_to_banks(run, later)
            banks = {"generate.banks": str(made["banks"].path)}
            made["reports"] = self._step(LAST, with_overrides(config, banks), name)
        return made

    def _step(self, verb: str, config: Config, name: str) -> Artifact:
        """Make or find the artefact of a step; waits if another job is making it."""
        plan, folder = pipeline.step_recipe(verb, config), pipeline.artifact_root(config)
        with self._locks[plan.path(folder)]:
            known = find_artifact(folder, plan)
            if known is not None:
                return known
            predicted = self.predicted(verb)
            about = "" if predicted is None else f" (about {format_duration(predicted)})"
            print_on_rank_0(f"[{name}] {verb}{about}")
            start = time.monotonic()
            if self._jobs is None:
                run_step_with_vision_cache(verb, config)
            else:
                self._jobs.make(verb, config, name)
            self._times.note(self._timing_key(verb, self.jobs if self._jobs else 1), time.monotonic() - start)
            return open_artifact(plan.path(folder), plan.kind)

    def predicted(self, verb: str) -> float | None:
        """Return the predicted seconds of a step: the median of measured steps; None before the first."""
        return self._times.median(self._timing_key(verb, self.jobs))

    def _timing_key(self, verb: str, jobs: int) -> str:
        """Return the key of comparable times: verb, epochs of a training, and number of concurrent steps."""
        epochs = f", {self.config.stage2.epochs} epochs" if verb == "stage2" else ""
        return f"{verb}{epochs}, {jobs} at a time"

    def pending_counts(self) -> dict[str, int]:
        """Count the remaining steps by verb for all variants and seeds, and the remaining pages."""
        counts = dict.fromkeys(pipeline.verbs_up_to(self.config, LAST), 0)
        counted: set[str] = set()
        plans = [(Variant("as configured"), 0, "banks")]
        for variants, seeds in self._experiments:
            plans += [(variant, seed, LAST) for variant in variants for seed in range(seeds)]
        for variant, seed, last in plans:
            config = config_with_seed(self.config, variant, seed)
            settings: list[dict[str, Any]] = []
            for verb in pipeline.verbs_up_to(config, last):
                step = pipeline.ALL_STEPS[verb]
                own = [step.settings(config)]
                if step.reads_graph(config):
                    own.append(pipeline.ALL_STEPS[pipeline.GRAPH].settings(config))
                same = json.dumps([verb, settings + own], sort_keys=True)
                counts[verb] = counts.get(verb, 0) + (same not in counted and not _is_made(verb, config))
                if verb != pipeline.GRAPH:  # it changes only the steps that read it
                    settings += own
                counted.add(same)
        return {**counts, PAGE: self._pages}

    def forecast(self) -> list[Forecast]:
        """Forecast every kind of step."""
        return [Forecast(verb, count, self.predicted(verb), self.jobs) for verb, count in self.pending_counts().items()]

    def eta_message(self) -> str:
        """Return the remaining time, for a progress line."""
        return f"still to come: about {format_total_eta(self.forecast())}"


def experiments_dir(config: Config) -> Path:
    """Return the folder of all experiments of a run."""
    return pipeline.artifact_root(config) / "experiments"


def show_forecast(rows: Sequence[Forecast]) -> None:
    """Print the table of forecasts; a step without any measured time has a question mark."""
    jobs = rows[0].jobs
    at_once = f", {jobs} at a time" if jobs > 1 else ""
    print_on_rank_0(f"to be made (made steps are kept){at_once}:")
    for row in rows:
        print_on_rank_0(f"  {row.verb:<9}{row.count:>4}  {_duration(row.one):>12} each  {_duration(row.all):>12}")
    print_on_rank_0(f"predicted: {format_total_eta(rows)}")


def format_total_eta(rows: Sequence[Forecast]) -> str:
    """Format the total time, and name the steps without any measured time."""
    known = sum(row.all for row in rows if row.all is not None)
    unknown = [row.verb for row in rows if row.count and row.one is None]
    more = f", and {', '.join(unknown)}, not timed yet on this machine" if unknown else ""
    return f"{format_duration(known)}{more}"


def _duration(seconds: float | None) -> str:
    return "?" if seconds is None else format_duration(seconds)


def _is_made(verb: str, config: Config) -> bool:
    try:
        return find_artifact(pipeline.artifact_root(config), pipeline.step_recipe(verb, config)) is not None
    except UserError:  # an input does not exist yet
        return False
