"""The words of a report, and two ways in which a generator fails: it repeats itself, or says the same of everyone."""

import re
from collections import Counter
from collections.abc import Sequence

from amrg.data.text import fold

_TOKEN = re.compile(r"\d+(?:\.\d+)+|[^\W_]+(?:['/-][^\W_]+)*")

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


def generic(texts: Sequence[str]) -> float:
    """The share of reports that are word for word the most frequent one."""
    return max(Counter(map(fold, texts)).values()) / len(texts)
