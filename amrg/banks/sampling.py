"""Which rows enter a bank that cannot hold all.

Every candidate is filed under its findings (under none: a class of its own), and drawn without replacement:

``proportional``
    each class is allotted draws in proportion to the number of candidates filed under it, so that the bank has the
    frequencies of the data (AM-MRG's way).
``uniform``
    each class is allotted the same number of draws; what a small class cannot fill goes to the others in equal parts.
``stratified``
    the classes are the exact *sets* of findings. One draw for each set while there are draws enough, the rest in
    proportion to the sets' remaining sizes, so that rare combinations stay.

Allotments are whole numbers by largest remainder. A candidate with several findings is drawn for one of them only and
then gone for the others, so the classes draw in order of size, rarest first; draws that a class cannot fill are
allotted again among the classes with candidates left, until the bank is full.

``k_center`` looks at the vectors and not at findings: few rows that lie everywhere.
"""

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence

import numpy as np
import torch


def sample_rows(findings: Sequence[Sequence[str]], rows: int, sampling: str, seed: int) -> np.ndarray:
    """Choose candidates for a bank.

    Args:
        findings: of each candidate.
        rows: how many to choose; all candidates when there are no more.
        sampling: ``proportional``, ``uniform`` or ``stratified``.
        seed: the choice is a function of the arguments alone.

    Returns:
        Numbers of the chosen candidates, ascending, int64 [min(rows, candidates)].
    """
    assert sampling in ("proportional", "uniform", "stratified"), sampling
    if rows >= len(findings):
        return np.arange(len(findings))
    members: dict[Hashable, list[int]] = defaultdict(list)
    for number, names in enumerate(findings):
        for name in [tuple(sorted(names))] if sampling == "stratified" else names or [""]:
            members[name].append(number)
    # Rarest first; the first candidate breaks ties, so that the order is that of the data, not of names.
    classes = [np.array(numbers) for numbers in sorted(members.values(), key=lambda m: (len(m), m[0]))]
    sizes = np.array([len(numbers) for numbers in classes])
    generator = np.random.default_rng(seed)
    chosen = np.zeros(len(findings), np.bool_)
    if sampling == "stratified" and rows >= len(classes):
        _draw(classes, np.ones_like(sizes), chosen, generator)
        sizes = sizes - 1
    while chosen.sum() < rows:
        left = np.array([np.count_nonzero(~chosen[numbers]) for numbers in classes])
        weights = np.where(left > 0, 1 if sampling == "uniform" else sizes, 0)
        _draw(classes, _allot(rows - int(chosen.sum()), weights), chosen, generator)
    return np.flatnonzero(chosen)


def k_center(vectors: Callable[[], Iterable[torch.Tensor]], count: int, rows: int, seed: int) -> np.ndarray:
    """Rows that cover the rest: each is the farthest from all chosen before (Gonzalez 1985, within twice the optimum).

    Args:
        vectors: called for every pass over the candidates, gives them in blocks, float32 [n, D].
        count: number of candidates.
        rows: how many to choose; as many passes are made.
        seed: of the first one.

    Returns:
        Numbers of the chosen candidates, ascending, int64 [min(rows, count)].
    """
    distance = torch.full((count,), torch.inf)
    chosen = [int(np.random.default_rng(seed).integers(count))]
    while len(chosen) < min(rows, count):
        centre, start = _nth(vectors(), chosen[-1]), 0
        for block in vectors():
            part = distance[start : start + len(block)]
            torch.minimum(part, (block - centre).square().sum(1), out=part)
            start += len(block)
        distance[chosen] = -1.0  # a twin of a chosen row has distance 0, too
        chosen.append(int(distance.argmax()))
    return np.sort(np.array(chosen[:rows], np.int64))


def _nth(blocks: Iterable[torch.Tensor], number: int) -> torch.Tensor:
    for block in blocks:
        if number < len(block):
            return block[number]
        number -= len(block)
    raise IndexError(number)


def _draw(classes: list[np.ndarray], quotas: np.ndarray, chosen: np.ndarray, generator: np.random.Generator) -> None:
    """Mark up to the quota of each class's candidates as chosen."""
    for numbers, quota in zip(classes, quotas, strict=True):
        free = numbers[~chosen[numbers]]
        chosen[generator.permutation(free)[:quota]] = True


def _allot(draws: int, weights: np.ndarray) -> np.ndarray:
    """Whole numbers that add up to ``draws``, in proportion to the weights (largest remainder; ties to the first)."""
    exact = draws * weights / weights.sum()
    quotas = np.floor(exact).astype(np.int64)
    quotas[np.argsort(quotas - exact, kind="stable")[: draws - quotas.sum()]] += 1
    return quotas
