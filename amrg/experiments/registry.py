"""The experiments and their variants. The first variant of each is the baseline."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from amrg import pipeline
from amrg.config import Config
from amrg.data.labels import FINDINGS
from amrg.data.stream import num_split_studies
from amrg.evaluation.details import MICRO
from amrg.evaluation.temporal import CHANCE, INVENTED, TEMPORAL
from amrg.experiments.sweep import Variant
from amrg.inference.report_writer import TOP_ROWS
from amrg.models.cam import METHODS
from amrg.models.prompt import IMAGE, RETRIEVED

#: The judged and tested score, declared before any result is known.
HEADLINE = "F1 micro-13"
#: Also judged in experiments on wording: a hit counts only if side and device kind agree.
DETAILED = MICRO

#: Thresholds of the activation maps that are compared with the true lesions.
THRESHOLDS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.75)


@dataclass(frozen=True)
class Experiment:
    """One experiment.

    Attributes:
        name: name on the command line.
        title, question: texts for the reader.
        variants: function from a configuration and the number of candidate texts of its report bank to the variants;
            an empty list if nothing is trained.
        paired: whether all variants write reports for the same studies.
        judged: scores that are tested.
        shown: scores that the table shows beside those that it always does.
        grounded: whether detail scores and the relevance of both memories are shown.
        classifier: whether the AUROC of stage 1 is shown.
        per_class: whether F1 is shown per finding.
        maps: ``thresholds`` or ``methods`` if activation maps are compared with true lesions.
        x_label: axis label if the variants are steps of one number.
        seeds: minimal number of trainings per variant.
    """

    name: str
    title: str
    question: str
    variants: Callable[[Config, int], list[Variant]]
    paired: bool = True
    judged: tuple[str, ...] = (HEADLINE,)
    shown: tuple[str, ...] = ()
    grounded: bool = False
    classifier: bool = False
    per_class: bool = False
    maps: str = ""
    x_label: str = ""
    seeds: int = 1


def _cam_method(config: Config, texts: int) -> list[Variant]:
    own = config.banks.mining.method
    methods = [own, *(name for name in METHODS if name != own)]
    return [Variant(name, {"banks.mining.method": name}) for name in methods]


def _beta(config: Config, texts: int) -> list[Variant]:
    own = config.memory.beta
    betas = [own, *(beta for beta in (0.5, 1.0, 2.0, 4.0, 8.0) if beta != own)]
    fixed: dict[str, Any] = {"memory.learn_beta": False}
    return [Variant(f"β = {beta:g}", {"memory.beta": beta, **fixed}, x=beta) for beta in betas]


def _memory_ablation(config: Config, texts: int) -> list[Variant]:
    visual, report = "decoder.use_visual_memory", "decoder.use_report_memory"
    return [
        Variant("both memories", {visual: True, report: True}),
        Variant("visual memory off", {visual: False, report: True}),
        Variant("report memory off", {visual: True, report: False}),
        Variant("both off", {visual: False, report: False}),
        Variant("mismatched memory", {visual: True, report: True, "generate.memory": "shuffled"}),
    ]


def _region_query(config: Config, texts: int) -> list[Variant]:
    queries = {"placed_regions": "regions with place", "regions": "regions", "queries": "Q-Former queries"}
    losses = {"": 0.0, ", association loss": 1.0}
    return [
        Variant(name + suffix, {"memory.visual_query": query, "stage2.association_loss_weight": weight})
        for query, name in queries.items()
        for suffix, weight in losses.items()
    ]


def _grounding(config: Config, texts: int) -> list[Variant]:
    # Settings that recalling requires. If the run has them already, only ``generate`` differs and nothing is trained.
    recalled: dict[str, Any] = {
        "banks.reports.granularity": "sentence",
        "decoder.predict_outline": True,
        "generate.outline_source": "retrieved",
    }
    supports = {
        "memory": "region memory", "none": "nothing", "map": "map", "head": "attribute head",
        "all": "memory and head",
    }  # fmt: skip
    return [Variant(name, {**recalled, "generate.support": support}) for support, name in supports.items()]


def _retrieved_text(config: Config, texts: int) -> list[Variant]:
    visual, report, text = (f"decoder.use_{name}" for name in ("visual_memory", "report_memory", "retrieved_text"))
    prompt = config.decoder.prompt
    if RETRIEVED not in prompt:
        prompt = prompt.replace(IMAGE, f"{IMAGE}Similar films: {RETRIEVED}\n", 1)
    # The decoder chooses and words all findings, so that the effect of its input is measured.
    written = {"banks.reports.granularity": "sentence", "generate.outline_source": "decoder", "decoder.prompt": prompt}
    both: dict[str, Any] = {visual: True, report: True, text: True, **written}
    return [
        Variant("vectors and text", both),
        Variant("vectors", {**both, text: False}),
        Variant("text", {**both, visual: False, report: False}),
        Variant("neither", {**both, visual: False, report: False, text: False}),
        Variant("another patient's", {**both, "generate.memory": "shuffled"}),
    ]


def _context(config: Config, texts: int) -> list[Variant]:
    # As in ``_retrieved_text`` the decoder writes everything. The variant without context keeps tokenizer and prompt.
    own: dict[str, Any] = {
        "decoder.context": list(config.decoder.context or ("indication", "comparison", "sex")),
        "generate.outline_source": "decoder",
    }
    streams = ("visual_tokens", "queries", "visual_memory", "report_memory")
    return [
        Variant("own context", own),
        Variant("another patient's", {**own, "generate.context": "shuffled"}),
        Variant("trained with, written without", {**own, "generate.context": "none"}),
        Variant("none", {**own, "stage2.context_dropout": 1.0, "generate.context": "none"}),
        Variant("context alone, no film", {**own, **{f"decoder.use_{name}": False for name in streams}}),
    ]


def _context_recall(config: Config, texts: int) -> list[Variant]:
    fields = config.generate.recall_context or ("indication", "comparison")
    own: dict[str, Any] = {
        "decoder.predict_outline": True,
        "generate.outline_source": "retrieved",
        "generate.recall_context": list(fields),
    }
    return [
        Variant("own context", own),
        Variant("another patient's", {**own, "generate.context": "shuffled"}),
        Variant("none", {**own, "generate.recall_context": []}),
        *(Variant(f"{name} alone", {**own, "generate.recall_context": [name]}) for name in fields if len(fields) > 1),
        Variant("context without the film", {**own, "generate.memory": "uniform"}),
    ]


def _prior(config: Config, texts: int) -> list[Variant]:
    # As in ``_context``. On the embedded data the earlier states must be rendered.
    own: dict[str, Any] = {
        "decoder.prior": list(config.decoder.prior or ("report", "films")),
        "generate.outline_source": "decoder",
        **({"data.earlier_states": True} if config.data.source == "openi_drr" else {}),
    }
    return [
        Variant("own prior", own),
        Variant("another patient's", {**own, "generate.prior": "shuffled"}),
        Variant("trained with, written without", {**own, "generate.prior": "none"}),
        Variant("none", {**own, "stage2.prior_dropout": 1.0, "generate.prior": "none"}),
        Variant("report alone", {**own, "decoder.prior": ["report"]}),
        Variant("films alone", {**own, "decoder.prior": ["films"]}),
    ]


def _views(config: Config, texts: int) -> list[Variant]:
    fusion, views = "vision.film_fusion", "vision.view_embeddings"
    ways = {
        "mean": {fusion: "mean", views: False},
        "mean, views known": {fusion: "mean", views: True},
        "attention": {fusion: "attention", views: False},
        "attention, views known": {fusion: "attention", views: True},
    }
    if config.data.source != "openi_drr":  # its films are what they are
        return [Variant(name, way) for name, way in ways.items()]
    listed = {"data.listed_films": 2, "data.lateral_films": True}
    return [
        *(Variant(f"two films, {name}", {**listed, **way}) for name, way in ways.items()),
        Variant("one film", {**listed, **ways["mean"], "data.lateral_films": False}),
    ]


def _knowledge_graph(config: Config, texts: int) -> list[Variant]:
    # Settings of recalled sentences, which retrieval and check act on, as in ``_grounding``.
    recalled: dict[str, Any] = {
        "banks.reports.granularity": "sentence",
        "decoder.predict_outline": True,
        "generate.outline_source": "retrieved",
    }
    none: dict[str, Any] = {"graph.queries": False, "graph.retrieval": "none", "graph.check": "none"}
    uses: dict[str, dict[str, Any]] = {
        "queries": {"graph.queries": True},
        "retrieval": {"graph.retrieval": "weight"},
        "check": {"graph.check": "drop"},
    }
    uses["all"] = {name: value for use in uses.values() for name, value in use.items()}
    return [
        Variant("no graph", {**recalled, **none, "graph.shuffled": False}),
        *(
            Variant(f"{graph} graph: {use}", {**recalled, **none, **changes, "graph.shuffled": graph == "shuffled"})
            for use, changes in uses.items()
            for graph in ("real", "shuffled")
        ),
    ]


def _bank_size(config: Config, texts: int) -> list[Variant]:
    mining, sampling = config.banks.mining, config.banks.reports.sampling

    def sized(name: str, rows: int, share: float) -> Variant:
        """Scale the regions by the share of the texts."""
        return Variant(
            name,
            {
                "banks.reports.rows": rows,
                "banks.reports.sampling": sampling,
                "banks.mining.regions_per_finding": max(1, round(mining.regions_per_finding * share)),
                "banks.mining.normal_regions": max(1, round(mining.normal_regions * share)),
            },
        )

    sizes = sorted({rows for rows in (1000, 2000, 4000, texts // 4, texts // 2) if 0 < rows < texts})
    each = {
        "banks.reports.rows": 500 * len(FINDINGS), "banks.reports.sampling": "uniform",
        "banks.mining.regions_per_finding": 500, "banks.mining.normal_regions": 500,
    }  # fmt: skip
    return [
        sized("all", max(config.banks.reports.rows, texts), 1.0),
        *(sized(f"{rows:,} rows", rows, rows / texts) for rows in sizes),
        Variant("500 per finding", each),
    ]


def _bank_sampling(config: Config, texts: int) -> list[Variant]:
    # At most half of the candidates: a bank of all of them is the same under every sampling.
    rows = max(1, min(config.banks.reports.rows, texts // 2))
    ways = {"proportional": "original frequencies", "uniform": "uniform", "stratified": "stratified"}
    return [Variant(name, {"banks.reports.rows": rows, "banks.reports.sampling": way}) for way, name in ways.items()]


def _retrieval(config: Config, texts: int) -> list[Variant]:
    hopfield: dict[str, Any] = {"memory.retrieval": "hopfield"}
    once = {**hopfield, "memory.update_steps": 1}
    unsupervised = {**once, "stage2.retrieval_loss_weight": 0.0}
    without = [
        Variant("no retrieval loss", unsupervised),
        Variant("no retrieval loss, copy of the top row's report", unsupervised, copy_top_k=1),
    ]
    # The association loss applies to Hopfield networks only.
    supervised = config.stage2.association_loss_weight > 0
    attention = {
        "memory.retrieval": "cross_attention",
        **({"stage2.association_loss_weight": 0.0} if supervised else {}),
    }
    return [
        Variant("Hopfield, 1 step", once),
        *(Variant(f"Hopfield, {n} steps", {**hopfield, "memory.update_steps": n}) for n in (2, 4)),
        Variant("cross-attention, no association loss" if supervised else "cross-attention", attention),
        Variant("copy of the top row's report", once, copy_top_k=1),
        Variant(f"most typical report of the top {TOP_ROWS} rows", once, copy_top_k=TOP_ROWS),
        *(without if config.stage2.retrieval_loss_weight else []),
    ]


def _temporal(config: Config, texts: int) -> list[Variant]:
    name = "train early, test late"
    if config.data.source == "openi_drr":
        name += " (by study number: there are no dates)"
    return [Variant("as configured"), Variant(name, {"data.splits": "temporal"})]


def _leakage(config: Config, texts: int) -> list[Variant]:
    room = 4 * texts  # enough for all texts, held-out ones included; a limit would drop some
    rows: dict[str, Any] = {
        "banks.reports.rows": max(config.banks.reports.rows, room),
        "banks.mining.regions_per_finding": max(config.banks.mining.regions_per_finding, room),
        "banks.mining.normal_regions": max(config.banks.mining.normal_regions, room),
        "banks.mining.max_studies": None,
    }
    held_out = {
        **rows,
        "banks.splits": ["train", config.generate.split],
        "stage2.allow_held_out_bank_rows": True,
    }
    own = {"memory.mask_same_patient": False}
    return [
        Variant("train rows, own patient hidden", rows),
        Variant("train rows, own patient seen", {**rows, **own}),
        Variant("held-out rows too, own patient hidden", held_out),
        Variant("held-out rows too, own patient seen", {**held_out, **own}),
    ]


def _memory_update(config: Config, texts: int) -> list[Variant]:
    early = {"data.train_studies": max(1, _train_studies(config, texts) // 2)}
    return [
        Variant("trained on all"),
        Variant("early half", early),
        Variant("early half, later one added", early, added={"data.train_studies": config.data.train_studies}),
    ]


def _train_studies(config: Config, texts: int) -> int:
    """Return the number of train studies, without their renders; ``texts`` where the data are not made yet."""
    data = pipeline.step_recipe("prepare", config).path(pipeline.artifact_root(config))
    if config.data.train_studies or not data.is_dir():
        return config.data.train_studies or texts
    return num_split_studies(data, "train") // (
        config.data.renders_per_study if config.data.source == "openi_drr" else 1
    )


_ALL = (
    Experiment(
        "mask-threshold", "Threshold of the masks",
        "At which threshold τ does a mask agree best with the true lesion, and how often is nothing left?",
        lambda config, texts: [], maps="thresholds", x_label="τ",
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
        "What do the two memories give, and does it matter what they hold?",
        _memory_ablation, judged=(HEADLINE, DETAILED), grounded=True, seeds=3,
    ),
    Experiment(
        "region-query", "What asks the visual memory",
        "Which state retrieves regions that are about the film, and what do the words gain?",
        _region_query, judged=(HEADLINE, DETAILED), grounded=True,
    ),
    Experiment(
        "grounding", "What supports the words",
        "Who knows best which side, zone, severity and device a recalled sentence may state?",
        _grounding, judged=(HEADLINE, DETAILED), grounded=True,
    ),
    Experiment(
        "retrieved-text", "Retrieved text",
        "Does a decoder write better from vectors, from text or from both, and does it matter whose they are?",
        _retrieved_text, judged=(HEADLINE, DETAILED), grounded=True,
    ),
    Experiment(
        "context", "Clinical context",
        "Does a decoder write better with the clinical context, does it matter whose it is, and what does it tell "
        "without a film?",
        _context, judged=(HEADLINE, "CIDEr", "BLEU-4"), seeds=3,
    ),
    Experiment(
        "context-recall", "Clinical context as a query of the memories",
        "Do composed reports come closer to the radiologist's if the context asks the memories too, does it matter "
        "whose it is, and what does it recall without the film?",
        _context_recall, judged=(HEADLINE, DETAILED, "CIDEr", "BLEU-4"), grounded=True, seeds=3,
    ),
    Experiment(
        "prior", "The earlier study",
        "Does a decoder tell change better with the patient's earlier study, does it matter whose it is, and does it "
        "invent comparisons without one?",
        _prior, judged=(HEADLINE, TEMPORAL, "CIDEr"), shown=(CHANCE, INVENTED), seeds=3,
    ),
    Experiment(
        "knowledge-graph", "Knowledge graph",
        "Does a graph of what train reports state help classifier, retrieval or the check of the words, and does "
        "it matter which findings it links?",
        _knowledge_graph, judged=(HEADLINE, DETAILED), grounded=True, classifier=True, seeds=3,
    ),
    Experiment(
        "views", "Films of a study",
        "Do two films of a study tell more than one, and does it help to know their views or to weigh them by label?",
        _views, classifier=True, seeds=3,
    ),
    Experiment(
        "bank-size", "Size of the banks",
        "How many rows do the banks need?", _bank_size,
    ),
    Experiment(
        "bank-sampling", "Sampling of the report bank",
        "If the bank cannot hold all texts, which should it hold, finding by finding?", _bank_sampling,
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
        "What would the scores be if the bank held the reports to be written, as in the official code?",
        _leakage, judged=(HEADLINE, DETAILED),
    ),
    Experiment(
        "memory-update", "Memory changed after training",
        "How much of a training on all studies does a model keep up with that was trained on half of them, when the "
        "other half only becomes rows of its memory?",
        _memory_update,
    ),
)  # fmt: skip

EXPERIMENTS: dict[str, Experiment] = {experiment.name: experiment for experiment in _ALL}
