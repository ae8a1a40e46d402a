"""Tokenization of reports, and a SentencePiece tokenizer trained on them."""

import io
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import sentencepiece
from transformers import LlamaTokenizer, PreTrainedTokenizerBase

from amrg.data.text.outline import prepend_outline
from amrg.data.text.sections import findings_section, mark_impression
from amrg.errors import UserError

IGNORE_INDEX = -100  # target of a position that the loss ignores; also the padding token id


def training_text(report: str, impression: str, outline: bool, separate: bool) -> str:
    """Return the text that the decoder learns to write for a report.

    Args:
        report: the whole report.
        impression: the impression, with which it ends; empty if that is not known.
        outline: put the outline of the findings first.
        separate: mark where the impression begins.
    """
    if not separate:
        return prepend_outline(report) if outline else report
    findings = findings_section(report, impression)
    return mark_impression(prepend_outline(report, findings) if outline else findings, impression)


@dataclass(frozen=True)
class ReportTokenizer:
    """Callable that tokenizes a report, with the end token unless it was truncated. Picklable.

    A report without an impression has no end token if the sections are separate: it says nothing of how such a report
    ends, and would teach the decoder to stop before the impression.

    Attributes:
        tokenizer: the decoder's tokenizer.
        outline: put the outline of the findings first.
        max_tokens: length to which longer reports are truncated.
        end: id of the token that ends a report; None: the tokenizer's.
        separate: mark where the impression begins.
    """

    tokenizer: PreTrainedTokenizerBase
    outline: bool
    max_tokens: int
    end: int | None = None
    separate: bool = False

    def __call__(self, report: str, impression: str = "") -> list[int]:
        """Return the tokens of a report: cut to ``max_tokens``, or ended by the end-of-text token."""
        text = training_text(report, impression, self.outline, self.separate)
        ids = self.tokenizer(text, add_special_tokens=False).input_ids
        end = self.tokenizer.eos_token_id if self.end is None else self.end
        open_end = self.separate and not impression
        return ids[: self.max_tokens] if open_end or len(ids) > self.max_tokens else [*ids, end]


def train_tokenizer(reports: Sequence[str], vocab_size: int) -> PreTrainedTokenizerBase:
    """Train a tokenizer; the result depends only on the set of texts and the size (one thread, sorted, no sampling).

    Args:
        reports: texts of the **train** split.
        vocab_size: number of tokens, including 4 special ones; fewer if the texts do not yield as many.

    Raises:
        UserError: the size is too small for the characters of the texts, or there are no texts.
    """
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sorted(set(reports))),
            model_writer=model,
            model_type="bpe",
            vocab_size=vocab_size,
            hard_vocab_limit=False,
            character_coverage=1.0,
            num_threads=1,
            minloglevel=2,
            unk_id=0,
            bos_id=1,
            eos_id=2,
            pad_id=3,
        )
    except (RuntimeError, OSError):
        raise UserError(
            f"no tokenizer of {vocab_size} tokens can be trained on {len(set(reports))} distinct reports: "
            "change decoder.vocab_size, or give more train studies"
        ) from None
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "tokenizer.model").write_bytes(model.getvalue())
        return LlamaTokenizer.from_pretrained(folder, legacy=False, pad_token="<pad>")
