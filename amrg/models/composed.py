"""A composed report: its sentences, findings too unsure to be written, and what would contradict them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from amrg.data.labels import NEGATIVE
from amrg.data.text.cleaning import normalize_for_dedup, split_sentences
from amrg.data.text.repetition import mentions_prior, says_all_is_well
from amrg.data.text.statements import find_statements

#: Findings that exclude a sentence such as "no acute abnormality".
ACUTE = {"Edema", "Consolidation", "Pneumonia", "Pneumothorax", "Pleural Effusion"}
#: Findings that a finding implies: a report that names it must not deny them.
IMPLIES = {
    "Cardiomegaly": ("Enlarged Cardiomediastinum",),
    "Edema": ("Lung Opacity",),
    "Consolidation": ("Lung Opacity",),
    "Pneumonia": ("Lung Opacity", "Consolidation"),
}


@dataclass(frozen=True)
class ComposedSentence:
    """A retrieved sentence with its evidence.

    Attributes:
        text: the sentence.
        labels: the findings that it states, or No Finding.
        row: its row in the report bank.
        regions: rows of the visual bank that voted for it, heaviest first, as (row, weight).
        box: the film's own region as (film number, x0, y0, x1, y1) on the fine grid; None for No Finding and if the
            map is 0 everywhere.
        probabilities: probability of each of the findings that the report states it; empty for No Finding.
        details: (finding, attribute, value, probability); the probability is None without support for details.
    """

    text: str
    labels: tuple[str, ...]
    row: int
    regions: tuple[tuple[int, float], ...] = ()
    box: tuple[int, ...] | None = None
    probabilities: Mapping[str, float] = field(default_factory=dict)
    details: tuple[tuple[str, str, str, float | None], ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the entry of a line of ``reports.jsonl``."""
        return {
            "text": self.text,
            "labels": list(self.labels),
            "row": self.row,
            "regions": [{"row": row, "weight": min(1.0, round(weight, 6))} for row, weight in self.regions],
            "box": None if self.box is None else list(self.box),
            "probabilities": {finding: round(p, 4) for finding, p in self.probabilities.items()},
            "details": [
                {"finding": f, "attribute": a, "value": v, "probability": None if p is None else round(p, 4)}
                for f, a, v, p in self.details
            ],
        }


@dataclass(frozen=True)
class Unsure:
    """Findings that the report leaves out because they are not probable enough (``generate.abstain``).

    Attributes:
        text: the sentence that would have stated them; the name of the finding without a sentence.
        labels: the findings.
        probability: their lowest probability.
    """

    text: str
    labels: tuple[str, ...]
    probability: float

    def to_dict(self) -> dict[str, Any]:
        """Return the entry of a line of ``reports.jsonl``."""
        return {"text": self.text, "labels": list(self.labels), "probability": round(self.probability, 4)}


@dataclass(frozen=True)
class Composed:
    """The composed beginning of a report.

    Attributes:
        text: the outline, then the sentences.
        findings: the findings that the outline names.
        sentences: the retrieved sentences.
        unsure: findings that the report neither states nor denies.
        compares: whether an earlier study is given, so that sentences may compare with it.
    """

    text: str
    findings: tuple[str, ...] = ()
    sentences: tuple[ComposedSentence, ...] = ()
    unsure: tuple[Unsure, ...] = ()
    compares: bool = False

    def agrees(self, sentence: str, before: Sequence[str], restates: bool = False) -> bool:
        """Whether a sentence may follow: it repeats nothing, contradicts nothing and states no further finding.

        Args:
            sentence: a sentence that the decoder wrote.
            before: the previous sentences of the report, or of the impression.
            restates: it may state the findings of the composed sentences again, as an impression does.
        """
        found = find_statements(sentence)
        covered = set() if restates else {label for one in self.sentences for label in one.labels}
        states = {one.finding for one in found if one.presence != NEGATIVE}
        denies = {one.finding for one in found if one.presence == NEGATIVE}
        again = normalize_for_dedup(sentence) in {normalize_for_dedup(one) for one in before}
        found_on_film = {*self.findings, *(label for one in self.unsure for label in one.labels)}
        return not (
            again
            or states - (set(self.findings) - covered)
            or denies & incompatible_findings(found_on_film)
            or (mentions_prior(sentence) and not self.compares)
            or (says_all_is_well(sentence) and ACUTE & found_on_film)
        )

    def without_contradictions(self, text: str) -> str:
        """Remove the sentences after the composed ones that do not agree with them."""
        kept: list[str] = []
        for i, sentence in enumerate(split_sentences(text)):
            if i < len(self.sentences) or self.agrees(sentence, kept):
                kept.append(sentence)
        return " ".join(kept)

    def agreeing_impression(self, text: str) -> str:
        """Remove the sentences of an impression that do not agree with the findings."""
        kept: list[str] = []
        for sentence in split_sentences(text):
            if self.agrees(sentence, kept, restates=True):
                kept.append(sentence)
        return " ".join(kept)


def incompatible_findings(named: Iterable[str]) -> set[str]:
    """Findings that must not be denied if some are named: these and those that they imply."""
    return {one for finding in named for one in (finding, *IMPLIES.get(finding, ()))}
