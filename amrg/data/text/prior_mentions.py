"""Texts of a study as they read if no earlier study is known."""

import re
from functools import lru_cache

from amrg.data.text.cleaning import split_sentences
from amrg.data.text.repetition import mentions_prior
from amrg.data.text.statements import Statement, find_statements

#: Words of change before a word that they describe, without which the sentence reads on. Not before a conjunction or
#: preposition, where they are the predicate: "is unchanged in size".
_WORD = r"(?:again|still|stable|unchanged|persistent|interval|newly|new|now|once more|redemonstrated)"
_DESCRIBES = re.compile(
    rf"\b{_WORD}\s+(?=[a-z])(?!(?:and|or|but|in|on|at|to|from|since|as|when|with|compared|appearing|appearance|than"
    r"|there|is|are|was|were|has|have)\b)",
    re.IGNORECASE,
)
#: The same as the end of a sentence that states a finding without them: "is unchanged from the prior film".
_ENDS = re.compile(
    r",?(?:\s+(?:and|but|which|that))?(?:\s+(?:is|are|has|have|remains?|remained|appears?))?(?:\s+(?:\w+ly))?"
    r"\s+(?:stable|unchanged|persistent|similar)(?:,?\s+(?:in|from|since|to|as|when|with|compared|appearing)\b[^,;]*)?(?=\.?$)",
    re.IGNORECASE,
)


@lru_cache(maxsize=65536)
def without_prior_mentions(text: str) -> str:
    """Return a text without what it says of change or an earlier film.

    "Stable cardiomegaly." becomes "Cardiomegaly."; a sentence that does not read without its words of change, or would
    state another finding, is left out.
    """
    return " ".join(kept for sentence in split_sentences(text) if (kept := _without(sentence)))


def _without(sentence: str) -> str:
    if not mentions_prior(sentence):
        return sentence
    stated = _states(sentence)
    described = _DESCRIBES.sub("", sentence)
    for shorter in (described, _ENDS.sub("", described)) if stated else (described,):
        changed = any(one.change for one in find_statements(shorter))
        if not (mentions_prior(shorter) or changed) and _states(shorter) == stated:
            return shorter[:1].upper() + shorter[1:]
    return ""


def _states(sentence: str) -> set[tuple[str, float, frozenset[str], frozenset[str], str, str]]:
    """Return what a sentence states beside change."""
    found: list[Statement] = find_statements(sentence)
    return {(one.finding, one.presence, one.sides, one.zones, one.severity, one.device) for one in found}
