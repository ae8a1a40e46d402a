"""Mark the findings that two reports state in their texts."""

from markupsafe import Markup

from amrg.data.text.labeler import Mention, mentions, normalise
from amrg.evaluation.details import conflicts
from amrg.pages.overlays import marked


def highlight_findings(reference: str, generated: str) -> tuple[Markup, Markup]:
    """Return both reports with their stated findings marked (kinds: ``overlays.KINDS``).

    As in clinical F1 with details, a finding in both is a hit only if sides and device kinds do not conflict.
    """
    texts = normalise(reference), normalise(generated)
    found = [mentions(text) for text in texts]
    stated = [{m.label for m in each if m.value == 1} for each in found]
    kinds = dict.fromkeys(stated[0] & stated[1], "hit") | dict.fromkeys(conflicts(reference, generated), "detail")
    marks = (_spans(each, kinds, alone) for each, alone in zip(found, ("miss", "extra"), strict=True))
    first, second = (marked(text, spans) for text, spans in zip(texts, marks, strict=True))
    return first, second


def _spans(found: list[Mention], both: dict[str, str], alone: str) -> list[tuple[int, int, str, str]]:
    kinds = [(m, "unsure" if m.value == -1 else both.get(m.label, alone)) for m in found if m.value != 0]
    return [(m.start, m.end, kind, m.label) for m, kind in kinds]
