"""The words of a report, and three ways in which they fail: repeated, said of everyone, or of films not seen."""

import re
from collections import Counter
from collections.abc import Sequence

from amrg.data.text import fold

_TOKEN = re.compile(r"\d+(?:\.\d+)+|[^\W_]+(?:['/-][^\W_]+)*")

#: What only an earlier film can tell. Written of one film alone it is made up (Ramesh et al. 2022, arXiv:2210.06340).
_COMPARES = re.compile(
    r"\b(?:again|still|unchanged|stable|interval|since|new|newly|compared (?:to|with) (?:the )?(?:prior|previous|last)|"
    r"similar to (?:the )?(?:prior|previous|last)|(?:prior|previous|last|earlier|comparison) "
    r"(?:\w+ )?(?:exam\w*|stud\w+|films?|radiographs?|images?|x-rays?|ct)|previously|(?:no|without) "
    r"(?:(?:significant|interval|acute|appreciable) )*change|improv(?:ed|ing|ement)|worsen(?:ed|ing)|resolv(?:ed|ing)|"
    r"progress(?:ed|ion)|persist(?:s|ent|ently|ing)?|remain(?:s|ed)?|continue[sd]?|redemonstrat\w+)\b",
    re.IGNORECASE,
)

#: A report loops when the same ``LOOP_NGRAM`` words stand in it ``LOOP_TIMES`` times.
LOOP_NGRAM, LOOP_TIMES = 4, 3


def tokenize(text: str) -> list[str]:
    """Words and numbers of a text, lower case, without punctuation (close to what PTB tokens minus punctuation are)."""
    return _TOKEN.findall(text.lower())


def ngrams(words: Sequence[str], n: int) -> list[tuple[str, ...]]:
    """All runs of ``n`` words, in order."""
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]


def loops(words: Sequence[str]) -> bool:
    """Whether the same few words come again and again."""
    return max(Counter(ngrams(words, LOOP_NGRAM)).values(), default=0) >= LOOP_TIMES


def compares(text: str) -> bool:
    """Whether a text speaks of a change, or of an earlier film."""
    return _COMPARES.search(text) is not None


def generic(texts: Sequence[str]) -> float:
    """The share of reports that are word for word the most frequent one."""
    return max(Counter(map(fold, texts)).values()) / len(texts)
