"""Transcript of a report during generation: plan, sentences, and attention per sentence."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from amrg.data.text.cleaning import split_sentences
from amrg.data.text.outline import split_outline
from amrg.data.text.sections import split_at_mark


@dataclass
class Transcript:
    """Plan, sentences and attention of a report, extended token by token.

    Attributes:
        outlined: whether the decoder names the findings first (``decoder.predict_outline``).
        plan: named findings.
        sentences: sentences of the report; the last one may be incomplete.
        separate: whether the decoder marks the impression (``decoder.separate_sections``).
        impression: number of the impression's first sentence; None before it.
    """

    outlined: bool
    plan: str = ""
    sentences: list[str] = field(default_factory=list)
    separate: bool = False
    impression: int | None = None
    _tokens: list[tuple[str, Tensor]] = field(default_factory=list)
    _of: dict[int, list[Tensor]] = field(default_factory=dict)

    def add(self, text: str, attention_S: Tensor) -> None:
        """Add one token.

        Args:
            text: full text, this token included.
            attention_S: attention to each position when the token was written; longer than for the previous token.
        """
        self._tokens.append((text, attention_S))
        plan, report = split_outline(text) if self.outlined else ("", text)
        self.plan = plan
        if report is None:
            return
        findings, impression = split_at_mark(report) if self.separate else (report, "")
        before, self.sentences = len(self.sentences), split_sentences(findings)
        self.impression = len(self.sentences) if impression else None
        self.sentences += split_sentences(impression)
        # A token belongs to the sentence it ends in, and to the sentences it begins.
        for number in range(min(before, len(self.sentences) - 1), len(self.sentences)):
            self._of.setdefault(number, []).append(attention_S)

    def close(self) -> None:
        """End the report. A plan without a report after it was the report itself."""
        if self.outlined and not self.sentences and self.plan:
            tokens, self._tokens, self.outlined, self.plan = self._tokens, [], False, ""
            for text, attention_S in tokens:
                self.add(text, attention_S)

    def attention(self, number: int, positions: int) -> Tensor:
        """Return the mean attention to the first ``positions`` positions over the tokens of a sentence."""
        return torch.stack([attention_S[:positions] for attention_S in self._of[number]]).mean(0)
