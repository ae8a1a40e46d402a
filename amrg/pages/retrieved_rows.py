"""Memory rows and recalled sentences on the page."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import numpy as np

from amrg.pages.overlays import Box, crop_film_to_box, film_data_url, named_boxes_svg

THUMBNAIL = 112  # pixels on a side
#: Share of the split's studies from which on a row that they retrieve says little about one of them.
USUAL = 0.5


@dataclass(frozen=True)
class MemoryRow:
    """A retrieved row of a bank.

    Attributes:
        weight: its share of the association, averaged over queries and heads, in [0, 1].
        source: region, report, sentence or disease_token.
        findings: findings of the row in the bank.
        text: text of a report row, or the report's words on a region.
        film: square film of a region row, uint8 [S, S], with ``box`` (cells) on a ``grid`` × ``grid`` patch grid.
        number: number of the row in its bank, if known.
        lift: weight over the mean weight in the split; None if unknown.
        studies: share of the split's studies that have the row among their heaviest.
    """

    weight: float
    source: str
    findings: Sequence[str]
    text: str | None = None
    film: np.ndarray | None = None
    box: Box | None = None
    grid: int = 14
    number: int | None = None
    lift: float | None = None
    studies: float = 0.0


@dataclass(frozen=True)
class RecalledSentence:
    """A recalled sentence that a report begins with.

    Attributes:
        text: text of the sentence.
        labels: findings that it states, or No Finding.
        row: number in the report bank.
        filed: findings of that row in the bank.
        regions: rows of the visual bank that voted for it, the heaviest first; the weights are shares of the
            association of the film's region.
        box: number of the film, then the box of the region on its fine grid; None without a region.
        probabilities: probability of each finding; empty for No Finding.
        details: finding, attribute, value and probability per detail; probability is None without support.
    """

    text: str
    labels: Sequence[str]
    row: int
    filed: Sequence[str] = ()
    regions: Sequence[MemoryRow] = ()
    box: tuple[int, int, int, int, int] | None = None
    probabilities: Mapping[str, float] = field(default_factory=dict)
    details: Sequence[tuple[str, str, str, float | None]] = ()


def retrieved_row_view(row: MemoryRow) -> dict[str, Any]:
    """Convert a row for the template, with a crop of the region."""
    thumbnail = None
    if row.film is not None and row.box is not None:
        thumbnail = film_data_url(crop_film_to_box(row.film, row.box, row.grid), THUMBNAIL)
    return {
        "weight": row.weight,
        "source": row.source.replace("_", " "),
        "findings": row.findings,
        "text": row.text,
        "thumbnail": thumbnail,
        "lift": row.lift,
        "studies": row.studies,
        "usual": row.studies >= USUAL,
    }


def recalled_sentence_views(
    sentences: Sequence[RecalledSentence], views: Mapping[int, np.ndarray], grid: int
) -> dict[str, list[dict[str, Any]]]:
    """Convert sentences for the template: ``films`` with their numbered boxes, and the sentences in ``groups``.

    Consecutive sentences with the same labels and voters form a group, whose voters are shown once.

    Args:
        sentences: sentences of one report; the first has number 1.
        views: available square films of the study by number.
        grid: cells per side of the grid of the boxes.
    """
    numbered = list(enumerate(sentences, start=1))
    groups = [list(of) for _, of in groupby(numbered, lambda one: (tuple(one[1].labels), _voters(one[1])))]
    return {
        "films": [film for view in sorted(views) if (film := _film(numbered, view, views[view], grid))],
        "groups": [
            {
                "sentences": [_sentence(number, one, len(views) > 1) for number, one in group],
                "voters": [_voter(row) for row in group[0][1].regions],
            }
            for group in groups
        ],
    }


def _voters(sentence: RecalledSentence) -> list[tuple[int | None, float]]:
    return [(row.number, row.weight) for row in sentence.regions]


def _film(
    numbered: Sequence[tuple[int, RecalledSentence]], view: int, film: np.ndarray, grid: int
) -> dict[str, Any] | None:
    """Convert a film with its boxes for the template; None without any box."""
    at: dict[Box, list[int]] = {}
    captions = []
    for number, sentence in numbered:
        if sentence.box is not None and sentence.box[0] == view:
            at.setdefault(sentence.box[1:], []).append(number)
            captions.append(f"{number}: {', '.join(sentence.labels)}")
    if not at:
        return None
    boxes = [(", ".join(map(str, numbers)), box) for box, numbers in at.items()]
    return {"number": view + 1, "url": film_data_url(film), "told": captions, "boxes": named_boxes_svg(boxes, grid)}


def _sentence(number: int, sentence: RecalledSentence, several: bool) -> dict[str, Any]:
    return {
        "number": number,
        "text": sentence.text,
        "labels": sentence.labels,
        "row": sentence.row,
        "filed": sentence.filed,
        "film": sentence.box[0] + 1 if several and sentence.box else None,
        "probabilities": sentence.probabilities,
        "details": [
            {
                "what": " ".join([*([finding] if len(sentence.labels) > 1 else []), attribute, value]),
                "probability": probability,
            }
            for finding, attribute, value, probability in sentence.details
        ],
    }


def _voter(row: MemoryRow) -> dict[str, Any]:
    """Convert a row of the visual bank for the template, with its box on the full film."""
    film = None
    if row.film is not None and row.box is not None:
        film = {"url": film_data_url(row.film, THUMBNAIL), "boxes": named_boxes_svg([("", row.box)], row.grid)}
    return {"number": row.number, "weight": row.weight, "findings": row.findings, "text": row.text, "film": film}
