"""Distinct sentences of a report bank with their statements."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from amrg.banks.bank import MemoryBank
from amrg.data.labels import FINDINGS, NEGATIVE, POSITIVE, UNCERTAIN
from amrg.data.text.repetition import mentions_prior, says_normal_anatomy
from amrg.data.text.statements import Statement, find_statements
from amrg.errors import UserError
from amrg.models.detail_heads import detail_values


@dataclass(frozen=True)
class BankSentence:
    """A distinct sentence of the report bank.

    Attributes:
        rows: rows with the sentence.
        states, denies, suspects: findings that are positive, negative and uncertain in it.
        details: stated details as (finding, attribute, value).
        sized: whether it states a size.
        groups: patient groups of its rows.
        compares: whether it refers to an earlier study.
        changes: stated changes of findings that it states.
    """

    text: str
    rows: tuple[int, ...]
    states: frozenset[str]
    denies: frozenset[str]
    suspects: frozenset[str]
    details: tuple[tuple[str, str, str], ...]
    sized: bool
    groups: frozenset[int]
    compares: bool = False
    changes: tuple[tuple[str, str], ...] = ()

    @property
    def normal(self) -> bool:
        """Whether it describes normal anatomy."""
        return not (self.states or self.suspects or self.sized) and says_normal_anatomy(self.text)


def open_sentences(folder: Path) -> MemoryBank:
    """Open a report bank of sentences.

    Raises:
        UserError: the bank holds complete reports.
    """
    bank = MemoryBank.open(folder)
    if set(bank.provenance_rows(0, len(bank), ["source"])["source"].to_pylist()) != {"sentence"}:
        raise UserError(no_sentences_error(f"{folder} holds whole reports"))
    return bank


def no_sentences_error(found: str) -> str:
    """Error text for settings that need a bank of sentences."""
    return (
        f"generate.outline_source retrieved and decoder.use_retrieved_text say sentences of memory, but {found}: "
        "build it with banks.reports.granularity sentence, or say generate.outline_source classifier"
    )


def read_sentences(bank: MemoryBank, comparing: bool = False) -> list[BankSentence]:
    """Read the distinct sentences of a report bank, in order of their first rows.

    Args:
        bank: a bank of sentences.
        comparing: read also those that refer to an earlier study.
    """
    rows: dict[str, list[int]] = {}
    for row, text in enumerate(bank.provenance_rows(0, len(bank), ["text"])["text"].to_pylist()):
        rows.setdefault(text, []).append(row)
    groups = bank.groups.tolist()
    return [_sentence(text, of, groups) for text, of in rows.items() if comparing or not mentions_prior(text)]


def _sentence(text: str, rows: Sequence[int], groups: Sequence[int]) -> BankSentence:
    found: list[Statement] = find_statements(text)

    def of(presence: float) -> frozenset[str]:
        return frozenset(one.finding for one in found if one.presence == presence)

    states = of(POSITIVE)
    details = [(f, a, v) for f in FINDINGS if f in states for a, v in detail_values(found, f).items()]
    sized = any(one.size_cm is not None for one in found)
    return BankSentence(
        text, tuple(rows), states, of(NEGATIVE) - states, of(UNCERTAIN) - states, tuple(details), sized,
        frozenset(groups[row] for row in rows), mentions_prior(text),
        tuple((one.finding, one.change) for one in found if one.change and one.presence == POSITIVE),
    )  # fmt: skip
