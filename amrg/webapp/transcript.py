"""A report while it is written: its plan, its sentences, and the attention that was paid while each was written."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from amrg.data.text.cleaning import sentences
from amrg.data.text.outline import split_outline


@dataclass
class Transcript:
    """Grows by one token at a time.

    Attributes:
        outlined: whether the writer names the findings first (``decoder.predict_outline``).
        plan: the findings it named.
        sentences: of the report; the last one may still grow.
    """

    outlined: bool
    plan: str = ""
    sentences: list[str] = field(default_factory=list)
    _tokens: list[tuple[str, Tensor]] = field(default_factory=list)
    _of: dict[int, list[Tensor]] = field(default_factory=dict)

    def add(self, text: str, attention_S: Tensor) -> None:
        """Take in one token.

        Args:
            text: all that is written, this token included.
            attention_S: paid to each position while the token was written; longer than that of the token before.
        """
        self._tokens.append((text, attention_S))
        plan, report = split_outline(text) if self.outlined else ("", text)
        self.plan = plan
        if report is None:
            return
        before, self.sentences = len(self.sentences), sentences(report)
        # A token belongs to the sentence it ends in, and to those that it opened.
        for number in range(min(before, len(self.sentences) - 1), len(self.sentences)):
            self._of.setdefault(number, []).append(attention_S)

    def close(self) -> None:
        """The end: what has a plan and no report behind it was the report itself."""
        if self.outlined and not self.sentences and self.plan:
            tokens, self._tokens, self.outlined, self.plan = self._tokens, [], False, ""
            for text, attention_S in tokens:
                self.add(text, attention_S)

    def attention(self, number: int, positions: int) -> Tensor:
        """The mean attention to the first ``positions`` positions over the tokens of a sentence."""
        return torch.stack([attention_S[:positions] for attention_S in self._of[number]]).mean(0)
