"""Marks on the parts of a model, by which a profile of a training step tells where its time went."""

from contextlib import AbstractContextManager
from typing import Any

from torch.autograd.profiler import record_function

REGION_PREFIX = "part of amrg: "  # not `amrg::`, the namespace of our operators
VISION, QFORMER, MEMORY, DECODER, OPTIMISER = "vision", "qformer", "memory", "decoder", "optimiser"


def profile_region(name: str) -> AbstractContextManager[Any]:
    """What runs in the block, and its backward, is counted under this name; costs a microsecond where nobody looks."""
    return record_function(REGION_PREFIX + name)
