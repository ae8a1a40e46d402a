"""Selection of rows for a bank of limited size.

Every candidate belongs to the classes of its findings (without findings, to a class of its own). Candidates are drawn
without replacement:

``proportional``
    each class gets draws in proportion to its number of candidates, so that the bank has the frequencies of the data
    (as in AM-MRG).
``uniform``
    each class gets the same number of draws; draws that a small class cannot fill go to the others in equal parts.
``stratified``
    the classes are the exact *sets* of findings. Each set gets one draw if there are enough draws, and the rest is
    in proportion to the remaining sizes of the sets, so that rare combinations stay.

Quotas are rounded by largest remainder. A candidate with several findings can be drawn once only, so the classes draw
in order of size, rarest first. Draws that a class cannot fill are distributed again among the classes with candidates
left, until the bank is full.

``k_center_sample`` ignores findings and selects rows that cover the vectors.
"""

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence

import numpy as np
import torch


def sample_bank_rows(findings: Sequence[Sequence[str]], rows: int, sampling: str, seed: int) -> np.ndarray:
    """Choose candidates for a bank.

    Args:
        findings: findings of each candidate.
        rows: number of rows to choose; all candidates are chosen if there are no more.
        sampling: ``proportional``, ``uniform`` or ``stratified``.
        seed: random seed; the result depends on the arguments only.

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
    # Rarest first; ties are broken by the first candidate, so the order follows the data and not the names.
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
        _draw(classes, _quotas(rows - int(chosen.sum()), weights), chosen, generator)
    return np.flatnonzero(chosen)


def k_center_sample(vectors: Callable[[], Iterable[torch.Tensor]], count: int, rows: int, seed: int) -> np.ndarray:
    """Choose rows that cover the rest: each is the farthest from those chosen before (Gonzalez 1985, factor 2).

    Args:
        vectors: returns the candidates in blocks, float32 [n, D]; called once per pass.
        count: number of candidates.
        rows: number of rows to choose, and of passes.
        seed: seed of the first row.

    Returns:
        Numbers of the chosen candidates, ascending, int64 [min(rows, count)].
    """
    distance = torch.full((count,), torch.inf)
    chosen = [int(np.random.default_rng(seed).integers(count))]
    while len(chosen) < min(rows, count):
        center, start = _nth(vectors(), chosen[-1]), 0
        for block in vectors():
            part = distance[start : start + len(block)]
            torch.minimum(part, (block - center).square().sum(1), out=part)
            start += len(block)
        distance[chosen] = -1.0  # a duplicate of a chosen row has distance 0, too
        chosen.append(int(distance.argmax()))
    return np.sort(np.array(chosen[:rows], np.int64))


def _nth(blocks: Iterable[torch.Tensor], number: int) -> torch.Tensor:
    for block in blocks:
        if number < len(block):
            return block[number]
        number -= len(block)
    raise IndexError(number)


def _draw(classes: list[np.ndarray], quotas: np.ndarray, chosen: np.ndarray, generator: np.random.Generator) -> None:
    """Mark up to ``quota`` candidates of each class as chosen."""
    for numbers, quota in zip(classes, quotas, strict=True):
        free = numbers[~chosen[numbers]]
        chosen[generator.permutation(free)[:quota]] = True


def _quotas(draws: int, weights: np.ndarray) -> np.ndarray:
    """Split ``draws`` in proportion to the weights by largest remainder; ties go to the first."""
    exact = draws * weights / weights.sum()
    quotas: np.ndarray = np.floor(exact).astype(np.int64)
    quotas[np.argsort(quotas - exact, kind="stable")[: draws - quotas.sum()]] += 1
    return quotas
