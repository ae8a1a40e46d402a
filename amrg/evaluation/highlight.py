"""Compare the findings that two reports state, and mark them in their texts."""

from dataclasses import dataclass
from typing import Self

from markupsafe import Markup

from amrg.data.labels import FINDINGS
from amrg.data.text.labeler import Mention, find_mentions, normalize_report
from amrg.data.text.outline import positive_findings
from amrg.evaluation.details import detail_conflicts
from amrg.pages.overlays import mark_text_spans


@dataclass(frozen=True)
class FindingErrors:
    """Findings of a generated report against its reference, each in the order of ``FINDINGS``.

    Attributes:
        found: in both, where sides and device kinds do not conflict.
        conflicting: in both, with another side or kind of device.
        missed: only in the reference.
        extra: only in the generated report.
    """

    found: tuple[str, ...]
    conflicting: tuple[str, ...]
    missed: tuple[str, ...]
    extra: tuple[str, ...]

    @classmethod
    def of(cls, reference: str, generated: str) -> Self:
        """Compare two reports by the labeler and the statements of their details."""
        expected, predicted = set(positive_findings(reference)), set(positive_findings(generated))
        other = expected & predicted & detail_conflicts(reference, generated)
        parts = (expected & predicted - other, other, expected - predicted, predicted - expected)
        return cls(*(tuple(f for f in FINDINGS if f in part) for part in parts))

    @property
    def count(self) -> int:
        """Number of errors."""
        return len(self.conflicting) + len(self.missed) + len(self.extra)

    @property
    def verdict(self) -> str:
        """Counts in words, such as "1 of 2 findings found, 1 extra"."""
        expected = len(self.found) + len(self.conflicting) + len(self.missed)
        parts = [f"{len(self.found)} of {expected} findings found" if expected else "no finding to find"]
        counts = {
            "missed": len(self.missed),
            "extra": len(self.extra),
            "with another side or kind of device": len(self.conflicting),
        }
        return ", ".join([*parts, *(f"{count} {kind}" for kind, count in counts.items() if count)])


#: A piece of a text, the kind of its mark (``overlays.KINDS``), and the finding; neither without a mark.
Segment = tuple[str, str | None, str | None]


def highlight_findings(reference: str, generated: str) -> tuple[Markup, Markup]:
    """Return both reports with their stated findings marked (kinds: ``overlays.KINDS``).

    As in clinical F1 with details, a finding in both is a hit only if sides and device kinds do not conflict.
    """
    first, second = (mark_text_spans(text, spans) for text, spans in _marks(reference, generated))
    return first, second


def finding_segments(reference: str, generated: str) -> tuple[list[Segment], list[Segment]]:
    """Return both reports as marked and unmarked pieces; of overlapping marks the first wins."""
    first, second = (_segments(text, spans) for text, spans in _marks(reference, generated))
    return first, second


def _segments(text: str, spans: list[tuple[int, int, str, str]]) -> list[Segment]:
    pieces: list[Segment] = []
    at = 0
    for start, end, kind, label in sorted(spans):
        if start >= at:
            pieces += [(text[at:start], None, None), (text[start:end], kind, label)]
            at = end
    return [piece for piece in [*pieces, (text[at:], None, None)] if piece[0]]


def _marks(reference: str, generated: str) -> list[tuple[str, list[tuple[int, int, str, str]]]]:
    """Return the normalized text of both reports, and its marks."""
    texts = normalize_report(reference), normalize_report(generated)
    found = [find_mentions(text) for text in texts]
    stated = [{m.label for m in each if m.value == 1} for each in found]
    kinds = dict.fromkeys(stated[0] & stated[1], "hit") | dict.fromkeys(
        detail_conflicts(reference, generated), "detail"
    )
    marks = (_spans(each, kinds, alone) for each, alone in zip(found, ("miss", "extra"), strict=True))
    return list(zip(texts, marks, strict=True))


def _spans(found: list[Mention], both: dict[str, str], alone: str) -> list[tuple[int, int, str, str]]:
    kinds = [(m, "unsure" if m.value == -1 else both.get(m.label, alone)) for m in found if m.value != 0]
    return [(m.start, m.end, kind, m.label) for m, kind in kinds]
