"""The score table a user sees at the end of a run."""

from typing import Any

from rich import box
from rich.table import Table

METRICS = ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "METEOR", "ROUGE-L", "CIDEr")


def cell(score: dict[str, Any] | float | str | None) -> str:
    """A score as text: its value, with the interval where there is one; "unavailable" keeps its reason elsewhere."""
    if score is None:
        return "–"
    if isinstance(score, str):
        return score.split(":")[0]
    if isinstance(score, dict):
        low, high = score["interval"]
        return f"{score['value']:.3f} [{low:.3f} – {high:.3f}]"
    return f"{score:.3f}"


def score_rows(scores: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Column heads and rows, one system each, the model first. Works on what ``scores.json`` holds."""
    heads = ["", "clinical F1, 13 findings [95%]", "… macro", "… 5 findings", *METRICS, "words"]
    rows = []
    for name, system in scores["systems"].items():
        clinical, language = system["clinical"], system["language"]
        headline = {"value": clinical["micro_13"]["f1"], "interval": clinical["intervals"]["micro_13"]}
        short = [language[m]["value"] if isinstance(language[m], dict) else language[m] for m in METRICS]
        rows.append(
            [
                name,
                cell(headline),
                cell(clinical["macro_13"]["f1"]),
                cell(clinical["micro_5"]["f1"]),
                *map(cell, short),
                f"{system['words']['generated']:.0f}",
            ]
        )
    return heads, rows


def score_table(scores: dict[str, Any]) -> Table:
    """The same on its side, for a terminal of 80 columns: one system in each column."""
    heads, rows = score_rows(scores)
    title = f"{scores['studies']} {scores['split']} studies"
    reasons = "\n".join(unavailable(scores)) or None
    table = Table(title=title, title_justify="left", caption=reasons, caption_justify="left", box=box.SIMPLE)
    table.add_column("")
    for system, *_ in rows:
        table.add_column(system, justify="right", min_width=13)  # an interval on one line
    for i, head in enumerate(heads[1:], start=1):
        table.add_row(head, *(row[i].replace(" [", "\n").removesuffix("]") for row in rows))
    return table


def unavailable(scores: dict[str, Any]) -> list[str]:
    """Reasons, once each, why a metric has no number."""
    values = [(m, system["language"][m]) for system in scores["systems"].values() for m in METRICS]
    return sorted({f"{name} {value}" for name, value in values if isinstance(value, str)})
