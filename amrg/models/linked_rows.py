"""Rows of the visual bank with the sentences of their reports about the region.

Shape legend: Q = 14 queries, F = 13 findings, N rows of the bank, V values of a detail.
"""

from functools import cached_property

import torch
from torch import Tensor

from amrg.banks.bank import MemoryBank
from amrg.data.labels import FINDINGS, LABELS, NO_FINDING
from amrg.data.text.cleaning import split_sentences
from amrg.data.text.statements import find_statements
from amrg.models.detail_heads import ATTRIBUTES, Distribution, detail_values

#: Probabilities of the values of a detail, by finding and attribute.
Supported = dict[str, dict[str, Distribution]]


class LinkedRows:
    """Label, linked sentences and stated details of each row of the visual bank."""

    def __init__(self, bank: MemoryBank) -> None:
        origins = bank.provenance_rows(0, len(bank), ["findings", "source", "text"]).to_pylist()
        region = [origin["source"] == "region" for origin in origins]
        self.label_N = torch.tensor(
            [LABELS.index(o["findings"][0]) if on else len(LABELS) for o, on in zip(origins, region, strict=True)]
        )
        self.texts = [split_sentences(o["text"] or "") if on else [] for o, on in zip(origins, region, strict=True)]
        self.base_F = [float((self.label_N == k).float().mean()) for k in range(len(FINDINGS))]
        self._votes: dict[tuple[str, str], tuple[list[str], Tensor]] = {}
        for k, finding in enumerate(FINDINGS):
            rows = (self.label_N == k).nonzero()[:, 0].tolist()
            stated = {row: detail_values(find_statements(" ".join(self.texts[row])), finding) for row in rows}
            for attribute in ATTRIBUTES:
                values = sorted({of[attribute] for of in stated.values() if attribute in of})
                if values:
                    vote_NV = torch.zeros(len(origins), len(values))
                    for row, of in stated.items():
                        if attribute in of:
                            vote_NV[row, values.index(of[attribute])] = 1.0
                    self._votes[finding, attribute] = values, vote_NV

    def shares(self, weight_QN: Tensor) -> list[float]:
        """Share of each finding's association on rows of that finding, [F]."""
        return [float(weight_QN[k][self.label_N == k].sum()) for k in range(len(FINDINGS))]

    def votes(self, weight_QN: Tensor) -> Supported:
        """Distribution of the stated details over the rows that a finding's region retrieves."""
        found: Supported = {finding: {} for finding in FINDINGS}
        for (finding, attribute), (values, vote_NV) in self._votes.items():
            vote_V = weight_QN[FINDINGS.index(finding)] @ vote_NV
            # The frequencies in the bank count as a tenth of the votes, so that a single faint row does not decide.
            vote_V = vote_V + 0.1 * vote_V.sum() * vote_NV.mean(0) / vote_NV.mean() / len(values)
            if float(vote_V.sum()) > 0:
                found[finding][attribute] = dict(zip(values, (vote_V / vote_V.sum()).tolist(), strict=True))
        return found

    @cached_property
    def _places(self) -> dict[str, float]:
        places: dict[str, list[float]] = {}
        for row in (self.label_N == LABELS.index(NO_FINDING)).nonzero()[:, 0].tolist():
            for i, text in enumerate(self.texts[row]):
                places.setdefault(text, []).append((i + 0.5) / len(self.texts[row]))
        return {text: sum(of) / len(of) for text, of in places.items()}

    def usual_place(self, text: str) -> float:
        """Mean relative position, in [0, 1], of a sentence of normal anatomy in its reports."""
        return self._places.get(text, 0.5)
