"""The earlier study of a patient as input of the decoder (``decoder.prior``): its report as text, its films as streams.

Shape legend: B studies, R tokens of the longest text, N visual tokens, Q = 14 queries, D query width, T report tokens.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase

from amrg.data.prior import Prior
from amrg.errors import UserError
from amrg.models.tokenizer import IGNORE_INDEX
from amrg.models.vision_output import VisionOutput

#: Entries of a batch for ``PriorInputs``, and for the same studies without their priors.
TEXT, FILMS, ALONE = "prior_text", "prior_films", "report_alone"


class PriorFilms(NamedTuple):
    """Stage 1's output for the films of earlier studies, as in ``VisionOutput``, and which studies have any, bool [B].

    What stands for a study without films is not read.
    """

    tokens_BND: Tensor
    queries_BQD: Tensor
    logits_BQ: Tensor
    given_B: Tensor

    @classmethod
    def scattered(cls, encoded: VisionOutput | None, given_B: Tensor, shapes: Sequence[Sequence[int]]) -> "PriorFilms":
        """Build from the encoded films of the given studies alone.

        Args:
            encoded: of the studies in ``given_B``, in their order; None if there are none.
            given_B: which studies have films, bool [B].
            shapes: ``ReportGenerator.vision_output_shapes``.
        """
        tokens, queries, logits = (torch.zeros(len(given_B), *shape, device=given_B.device) for shape in shapes[:3])
        if encoded is not None:
            for part, values in zip((tokens, queries, logits), encoded[:3], strict=True):
                part[given_B] = values
        return cls(tokens, queries, logits, given_B)

    def first(self, count: int) -> "PriorFilms":
        """Return those of the first studies."""
        return PriorFilms(*(part[:count] for part in self))


class PriorInputs(NamedTuple):
    """What the decoder reads of earlier studies: token ids [B, R], padded with ``IGNORE_INDEX``, and films."""

    text_BR: Tensor | None = None
    films: PriorFilms | None = None

    @classmethod
    def of_batch(cls, batch: Mapping[str, Any], count: int | None = None) -> "PriorInputs":
        """Return those of a batch of stage 2, or of its first studies."""
        text_BR, films = batch.get(TEXT), batch.get(FILMS)
        return cls(
            None if text_BR is None else text_BR[:count],
            None if films is None else PriorFilms(*(part[:count] for part in films)),
        )


def format_prior(prior: Prior | None, parts: Sequence[str]) -> str:
    """Return the text of an earlier study as the decoder reads it; empty for none, or if nothing of it is known."""
    if prior is None:
        return ""
    since = "" if prior.days is None else f" ({prior.days} day{'' if prior.days == 1 else 's'} before)"
    if "report" in parts and prior.report:
        return f"Earlier report{since}: {prior.report}\n"
    return f"Earlier film{since}\n" if "films" in parts and since else ""


@dataclass(frozen=True)
class PriorTokenizer:
    """Tokenizer of earlier studies. Picklable.

    Attributes:
        tokenizer: the decoder's tokenizer.
        parts: what the decoder reads.
        max_tokens: length at which longer texts are cut.
    """

    tokenizer: PreTrainedTokenizerBase
    parts: tuple[str, ...]
    max_tokens: int

    def __call__(self, priors: Sequence[Prior | None]) -> Tensor:
        """Return token ids [B, R], padded on the left with ``IGNORE_INDEX``."""
        texts = [format_prior(prior, self.parts) for prior in priors]
        ids = [self.tokenizer(text, add_special_tokens=False).input_ids[: self.max_tokens] for text in texts]
        rows = [torch.tensor(one, dtype=torch.long) for one in ids]
        return pad_sequence(rows, batch_first=True, padding_value=IGNORE_INDEX, padding_side="left")


def drop_batch_priors(batch: dict[str, Any], dropped_B: Tensor) -> dict[str, Any]:
    """Return a batch of stage 2 in which some studies are as if they had no earlier one, with their reports for that.

    Args:
        batch: with ``ALONE`` and the entries of ``PriorInputs``, if the decoder reads them.
        dropped_B: bool [B].
    """
    changed = {"report": torch.where(dropped_B[:, None], batch[ALONE], batch["report"])}
    if TEXT in batch:
        changed[TEXT] = batch[TEXT].masked_fill(dropped_B[:, None], IGNORE_INDEX)
    if FILMS in batch:
        films = batch[FILMS]
        changed[FILMS] = films._replace(given_B=films.given_B & ~dropped_B.to(films.given_B.device))
    return {**batch, **changed}


def refuse_lacking_priors(priors: Mapping[str, Prior], parts: Sequence[str]) -> None:
    """Raise UserError if no train study has an earlier one of which the decoder is to read these parts."""
    if not priors:
        raise UserError(
            f"decoder.prior {' '.join(parts)}: no train study has an earlier one of its patient in this data set: "
            "leave it out (on the embedded data, data.earlier_states renders some)"
        )
