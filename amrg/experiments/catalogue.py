"""The nine experiments: what each varies. The first variant is what the others are measured against."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from amrg.config import Config
from amrg.data.labels import FINDINGS
from amrg.experiments.sweep import Variant
from amrg.models.cam import METHODS
from amrg.training.generate import TOP_ROWS

#: Of the activation maps: thresholds that are compared with the true lesions.
THRESHOLDS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.75)


@dataclass(frozen=True)
class Experiment:
    """One question.

    Attributes:
        name: as the command takes it.
        title, question: for the reader.
        variants: of a configuration and its number of train studies; none where nothing is trained.
        paired: all variants write reports for the same studies.
        per_class: the answer is in the findings one by one.
        maps: ``thresholds`` or ``methods`` where activation maps are compared with true lesions.
        x_label: where variants are steps of one number.
        seeds: trainings of each variant that the question needs at least, however few are asked for.
    """

    name: str
    title: str
    question: str
    variants: Callable[[Config, int], list[Variant]]
    paired: bool = True
    per_class: bool = False
    maps: str = ""
    x_label: str = ""
    seeds: int = 1


def _cam_method(config: Config, studies: int) -> list[Variant]:
    own = config.banks.mining.method
    methods = [own, *(name for name in METHODS if name != own)]
    return [Variant(name, {"banks.mining.method": name}) for name in methods]


def _beta(config: Config, studies: int) -> list[Variant]:
    own = config.memory.beta
    betas = [own, *(beta for beta in (0.5, 1.0, 2.0, 4.0, 8.0) if beta != own)]
    fixed: dict[str, Any] = {"memory.learn_beta": False}
    return [Variant(f"β = {beta:g}", {"memory.beta": beta, **fixed}, x=beta) for beta in betas]


def _memory_ablation(config: Config, studies: int) -> list[Variant]:
    visual, report = "decoder.use_visual_memory", "decoder.use_report_memory"
    return [
        Variant("both memories", {visual: True, report: True}),
        Variant("visual memory off", {visual: False, report: True}),
        Variant("report memory off", {visual: True, report: False}),
        Variant("both off", {visual: False, report: False}),
        Variant("mismatched memory", {visual: True, report: True, "generate.memory": "mismatched"}),
    ]


def _bank_size(config: Config, studies: int) -> list[Variant]:
    def sized(name: str, rows: int, regions: int, sampling: str) -> Variant:
        changes = {
            "banks.reports.rows": rows,
            "banks.reports.sampling": sampling,
            "banks.mining.regions_per_finding": regions,
        }
        return Variant(name, changes)

    # A bank holds at most one row of each train study. Regions shrink with the reports.
    sizes = sorted({rows for rows in (1000, 2000, 4000, studies // 4, studies // 2) if 0 < rows < studies})
    sampling, regions = config.banks.reports.sampling, config.banks.mining.regions_per_finding
    return [
        sized("all", max(config.banks.reports.rows, studies), regions, sampling),
        *(sized(f"{rows:,} rows", rows, max(1, round(regions * rows / studies)), sampling) for rows in sizes),
        sized("500 per finding", 500 * len(FINDINGS), 500, "uniform"),
    ]


def _bank_sampling(config: Config, studies: int) -> list[Variant]:
    # A bank that holds every candidate is the same whatever the sampling: half of them at most.
    rows = max(1, min(config.banks.reports.rows, studies // 2))
    ways = {"proportional": "original frequencies", "uniform": "uniform", "stratified": "stratified"}
    return [Variant(name, {"banks.reports.rows": rows, "banks.reports.sampling": way}) for way, name in ways.items()]


def _retrieval(config: Config, studies: int) -> list[Variant]:
    hopfield: dict[str, Any] = {"memory.retrieval": "hopfield"}
    once = {**hopfield, "memory.update_steps": 1}
    untaught = {**once, "stage2.retrieval_loss": 0.0}
    without = [
        Variant("no retrieval loss", untaught),
        Variant("no retrieval loss, copy of the top row", untaught, copied=1),
    ]
    return [
        Variant("Hopfield, 1 step", once),
        *(Variant(f"Hopfield, {n} steps", {**hopfield, "memory.update_steps": n}) for n in (2, 4)),
        Variant("cross-attention", {"memory.retrieval": "cross_attention"}),
        Variant("copy of the top row", once, copied=1),
        Variant(f"most typical of the top {TOP_ROWS}", once, copied=TOP_ROWS),
        *(without if config.stage2.retrieval_loss else []),
    ]


def _temporal(config: Config, studies: int) -> list[Variant]:
    name = "train early, test late"
    if config.data.source == "openi_drr":
        name += " (by study number: there are no dates)"
    return [Variant("as configured"), Variant(name, {"data.splits": "temporal"})]


def _leakage(config: Config, studies: int) -> list[Variant]:
    rows = {"banks.reports.rows": max(config.banks.reports.rows, 4 * studies)}  # room for all, held-out ones too
    held_out = {
        **rows,
        "banks.splits": ["train", config.generate.split],
        "stage2.accept_banks_with_held_out_rows": True,
    }
    own = {"memory.hide_own_patient": False}
    return [
        Variant("train rows, own patient hidden", rows),
        Variant("train rows, own patient seen", {**rows, **own}),
        Variant("held-out rows too, own patient hidden", held_out),
        Variant("held-out rows too, own patient seen", {**held_out, **own}),
    ]


_ALL = (
    Experiment(
        "mask-threshold", "Threshold of the masks",
        "At which threshold τ does a mask agree best with the true lesion, and how often is nothing left?",
        lambda config, studies: [], maps="thresholds", x_label="τ",
    ),
    Experiment(
        "cam-method", "Activation map",
        "Which class activation map points best at the true lesions, and do the reports get better with it?",
        _cam_method, maps="methods",
    ),
    Experiment(
        "beta", "β of the Hopfield networks",
        "Does a sharper association learn faster, over how many rows does it spread, and what does it cost in F1?",
        _beta, x_label="β",
    ),
    Experiment(
        "memory-ablation", "Memory on and off",
        "What do the two memories give, and does it matter what they hold?", _memory_ablation, seeds=3,
    ),
    Experiment(
        "bank-size", "Size of the banks",
        "How many rows do the banks need?", _bank_size,
    ),
    Experiment(
        "bank-sampling", "Sampling of the report bank",
        "If the bank cannot hold all reports, which should it hold, finding by finding?", _bank_sampling,
        per_class=True,
    ),
    Experiment(
        "retrieval", "Retrieval",
        "Do more Hopfield steps, plain cross-attention, or copying what was retrieved do better or worse?", _retrieval,
    ),
    Experiment(
        "temporal", "Train early, test late",
        "What do scores lose on studies later than those it learned from?", _temporal, paired=False,
    ),
    Experiment(
        "leakage", "Test reports in the bank",
        "What would the scores be if the bank held the reports to be written, as in the official code?", _leakage,
    ),
)  # fmt: skip

EXPERIMENTS: dict[str, Experiment] = {experiment.name: experiment for experiment in _ALL}
