"""Composition of reports from sentences that both memories retrieve and the film supports.

Stage 1 decides which findings are present (``Certainty``). The visual memory must confirm each: a finding is named if
the share of its region's association on regions of that finding is at least twice their share of the bank. A row of the
visual bank is linked to the sentences of its report about the finding. The rows that a region retrieves therefore vote
for the sentence and for each detail (side, zone, severity, device) that it states. A sentence with unsupported details
is replaced by a supported one, or by one that omits the detail. The region of No Finding selects sentences of normal
anatomy in the same way. With ``generate.recall_context`` the clinical context has a say in whose words these are, but
not in the findings and details. ``docs/memory-banks.md`` has the formulas.

Shape legend: B studies, Q = 14 labels, F = 13 findings, J retrieved rows, N rows of the visual bank, M of the report
bank, U distinct sentences, D width of the report bank, C candidates.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from amrg.banks.bank import NO_GROUP, MemoryBank
from amrg.data.context import Context
from amrg.data.labels import FINDINGS, LABELS, NO_FINDING
from amrg.data.prior import Prior
from amrg.data.text.outline import format_outline, positive_findings
from amrg.data.text.repetition import presupposes_finding, says_all_is_well
from amrg.models.bank_sentences import BankSentence, read_sentences
from amrg.models.composed import ACUTE, Composed, ComposedSentence, Unsure, incompatible_findings
from amrg.models.context_recall import ContextIndex
from amrg.models.detail_heads import ATTRIBUTES, AttributeHeads, combine_distributions, value_support
from amrg.models.finding_calibration import Certainty
from amrg.models.graph_guide import GraphGuide, node_indicators, nodes_of_text
from amrg.models.linked_rows import LinkedRows, Supported
from amrg.models.regions import PLACES
from amrg.models.report_generator import Association
from amrg.models.vision_output import VisionOutput

Support = Literal["none", "map", "memory", "head", "all"]

ROWS = 4096  # most rows of a bank that are read from an association
#: β of the cosine between a sentence and the linked sentences of the region's rows; weights of the other score terms.
LIKENESS, RECALLED, DETAIL = 20.0, 0.5, 2.0
#: Bonus in the score of a sentence for stating a detail.
SAYING = {"side": 1.0, "zone": 0.3, "severity": 0.2, "device": 0.5}
LEAST_SUPPORT = 0.5  # a detail with a lower probability is unsupported
UNSUPPORTED = 5.0  # penalty in the score for an unsupported detail
_VOTING_ROWS = 256  # heaviest rows whose reports vote for sentences of normal anatomy
#: “The lungs are clear” denies this alone, and repeats nothing beside “No consolidation or opacity”.
_GENERAL = {"Lung Opacity"}
#: Two sentences with at most this cosine have different meanings.
UNLIKE = 0.25


class Composer:
    """Composer of the beginning of reports.

    Args:
        certainty: decides which findings are named.
        visual, reports: the banks that the generator retrieves from; ``reports`` holds sentences. None: the decoder
            words the findings of the outline.
        heads: attribute heads by the name of their features (``map``, ``head``); required by these sources.
        source: source of the probabilities of details.
        abstain: findings with a lower probability are left out and listed as unsure.
        guide: knowledge graph; None: no graph.
        comparing: studies with an earlier one may have sentences that compare.
        contexts: fields of the clinical context that weigh the rows whose words are recalled; they need all banks.
        sharpness: β of the contexts (``ContextIndex.weigh``).
    """

    def __init__(
        self,
        certainty: Certainty,
        visual: MemoryBank | None = None,
        reports: MemoryBank | None = None,
        heads: Mapping[str, AttributeHeads] | None = None,
        source: Support = "memory",
        abstain: float = 0.0,
        guide: GraphGuide | None = None,
        comparing: bool = False,
        contexts: Sequence[str] = (),
        sharpness: float = 0.0,
    ) -> None:
        given = {"visual": visual, "report": reports}
        self._banks = {name: bank for name, bank in given.items() if bank is not None}
        self._contexts = {name: ContextIndex(bank, contexts) for name, bank in self._banks.items() if contexts}
        self._sharpness = sharpness
        self._guide = guide
        self.certainty, self.source, self.abstain, self._heads = certainty, source, abstain, heads or {}
        self._reports = reports
        self._visual = None if visual is None else LinkedRows(visual)
        if reports is not None:
            self._sentences = read_sentences(reports, comparing)
            self._index = {one.text: i for i, one in enumerate(self._sentences)}
            first = torch.tensor([one.rows[0] for one in self._sentences], dtype=torch.long)
            self._vectors_UD = F.normalize(reports.dequantized(0, len(reports))[first], dim=-1)
            self._candidates = {f: [i for i, s in enumerate(self._sentences) if f in s.states] for f in FINDINGS}

    @cached_property
    def _linked_ND(self) -> Tensor:
        """Mean vector of the sentences linked to each visual row; 0 for a row without linked sentences."""
        assert self._visual is not None
        linked = torch.zeros(len(self._visual.texts), self._vectors_UD.shape[1])
        for row, texts in enumerate(self._visual.texts):
            known = [self._index[text] for text in texts if text in self._index]
            if known and self._visual.label_N[row] < len(FINDINGS):
                linked[row] = self._vectors_UD[known].mean(0)
        return linked

    def compose(
        self,
        vision: VisionOutput,
        associations: Mapping[str, Association],
        group_B: Tensor | None,
        recall: bool = True,
        priors: Sequence[Prior | None] = (),
        contexts: Sequence[Context] | None = None,
        blind: bool = False,
    ) -> list[Composed]:
        """Compose the beginning of each report.

        Args:
            vision: stage 1's output for the studies.
            associations: rows that they, or other studies in their place, retrieve (``ReportGenerator.associations``),
                from one or both memories.
            group_B: patients whose sentences are excluded; None or ``NO_GROUP`` excludes none.
            recall: compose sentences; otherwise the decoder words the findings of the outline.
            priors: earlier study of each study, if any is known.
            contexts: clinical context of each study; None: no context.
            blind: a control. No finding is named, and all rows of other patients weigh the same before the context.
        """
        probability_BF = self.certainty.probabilities(vision)
        lengths = {name: self._length(name) for name in associations}
        weights = {name: _spread(associations[name], length) for name, length in lengths.items() if length}
        if blind:
            weights = {name: self._even_weights(name, of.shape, group_B) for name, of in weights.items()}
        supported_B = self._supported(vision, weights.get("visual"))
        worded = weights
        if contexts is not None and self._contexts:
            worded = {n: self._contexts[n].weigh(of, contexts, self._sharpness) for n, of in weights.items()}
        composed = []
        for b, probability_F in enumerate(probability_BF.tolist()):
            own = {name: one[b] for name, one in worded.items()}
            group = NO_GROUP if group_B is None else int(group_B[b])
            prior = priors[b] if priors else None
            film = _Film(dict(zip(FINDINGS, probability_F, strict=True)), supported_B[b], own, group, prior)
            found = [] if blind else self._named(probability_F, weights["visual"][b] if "visual" in weights else None)
            implausible = self._guide.less_probable(found, film.probability) if self._guide else ()
            unsure = [f for f in found if film.probability[f] < self.abstain or f in implausible]
            named = [finding for finding in found if finding not in unsure]
            chosen: list[ComposedSentence] = []
            left_out: list[ComposedSentence] = []
            if self._reports is not None and recall:
                boxes = vision.boxes_BQ5[b].int().tolist()
                chosen = self._say_findings(film, named, found, boxes)
                chosen += self._say_normal(film, found, {one.text for one in chosen})
                left_out = self._say_findings(film, unsure, found, boxes)
            text = format_outline(named, [one.text for one in chosen])
            composed.append(
                Composed(text, tuple(named), tuple(chosen), _unsure(film, unsure, left_out), prior is not None)
            )
        return composed

    def fitted(self, vision: VisionOutput, associations: Mapping[str, Association]) -> dict[str, Association]:
        """Weight the retrieved rows by how well they fit the film, if a knowledge graph does so."""
        if self._guide is None or self._guide.config.retrieval == "none":
            return dict(associations)
        probability_BF, fitted = self.certainty.probabilities(vision), {}
        for name, (weights_BQJ, rows_BQJ) in associations.items():
            given = weights_BQJ.cpu().float(), rows_BQJ.cpu()
            known = self._length(name) > 0
            weights = self._guide.weigh(*given, self._nodes[name], probability_BF) if known else given[0]
            fitted[name] = Association(weights, given[1])
        return fitted

    @cached_property
    def _nodes(self) -> dict[str, Tensor]:
        """Nodes of the knowledge graph of the rows of each bank, [rows, V]."""
        rows: dict[str, list[set[str]]] = {n: [set() for _ in range(self._length(n))] for n in ("visual", "report")}
        for sentence in self._sentences if rows["report"] else ():
            for row in sentence.rows:
                rows["report"][row] = nodes_of_text(sentence.text)
        if self._visual is not None:
            for row, (label, texts) in enumerate(zip(self._visual.label_N.tolist(), self._visual.texts, strict=True)):
                if label < len(LABELS):
                    rows["visual"][row] = nodes_of_text(" ".join(texts), LABELS[label])
        return {name: node_indicators(of) for name, of in rows.items()}

    def _even_weights(self, name: str, shape: torch.Size, group_B: Tensor | None) -> Tensor:
        """Return equal weights of the rows of other patients, [B, Q, rows]."""
        weight_BQN = torch.ones(shape)
        if group_B is not None:
            own_BN = (group_B.cpu()[:, None] == self._banks[name].groups) & (group_B.cpu()[:, None] != NO_GROUP)
            weight_BQN.masked_fill_(own_BN[:, None], 0.0)
        return weight_BQN / weight_BQN.sum(-1, keepdim=True).clamp_min(1)

    def _length(self, name: str) -> int:
        return len(self._banks[name]) if name in self._banks else 0

    def _named(self, probability_F: Sequence[float], visual_QN: Tensor | None) -> list[str]:
        """Findings above the threshold that the visual memory, if there is one, confirms."""
        named = [f for f, p in zip(FINDINGS, probability_F, strict=True) if p >= self.certainty.threshold]
        if visual_QN is None or self._visual is None:
            return named
        share_F, base_F = self._visual.shares(visual_QN), self._visual.base_F
        agrees = [share >= least_confirming_share(base) - 1e-4 for share, base in zip(share_F, base_F, strict=True)]
        return [f for f in named if agrees[FINDINGS.index(f)]]

    def _supported(self, vision: VisionOutput, visual_BQN: Tensor | None) -> list[Supported | None]:
        """Probabilities of the values of each detail per study; None without a source."""
        studies = len(vision.logits_BQ)
        if self.source == "none":
            return [None] * studies
        sources: list[list[Supported]] = []
        if self.source in ("memory", "all") and visual_BQN is not None and self._visual is not None:
            sources.append([self._visual.votes(visual_QN) for visual_QN in visual_BQN])
        for name in ("map",) if self.source == "map" else ("head",) if self.source in ("head", "all") else ():
            sources.append(self._heads[name].predict(head_features(vision)[name]))
        if not sources:
            return [None] * studies
        return [
            {
                finding: {
                    attribute: p
                    for attribute in ATTRIBUTES
                    if (p := combine_distributions([one.get(finding, {}).get(attribute) for one in of_study]))
                }
                for finding in FINDINGS
            }
            for of_study in zip(*sources, strict=True)
        ]

    def _say_findings(
        self, film: "_Film", named: Sequence[str], found: Sequence[str], boxes: list[list[int]]
    ) -> list[ComposedSentence]:
        """Choose a sentence for each finding that no earlier one states; without one, the decoder words the finding.

        Args:
            film: the study.
            named: findings to state.
            found: all findings of the study; none may be denied.
            boxes: region of each label.
        """
        composed: list[ComposedSentence] = []
        left = set(named)
        for finding in named:
            if finding not in left:
                continue
            best = self._best(film, finding, set(named), incompatible_findings(found))
            if best is None:
                continue
            sentence = self._sentences[best]
            left -= sentence.states
            regions = self._voters(film, LABELS.index(finding))
            details = [
                (f, a, v, None if film.supported is None else value_support(v, film.supported.get(f, {}).get(a)))
                for f, a, v in sentence.details
            ]
            composed.append(
                ComposedSentence(
                    sentence.text,
                    tuple(f for f in FINDINGS if f in sentence.states),
                    film.row_of(sentence, self._groups),
                    regions,
                    tuple(boxes[LABELS.index(finding)]) if any(boxes[LABELS.index(finding)]) else None,
                    {f: film.probability[f] for f in FINDINGS if f in sentence.states},
                    tuple(details),
                )
            )
        return composed

    def _best(self, film: "_Film", finding: str, named: set[str], undenied: set[str]) -> int | None:
        """Best sentence for a finding among those that fit the named findings and come from other patients."""
        allowed = [
            i
            for i in self._candidates[finding]
            for s in [self._sentences[i]]
            if s.states <= named and not s.denies & undenied and not s.suspects - named and film.may_recall(s)
        ]
        if not allowed:
            return None
        if self._guide is not None:
            allowed = [i for i in allowed if self._guide.fits(self._sentences[i].text)] or allowed
        query = LABELS.index(finding)
        score_C = torch.zeros(len(allowed))
        if "report" in film.weights:
            weight_M = film.weights["report"][query]
            recalled_C = torch.tensor([sum(float(weight_M[row]) for row in self._sentences[i].rows) for i in allowed])
            score_C += RECALLED * (recalled_C + 1e-6).log()
        voted_D = self._voted_vector(film, query)
        if voted_D is not None:
            score_C += LIKENESS * (self._vectors_UD[allowed] @ voted_D)
        if film.supported is not None:
            score_C += torch.tensor([_detail_score(self._sentences[i], film.supported) for i in allowed])
        return allowed[int(score_C.argmax())]

    def _voted_vector(self, film: "_Film", query: int) -> Tensor | None:
        """Mean of the linked sentences of the rows that a region retrieves, as a unit vector [D]; None if it is 0."""
        if self._visual is None or "visual" not in film.weights:
            return None
        weight_N = film.weights["visual"][query] * (self._visual.label_N == query)
        voted_D = weight_N @ self._linked_ND
        return F.normalize(voted_D, dim=0) if voted_D.any() else None

    def _voters(self, film: "_Film", query: int, most: int = 3) -> tuple[tuple[int, float], ...]:
        """Heaviest rows of the visual bank with a label."""
        if self._visual is None or "visual" not in film.weights:
            return ()
        weight_N = film.weights["visual"][query] * (self._visual.label_N == query)
        top = weight_N.topk(min(most, len(weight_N)))
        return tuple((int(row), float(w)) for w, row in zip(top.values, top.indices, strict=True) if w > 0)

    def _say_normal(self, film: "_Film", named: Sequence[str], before: set[str]) -> list[ComposedSentence]:
        """Choose sentences of normal anatomy that cover those of the retrieved films, in their usual order.

        Greedy maximum coverage: a sentence weighs as much as the retrieved films that have it, and covers sentences of
        similar meaning (by cosine). A sentence is left out if sentences before it deny half of what it denies. The
        number of sentences is the mean over the retrieved films.
        """
        query = LABELS.index(NO_FINDING)
        if self._visual is None or "visual" not in film.weights:
            return []
        votes: dict[int, float] = {}
        total = length = 0.0
        rows_N = film.weights["visual"][query] * (self._visual.label_N == query)
        weights, rows = rows_N.sort(descending=True, stable=True)
        least = weights[:_VOTING_ROWS].min()  # rows as heavy as the last one vote, too
        for weight, row in zip(weights.tolist(), rows.tolist(), strict=True):
            if weight == 0.0 or weight < least:
                break
            usable = [i for text in self._visual.texts[row] if (i := self._usable(text, film, named, before)) >= 0]
            total, length = total + weight, length + weight * len(self._visual.texts[row])
            for i in usable:
                votes[i] = votes.get(i, 0.0) + weight
        if not votes:
            return []
        chosen, worth = list(votes), torch.tensor(list(votes.values()))
        vectors = self._vectors_UD[chosen]
        covers = ((vectors @ vectors.T - UNLIKE) / (1 - UNLIKE)).clamp_min(0)
        covered, picked = torch.zeros(len(chosen)), []
        denied = {finding for text in before for finding in self._sentences[self._index[text]].denies}
        for _ in range(round(length / total)):
            gain = (torch.maximum(covers, covered) - covered) @ worth
            gain[torch.tensor([self._repeats(i, denied) for i in chosen])] = 0.0
            if float(gain.max()) <= 1e-9:
                break
            picked.append(int(gain.argmax()))
            covered = torch.maximum(covered, covers[picked[-1]])
            denied |= self._sentences[chosen[picked[-1]]].denies
        picked.sort(key=lambda j: self._visual.usual_place(self._sentences[chosen[j]].text))  # type: ignore[union-attr]
        regions = self._voters(film, query)
        found = [self._sentences[chosen[j]] for j in picked]
        return [ComposedSentence(s.text, (NO_FINDING,), film.row_of(s, self._groups), regions) for s in found]

    def _repeats(self, i: int, denied: set[str]) -> bool:
        """Whether half or more of what a sentence denies is denied already, apart from opacities."""
        denies = self._sentences[i].denies - _GENERAL
        return bool(denies) and 2 * len(denies & denied) >= len(denies)

    def _usable(self, text: str, film: "_Film", named: Sequence[str], before: set[str]) -> int:
        """Number of a sentence that may be used as normal; −1 for any other."""
        i = self._index.get(text, -1)
        if i < 0 or text in before:
            return -1
        sentence = self._sentences[i]
        fits = (
            sentence.normal
            and not sentence.denies & incompatible_findings(named)
            and (bool(before) or not presupposes_finding(text))
        )
        fits = fits and not (says_all_is_well(text) and ACUTE & set(named))
        return i if fits and film.may_recall(sentence) else -1

    @cached_property
    def _groups(self) -> list[int]:
        assert self._reports is not None
        return self._reports.groups.tolist()


@dataclass(frozen=True)
class _Film:
    """Probabilities, support of details, weights of words [Q, rows] by memory, patient and prior of one study."""

    probability: dict[str, float]
    supported: Supported | None
    weights: dict[str, Tensor]
    group: int
    prior: Prior | None = None

    def may_recall(self, sentence: BankSentence) -> bool:
        """Whether a row with the sentence belongs to another patient, and what it says of change may be true."""
        return (self.group == NO_GROUP or bool(sentence.groups - {self.group})) and self._may_compare(sentence)

    def _may_compare(self, sentence: BankSentence) -> bool:
        """Whether an earlier study is given, whose report, if any, states what has changed and lacks what is new."""
        if not sentence.compares or self.prior is None or not self.prior.report:
            return not sentence.compares or self.prior is not None
        before = set(positive_findings(self.prior.report))
        return all((finding in before) == (change != "new") for finding, change in sentence.changes)

    def row_of(self, sentence: BankSentence, groups: Sequence[int]) -> int:
        """First row with the sentence of another patient."""
        return next(row for row in sentence.rows if self.group == NO_GROUP or groups[row] != self.group)


def _unsure(film: _Film, findings: Sequence[str], sentences: Sequence[ComposedSentence]) -> tuple[Unsure, ...]:
    """List findings with the sentences that would have stated them, and by name those that no sentence states."""
    worded = {label for one in sentences for label in one.labels}
    entries = [(one.text, one.labels) for one in sentences] + [(f, (f,)) for f in findings if f not in worded]
    return tuple(Unsure(text, labels, min(film.probability[f] for f in labels)) for text, labels in entries)


def least_confirming_share(base: float) -> float:
    """Least share of an association that confirms a finding: twice the chance level, or halfway from it to 1."""
    return min(2 * base, (1 + base) / 2)


def head_features(vision: VisionOutput) -> dict[str, Tensor]:
    """Features of each finding's region for attribute heads, [B, F, …]: ``map`` its place, ``head`` also its state."""
    findings = slice(0, len(FINDINGS))
    places = vision.places_BQP[:, findings].cpu().float().sqrt()
    states = vision.states_BQD[:, findings, :-PLACES].cpu().float()
    return {"map": places, "head": torch.cat([states, places], dim=-1)}


def _spread(association: Association, length: int) -> Tensor:
    """Scatter the weights of the retrieved rows to all rows, [B, Q, length]."""
    weights, rows = association.weights_BQJ.cpu().float(), association.rows_BQJ.cpu()
    kept = torch.where(rows >= 0, weights, 0.0)
    return torch.zeros(*rows.shape[:2], length).scatter_add_(2, rows.clamp_min(0), kept)


def _detail_score(sentence: BankSentence, supported: Supported) -> float:
    """Score of the details of a sentence, given the support by the film; a size always counts as unsupported.

    Few rows show a device, so hardly any kind reaches ``LEAST_SUPPORT``; the most probable kind has a smaller penalty.
    """
    score = -UNSUPPORTED * sentence.sized
    for finding, attribute, value in sentence.details:
        distribution = supported.get(finding, {}).get(attribute)
        p = value_support(value, distribution) or 0.0
        score += DETAIL * math.log(p + 1e-3) + SAYING[attribute] - UNSUPPORTED * (p < LEAST_SUPPORT)
        if attribute == "device" and distribution:
            score -= UNSUPPORTED * (p < max(value_support(other, distribution) or 0.0 for other in distribution))
    return score
