"""Learning rate as a stateless function of the step."""

import math


def warmup_cosine(step: int, total: int, warmup: int, lr: float, min_lr: float) -> float:
    """Linear warm-up to ``lr`` over ``warmup`` steps, then a half cosine that reaches ``min_lr`` at step ``total``.

    Args:
        step: optimiser steps done before this one, 0 … total - 1.
        total: optimiser steps of the whole run.
        warmup: steps of the warm-up; the first step already moves (it uses ``lr / warmup``).
        lr: peak learning rate.
        min_lr: learning rate at the end.
    """
    if step < warmup:
        return lr * (step + 1) / warmup
    progress = (step - warmup) / max(1, total - warmup)
    return min_lr + 0.5 * (lr - min_lr) * (1.0 + math.cos(math.pi * min(1.0, progress)))
