"""How likely each detail of a finding is, told from the film's region of it: heads trained on what reports state.

A detail is an *attribute* of a finding (side, zone, severity, kind of device) and its *value*, a string: the sorted
members joined by "+", such as "left", "left+right", "lower+middle" or "central line+port". A ``Distribution`` gives
each value a probability. ``AttributeHeads`` makes one from a film, ``combine_distributions`` one of several, and
``value_support`` reads it.

Shape legend: N studies to fit on, B studies, K = 13 findings, F features of a region, C values, M studies of one head.
"""

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from amrg.data.labels import FINDINGS, POSITIVE
from amrg.data.text.statements import Statement, find_statements
from amrg.errors import UserError

ATTRIBUTES: tuple[str, ...] = ("side", "zone", "severity", "device")
JOIN = "+"

#: The probability of each value; they sum to 1.
Distribution = dict[str, float]
#: The value of each attribute that is stated, by finding.
Details = dict[str, dict[str, str]]

NAMES, WEIGHTS = "details.json", "details.safetensors"
_TENSORS = ("mean_F", "std_F", "weight_CF", "bias_C")
FOLDS = 5
#: A value that fewer studies state is not learned.
SELDOM = 3
#: Standardized features are cut off here: a cell of the film where no map of the few studies lay has no scale.
CLIP = 3.0
#: What the prior's standard deviation of a logit may be; cross-validation chooses one for all heads.
SPREADS: tuple[float, ...] = (0.5, 1.0, 2.0, 4.0)
#: The prior's standard deviation of a temperature's logarithm.
WARMTH = 0.3


def detail_values(found: Iterable[Statement], finding: str) -> dict[str, str]:
    """The value of each attribute that the positive statements of a finding name, all of them taken together."""
    members: dict[str, set[str]] = {attribute: set() for attribute in ATTRIBUTES}
    for s in found:
        if s.finding == finding and s.presence == POSITIVE:
            members["side"] |= s.sides
            members["zone"] |= s.zones
            members["severity"] |= {s.severity} - {""}
            members["device"] |= {s.device} - {""}
    return {attribute: JOIN.join(sorted(named)) for attribute, named in members.items() if named}


def report_details(text: str) -> Details:
    """``detail_values`` of every finding of which a text states any detail."""
    found = find_statements(text)
    values = {finding: detail_values(found, finding) for finding in FINDINGS}
    return {finding: stated for finding, stated in values.items() if stated}


def combine_distributions(distributions: Sequence[Distribution | None], floor: float = 0.02) -> Distribution | None:
    """The normalized product of what several sources say, over all values that any of them knows.

    p(v) ∝ Π (pᵢ(v) + floor): the floor, above 0, lets no source rule a value out alone. None where no source says
    anything.
    """
    known = [distribution for distribution in distributions if distribution]
    values = sorted(set().union(*known))
    product = {v: math.prod(distribution.get(v, 0.0) + floor for distribution in known) for v in values}
    total = sum(product.values())
    return {v: p / total for v, p in product.items()} if known else None


def value_support(value: str, distribution: Distribution | None) -> float | None:
    """How far a distribution supports a stated value: p(value) + ½ Σ p(strict superset of value).

    A superset names all that the value names and more: "left" is incomplete, not wrong, where "left+right" is true, so
    it has half the support of it. A subset counts nothing: "left+right" is wrong where "left" is true. None where
    nothing is known.
    """
    if distribution is None:
        return None
    members = set(value.split(JOIN))
    larger = sum(p for v, p in distribution.items() if members < set(v.split(JOIN)))
    exact = sum(p for v, p in distribution.items() if members == set(v.split(JOIN)))
    return exact + 0.5 * larger


@dataclass(frozen=True)
class Head:
    """softmax(weight · x + bias) of a standardized x over the values of one attribute of one finding.

    Attributes:
        values: C of them, sorted.
        mean_F, std_F: of the features of the studies that it was fitted on.
        weight_CF, bias_C: of the logits, the temperature in them.
        temperature: which one that is.
    """

    values: tuple[str, ...]
    mean_F: Tensor
    std_F: Tensor
    weight_CF: Tensor
    bias_C: Tensor
    temperature: float = 1.0

    def logits(self, features_BF: Tensor) -> Tensor:
        """Of the values, [B, C]."""
        return standardize_features(features_BF.double(), self.mean_F, self.std_F) @ self.weight_CF.T + self.bias_C


def standardize_features(features_MF: Tensor, mean_F: Tensor, std_F: Tensor) -> Tensor:
    """(x − mean) / std, cut off at ±``CLIP``."""
    return ((features_MF - mean_F) / std_F).clamp(-CLIP, CLIP)


def temper_logits(logits_MC: Tensor, usual_MC: Tensor, temperature: float | Tensor) -> Tensor:
    """u + (z − u) / T, with u the log frequencies of the values: T = 1 keeps z, a large T leaves the frequencies."""
    return usual_MC + (logits_MC - usual_MC) / temperature


@dataclass(frozen=True)
class _Stated:
    """The studies that one head is fitted on: features [M, F], index of the stated value [M], fold [M]."""

    values: tuple[str, ...]
    x_MF: Tensor
    y_M: Tensor
    fold_M: Tensor

    def usual(self, kept_M: Tensor) -> Tensor:
        """The log frequencies of the values over some of the studies and one more that is shared among all values."""
        count_C = torch.bincount(self.y_M[kept_M], minlength=len(self.values)).double() + 1 / len(self.values)
        return (count_C / count_C.sum()).log()

    def fit(self, kept_M: Tensor, spread: float) -> Head:
        """The most probable logistic regression of some of the studies; its temperature is 1.

        Minimizes Σ −log p(value) + F / (2 spread²) · ‖weight‖². The prior is on the weights of standardized features:
        a logit of a usual film has the standard deviation ``spread`` under it. The biases have none: what few
        studies leave is the frequencies of the values. One more study, with the mean features and shared among all
        values, keeps the biases finite.
        """
        x_MF, y_M = self.x_MF[kept_M], self.y_M[kept_M]
        mean_F, std_F = x_MF.mean(0), x_MF.std(0, correction=0)
        std_F = torch.where(std_F > 1e-6, std_F, 1.0)  # what never varies says nothing
        x_MF = standardize_features(x_MF, mean_F, std_F)
        classes, width = len(self.values), x_MF.shape[1]
        weight_CF = torch.zeros(classes, width, dtype=torch.float64)
        bias_C = self.usual(kept_M).clone()

        def loss() -> Tensor:
            fitted = F.cross_entropy(x_MF @ weight_CF.T + bias_C, y_M, reduction="sum")
            prior = 0.5 * width / spread**2 * weight_CF.square().sum()
            return fitted + prior - bias_C.log_softmax(0).mean()

        _minimize(loss, [weight_CF, bias_C])
        return Head(self.values, mean_F, std_F, weight_CF.detach(), bias_C.detach())

    def held_out(self, spread: float) -> tuple[Tensor, Tensor]:
        """Logits [M, C] of each study by the head of the other folds, and the log frequencies [M, C] in those.

        Both are 0 where no other fold has a study.
        """
        logits_MC = torch.zeros(len(self.y_M), len(self.values), dtype=torch.float64)
        usual_MC = torch.zeros_like(logits_MC)
        for fold in self.fold_M.unique():
            out_M = self.fold_M == fold
            if not out_M.all():
                logits_MC[out_M] = self.fit(~out_M, spread).logits(self.x_MF[out_M])
                usual_MC[out_M] = self.usual(~out_M)
        return logits_MC, usual_MC

    def temperature(self, logits_MC: Tensor, usual_MC: Tensor) -> float:
        """T with the least Σ −log softmax(u + (z − u) / T)[stated value] + ½ (ln T / WARMTH)².

        Here z and u are what ``held_out`` gives. The last term keeps T near 1 where there are few studies.
        """
        log_T = torch.zeros((), dtype=torch.float64)

        def loss() -> Tensor:
            fitted = F.cross_entropy(temper_logits(logits_MC, usual_MC, log_T.exp()), self.y_M, reduction="sum")
            return fitted + 0.5 * (log_T / WARMTH).square()

        _minimize(loss, [log_T])
        return float(log_T.detach().exp())

    def calibrated(self, spread: float, temperature: float) -> Head:
        """``fit`` of all studies with ``tempered`` logits."""
        every_M = torch.ones_like(self.y_M, dtype=torch.bool)
        head = self.fit(every_M, spread)
        bias_C = temper_logits(head.bias_C, self.usual(every_M), temperature)
        return replace(head, weight_CF=head.weight_CF / temperature, bias_C=bias_C, temperature=temperature)


def _minimize(loss: Callable[[], Tensor], parameters: list[Tensor]) -> None:
    """Move the parameters, from where they are, to a minimum of a smooth loss."""
    optimizer = torch.optim.LBFGS(
        [p.requires_grad_() for p in parameters],
        max_iter=300,
        tolerance_grad=1e-6,
        tolerance_change=1e-10,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss()
        value.backward()
        return value

    optimizer.step(closure)


def _stated(features_NF: Tensor, values_N: Sequence[str | None], groups: Sequence[str], least: int) -> _Stated | None:
    """The studies with a value that is not seldom; None where fewer than ``least`` have one."""
    count = Counter(value for value in values_N if value is not None)
    kept = [(n, value) for n, value in enumerate(values_N) if value is not None and count[value] >= SELDOM]
    if len(kept) < max(least, 1):
        return None
    rows = [n for n, _ in kept]
    values = tuple(sorted({value for _, value in kept}))
    y_M = torch.tensor([values.index(value) for _, value in kept])
    return _Stated(values, features_NF[rows].double(), y_M, _folds([groups[n] for n in rows]))


def _folds(groups: Sequence[str]) -> Tensor:
    """One of ``FOLDS`` for each study, [N]: all studies of a patient in one, the patients dealt out in turn."""
    order = {group: n % FOLDS for n, group in enumerate(dict.fromkeys(groups))}
    return torch.tensor([order[group] for group in groups])


@dataclass(frozen=True)
class AttributeHeads:
    """A calibrated multinomial logistic regression for each finding and attribute that enough reports state.

    Attributes:
        heads: by finding and attribute.
        spread: of ``SPREADS``, the one chosen.
    """

    heads: dict[tuple[str, str], Head]
    spread: float

    @classmethod
    def fit(cls, features_NKF: Tensor, reports: Sequence[Details], groups: Sequence[str], least: int = 8) -> Self:
        """Fit on the studies whose reports state an attribute of a finding, for each pair of them that has enough.

        A value that fewer than ``SELDOM`` studies state is left out, with its studies. A single value that remains is
        certain. The held-out logits of a cross-validation over patients choose ``spread``, by the least −log p over all
        pairs, and the temperature of each head (``_Stated.temperature``). All is done in float64, without chance.

        Args:
            features_NKF: of the region of each finding, in the order of ``FINDINGS``.
            reports: what each report states (``report_details``), N of them.
            groups: the patient of each study, N of them.
            least: studies that a head needs, after seldom values are left out.
        """
        if not len(features_NKF) == len(reports) == len(groups):
            raise ValueError(f"{len(features_NKF)} features, {len(reports)} reports, {len(groups)} groups")
        features_NKF = features_NKF.detach().cpu()
        pairs: dict[tuple[str, str], _Stated] = {}
        for k, finding in enumerate(FINDINGS):
            for attribute in ATTRIBUTES:
                values_N = [report.get(finding, {}).get(attribute) for report in reports]
                stated = _stated(features_NKF[:, k], values_N, groups, least)
                if stated is not None:
                    pairs[finding, attribute] = stated
        held = {spread: {pair: s.held_out(spread) for pair, s in pairs.items()} for spread in SPREADS}

        def surprise(spread: float) -> float:
            return sum(
                float(F.cross_entropy(held[spread][pair][0], s.y_M, reduction="sum")) for pair, s in pairs.items()
            )

        best = min(SPREADS, key=surprise)
        return cls({p: s.calibrated(best, s.temperature(*held[best][p])) for p, s in pairs.items()}, best)

    def predict(self, features_BKF: Tensor) -> list[dict[str, dict[str, Distribution]]]:
        """For each study, by finding and attribute, how likely each value is, if the finding is there.

        Only of what was fitted.
        """
        features_BKF = features_BKF.detach().cpu()
        found: list[dict[str, dict[str, Distribution]]] = [{} for _ in features_BKF]
        for (finding, attribute), head in self.heads.items():
            p_BC = head.logits(features_BKF[:, FINDINGS.index(finding)]).softmax(1)
            for study, p_C in zip(found, p_BC.tolist(), strict=True):
                study.setdefault(finding, {})[attribute] = dict(zip(head.values, p_C, strict=True))
        return found

    def save(self, folder: Path) -> None:
        """Write ``NAMES`` and ``WEIGHTS``."""
        tensors = {f"{n}.{name}": getattr(h, name) for n, h in enumerate(self.heads.values()) for name in _TENSORS}
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / WEIGHTS)
        names = [
            {"finding": finding, "attribute": attribute, "values": head.values, "temperature": head.temperature}
            for (finding, attribute), head in self.heads.items()
        ]
        (folder / NAMES).write_text(json.dumps({"spread": self.spread, "heads": names}, indent=2) + "\n")

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read what ``save`` wrote.

        Raises:
            UserError: it is missing or damaged.
        """
        try:
            content = json.loads((folder / NAMES).read_text())
            tensors = load_file(folder / WEIGHTS)
            heads = {
                (str(entry["finding"]), str(entry["attribute"])): _head(
                    entry, {t: tensors.pop(f"{n}.{t}") for t in _TENSORS}
                )
                for n, entry in enumerate(content["heads"])
            }
            if tensors or any(f not in FINDINGS or a not in ATTRIBUTES for f, a in heads):
                raise ValueError("the two files do not belong together")
            return cls(heads, float(content["spread"]))
        except (OSError, ValueError, KeyError, TypeError, SafetensorError):
            problem = f"{folder / NAMES} or {WEIGHTS} beside it is missing or damaged"
            raise UserError(f"{problem}: run `amrg stage2` again") from None


def _head(entry: dict[str, Any], tensors: dict[str, Tensor]) -> Head:
    """The head of an entry of ``NAMES``; ValueError where its tensors have other sizes, or hold what is no number."""
    head = Head(tuple(entry["values"]), temperature=float(entry["temperature"]), **tensors)
    classes, width = len(head.values), head.mean_F.numel()
    sizes = {"mean_F": (width,), "std_F": (width,), "weight_CF": (classes, width), "bias_C": (classes,)}
    if any(tuple(t.shape) != sizes[name] or not t.isfinite().all() for name, t in tensors.items()):
        raise ValueError("damaged")
    return head
