"""Texts whose first tokens are given."""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import LogitsProcessor, PreTrainedTokenizerBase


class ForcedPrefix(LogitsProcessor):
    """Each text of a batch begins with given words, of any length; its beams part after them.

    Args:
        tokenizer: of the decoder that writes.
        begin: by study.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, begin: Sequence[str]) -> None:
        self._ids = [tokenizer(text, add_special_tokens=False).input_ids for text in begin]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores of the next token [B · beams, V], after those written so far [B · beams, T]; changed in place."""
        written, beams = input_ids.shape[1], len(scores) // len(self._ids)
        for scores_of_beams, ids in zip(scores.split(beams), self._ids, strict=True):
            if written < len(ids):
                kept = scores_of_beams[:, ids[written]].clone()
                scores_of_beams.fill_(-torch.inf)[:, ids[written]] = kept
        return scores
