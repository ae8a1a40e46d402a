"""The clinical context of studies as tokens of the prompt (``decoder.context``).

Shape legend: B studies, C tokens of the longest context.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase

from amrg.data.context import CONTEXT_FIELDS, Context
from amrg.data.studies import Study
from amrg.errors import UserError
from amrg.models.tokenizer import IGNORE_INDEX


def context_parts(context: Context, fields: Iterable[str]) -> list[tuple[str, str]]:
    """Return each field that is known, with its marker and an end of line: ``("age", "Age: 63 …")``."""
    return [(name, f"{name.capitalize()}: {text}\n") for name in fields if (text := context.text(name))]


def format_context(context: Context, fields: Iterable[str]) -> str:
    """Return the text of some fields as the decoder reads it; fields that are not known leave nothing."""
    return "".join(text for _, text in context_parts(context, fields))


@dataclass(frozen=True)
class ContextTokenizer:
    """Tokenizer of the context of studies. Picklable.

    Attributes:
        tokenizer: the decoder's tokenizer.
        fields: fields that the decoder reads, in this order.
        max_tokens: length at which longer contexts are cut.
    """

    tokenizer: PreTrainedTokenizerBase
    fields: tuple[str, ...]
    max_tokens: int

    def __call__(self, contexts: Sequence[Context]) -> tuple[Tensor, Tensor]:
        """Return token ids [B, C], padded on the left with ``IGNORE_INDEX``, and the field of each token [B, C].

        A field is its place in ``CONTEXT_FIELDS``; that of padding is 0.
        """
        ids: list[Tensor] = []
        places: list[Tensor] = []
        for context in contexts:
            pairs = [
                (token, CONTEXT_FIELDS.index(name))
                for name, text in context_parts(context, self.fields)
                for token in self.tokenizer(text, add_special_tokens=False).input_ids
            ]
            cut = torch.tensor(pairs[: self.max_tokens], dtype=torch.long).view(-1, 2)
            ids.append(cut[:, 0])
            places.append(cut[:, 1])
        return (
            pad_sequence(ids, batch_first=True, padding_value=IGNORE_INDEX, padding_side="left"),
            pad_sequence(places, batch_first=True, padding_side="left"),
        )


def drop_context_fields(context_BC: Tensor, field_BC: Tensor, share: float) -> Tensor:
    """Take out each field of each study with a probability, by torch's random numbers.

    The tokens of such a field become padding, so that a study is the same as without it.

    Args:
        context_BC, field_BC: from ``ContextTokenizer``.
        share: probability.
    """
    dropped_BF = torch.rand(len(context_BC), len(CONTEXT_FIELDS), device=context_BC.device) < share
    return context_BC.masked_fill(dropped_BF.gather(1, field_BC), IGNORE_INDEX)


def refuse_lacking_context(setting: str, fields: Sequence[str], studies: Iterable[Study]) -> None:
    """Raise UserError if no train study has one of the fields that a setting names."""
    lacking = set(fields)
    for study in studies:
        lacking -= {name for name in lacking if study.context.text(name)}
        if not lacking:
            return
    names = ", ".join(name for name in fields if name in lacking)
    raise UserError(
        f"{setting} {names}: no train study has it. Leave it out; or, if a former version prepared the data, "
        "delete the data artefact and make it again with `amrg prepare CONFIG`"
    )
