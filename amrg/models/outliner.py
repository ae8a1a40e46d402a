"""What a report begins with where the decoder does not decide it alone (``generate.outline``).

A decoder that learned from few reports names a finding only where it is likelier than not, and cannot word one it has
seldom read. Yet stage 1 is sure of more, and the report memory holds the words. So the outline is decided by stage 1's
certainty, calibrated on held-out reports, and what it names is said in sentences of the rows that the report memory
retrieves for the film. The decoder writes on from there.

Shape legend: N studies to calibrate on, B studies, F = 13 findings, Q = 14 queries, K retrieved rows.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from amrg.data.labels import FINDINGS
from amrg.data.outline import begun, stated
from amrg.data.text import sentences
from amrg.data.wording import compares
from amrg.errors import UserError
from amrg.memory.bank import MemoryBank
from amrg.models.generator import ReportGenerator, Sight

FILE = "certainty.json"
ROWS = 256  # retrieved rows in which words are sought, for each finding


@dataclass(frozen=True)
class Certainty:
    """How likely a report states each finding, from stage 1's logit of it (Platt scaling), and what is likely enough.

    Attributes:
        slope, shift: of the logit of each finding, [F].
        threshold: probability from which on a finding is named, one for all.
    """

    slope: tuple[float, ...]
    shift: tuple[float, ...]
    threshold: float

    @classmethod
    def fit(cls, logits_NF: Tensor, stated_NF: Tensor) -> Self:
        """Logistic regression of each finding; a weak prior leaves the logits as they are.

        The threshold is the one with the highest micro-F1 on the same studies.
        """
        logits_NF, truth_NF = logits_NF.double(), stated_NF.double()
        identity_2F = torch.tensor([[1.0], [0.0]], dtype=torch.float64).repeat(1, logits_NF.shape[1])
        weights_2F = identity_2F.clone().requires_grad_()
        optimiser = torch.optim.LBFGS([weights_2F], max_iter=500, tolerance_change=1e-12, line_search_fn="strong_wolfe")

        def loss() -> Tensor:
            optimiser.zero_grad()
            scaled_NF = logits_NF * weights_2F[0] + weights_2F[1]
            prior = 0.5 * (weights_2F - identity_2F).square().sum()
            total = F.binary_cross_entropy_with_logits(scaled_NF, truth_NF, reduction="sum") + prior
            total.backward()
            return total

        optimiser.step(loss)
        slope_F, shift_F = weights_2F.detach()
        threshold = _best_threshold((logits_NF * slope_F + shift_F).sigmoid().flatten(), truth_NF.flatten())
        return cls(tuple(slope_F.tolist()), tuple(shift_F.tolist()), threshold)

    def findings(self, logits_BF: Tensor) -> list[list[str]]:
        """Those that each study's outline names, in the order of ``FINDINGS``."""
        slope_F, shift_F = torch.tensor([self.slope, self.shift], dtype=torch.float64)
        named_BF = (logits_BF.cpu().double() * slope_F + shift_F).sigmoid() >= self.threshold
        return [[f for f, named in zip(FINDINGS, row, strict=True) if named] for row in named_BF.tolist()]

    def save(self, folder: Path) -> None:
        """Write ``FILE``."""
        (folder / FILE).write_text(json.dumps(asdict(self), indent=2) + "\n")

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read what ``save`` wrote.

        Raises:
            UserError: it is missing or damaged.
        """
        try:
            content = json.loads((folder / FILE).read_text())
            return cls(tuple(content["slope"]), tuple(content["shift"]), float(content["threshold"]))
        except (OSError, ValueError, KeyError, TypeError):
            raise UserError(f"{folder / FILE} is missing or unreadable: run `amrg generate` again") from None


def _best_threshold(probability_M: Tensor, truth_M: Tensor) -> float:
    """Halfway between the last probability that is to be named and the first that is not; above 1 to name nothing."""
    if not truth_M.any():
        return 2.0
    sorted_M, order = probability_M.sort(descending=True)
    right_M = truth_M[order].cumsum(0)
    f1_M = 2 * right_M / (torch.arange(1, len(right_M) + 1) + truth_M.sum())
    f1_M[:-1][sorted_M[:-1] == sorted_M[1:]] = 0.0  # what is equally likely is named together
    last = int(f1_M.argmax())
    return float(sorted_M[last : last + 2].mean())


class Begun(NamedTuple):
    """What a report begins with: an outline, then a sentence of each of these rows of the report bank."""

    text: str
    rows: tuple[int, ...] = ()


class Outliner:
    """Begins reports.

    Args:
        certainty: decides which findings are stated.
        bank: the report bank that the generator retrieves from; None leaves all words to the decoder.
    """

    def __init__(self, certainty: Certainty, bank: MemoryBank | None) -> None:
        self._certainty = certainty
        self._texts = None if bank is None else bank.origins(0, len(bank), ["text"])["text"]
        self._sentences = cache(self._label)  # a row is retrieved for many studies

    def begin(
        self,
        model: ReportGenerator,
        sight: Sight,
        group_B: Tensor,
        asking_BQD: Tensor | None = None,
        recall: bool = True,
    ) -> list[Begun]:
        """What each report begins with, for ``ReportGenerator.generate``, which takes the same arguments.

        A finding's words are the first sentence, in the rows that its own query retrieves most of, heaviest first,
        that states it, nothing that the outline does not name, and nothing that only an earlier film can tell. Without
        one, or without ``recall``, the decoder words it.
        """
        named = self._certainty.findings(sight.logits_BQ[:, : len(FINDINGS)])
        if self._texts is None or model.report_memory is None or not recall:
            return [Begun(begun(findings, ())) for findings in named]
        asking_BQD = sight.queries_BQD if asking_BQD is None else asking_BQD
        hidden = model.hidden_group(group_B)
        _, rows_BQK = model.report_memory.attribution(asking_BQD, query_group=hidden, top_k=ROWS)
        return [self._recall(findings, rows_QK) for findings, rows_QK in zip(named, rows_BQK.tolist(), strict=True)]

    def _recall(self, findings: list[str], rows_QK: Sequence[list[int]]) -> Begun:
        said: dict[str, int] = {}
        left = set(findings)
        for finding in findings:
            rows = rows_QK[FINDINGS.index(finding)] if finding in left else []
            candidates = ((row, *one) for row in rows if row >= 0 for one in self._sentences(row))
            for row, sentence, states in candidates:
                if finding in states and states <= set(findings):
                    said[sentence] = row
                    left -= states
                    break
        return Begun(begun(findings, list(said)), tuple(said.values()))

    def _label(self, row: int) -> list[tuple[str, frozenset[str]]]:
        """The sentences of a row that may be said of another film, and what each states."""
        assert self._texts is not None
        said = sentences(self._texts[row].as_py())
        return [(sentence, frozenset(stated(sentence))) for sentence in said if not compares(sentence)]
