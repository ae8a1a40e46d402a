"""The learning rate against hand-computed values."""

import pytest

from amrg.training.schedule import warmup_cosine


def test_warmup_cosine() -> None:
    rates = [warmup_cosine(step, 10, 2, 1.0, 0.1) for step in range(10)]
    assert rates[:3] == pytest.approx([0.5, 1.0, 1.0])
    assert rates[6] == pytest.approx(0.55)  # halfway down
    assert rates == sorted(rates[:2]) + sorted(rates[2:], reverse=True)
    assert warmup_cosine(10, 10, 2, 1.0, 0.1) == pytest.approx(0.1)


def test_no_warmup_starts_at_the_peak() -> None:
    assert warmup_cosine(0, 1, 0, 2.0, 0.0) == 2.0
