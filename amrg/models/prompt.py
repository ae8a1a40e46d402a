"""The prompt of the language model, around the image, the clinical context and the retrieved text.

Shape legend: B studies, E width of the language model, P positions of the streams, C tokens of the context,
L tokens of the retrieved text, S positions of the prefix.
"""

import re
from dataclasses import dataclass
from datetime import date
from typing import Any, Self

import torch
from jinja2 import TemplateError
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from amrg.config import DecoderConfig
from amrg.errors import UserError
from amrg.models.tokenizer import IGNORE_INDEX

IMAGE, RETRIEVED, CONTEXT = "{image}", "{retrieved}", "{context}"
#: Behind this stands the context where the prompt does not say: the image, and a tag that closes it.
_IMAGE_END = re.compile(r"\{image\}(?:</\w+>)?")
#: Names of the speakers in a plain prompt; a chat template has its own.
_SPEAKERS = ("Human:", "Assistant:")
#: What templates that tell the date are given, so that a prompt is the same every day.
_DATE = date(2024, 7, 26)


def stream_faults(settings: DecoderConfig) -> list[str]:
    """Return the contradictions in the settings of the streams and the prompt."""
    faults = []
    if settings.prompt.count(IMAGE) != 1:
        faults.append(f"decoder.prompt must contain {IMAGE} once: that is where the image goes")
    image, text, context = (settings.prompt.find(mark) for mark in (IMAGE, RETRIEVED, CONTEXT))
    if settings.prompt.count(RETRIEVED) > 1 or (text < image and (text >= 0 or settings.use_retrieved_text)):
        faults.append(
            f"decoder.prompt must contain {RETRIEVED} once, behind {IMAGE}: that is where the retrieved text goes"
        )
    if settings.prompt.count(CONTEXT) > 1 or (context >= 0 and not image < context < (text if text >= 0 else 10**9)):
        faults.append(f"decoder.prompt may contain {CONTEXT} once, behind {IMAGE} and before {RETRIEVED}")
    if len(set(settings.context)) < len(settings.context):
        faults.append(f"decoder.context {' '.join(settings.context)} names a field twice")
    if len(set(settings.prior)) < len(settings.prior):
        faults.append(f"decoder.prior {' '.join(settings.prior)} names a part twice")
    if "films" in settings.prior and not (settings.use_visual_tokens or settings.use_queries):
        faults.append("decoder.prior films needs use_visual_tokens or use_queries, which are read of both studies")
    streams = settings.use_visual_tokens, settings.use_queries, settings.use_visual_memory, settings.use_report_memory
    if not (any(streams) or settings.context or settings.prior):
        faults.append("decoder: at least one of use_visual, use_queries, use_visual_memory, use_report_memory")
    if settings.system_prompt and settings.chat_template == "none":
        faults.append("decoder.system_prompt belongs to a chat template: say decoder.chat_template auto too")
    return faults


def render_chat_template(settings: DecoderConfig, tokenizer: PreTrainedTokenizerBase) -> tuple[str, str] | None:
    """The prompt inside the tokenizer's chat template, and what the template writes after an answer.

    Returns:
        None: the tokenizer has no template, or the settings want none.

    Raises:
        UserError: the template cannot hold the prompt, or there is none for a system text.
    """
    if settings.chat_template == "none":
        return None
    if not getattr(tokenizer, "chat_template", None):
        if settings.system_prompt:
            raise UserError(
                f"decoder.system_prompt: the tokenizer of {settings.model} has no chat template that could hold it: "
                "write it into decoder.prompt"
            )
        return None
    first, last = _SPEAKERS
    content = settings.prompt.strip().removeprefix(first).removesuffix(last).strip()
    system = settings.system_prompt.strip()
    folded = [{"role": "user", "content": f"{system}\n\n{content}" if system else content}]
    separate = [{"role": "system", "content": system}, {"role": "user", "content": content}]
    fault = "it changes the prompt"
    for messages in [separate, folded] if system else [folded]:
        try:
            text = _render(tokenizer, messages, True)
            answered = _render(tokenizer, [*messages, {"role": "assistant", "content": RETRIEVED}], False)
        except (TemplateError, TypeError, ValueError) as error:
            fault = " ".join(str(error).split())
            continue
        if text.count(IMAGE) == 1 and system in text:
            return text, answered.rpartition(RETRIEVED)[2]
    raise UserError(
        f"decoder.chat_template: the template of {settings.model} does not hold the prompt ({fault}): say "
        "decoder.chat_template none, and write the turns into decoder.prompt"
    )


def _render(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]], query: bool) -> str:
    """Text of messages; templates that want their contents in parts get them so."""
    given: dict[str, Any] = {
        "tokenize": False,
        "add_generation_prompt": query,
        "enable_thinking": False,
        "date_string": _DATE.strftime("%d %b %Y"),
        "strftime_now": _DATE.strftime,
    }
    try:
        return str(tokenizer.apply_chat_template(messages, **given))
    except (TypeError, TemplateError):
        parts: Any = [{**one, "content": [{"type": "text", "text": one["content"]}]} for one in messages]
        return str(tokenizer.apply_chat_template(parts, **given))


def drop_positions(values_BLE: Tensor, share: float, training: bool) -> Tensor:
    """Set a random share of the positions to zero in training."""
    if not training or share == 0.0:
        return values_BLE
    return values_BLE * (torch.rand(values_BLE.shape[:2], device=values_BLE.device) >= share)[..., None]


@dataclass(frozen=True)
class Prompt:
    """Prompt in tokens.

    Attributes:
        before: token ids before ``IMAGE``, with the begin token if the tokenizer has one (or the chat template's).
        behind: token ids between ``IMAGE`` and the context; empty if the language model reads none.
        between: token ids before ``RETRIEVED``; empty if the language model reads no retrieved text.
        after: token ids after all of these.
        stops: token ids that end a report; training teaches the first.
        dropout: share of the positions of the context and the retrieved text that are set to zero in training.
    """

    before: list[int]
    behind: list[int]
    between: list[int]
    after: list[int]
    stops: tuple[int, ...]
    dropout: float = 0.0

    @classmethod
    def from_settings(
        cls, settings: DecoderConfig, tokenizer: PreTrainedTokenizerBase, ends: int | list[int] | None = None
    ) -> Self:
        """Tokenize the prompt of settings without ``stream_faults``.

        Args:
            settings: of the decoder.
            tokenizer: of the decoder.
            ends: tokens that the pretrained model ends an answer with, beside the template's.
        """
        chat = render_chat_template(settings, tokenizer)
        prompt = settings.prompt if chat is None else chat[0]
        informed = bool(settings.context or settings.prior)
        if informed and CONTEXT not in prompt:
            prompt = _IMAGE_END.sub(lambda image: image[0] + CONTEXT, prompt)
        before, after = prompt.split(IMAGE)
        behind, after = after.split(CONTEXT) if informed else ("", after.replace(CONTEXT, ""))
        between, after = after.split(RETRIEVED) if settings.use_retrieved_text else ("", after.replace(RETRIEVED, ""))
        first = [tokenizer.bos_token_id] if chat is None and tokenizer.bos_token_id is not None else []
        stops = [tokenizer.eos_token_id]
        if chat is not None:
            # An instruction model ends its turn with a token that need not be the end of a text.
            written = tokenizer(chat[1].strip(), add_special_tokens=False).input_ids[:1]
            known = {*tokenizer.all_special_ids, *tokenizer.get_added_vocab().values()}
            stops = [*(one for one in written if one in known), *stops]
            stops += [ends] if isinstance(ends, int) else ends or []
        ids = [tokenizer(text, add_special_tokens=False).input_ids for text in (before, behind, between, after)]
        return cls(first + ids[0], ids[1], ids[2], ids[3], tuple(dict.fromkeys(stops)), settings.prefix_dropout)

    def embed(
        self,
        embedding: nn.Embedding,
        streams_BPE: Tensor,
        retrieved_BL: Tensor | None = None,
        training: bool = False,
        context_BC: Tensor | None = None,
        prior_BPE: Tensor | None = None,
        prior_B: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Build the prefix, [B, S, E], and its mask, int64 [B, S], 0 on the padding of context and retrieved text.

        Args:
            embedding: token embeddings of the language model.
            streams_BPE: embedded streams, at ``IMAGE``.
            retrieved_BL: token ids of the retrieved text, padded on the left with ``IGNORE_INDEX``; None: no text.
            training: apply ``dropout``.
            context_BC: token ids of the context, with ``IGNORE_INDEX`` for padding anywhere; None: no context.
            prior_BPE, prior_B: embedded films of earlier studies, behind the streams, and which studies have any, bool
                [B]; None: no films.
        """
        count, device = len(streams_BPE), streams_BPE.device
        nothing = streams_BPE.new_zeros(count, 0, dtype=torch.long)
        text_BL, context_BC = (nothing if ids is None else ids for ids in (retrieved_BL, context_BC))
        parts = [self.before, self.behind, self.between, self.after]
        words = torch.tensor([token for part in parts for token in part], dtype=torch.long)
        words = words.to(device, non_blocking=True)
        # A single look-up, because each one gathers embeddings that ZeRO 3 partitions.
        ids = torch.cat([words.expand(count, -1), text_BL.clamp_min(0), context_BC.clamp_min(0)], dim=1)
        sizes = [*map(len, parts), text_BL.shape[1], context_BC.shape[1]]
        before, behind, between, after, text, context = embedding(ids).to(streams_BPE.dtype).split(sizes, dim=1)
        text, context = (drop_positions(part, self.dropout, training) for part in (text, context))
        films = [] if prior_BPE is None else [prior_BPE]
        prefix = torch.cat([before, streams_BPE, *films, behind, context, between, text, after], dim=1)
        mask_BS = torch.ones(prefix.shape[:2], dtype=torch.long, device=device)
        if prior_BPE is not None and prior_B is not None:
            first = before.shape[1] + streams_BPE.shape[1]
            mask_BS[:, first : first + prior_BPE.shape[1]] = prior_B[:, None]
        end = prefix.shape[1] - after.shape[1]
        for ids_BL in (text_BL, context_BC):
            mask_BS[:, end - ids_BL.shape[1] : end] = ids_BL != IGNORE_INDEX
            end -= ids_BL.shape[1] + between.shape[1]
        return prefix.to(embedding.weight.dtype), mask_BS
