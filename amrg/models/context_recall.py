"""Rows of both memories weighted by how alike the clinical context of their studies is (``generate.recall_context``).

Context and report of a study share their author and the question asked. The words of a composed report are therefore
recalled from films that look alike and were asked about alike: the score of a row is that of its vector plus β times
the similarity of its context, and the softmax over this sum is the retrieval weight times exp(β · similarity).

The similarity of two contexts is the sum over the fields of the cosine of their words, each weighted by
log((1 + N) / (1 + n)) + 1, where n of the bank's N rows have the word (TF-IDF). A field that either study lacks adds
nothing.

Shape legend: B studies, Q queries, N rows of a bank, U distinct texts of a field, V words.
"""

import math
import re
from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from amrg.banks.bank import MemoryBank
from amrg.data.context import Context

_WORD = re.compile(r"\w+")


class ContextIndex:
    """Index of the contexts of a bank's rows.

    Args:
        bank: the bank.
        fields: fields that are compared.
    """

    def __init__(self, bank: MemoryBank, fields: Sequence[str]) -> None:
        contexts = bank.provenance_rows(0, len(bank), ["context"])["context"].to_pylist()
        self._fields = {name: _FieldIndex([(of or {}).get(name) or "" for of in contexts]) for name in fields}

    def similarities(self, contexts: Sequence[Context]) -> Tensor:
        """Return the similarity of each row to each context, [B, N], from 0 to the number of fields."""
        return torch.stack(
            [index.cosines([context.text(name) for context in contexts]) for name, index in self._fields.items()]
        ).sum(0)

    def weigh(self, weight_BQN: Tensor, contexts: Sequence[Context], sharpness: float) -> Tensor:
        """Multiply retrieval weights by exp(``sharpness`` · similarity); each query's sum is kept."""
        similarity_B1N = self.similarities(contexts)[:, None]
        total_BQ1 = weight_BQN.sum(-1, keepdim=True)
        weighed_BQN = (weight_BQN.log() + sharpness * similarity_B1N).softmax(-1) * total_BQ1
        changed_BQ1 = similarity_B1N.any(-1, keepdim=True) & (total_BQ1 > 0)
        return torch.where(changed_BQ1, weighed_BQN, weight_BQN)


class _FieldIndex:
    """TF-IDF vectors of one field of the rows."""

    def __init__(self, texts: Sequence[str]) -> None:
        counts_U = Counter(texts)
        numbers = {text: number for number, text in enumerate(counts_U)}
        self._text_N = torch.tensor([numbers[text] for text in texts])
        rows_V: Counter[str] = Counter()
        for text, count in counts_U.items():
            rows_V.update(dict.fromkeys(_words(text), count))
        self._vocabulary = {word: number for number, word in enumerate(rows_V)}
        self._idf_V = torch.tensor([math.log((1 + len(texts)) / (1 + count)) + 1 for count in rows_V.values()])
        self._unknown = math.log(1 + len(texts)) + 1  # weight of a word that no row has
        self._vectors_UV = self._vectors(list(counts_U))

    def cosines(self, texts: Sequence[str]) -> Tensor:
        """Return the cosine of each text and each row, [B, N]; 0 for an empty one."""
        cosine_UB = torch.sparse.mm(self._vectors_UV, self._vectors(texts).to_dense().T)
        return cosine_UB[self._text_N].T

    def _vectors(self, texts: Sequence[str]) -> Tensor:
        """Return unit vectors of texts, sparse [texts, V]; what is unknown counts in their lengths."""
        words = [_words(text) for text in texts]
        known = [[self._vocabulary[word] for word in of if word in self._vocabulary] for of in words]
        place = torch.tensor([(row, word) for row, of in enumerate(known) for word in of], dtype=torch.long).view(-1, 2)
        value = self._idf_V[place[:, 1]]
        missing = torch.tensor([len(of) - len(found) for of, found in zip(words, known, strict=True)])
        squared = (missing * self._unknown**2).float().index_add(0, place[:, 0], value**2)
        return torch.sparse_coo_tensor(
            place.T, value / squared.sqrt()[place[:, 0]], (len(texts), len(self._vocabulary)), check_invariants=True
        )


def _words(text: str) -> set[str]:
    return set(_WORD.findall(text.lower()))
