"""Generation with given first tokens."""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import LogitsProcessor, PreTrainedTokenizerBase


class ForcedPrefix(LogitsProcessor):
    """Force the first tokens of each text of a batch; beams diverge after them.

    Args:
        tokenizer: the decoder's tokenizer.
        begin: beginning of each study's text.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, begin: Sequence[str]) -> None:
        self._ids = [tokenizer(text, add_special_tokens=False).input_ids for text in begin]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Mask the scores of the next token [B · beams, V] in place, given the tokens so far [B · beams, T]."""
        written, beams = input_ids.shape[1], len(scores) // len(self._ids)
        for scores_of_beams, ids in zip(scores.split(beams), self._ids, strict=True):
            if written < len(ids):
                kept = scores_of_beams[:, ids[written]].clone()
                scores_of_beams.fill_(-torch.inf)[:, ids[written]] = kept
        return scores
