"""The prompt of the language model, around the image and the retrieved text.

Shape legend: B studies, E width of the language model, P positions of the streams, L tokens of the retrieved text,
S positions of the prefix.
"""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from amrg.config import DecoderConfig
from amrg.models.tokenizer import IGNORE_INDEX

IMAGE, RETRIEVED = "{image}", "{retrieved}"


def stream_faults(settings: DecoderConfig) -> list[str]:
    """Return the contradictions in the settings of the streams and the prompt."""
    faults = []
    if settings.prompt.count(IMAGE) != 1:
        faults.append(f"decoder.prompt must contain {IMAGE} once: that is where the image goes")
    image, text = (settings.prompt.find(mark) for mark in (IMAGE, RETRIEVED))
    if settings.prompt.count(RETRIEVED) > 1 or (text < image and (text >= 0 or settings.use_retrieved_text)):
        faults.append(
            f"decoder.prompt must contain {RETRIEVED} once, behind {IMAGE}: that is where the retrieved text goes"
        )
    if not (
        settings.use_visual_tokens or settings.use_queries or settings.use_visual_memory or settings.use_report_memory
    ):
        faults.append("decoder: at least one of use_visual, use_queries, use_visual_memory, use_report_memory")
    return faults


def drop_positions(values_BLE: Tensor, share: float, training: bool) -> Tensor:
    """Set a random share of the positions to zero in training."""
    if not training or share == 0.0:
        return values_BLE
    return values_BLE * (torch.rand(values_BLE.shape[:2], device=values_BLE.device) >= share)[..., None]


@dataclass(frozen=True)
class Prompt:
    """Prompt in tokens.

    Attributes:
        before: token ids before ``IMAGE``, with the begin token if the tokenizer has one.
        between: token ids between ``IMAGE`` and ``RETRIEVED``; empty if the language model reads no retrieved text.
        after: token ids after both.
        dropout: share of the positions of the retrieved text that are set to zero in training.
    """

    before: list[int]
    between: list[int]
    after: list[int]
    dropout: float = 0.0

    @classmethod
    def from_settings(cls, settings: DecoderConfig, tokenizer: PreTrainedTokenizerBase) -> Self:
        """Tokenize the prompt of settings without ``stream_faults``."""
        before, after = settings.prompt.split(IMAGE)
        between, after = after.split(RETRIEVED) if settings.use_retrieved_text else ("", after.replace(RETRIEVED, ""))
        first = [tokenizer.bos_token_id] if tokenizer.bos_token_id is not None else []
        ids = [tokenizer(text, add_special_tokens=False).input_ids for text in (before, between, after)]
        return cls(first + ids[0], ids[1], ids[2], settings.prefix_dropout)

    def embed(
        self, embedding: nn.Embedding, streams_BPE: Tensor, retrieved_BL: Tensor | None = None, training: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Build the prefix, [B, S, E], and its mask, int64 [B, S], 0 on the padding of a retrieved text.

        Args:
            embedding: token embeddings of the language model.
            streams_BPE: embedded streams, at ``IMAGE``.
            retrieved_BL: token ids of the retrieved text, padded on the left with ``IGNORE_INDEX``; None: no text.
            training: apply ``dropout``.
        """
        device = streams_BPE.device
        text_BL = streams_BPE.new_zeros(len(streams_BPE), 0, dtype=torch.long) if retrieved_BL is None else retrieved_BL
        words = torch.tensor(self.before + self.between + self.after, device=device).expand(len(streams_BPE), -1)
        # A single look-up, because each one gathers embeddings that ZeRO 3 partitions.
        sizes = [len(self.before), len(self.between), len(self.after), text_BL.shape[1]]
        embedded = embedding(torch.cat([words, text_BL.clamp_min(0)], dim=1)).to(streams_BPE.dtype)
        before, between, after, text = embedded.split(sizes, dim=1)
        text = drop_positions(text, self.dropout, training)
        prefix = torch.cat([before, streams_BPE, between, text, after], dim=1)
        mask_BS = torch.ones(prefix.shape[:2], dtype=torch.long, device=device)
        start = prefix.shape[1] - sizes[2] - sizes[3]
        mask_BS[:, start : start + sizes[3]] = text_BL != IGNORE_INDEX
        return prefix.to(embedding.weight.dtype), mask_BS
