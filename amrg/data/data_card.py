"""Statistics of a prepared data set, as JSON and as a Markdown page."""

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from amrg.config import DataConfig
from amrg.data.context import CONTEXT_FIELDS
from amrg.data.labels import LABELS, NEGATIVE, POSITIVE, UNCERTAIN
from amrg.data.studies import SPLITS

STATISTICS, CARD = "statistics.json", "card.md"


def write_data_card(
    rows: list[dict[str, Any]],
    skipped: list[dict[str, str]],
    lacking: Mapping[str, int],
    views: Mapping[str, Mapping[str, Any]],
    config: DataConfig,
    folder: Path,
) -> None:
    """Write ``statistics.json`` and ``card.md``.

    Args:
        rows: rows of the index.
        skipped: studies whose films could not be read: ``key`` (hashed) and ``reason``.
        lacking: number of studies of the source per kind of missing content.
        views: of each data set that does not tell all views: how its films were ordered (``amrg.data.projection``).
        config: the data settings.
        folder: folder of the data artefact.
    """
    statistics = {
        "splits": {split: _counts([row for row in rows if row["split"] == split]) for split in SPLITS},
        "lacking": dict(lacking),
        "skipped": dict(sorted(Counter(one["reason"] for one in skipped).items())),
        "skipped_studies": [one["key"] for one in skipped][:100],
    }
    if names := sorted({row["dataset"] for row in rows if "dataset" in row}):
        count = Counter((row["dataset"], row["split"]) for row in rows)
        statistics["data_sets"] = {name: {split: count[name, split] for split in SPLITS} for name in names}
    if views:
        statistics["predicted_views"] = views
    (folder / STATISTICS).write_text(json.dumps(statistics, indent=2) + "\n")
    (folder / CARD).write_text(_page(statistics, config))


def _counts(rows: list[dict[str, Any]]) -> dict[str, Any]:
    lengths = [len(row["report"].split()) for row in rows if row["report"]]
    known = Counter(name for row in rows for name, value in row.get("context", {}).items() if value not in ("", None))
    changes = Counter(change for row in rows for change in row.get("changes", {}).values())
    return {
        "studies": len(rows),
        "without_text": len(rows) - len(lengths),
        "patients": len({row["group"] for row in rows}),
        "films": sum(row["views"] for row in rows),
        "bytes": sum(row["size"] for row in rows),
        "words": {"mean": round(sum(lengths) / max(len(lengths), 1), 1), "most": max(lengths, default=0)},
        **({"context": {name: known[name] for name in CONTEXT_FIELDS}} if known else {}),
        **({"changes": dict(sorted(changes.items()))} if changes else {}),
        "labels": {
            label: {
                name: sum(row["labels"][label] == value for row in rows)
                for name, value in (("positive", POSITIVE), ("negative", NEGATIVE), ("uncertain", UNCERTAIN))
            }
            for label in LABELS
        },
    }


def _page(statistics: dict[str, Any], config: DataConfig) -> str:
    splits = statistics["splits"]
    lines = [
        f"# Data card: {config.source}",
        "",
        f"Reports: {config.sections}; split: {config.splits}; labels: {config.labels}; films with a short side of "
        f"{config.image_size} pixels. Prepared for training report generators; not for clinical use.",
        "",
        "| split | studies | of them without text | patients | films | MB | words a report (mean, most) |",
        "|---|---|---|---|---|---|---|",
        *(
            f"| {name} | {part['studies']:,} | {part['without_text']:,} | {part['patients']:,} | {part['films']:,} | "
            f"{part['bytes'] / 1e6:,.1f} | {part['words']['mean']}, {part['words']['most']} |"
            for name, part in splits.items()
        ),
        *(
            f"\n{name}: " + ", ".join(f"{number:,} {split}" for split, number in of.items()) + " studies"
            for name, of in statistics.get("data_sets", {}).items()
        ),
        *(
            f"\n{name}, studies with context: " + ", ".join(f"{n:,} {field}" for field, n in part["context"].items())
            for name, part in splits.items()
            if "context" in part
        ),
        "",
        "| label, studies positive (uncertain) | " + " | ".join(splits) + " |",
        "|---" * (len(splits) + 1) + "|",
        *(
            f"| {label} | "
            + " | ".join(
                f"{part['labels'][label]['positive']:,} ({part['labels'][label]['uncertain']:,})"
                for part in splits.values()
            )
            + " |"
            for label in LABELS
        ),
        "",
        "Of all studies of the source: "
        + (
            "; ".join(f"{count:,} with {what}" for what, count in statistics["lacking"].items()) or "nothing is lacking"
        ),
        "",
        "Studies left out because a film could not be read: "
        + (", ".join(f"{count} ({reason})" for reason, count in statistics["skipped"].items()) or "none"),
        *(
            f"\nViews that {name} does not tell: "
            + (
                f"predicted of {how['looks_frontal']:,} films that look frontal and {how['looks_lateral']:,} that look "
                f"lateral (cross-validated balanced accuracy {how['balanced_accuracy']:.3f}); so "
                f"{how['other_first_film']:,} studies begin with another film"
                if how["used"]
                else "not predicted, films in the order of the data set"
            )
            for name, how in statistics.get("predicted_views", {}).items()
        ),
    ]
    return "\n".join(lines) + "\n"
