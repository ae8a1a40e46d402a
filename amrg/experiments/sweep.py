"""Variants of a run: what each changes, which steps that costs, and the reports that each seed of each wrote.

A step that another variant (or an earlier, interrupted start) made is found by its content and never made twice.
"""

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from amrg import pipeline
from amrg.artifacts import Artifact, find
from amrg.config import Config, from_dict, to_dict
from amrg.errors import UserError
from amrg.progress import say

TIMES = "times.json"
LAST = "generate"


@dataclass(frozen=True)
class Variant:
    """One row of an experiment's table.

    Attributes:
        name: as the table says it.
        changes: settings by dotted name.
        copied: not the model's reports, but the text of the heaviest (1) or of the most typical of so many memory rows
            that the model retrieved.
        x: place on the axis of the plot, where the variants are steps of one number.
    """

    name: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    copied: int = 0
    x: float | None = None


@dataclass(frozen=True)
class Made:
    """What one seed of one variant made: artefacts by kind."""

    variant: Variant
    seed: int
    artifacts: dict[str, Artifact]

    def path(self, kind: str) -> Path:
        return self.artifacts[kind].path


def changed(config: Config, changes: Mapping[str, Any]) -> Config:
    """The configuration with settings by dotted name replaced; a name or value that does not exist is refused."""
    content = to_dict(config)
    for name, value in changes.items():
        *sections, last = name.split(".")
        section = content
        for part in sections:
            section = section[part]
        section[last] = value
    return from_dict(content, "experiment")


def seeded(config: Config, variant: Variant, seed: int) -> Config:
    """A variant's configuration with one more seed of stage 2: data, stage 1 and banks keep the run's own.

    Seed 0 is the run as configured, so that an earlier ``amrg run`` is found.
    """
    own = config.seed if config.stage2.seed is None else config.stage2.seed
    return changed(config, {**variant.changes, **({"stage2.seed": own + seed} if seed else {})})


class Sweep:
    """Runs variants × seeds up to generated reports, and remembers how long each step took on this machine.

    Args:
        config: that the variants change.
        variants: of all experiments to come: times are predicted over all of them.
        seeds: how many trainings of stage 2 for each variant.
    """

    def __init__(self, config: Config, variants: Iterable[Variant], seeds: int) -> None:
        self.config, self.seeds = config, seeds
        self._variants = list(variants)
        self._times_file = folder_of(config) / TIMES
        self._times: dict[str, list[float]] = {}
        if self._times_file.exists():
            self._times = json.loads(self._times_file.read_text())

    def run(self, variant: Variant) -> list[Made]:
        """Every seed of a variant; UserError as the steps raise it."""
        return [self._one(variant, seed) for seed in range(self.seeds)]

    def base(self) -> Made:
        """The run as configured, up to the banks: what needs no training of stage 2."""
        return self._one(Variant("as configured"), 0, "banks")

    def _one(self, variant: Variant, seed: int, last: str = LAST) -> Made:
        config = seeded(self.config, variant, seed)
        made = {}
        for verb in steps(last):
            plan = pipeline.recipe(verb, config)
            known = find(pipeline.root(config), plan)
            if known is None:
                say(f"{variant.name}, seed {seed}: {verb}{_about(self.predicted(verb), ' (about {})')}")
                start = time.monotonic()
                known = pipeline.run_step(verb, config)
                self._took(verb, time.monotonic() - start)
            made[known.kind] = known
        return Made(variant, seed, made)

    def predicted(self, verb: str) -> float | None:
        """Seconds that a step will take: the median of those made so far; None before the first."""
        return median(self._times[verb]) if self._times.get(verb) else None

    def to_make(self) -> dict[str, int]:
        """By verb, how many steps are still to be made for all variants and seeds."""
        counts = dict.fromkeys(steps(), 0)
        seen: set[str] = set()
        plans = [(Variant("as configured"), 0, "banks")]
        plans += [(variant, seed, LAST) for variant in self._variants for seed in range(self.seeds)]
        for variant, seed, last in plans:
            config, settings = seeded(self.config, variant, seed), []
            for verb in steps(last):
                settings.append(pipeline.STEPS[verb].settings(config))
                same = json.dumps([verb, settings], sort_keys=True)
                counts[verb] += same not in seen and not _is_made(verb, config)
                seen.add(same)
        return counts

    def forecast(self) -> list[tuple[str, int, float | None, float | None]]:
        """Rows of the table shown before the start: verb, steps to make, seconds of one, seconds of all."""
        rows = []
        for verb, count in self.to_make().items():
            one = self.predicted(verb)
            rows.append((verb, count, one, None if one is None else one * count))
        return rows

    def left(self) -> str:
        """How much longer it may take, for a progress line."""
        rows = [row for row in self.forecast() if row[1]]
        known = sum(total for *_, total in rows if total is not None)
        unknown = [verb for verb, _, one, _ in rows if one is None]
        more = f" and {', '.join(unknown)}" if unknown else ""
        return f"about {duration(known)}{more} left" if rows else "all is made"

    def _took(self, verb: str, seconds: float) -> None:
        self._times.setdefault(verb, []).append(round(seconds, 1))
        self._times_file.parent.mkdir(parents=True, exist_ok=True)
        self._times_file.write_text(json.dumps(self._times, indent=2) + "\n")


def steps(last: str = LAST) -> list[str]:
    """The verbs up to one, generated reports unless told."""
    return list(pipeline.STEPS)[: list(pipeline.STEPS).index(last) + 1]


def folder_of(config: Config) -> Path:
    """Of all experiments of a run."""
    return pipeline.root(config) / "experiments"


def show_forecast(rows: Sequence[tuple[str, int, float | None, float | None]]) -> None:
    """Print the table; a step that was never timed on this machine is said to be unknown."""
    say("to be made (made steps are kept):")
    for verb, count, one, total in rows:
        say(f"  {verb:<9}{count:>4}  {duration(one):>9} each  {duration(total):>9}")
    known = sum(total for *_, total in rows if total is not None)
    unknown = [verb for verb, count, one, _ in rows if count and one is None]
    more = f", and {', '.join(unknown)}, not timed yet on this machine" if unknown else ""
    say(f"predicted: {duration(known)}{more}")


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
