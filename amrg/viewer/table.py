"""The score table a user sees at the end of a run."""

from typing import Any

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
        return f"{score['value']:.3f} [{low:.3f}, {high:.3f}]"
    return f"{score:.3f}"


def score_rows(scores: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Column heads and rows, one system each, the model first. Works on what ``scores.json`` holds."""
    heads = ["", "clinical F1, 13 findings [95%]", "F1 macro", "F1, 5", *METRICS, "words"]
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
    """The same as a table for the terminal."""
    heads, rows = score_rows(scores)
    table = Table(title=f"{scores['studies']} {scores['split']} studies", title_justify="left")
    for i, head in enumerate(heads):
        table.add_column(head, justify="left" if i == 0 else "right", no_wrap=i == 0)
    for row in rows:
        table.add_row(*row)
    return table
