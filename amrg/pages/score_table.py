"""Score tables of the page and of the terminal."""

import math
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

#: Detail scores in the main table, by column head.
HEADLINES = {
    "… with details": "F1 micro-13 with details",
    "side exact": "side exact",
    "side opposite": "side opposite",
}
#: Metrics of texts in the forest plots, and the title of the differences.
FOREST_METRICS = ("BLEU-4", "ROUGE-L", "CIDEr")
DIFFERENCE = "difference in clinical F1: model minus this"
METRICS = ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "METEOR", "ROUGE-L", "CIDEr")


def format_score_cell(score: dict[str, Any] | float | str | None) -> str:
    """Format a score with its interval, if it has one; of an unavailable score only "unavailable"."""
    if score is None:
        return "–"
    if isinstance(score, str):
        return score.split(":")[0]
    if isinstance(score, dict):
        low, high = score["interval"]
        return f"{score['value']:.3f} [{low:.3f}–{high:.3f}]"
    return f"{score:.3f}"


def system_score_rows(scores: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return column heads and one row per system, the model first, from the content of ``scores.json``."""
    heads = ["", "clinical F1, 13 findings [95%]", *HEADLINES, "… macro", "… 5 findings", *METRICS, "words"]
    rows = []
    for name, system in scores["systems"].items():
        clinical, language = system["clinical"], system["language"]
        headline = {"value": clinical["micro_13"]["f1"], "interval": clinical["intervals"]["micro_13"]}
        short = [language[m]["value"] if isinstance(language[m], dict) else language[m] for m in METRICS]
        rows.append(
            [
                name,
                format_score_cell(headline),
                *(format_score_cell(_known(system["details"][name])) for name in HEADLINES.values()),
                format_score_cell(clinical["macro_13"]["f1"]),
                format_score_cell(clinical["micro_5"]["f1"]),
                *map(format_score_cell, short),
                f"{system['wording']['words_mean']:.0f}",
            ]
        )
    return heads, rows


def forest_plot_rows(scores: dict[str, Any]) -> dict[str, dict[str, tuple[float, float, float]]]:
    """Return value, low and high of the main scores by title and system, without systems that have no value."""

    def main(system: dict[str, Any]) -> dict[str, Any]:
        clinical = system["clinical"]
        f1 = {
            title: {"value": clinical[name]["f1"], "interval": clinical["intervals"][name]}
            for title, name in (("clinical F1, 13 findings", "micro_13"), ("clinical F1, macro", "macro_13"))
        }
        details = {"clinical F1 with details": system["details"]["F1 micro-13 with details"]}
        texts = {name: system["language"][name] for name in FOREST_METRICS}
        return f1 | details | texts | system["learned"] | {DIFFERENCE: system.get("model_minus_this")}

    found: dict[str, dict[str, tuple[float, float, float]]] = {}
    for system, values in scores["systems"].items():
        for title, score in main(values).items():
            if isinstance(score, dict) and score["value"] is not None and math.isfinite(sum(score["interval"])):
                found.setdefault(title, {})[system] = (score["value"], *score["interval"])
    return found


def data_set_rows(scores: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return heads and one row for each data set of a mix; no rows without a mix."""
    metrics = ("BLEU-1", "BLEU-4", "ROUGE-L", "CIDEr")
    heads = ["data set", "studies", "clinical F1 [95%]", "best constant report", *metrics, "films: studies", "AUROC"]
    rows = []
    for name, one in scores.get("data_sets", {}).items():
        written, classifier = ["–"] * (2 + len(metrics)), one["classifier"]
        if one["systems"]:
            model, constant = one["systems"]["model"], one["systems"]["best constant"]
            clinical = model["clinical"]
            f1 = {"value": clinical["micro_13"]["f1"], "interval": clinical["intervals"]["micro_13"]}
            written = [format_score_cell(f1), format_score_cell(constant["clinical"]["micro_13"]["f1"])]
            written += [format_score_cell(model["language"][metric]["value"]) for metric in metrics]
        rows.append(
            [
                name,
                str(one["studies"]),
                *written,
                str(classifier["studies"]),
                format_score_cell(classifier["mean_auroc"]),
            ]
        )
    return heads, rows


def section_score_rows(scores: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return heads and one row for each section of reports that tell them apart; no rows for others."""
    metrics = ("BLEU-1", "BLEU-4", "METEOR", "ROUGE-L", "CIDEr")
    heads = ["section", "studies", "reports with it", "clinical F1 [95%]", "nearest neighbour", "best constant"]
    rows = []
    for name, one in scores.get("sections", {}).items():
        written = ["–"] * (4 + len(metrics))
        if one["systems"]:
            model, *others = (one["systems"].get(s) for s in ("model", "nearest neighbour", "best constant"))
            clinical, language = model["clinical"], model["language"]
            f1 = {"value": clinical["micro_13"]["f1"], "interval": clinical["intervals"]["micro_13"]}
            written = [
                format_score_cell(f1),
                *(format_score_cell(other and other["clinical"]["micro_13"]["f1"]) for other in others),
            ]
            written += [
                format_score_cell(language[m]["value"] if isinstance(language[m], dict) else language[m])
                for m in metrics
            ]
            written.append(f"{model['wording']['words_mean']:.0f}")
        rows.append([name, str(one["studies"]), str(one["written"]), *written])
    return [*heads, *metrics, "words"], rows


def terminal_table(title: str, heads: list[str], rows: list[list[str]]) -> Table:
    """Build a table for a terminal."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE, padding=(0, 1, 0, 0))
    for head in heads:
        table.add_column(head, justify="left" if head == heads[0] else "right")
    for row in rows:
        table.add_row(row[0], *map(_stacked, row[1:]))
    return table


def detail_score_rows(scores: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return heads and rows of the detail scores with their number of cases, one system per column.

    The references have a column for scores that do not compare with references. Scores without any case are left out.
    """
    columns = {name: system["details"] for name, system in scores["systems"].items()}
    own = {n: one for n, one in scores["references"]["details"].items() if n.startswith(("film ", "contradicting"))}
    rows = []
    for name in next(iter(columns.values())):
        found = [*(details[name] for details in columns.values()), own.get(name)]
        if any(one and one["value"] is not None for one in found):
            rows.append([name, *(_with_cases(name, one) for one in found)])
    return ["", *columns, "references"], rows


def detail_finding_rows(scores: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return heads and rows of the model's counts by finding, such as exact / opposite / cases."""
    measures = {
        "side: exact, opposite, of": ("sides exact", "sides apart", "sides both"),
        "zone: exact, overlapping, of": ("zones exact", "zones overlap", "zones both"),
        "severity: exact, of": ("severities exact", "severities both"),
        "device: exact, of": ("devices exact", "devices both"),
        "side on the film: exact, opposite, of": ("film sides exact", "film sides apart", "film sides said"),
        "zone on the film: exact, opposite, of": ("film zones exact", "film zones apart", "film zones said"),
        "details: unsupported, of": ("unsupported", "details"),
    }

    def counts(found: dict[str, int], names: tuple[str, ...]) -> str:
        return " / ".join(str(found[name]) for name in names) if found[names[-1]] else "–"

    (model, *_) = scores["systems"].values()
    per_finding = model["details_per_finding"]
    return ["", *measures], [[n, *(counts(f, names) for names in measures.values())] for n, f in per_finding.items()]


def reliability_rows(scores: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return heads and rows of the bins of stated findings; no rows without stated findings."""
    confidence = scores["confidence"]
    return ["probability", "findings", "mean probability", "stated by the reference"], [
        [
            f"{one['from']:.1f} – {one['to']:.1f}",
            str(one["findings"]),
            format_score_cell(one["probability"]),
            f"{format_score_cell(one['right'])} ({round(one['right'] * one['findings'])})",
        ]
        for one in (confidence["bins"] if confidence else [])
    ]


def why_no_odds_ratio(table: dict[str, Any]) -> str | None:
    """Return why a 2×2 table of mentions has no odds ratio; None if it has one."""
    if not table["present_mentioned"] + table["absent_mentioned"]:
        return "no report mentions the finding"
    reasons = {
        "present_mentioned": "no report of a study with the finding mentions it",
        "absent_mentioned": "no report of a study without the finding mentions it",
        "present_not_mentioned": "every report of a study with the finding mentions it",
        "absent_not_mentioned": "every report of a study without the finding mentions it",
    }
    return "; ".join(reason for name, reason in reasons.items() if not table[name]) or None


def relevance_rows(found: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return heads and rows of one memory's relevance by finding."""
    heads = ["", "films with it", "share on its rows [95%]", "films without it [95%]", "rows of it in the bank"]
    heads += ["different heaviest rows", "weight on the true side [95%]", "one-sided lesions"]
    rows = {"all": found["all"], **found["findings"]} if found["all"] else {}
    return heads, [
        [
            name,
            str(row["studies"]),
            *(format_score_cell(_known(row[key])) for key in ("with", "without")),
            format_score_cell(row["base"]),
            str(row["rows"]),
            format_score_cell(_known(row["side"])),
            str(row["sided"]),
        ]
        for name, row in rows.items()
    ]


def _known(score: dict[str, Any]) -> dict[str, Any] | None:
    """Return the score, or None if it has no value."""
    return None if score["value"] is None else score


def _with_cases(name: str, score: dict[str, Any] | None) -> str:
    if score is None or score["value"] is None:
        return "–"
    return format_score_cell(score) if name.startswith("F1") else f"{format_score_cell(score)} of {score['cases']}"


def clinical_rows(scores: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return heads and rows of every F1 average under both readings of uncertain findings, one system per column."""
    readings = {"clinical": "absent", "clinical_uncertain_as_present": "present"}
    rows = []
    for labels in ("14", "5"):
        for kind in ("micro", "macro", "example"):
            for policy, reading in readings.items():
                found = [system[policy] for system in scores["systems"].values()]
                name = f"{kind}_{labels}"
                f1 = [
                    format_score_cell({"value": one[name]["f1"], "interval": one["intervals"][name]}) for one in found
                ]
                rows.append([f"{kind}, {labels} labels", reading, *f1])
    return ["F1", "uncertain counts as", *scores["systems"]], rows


def learned_metric_rows(scores: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return heads and rows of the available metrics with learned weights; no rows if none is available."""
    systems = {name: system["learned"] for name, system in scores["systems"].items()}
    names = sorted({n for found in systems.values() for n, value in found.items() if not isinstance(value, str)})
    return ["", *names], [
        [name, *(format_score_cell(found.get(n)) for n in names)] for name, found in systems.items()
    ] if names else []


def report_wording_rows(scores: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return heads and rows of length and repetition, for the references and each system."""
    shares = {
        "different reports": "different",
        "same as the most frequent": "generic",
        "a phrase in a loop": "loops",
        "a sentence twice": "repeated_sentences",
        "an earlier film": "compares",
        "cut off": "cut_off",
        "empty": "empty",
    }
    texts = {"references": scores["references"], **scores["systems"]}
    rows = []
    for name, found in ((name, text["wording"]) for name, text in texts.items()):
        spread = f"{found['words_mean']:.0f} ({found['words_p10']:.0f} – {found['words_p90']:.0f})"
        distinct = [f"{found[key]:.3f}" for key in ("distinct_1", "distinct_4")]
        rows.append([name, spread, *(format_percent(found[key]) for key in shares.values()), *distinct])
    return ["", "words, mean (10% – 90%)", *shares, "distinct-1", "distinct-4"], rows


def temporal_rows(scores: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return heads and rows of the scores of change, for all studies and those with a prior; no rows without a case."""
    columns = {"all": "all studies", "with_prior": "with an earlier study"}
    found = {head: scores["temporal"][name] for name, head in columns.items() if name in scores.get("temporal", {})}
    rows = []
    for name in next(iter(found.values()), {}):
        if name != "truth" and any(one[name]["value"] is not None for one in found.values()):
            rows.append([name, *(_with_cases(name, one[name]) for one in found.values())])
    if any("truth" in one for one in found.values()):
        truths = [one.get("truth", {"true": 0, "stated": 0}) for one in found.values()]
        rows.append(["generated changes that are true", *(f"{one['true']} of {one['stated']}" for one in truths)])
    return ["", *found], rows


def copy_rate_rows(scores: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return heads and rows of the copy rates of generated reports and references."""
    heads = {
        "retrieved rows": "retrieved_{n}",
        "rows retrieved for another study": "others_{n}",
        "any train report": "train_{n}",
    }
    columns = [(f"{n} words: {head}", key.format(n=n)) for n in (4, 8) for head, key in heads.items()]
    columns += [("whole: a retrieved row", "whole_retrieved"), ("whole: a train report", "whole_train")]
    rows = [[name, *(format_percent(found[key]) for _, key in columns)] for name, found in scores["copying"].items()]
    return ["", *(head for head, _ in columns)], rows


def lesion_size_rows(scores: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return heads and rows of localization by lesion size."""
    measures = {"inside / whole": "ratio", "IoU": "iou", "pointing": "pointing", "chance": "pointing_chance"}
    found = {name: row["sizes"] for name, row in scores["localisation"].items() if row["sizes"]}
    sizes = list(next(iter(found.values()), {}))
    heads = ["", *(f"{measure}: {size}" for measure in measures for size in sizes)]
    return heads, [[n, *(f"{s[z][key]:.3f}" for key in measures.values() for z in sizes)] for n, s in found.items()]


def format_percent(share: float | None) -> str:
    """Format a share for a table."""
    return "–" if share is None else f"{100 * share:.1f}%"


def terminal_score_table(scores: dict[str, Any]) -> Table:
    """Build the score table for a terminal of 80 columns, with one system per column."""
    heads, rows = system_score_rows(scores)
    title = f"{scores['studies']} {scores['split']} studies"
    reasons = Text("\n".join(unavailable_metrics(scores)))  # plain text: brackets are not markup
    table = Table(
        title=title, title_justify="left", caption=reasons, caption_justify="left", box=box.SIMPLE, padding=(0, 1, 0, 0)
    )
    table.add_column("")
    for system, *_ in rows:
        table.add_column(system, justify="right", min_width=11)  # an interval on one line
    for i, head in enumerate(heads[1:], start=1):
        table.add_row(head, *(_stacked(row[i]) for row in rows))
    learned_heads, learned = learned_metric_rows(scores)
    for i, head in enumerate(learned_heads[1:], start=1):
        table.add_row(head, *(_stacked(row[i]) for row in learned))
    return table


def _stacked(text: str) -> str:
    """Put a score above its interval."""
    return text.replace(" [", "\n").removesuffix("]")


def unavailable_metrics(scores: dict[str, Any]) -> list[str]:
    """List the reasons of unavailable and undefined metrics, once each."""
    reasons: dict[str, dict[str, None]] = {}
    for system in scores["systems"].values():
        for name, value in {**system["language"], **system["learned"]}.items():
            reason = value.get("reason") if isinstance(value, dict) else value
            if isinstance(reason, str):
                reasons.setdefault(reason, {})[name] = None
    return [f"{', '.join(names)} {reason}" for reason, names in reasons.items()]
