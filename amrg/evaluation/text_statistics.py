"""Wording of generated reports: length, loops, stock texts, and text copied from memory.

None of these is good or bad by itself, since radiologists repeat themselves too. So each number is computed for the
references as well. The control for text copied from the retrieved rows is the text shared with the rows retrieved for
another study.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from amrg.banks.bank import REPORTS, MemoryBank
from amrg.data.text.cleaning import normalize_for_dedup, split_sentences
from amrg.data.text.repetition import is_repetitive, mentions_prior, most_common_share, ngrams_of_words, tokenize_words
from amrg.evaluation.reports import GeneratedReport

#: Lengths of the n-grams whose copies are counted: about half a sentence and a full one.
NGRAM_SIZES = (4, 8)


def text_statistics(texts: Sequence[str]) -> dict[str, float]:
    """Compute length and repetition over a set of reports.

    Returns:
        ``words_mean``, ``words_p10``, ``words_median``, ``words_p90``; ``distinct_1`` and ``distinct_4``, distinct
        n-grams / all n-grams (Li et al., 2016); ``different``, distinct reports / all reports; and shares of reports:
        ``generic``, equal to the most frequent one; ``loops``, with a phrase in a loop; ``repeated_sentences``, with a
        sentence twice; ``compares``, with a mention of change or an earlier film; ``cut_off``, without an end of
        sentence; ``empty``.
    """
    words = [tokenize_words(text) for text in texts]
    lengths = np.array([len(w) for w in words], dtype=np.float64)
    total = len(texts)
    return {
        "words_mean": float(lengths.mean()),
        "words_p10": float(np.quantile(lengths, 0.1)),
        "words_median": float(np.median(lengths)),
        "words_p90": float(np.quantile(lengths, 0.9)),
        "distinct_1": _distinct(words, 1),
        "distinct_4": _distinct(words, 4),
        "different": len(set(map(normalize_for_dedup, texts))) / total,
        "generic": most_common_share(texts),
        "loops": sum(map(is_repetitive, words)) / total,
        "repeated_sentences": sum(map(_repeats_a_sentence, texts)) / total,
        "compares": sum(map(mentions_prior, texts)) / total,
        "cut_off": sum(bool(w) and not t.rstrip().endswith((".", "?", "!")) for w, t in zip(words, texts, strict=True))
        / total,
        "empty": sum(not w for w in words) / total,
    }


def retrieved_texts(banks: Path, reports: Sequence[GeneratedReport]) -> list[list[str]]:
    """Return the texts of each report's heaviest report-bank rows and of the rows it took sentences from.

    Rows without a text and unknown rows are left out.
    """
    table = MemoryBank.open(banks / REPORTS).provenance
    behind = [dict.fromkeys([*(row["row"] for row in r.memory.get("report", [])), *r.recalled]) for r in reports]
    rows = sorted(row for row in set().union(*behind) if 0 <= row < table.num_rows)
    texts = dict(zip(rows, table["text"].take(pa.array(rows, pa.int64())).to_pylist(), strict=True))
    return [[text for row in some if (text := texts.get(row))] for some in behind]


def num_distinct_retrievals(reports: Sequence[GeneratedReport]) -> dict[str, int]:
    """Count the distinct sets of retrieved rows per bank; a small number means that retrieval ignores the film."""
    banks = sorted({bank for report in reports for bank, rows in report.memory.items() if rows})
    return {b: len({frozenset(row["row"] for row in r.memory.get(b, [])) for r in reports}) for b in banks}


def report_copy_rates(
    texts: Sequence[str], retrieved: Sequence[Sequence[str]], train: Sequence[str], groups: Sequence[str]
) -> dict[str, float | None]:
    """Compute shares of the reports that are copied word for word.

    Args:
        texts: reports, generated or reference.
        retrieved: texts of the memory rows retrieved for each report's study.
        train: all train reports.
        groups: patient of each report.

    Returns:
        For n in ``NGRAM_SIZES`` the mean share of a report's n-grams that occur in the rows retrieved for it
        (``retrieved_n``), in the rows retrieved for another patient's study (``others_n``, the control), and in some
        train report (``train_n``); ``whole_retrieved`` and ``whole_train``, the share of reports equal to one of those
        texts. Reports without retrieved rows or without any n-gram are left out; None if no report remains.
    """
    words = [tokenize_words(text) for text in texts]
    rows = [[tokenize_words(row) for row in found] for found in retrieved]
    others = [rows[j] for j in _another(groups)]
    known = _known(words, train)
    found: dict[str, float | None] = {}
    for n in NGRAM_SIZES:
        found[f"retrieved_{n}"] = _mean([_share(w, _all(r, n), n) for w, r in zip(words, rows, strict=True) if r])
        found[f"others_{n}"] = _mean([_share(w, _all(r, n), n) for w, r in zip(words, others, strict=True) if r])
        found[f"train_{n}"] = _mean([_share(w, known[n], n) for w in words])
    normalized = [normalize_for_dedup(text) for text in texts]
    memory = [set(map(normalize_for_dedup, r)) for r in retrieved]
    found["whole_retrieved"] = _mean([float(t in m) for t, m in zip(normalized, memory, strict=True) if m])
    texts_of_train = set(map(normalize_for_dedup, train))
    found["whole_train"] = _mean([float(t in texts_of_train) for t in normalized])
    return found


def _another(groups: Sequence[str]) -> list[int]:
    """Return for each study the next study of another patient, or itself if there is no other patient."""
    count = len(groups)
    following = ((i, ((i + step) % count for step in range(1, count))) for i in range(count))
    return [next((j for j in rest if groups[j] != groups[i]), i) for i, rest in following]


def _known(words: Sequence[Sequence[str]], train: Sequence[str]) -> dict[int, set[tuple[str, ...]]]:
    """Return the reports' n-grams that occur in a train report, without keeping those of train in memory."""
    wanted = {n: _all(words, n) for n in NGRAM_SIZES}
    known: dict[int, set[tuple[str, ...]]] = {n: set() for n in NGRAM_SIZES}
    for text in train:
        tokens = tokenize_words(text)
        for n in NGRAM_SIZES:
            known[n] |= wanted[n].intersection(ngrams_of_words(tokens, n))
    return known


def _all(rows: Sequence[Sequence[str]], n: int) -> set[tuple[str, ...]]:
    return set().union(*(ngrams_of_words(row, n) for row in rows))


def _share(words: Sequence[str], known: set[tuple[str, ...]], n: int) -> float:
    found = ngrams_of_words(words, n)
    return sum(g in known for g in found) / len(found) if found else float("nan")


def _mean(values: Sequence[float]) -> float | None:
    finite = [v for v in values if v == v]
    return float(np.mean(finite)) if finite else None


def _distinct(words: Sequence[Sequence[str]], n: int) -> float:
    found = [g for w in words for g in ngrams_of_words(w, n)]
    return len(set(found)) / len(found) if found else 0.0


def _repeats_a_sentence(text: str) -> bool:
    return max(Counter(map(normalize_for_dedup, split_sentences(text))).values(), default=0) > 1
