"""The ``evaluate`` step: generated reports and the stage-1 classifier → ``scores.json`` and ``index.html``."""

import contextlib
import json
import subprocess
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.text import Text

from amrg import distributed
from amrg.artifacts import Artifact, MapFn, add_artifact_failure, open_artifact
from amrg.config import Config
from amrg.data.labels import FINDINGS, LABELS
from amrg.data.stream import load_split_studies as read_studies
from amrg.data.studies import SPLITS, Study
from amrg.data.text import labeler
from amrg.errors import UserError
from amrg.evaluation import language
from amrg.evaluation.baselines import best_constant, draw_train_studies, most_frequent_normal, nearest_neighbor
from amrg.evaluation.brightness_probe import brightness_probe
from amrg.evaluation.classifier_outputs import (
    PROBE_FILMS,
    TestOutputs,
    TrainOutputs,
    classify_test_split,
    classify_train_patients,
)
from amrg.evaluation.confidence import StatedFindings
from amrg.evaluation.details import DetailScores
from amrg.evaluation.localization import Localization, localization_scores
from amrg.evaluation.page_samples import (
    CONTACT_FILMS,
    RetrievedRows,
    choose_extreme_studies,
    choose_page_studies,
    read_training_curves,
    sample_studies,
)
from amrg.evaluation.radeval_metrics import FILE as LEARNED
from amrg.evaluation.radeval_metrics import LearnedScores, learned_scores
from amrg.evaluation.relevance import retrieval_relevance
from amrg.evaluation.reports import GeneratedReport, read_generated_reports
from amrg.evaluation.scorers import SCORERS
from amrg.evaluation.scores import MODEL, mention_tables, score_systems
from amrg.evaluation.section_scores import section_scores
from amrg.evaluation.statistics import bootstrap_counts
from amrg.evaluation.temporal import TemporalScores, count_true_changes
from amrg.evaluation.text_statistics import num_distinct_retrievals, report_copy_rates, retrieved_texts, text_statistics
from amrg.models.classifier import DiseaseClassifier
from amrg.models.training_distance import FALSE_ALARM_RATE
from amrg.pages.plain_summary import plain_summary
from amrg.pages.result_page import Page, write_result_page
from amrg.pages.score_table import data_set_rows, section_score_rows, terminal_score_table, terminal_table
from amrg.progress import print_on_rank_0

#: Version of the layout of ``scores.json``.
FORMAT = 4

#: Minimal positives of a finding in the probe's mean, as in stage 1's mean AUROC.
LEAST_POSITIVES = 10

#: Fewest studies that show whether the model is above a constant report.
FEWEST_STUDIES = 20

#: The row of the localization table that counts every lesion.
ALL_FINDINGS = "all lesions"

_PACKAGES = ("amrg", "torch", "transformers", "numpy", "scipy", "pycocoevalcap", "radeval")


def evaluate_reports(
    config: Config,
    data: Path,
    stage1: Path,
    banks: Path,
    stage2: Path,
    generated: Path,
    folder: Path,
    each: MapFn = map,
) -> None:
    """Score the generated reports and the baselines, print the table, and write the page.

    Args:
        config: reads ``evaluate``, ``banks.mining.method`` and ``seed``.
        data, stage1, banks, stage2, generated: artefacts.
        folder: receives ``scores.json``, ``index.html`` and, if a metric with learned weights ran, ``learned.json``.
        each: maps over the passes over films and over the learned metrics.

    Raises:
        UserError: the generated reports do not match the split's studies, or a reference has no words.
    """
    kinds = {"data": data, "stage1": stage1, "banks": banks, "stage2": stage2, "reports": generated}
    inputs = {kind: open_artifact(path, kind) for kind, path in kinds.items()}
    split = inputs["reports"].manifest["config"].get("split")
    if split not in SPLITS:
        raise UserError(f"{generated} does not say which split it was generated for: make it with `amrg generate`")
    studies = read_studies(data, split)
    reports = read_generated_reports(generated, studies)
    count = config.evaluate.num_page_studies
    chosen = choose_page_studies(studies, count)
    worst, best = choose_extreme_studies([s.report for s in studies], reports, count // 2)
    rows = RetrievedRows(banks, reports, [reports[i] for i in (*chosen, *worst, *best)])

    train, test = each(_ClassifierPass(config, stage1, data, rows.films), ("train", split))
    scores, learned = _scores(config, inputs, split, test, train, reports, each)
    if failure := no_better_than_constant(scores["systems"], len(studies)):
        add_artifact_failure(folder, failure)
        scores["failures"].append(failure)
    (folder / "scores.json").write_text(json.dumps(scores, indent=2) + "\n")
    if learned:
        learned.save(folder / LEARNED, [r.key for r in reports])
    samples, worst_samples, best_samples = (
        sample_studies(test, train, reports, some, rows, data) for some in (chosen, worst, best)
    )
    page = Page(
        scores=scores,
        curves=read_training_curves({"Stage 1: classifier": stage1, "Stage 2: report generator": stage2}),
        contact_sheet=[_captioned(test, i) for i in choose_page_studies(studies, CONTACT_FILMS)],
        studies=samples,
        worst=worst_samples,
        best=best_samples,
    )
    write_result_page(page, folder / "index.html")
    _print_tables(scores)
    print_on_rank_0("the page is index.html in the folder of the scores")


def _scores(
    config: Config,
    inputs: dict[str, Artifact],
    split: str,
    test: TestOutputs,
    train: TrainOutputs,
    reports: list[GeneratedReport],
    each: MapFn,
) -> tuple[dict[str, Any], LearnedScores | None]:
    """Compute the content of ``scores.json``, and the learned metrics of each study if any ran."""
    data, stage1, banks = (inputs[kind].path for kind in ("data", "stage1", "banks"))
    studies, texts = test.studies, [r.text for r in reports]
    val = read_studies(data, "val")
    constant = best_constant([s.report for s in train.studies], [s.report for s in val])
    groups = [[s.group for s in some.studies] for some in (test, train)]
    nearest = nearest_neighbor(test.pooled_SD, train.pooled_MD, *groups).tolist()
    systems, learned = _systems(config, test, train, constant, nearest, texts, each)
    settings = config.evaluate
    by_section = section_scores(
        studies, reports, train.studies, val, nearest, settings.bootstrap_samples, config.seed,
        settings.meteor_timeout if settings.meteor else None,
    )  # fmt: skip
    scores = {
        "format": FORMAT,
        "name": config.name,
        "source": config.data.source,
        "split": split,
        "studies": len(studies),
        "patients": len({s.group for s in studies}),
        "marks": sorted({a.warning for a in inputs.values() if a.warning}),
        "failures": list(dict.fromkeys(failure for a in inputs.values() for failure in a.failures)),
        "systems": systems,
        "references": _references(config, test),
        "copying": _copying(data, banks, studies, reports),
        "retrieved_sets": num_distinct_retrievals(reports),
        "relevance": _relevance(config, banks, test, reports),
        "unlike_training": _unlike_training(reports),
        "temporal": _temporal(config, studies, reports),
        "mentions": mention_tables(_present(test), texts, _known(test)),
        "confidence": _confidence(config, studies, reports),
        "localisation": _localization(config, test),
        "classifier": _classifier(stage1, split),
        **_data_sets(config, stage1, split, studies, texts, constant),
        **({"sections": by_section} if by_section else {}),
        "probe": _probe(test, train) if config.data.source == "openi_drr" else None,
        **_origin(config, inputs),
    }
    return scores, learned


def _print_tables(scores: dict[str, Any]) -> None:
    """Print the tables of the scores, and what they say in plain words."""
    console = Console()
    console.print(terminal_score_table(scores))
    if "data_sets" in scores:
        console.print(terminal_table("by data set", *data_set_rows(scores)))
    if "sections" in scores:
        console.print(terminal_table("by section", *section_score_rows(scores)))
    console.print(Text(" ".join(plain_summary(scores)) + "\n"))


def no_better_than_constant(systems: dict[str, dict[str, Any]], studies: int) -> str | None:
    """Return what failed if the model's clinical F1 is not above that of the best constant report, else None.

    It is above if the interval of the difference is. Fewer than ``FEWEST_STUDIES`` studies only show that it is below:
    the interval is.
    """
    difference = systems["best constant"]["model_minus_this"]
    low, high = difference["interval"]
    if low > 0 or (studies < FEWEST_STUDIES and high >= 0):
        return None
    return (
        f"the model is not above the best constant report: the difference in clinical F1 is {difference['value']:+.3f} "
        f"[{low:+.3f}, {high:+.3f}]; see the curves of both stages, or train with more epochs or studies"
    )


def too_few_studies(scores: Path) -> str | None:
    """Return why finished scores do not show whether the model is above the best constant report; None if they do."""
    studies = json.loads((scores / "scores.json").read_text())["studies"]
    if studies >= FEWEST_STUDIES:
        return None
    return (
        f"{studies} studies are too few to judge whether the model is above the best constant report "
        f"(at least {FEWEST_STUDIES})"
    )


@dataclass(frozen=True)
class _ClassifierPass:
    """A pass of the classifier over one split; on ``train`` it keeps the films of the ``wanted`` studies."""

    config: Config
    stage1: Path
    data: Path
    wanted: set[str]

    def __call__(self, split: str) -> TestOutputs | TrainOutputs:
        model = DiseaseClassifier.from_pretrained(self.stage1 / "model").to(distributed.local_device())
        dtype = self.config.stage1.dtype
        if split == "train":
            return classify_train_patients(model, self.data, self.wanted, dtype)
        return classify_test_split(model, self.data, split, self.config.banks.mining.method, dtype)


def _systems(
    config: Config,
    test: TestOutputs,
    train: TrainOutputs,
    constant: str,
    nearest: list[int],
    generated: list[str],
    each: MapFn,
) -> tuple[dict[str, dict[str, Any]], LearnedScores]:
    """Score the model and its baselines; returns also the learned scores of the model's reports."""
    groups = [s.group for s in test.studies]
    train_reports = [s.report for s in train.studies]
    chance = draw_train_studies(len(groups), len(train_reports), config.seed)
    systems = {
        MODEL: generated,
        "nearest neighbour": [train_reports[i] for i in nearest],
        "most frequent normal": [most_frequent_normal(train_reports)] * len(groups),
        "best constant": [constant] * len(groups),
        "random train report": [train_reports[i] for i in chance],
    }
    references, settings = [s.report for s in test.studies], config.evaluate
    scores = score_systems(
        references,
        systems,
        groups,
        settings.bootstrap_samples,
        config.seed,
        settings.meteor_timeout if settings.meteor else None,
        test.masks,
    )
    weights = bootstrap_counts(groups, settings.bootstrap_samples, config.seed)
    learned, reasons = learned_scores(
        settings.model_based_metrics, references, systems, settings.model_based_timeout, each
    )
    for name, found in learned.items():
        scores[name]["learned"] = found.summary(weights) | reasons
    return scores, learned[MODEL]


def _references(config: Config, test: TestOutputs) -> dict[str, Any]:
    """Score the references' own wording and details: the level that a generator can reach."""
    texts, groups = [s.report for s in test.studies], [s.group for s in test.studies]
    details = DetailScores.of(texts, texts, test.masks)
    return {
        "wording": text_statistics(texts),
        "details": details.summary(bootstrap_counts(groups, config.evaluate.bootstrap_samples, config.seed)),
    }


def _copying(data: Path, banks: Path, studies: list[Study], reports: list[GeneratedReport]) -> dict[str, Any]:
    """Compute copy rates of the generated reports and of the references, from memory and train."""
    train, groups = [s.report for s in read_studies(data, "train")], [s.group for s in studies]
    rows = retrieved_texts(banks, reports)
    texts = {"generated": [r.text for r in reports], "reference": [s.report for s in studies]}
    return {name: report_copy_rates(some, rows, train, groups) for name, some in texts.items()}


def _relevance(config: Config, banks: Path, test: TestOutputs, reports: list[GeneratedReport]) -> dict[str, Any]:
    """Compute ``retrieval_relevance`` of the retrieved rows to the studies' own labels and true lesions."""
    weights = bootstrap_counts([s.group for s in test.studies], config.evaluate.bootstrap_samples, config.seed)
    columns = [LABELS.index(finding) for finding in FINDINGS]
    present, known = _present(test)[:, columns], _known(test)[:, columns]
    return retrieval_relevance(banks, reports, present, known & ~present, test.masks, weights)


def _unlike_training(reports: list[GeneratedReport]) -> dict[str, float] | None:
    """Count the studies whose films are unlike the training films; None if the reports do not say so."""
    flags = [r.unlike_training for r in reports if r.unlike_training is not None]
    if not flags:
        return None
    return {"studies": len(flags), "unlike": sum(flags), "false_alarm_rate": FALSE_ALARM_RATE}


def _temporal(config: Config, studies: list[Study], reports: list[GeneratedReport]) -> dict[str, Any]:
    """Score what the reports say of change: of all studies, and of those with an earlier study."""
    found: dict[str, Any] = {"given": sum(report.prior for report in reports)}
    for name, chosen in (("all", lambda report: True), ("with_prior", lambda report: report.prior)):
        both = [(study, report) for study, report in zip(studies, reports, strict=True) if chosen(report)]
        if not both:
            continue
        generated = [report.text for _, report in both]
        weights = bootstrap_counts([study.group for study, _ in both], config.evaluate.bootstrap_samples, config.seed)
        scores = TemporalScores.of([study.report for study, _ in both], generated, [report.prior for _, report in both])
        found[name] = scores.summary(weights)
        if any(study.changes for study, _ in both):
            found[name]["truth"] = count_true_changes(generated, [study.changes for study, _ in both])
    return found


def _confidence(config: Config, studies: list[Study], reports: list[GeneratedReport]) -> dict[str, Any] | None:
    """Score the probabilities of the stated findings; None if the reports record none."""
    weights = bootstrap_counts([s.group for s in studies], config.evaluate.bootstrap_samples, config.seed)
    return StatedFindings.of(reports, [s.report for s in studies]).summary(weights, config.seed)


def _present(test: TestOutputs) -> np.ndarray:
    """Return whether the studies' own labels are positive, bool [S, 14]."""
    return _labels(test.studies) == 1


def _known(test: TestOutputs) -> np.ndarray:
    """Return whether the studies' data sets have the labels, bool [S, 14]."""
    return np.array([[label not in study.unlabelled for label in LABELS] for study in test.studies])


def _data_sets(
    config: Config, stage1: Path, split: str, studies: list[Study], generated: list[str], constant: str
) -> dict[str, Any]:
    """Score each data set of a mix as ``data_sets``; nothing without a mix.

    A data set has the scores of the model and the best constant report on its own studies with a text, none if it has
    no such study, and stage 1's mean AUROC on all of its studies.
    """
    classified = json.loads((stage1 / "scores.json").read_text())[split].get("data_sets", {})
    settings = config.evaluate
    found: dict[str, Any] = {}
    for name, classifier in classified.items():
        rows = [i for i, study in enumerate(studies) if study.dataset == name]
        groups = [studies[i].group for i in rows]
        systems = {MODEL: [generated[i] for i in rows], "best constant": [constant] * len(rows)}
        found[name] = {
            "studies": len(rows),
            "patients": len(set(groups)),
            "systems": score_systems(
                [studies[i].report for i in rows],
                systems,
                groups,
                settings.bootstrap_samples,
                config.seed,
                settings.meteor_timeout if settings.meteor else None,
            )
            if rows
            else {},
            "classifier": {"studies": classifier["studies"], "mean_auroc": classifier["mean_auroc"]},
        }
    return {"data_sets": found} if found else {}


def _localization(config: Config, test: TestOutputs) -> dict[str, Any]:
    """Summarize each finding with a true lesion in at least two studies, and all of them as ``ALL_FINDINGS``."""
    found: dict[str, Localization] = {}
    groups: dict[str, list[str]] = {}
    for finding in FINDINGS:
        have = [i for i, masks in enumerate(test.masks) if finding in masks and masks[finding].any()]
        if len(have) >= 2:
            maps = test.maps_SKhw[have, LABELS.index(finding)]
            found[finding] = localization_scores(maps, np.stack([test.masks[i][finding] for i in have]))
            groups[finding] = [test.studies[i].group for i in have]
    if found:
        found[ALL_FINDINGS] = Localization.concat(list(found.values()))
        groups[ALL_FINDINGS] = [group for some in groups.values() for group in some]
    return {
        name: one.summary(groups[name], config.evaluate.bootstrap_samples, config.seed) for name, one in found.items()
    }


def _classifier(stage1: Path, split: str) -> dict[str, Any]:
    """Read stage 1's scores on the split: per label, and the mean AUROC."""
    scores = json.loads((stage1 / "scores.json").read_text())[split]
    return {"per_label": scores["per_label"], "mean_auroc": scores["mean_auroc"]}


def _probe(test: TestOutputs, train: TrainOutputs) -> dict[str, Any]:
    """Probe the rendered films for a shortcut: AUROC of their brightness alone."""
    train_films, test_films = train.probe_films, test.films[:PROBE_FILMS]
    train_labels, truth = _labels(train.studies[: len(train_films)]), _labels(test.studies[: len(test_films)])
    found = brightness_probe(train_films, train_labels, test_films, truth, LABELS)
    positives = dict(zip(LABELS, (truth == 1).sum(0).tolist(), strict=True))
    enough = [found[f] for f in FINDINGS if f in found and positives[f] >= LEAST_POSITIVES]
    return {
        "per_label": {name: {"positives": positives[name], "auroc": value} for name, value in found.items()},
        "mean_auroc": float(np.mean(enough)) if enough else None,
        "least_positives": LEAST_POSITIVES,
    }


def _labels(studies: list[Study]) -> np.ndarray:
    """Return the studies' own labels, float64 [S, 14]; not mentioned counts as absent, as in stage 1's default."""
    return np.array([[s.labels[label] or 0.0 for label in LABELS] for s in studies])


def _origin(config: Config, inputs: dict[str, Artifact]) -> dict[str, dict[str, Any]]:
    """Return settings, inputs and versions, which must be equal for two scores to be comparable."""
    return {
        "settings": {
            **inputs["reports"].manifest["config"],
            "references": "whole, each study once",
            "tokenizer": language.TOKENIZER,
            "labeler": f"amrg rules {labeler.VERSION}; blank → absent, uncertain → absent",
            "metrics with learned weights": "; ".join(
                f"{m}: {SCORERS[m].note}" for m in config.evaluate.model_based_metrics
            ),
            "activation maps": config.banks.mining.method,
            "bootstrap": config.evaluate.bootstrap_samples,
            "seed": config.seed,
        },
        "inputs": {kind: artifact.hash for kind, artifact in inputs.items()},
        "versions": {**_versions(), "commit": _commit()},
    }


def _versions() -> dict[str, str]:
    installed = {}
    for name in _PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            installed[name] = version(name)
    return installed


def _commit() -> str:
    """Return the commit of this code, with "-dirty" after local changes; "unknown" for an installed package."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def _captioned(test: TestOutputs, index: int) -> tuple[np.ndarray, str]:
    return test.films[index], ", ".join(test.studies[index].positive_findings) or "no finding"
