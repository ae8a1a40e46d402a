"""Write all experiments of a run as one Markdown page with SVG plots, for a repository."""

import base64
from collections.abc import Sequence
from pathlib import Path

from amrg.experiments.result import Result
from amrg.experiments.retrieval_relevance import BASE

#: Columns left out for lack of width; ``table.csv`` has all of them.
_LEFT_OUT = (
    "F1 example-13", "BLEU-4", "CIDEr", "visual rows", "epochs to common loss",
    *(f"{memory} {name}" for memory in ("visual", "report") for name in ("relevance, absent", BASE)),
)  # fmt: skip
#: Columns that are shown only if their values differ between rows.
_IF_VARIED = ("reports rows", "distinct texts")


def write_markdown(results: Sequence[Result], page: Path, plots: str) -> None:
    """Write the page, and each plot as an SVG into the folder ``plots`` next to it."""
    (page.parent / plots).mkdir(parents=True, exist_ok=True)
    parts = []
    for result in results:
        parts.append(f"## {result.title}\n\n*{result.question}* (`amrg experiment {result.name}`)")
        if result.unavailable:
            parts.append(f"Not run: {result.unavailable}")
        parts += result.paragraphs
        if result.table is not None:
            parts += [markdown_table(*result.table), result.note]
        if result.plot:
            image = f"{plots}/{result.name}.svg"
            (page.parent / image).write_bytes(base64.b64decode(result.plot.split(",", 1)[1]))
            parts.append(f"![{result.title}]({image})")
    page.write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def markdown_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Format a table without ``_LEFT_OUT``, constant columns of ``_IF_VARIED`` and the F1 of single findings."""
    single = [head for head in heads if head.startswith("F1 ") and head[3].isupper()]
    alike = [head for i, head in enumerate(heads) if head in _IF_VARIED and len({row[i] for row in rows}) < 2]
    hidden = {*_LEFT_OUT, *single, *alike}
    kept = [i for i, head in enumerate(heads) if head not in hidden]
    lines = [[heads[i] for i in kept], ["---"] * len(kept), *([row[i] for i in kept] for row in rows)]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)
