"""Variants of a run: what each changes, which steps that costs, and the reports that each seed of each wrote.

A step that another variant (or an earlier, interrupted start) made is found by its content and never made twice.
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
from amrg.artifacts import Artifact, find, open_artifact
from amrg.config import Config, from_dict, to_dict
from amrg.errors import UserError
from amrg.experiments.cached_steps import run_step_with_vision_cache
from amrg.experiments.jobs import Jobs
from amrg.progress import echo

TIMES = "times.json"
LAST, PAGE = "generate", "page"


@dataclass(frozen=True)
class Variant:
    """One row of an experiment's table.

    Attributes:
        name: as the table says it.
        changes: settings by dotted name.
        copy_top_k: instead of the model's reports, whole train reports: of the study of the heaviest retrieved row (1),
            or the most typical one of this many heaviest rows.
        x: place on the axis of the plot, where the variants are steps of one number.
    """

    name: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    copy_top_k: int = 0
    x: float | None = None


@dataclass(frozen=True)
class VariantOutputs:
    """What one seed of one variant made: artefacts by kind."""

    variant: Variant
    seed: int
    artifacts: dict[str, Artifact]

    def path(self, kind: str) -> Path:
        return self.artifacts[kind].path


@dataclass(frozen=True)
class Forecast:
    """How often a step is still to be made, and how many seconds one takes when so many jobs work side by side."""

    verb: str
    count: int
    one: float | None
    jobs: int = 1

    @property
    def all(self) -> float | None:
        """Seconds until all are made, if no job waits for another."""
        if not self.count:
            return 0.0
        return None if self.one is None else self.one * self.count / min(self.jobs, self.count)


class _Times:
    """Seconds of every step that was made in this folder, by what it is timed as; for several threads."""

    def __init__(self, file: Path) -> None:
        self._file, self._lock = file, threading.Lock()
        self._seconds: dict[str, list[float]] = json.loads(file.read_text()) if file.exists() else {}

    def median(self, name: str) -> float | None:
        """None before the first."""
        return median(self._seconds[name]) if self._seconds.get(name) else None

    def note(self, name: str, seconds: float) -> None:
        with self._lock:
            self._seconds.setdefault(name, []).append(round(seconds, 1))
            self._file.parent.mkdir(parents=True, exist_ok=True)
            self._file.write_text(json.dumps(self._seconds, indent=2) + "\n")


def with_overrides(config: Config, changes: Mapping[str, Any]) -> Config:
    """The configuration with settings by dotted name replaced; a name or value that does not exist is refused."""
    content = to_dict(config)
    for name, value in changes.items():
        *sections, last = name.split(".")
        section = content
        for part in sections:
            section = section[part]
        section[last] = value
    return from_dict(content, "experiment")


def with_seed(config: Config, variant: Variant, seed: int) -> Config:
    """A variant's configuration with one more seed of stage 2: data, stage 1 and banks keep the run's own.

    Seed 0 is the run as configured, so that an earlier ``amrg run`` is found.
    """
    own = config.seed if config.stage2.seed is None else config.stage2.seed
    return with_overrides(config, {**variant.changes, **({"stage2.seed": own + seed} if seed else {})})


class Sweep:
    """Runs variants × seeds up to generated reports, and remembers how long each step took on this machine.

    Args:
        config: that the variants change.
        experiments: the variants of each experiment to come: times are predicted over all of them.
        seeds: of each experiment, how many trainings of stage 2 for each of its variants.
        jobs: how many steps are to be made at a time; times are kept apart by it.
    """

    def __init__(
        self, config: Config, experiments: Sequence[Sequence[Variant]], seeds: Sequence[int], jobs: int = 1
    ) -> None:
        self.config, self.jobs = config, jobs
        self._experiments = list(zip(experiments, seeds, strict=True))
        self._pages = len(experiments)  # still to be written
        self._times = _Times(experiments_dir(config) / TIMES)
        self._jobs: Jobs | None = None
        self._ahead: dict[Config, Future[dict[str, Artifact]]] = {}
        self._locks: defaultdict[Path, threading.Lock] = defaultdict(threading.Lock)

    def submit_all(self, jobs: Jobs) -> None:
        """From now on make everything in ``jobs``, in the order in which ``run`` will ask for it."""
        self._jobs = jobs
        for variants, seeds in self._experiments:
            # One seed of all variants, then the next: two that are made at a time seldom wait for the same bank.
            for seed, variant in itertools.product(range(seeds), variants):
                config = with_seed(self.config, variant, seed)
                if config not in self._ahead:
                    self._ahead[config] = jobs.submit(self._chain, config, f"{variant.name}, seed {seed}")

    def run(self, variant: Variant, seeds: int) -> list[VariantOutputs]:
        """So many seeds of a variant; UserError as the steps raise it."""
        return [self._one(variant, seed) for seed in range(seeds)]

    def base_run(self) -> VariantOutputs:
        """The run as configured, up to the banks: what needs no training of stage 2."""
        return VariantOutputs(Variant("as configured"), 0, self._chain(self.config, "as configured", "banks"))

    @contextmanager
    def timed_page(self) -> Iterator[None]:
        """Around the measuring and writing of an experiment, which takes its time, too."""
        start = time.monotonic()
        yield
        self._pages -= 1
        self._times.note(self._timing_key(PAGE, self.jobs), time.monotonic() - start)

    def _one(self, variant: Variant, seed: int) -> VariantOutputs:
        config = with_seed(self.config, variant, seed)
        ahead = self._ahead.get(config)
        made = ahead.result() if ahead else self._chain(config, f"{variant.name}, seed {seed}")
        return VariantOutputs(variant, seed, made)

    def _chain(self, config: Config, name: str, last: str = LAST) -> dict[str, Artifact]:
        made = [self._step(verb, config, name) for verb in steps(last)]
        return {artifact.kind: artifact for artifact in made}

    def _step(self, verb: str, config: Config, name: str) -> Artifact:
        """The artefact of a step; who needs one that another job is making waits for it."""
        plan, folder = pipeline.recipe(verb, config), pipeline.root(config)
        with self._locks[plan.path(folder)]:
            known = find(folder, plan)
            if known is not None:
                return known
            echo(f"[{name}] {verb}{_about(self.predicted(verb), ' (about {})')}")
            start = time.monotonic()
            if self._jobs is None:
                run_step_with_vision_cache(verb, config)
            else:
                self._jobs.make(verb, config, name)
            self._times.note(self._timing_key(verb, self.jobs if self._jobs else 1), time.monotonic() - start)
            return open_artifact(plan.path(folder), plan.kind)

    def predicted(self, verb: str) -> float | None:
        """Seconds that a step will take: the median of those made so far; None before the first."""
        return self._times.median(self._timing_key(verb, self.jobs))

    def _timing_key(self, verb: str, jobs: int) -> str:
        """What is timed together: a step takes longer beside others, and a training by its epochs."""
        epochs = f", {self.config.stage2.epochs} epochs" if verb == "stage2" else ""
        return f"{verb}{epochs}, {jobs} at a time"

    def pending_counts(self) -> dict[str, int]:
        """By verb, how many steps are still to be made for all variants and seeds; and pages."""
        counts = dict.fromkeys(steps(), 0)
        seen: set[str] = set()
        plans = [(Variant("as configured"), 0, "banks")]
        for variants, seeds in self._experiments:
            plans += [(variant, seed, LAST) for variant in variants for seed in range(seeds)]
        for variant, seed, last in plans:
            config, settings = with_seed(self.config, variant, seed), []
            for verb in steps(last):
                settings.append(pipeline.STEPS[verb].settings(config))
                same = json.dumps([verb, settings], sort_keys=True)
                counts[verb] += same not in seen and not _is_made(verb, config)
                seen.add(same)
        return {**counts, PAGE: self._pages}

    def forecast(self) -> list[Forecast]:
        """What is shown before the start."""
        return [Forecast(verb, count, self.predicted(verb), self.jobs) for verb, count in self.pending_counts().items()]

    def eta_message(self) -> str:
        """How much longer it may take, for a progress line."""
        return f"still to come: about {total_eta(self.forecast())}"


def steps(last: str = LAST) -> list[str]:
    """The verbs up to one, generated reports unless told."""
    return list(pipeline.STEPS)[: list(pipeline.STEPS).index(last) + 1]


def experiments_dir(config: Config) -> Path:
    """Of all experiments of a run."""
    return pipeline.root(config) / "experiments"


def show_forecast(rows: Sequence[Forecast]) -> None:
    """Print the table; a step that was never timed on this machine is said to be unknown."""
    jobs = rows[0].jobs
    at_once = f", {jobs} at a time" if jobs > 1 else ""
    echo(f"to be made (made steps are kept){at_once}:")
    for row in rows:
        echo(f"  {row.verb:<9}{row.count:>4}  {duration(row.one):>9} each  {duration(row.all):>9}")
    echo(f"predicted: {total_eta(rows)}")


def total_eta(rows: Sequence[Forecast]) -> str:
    """The time of all, and what of it is not known."""
    known = sum(row.all for row in rows if row.all is not None)
    unknown = [row.verb for row in rows if row.count and row.one is None]
    more = f", and {', '.join(unknown)}, not timed yet on this machine" if unknown else ""
    return f"{duration(known)}{more}"


def duration(seconds: float | None) -> str:
    """For a reader: seconds below two minutes, else minutes; a question mark for what is not known."""
    if seconds is None:
        return "?"
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def _about(seconds: float | None, text: str) -> str:
    return "" if seconds is None else text.format(duration(seconds))


def _is_made(verb: str, config: Config) -> bool:
    try:
        return find(pipeline.root(config), pipeline.recipe(verb, config)) is not None
    except UserError:  # an input of it is still to be made
        return False
