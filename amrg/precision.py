"""Autocast and the precision of matrix products."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

from amrg.distributed import local_device


def autocast(dtype: str) -> contextlib.AbstractContextManager[Any]:
    """Autocast to bfloat16 or float16, or nothing for float32."""
    half = torch.float16 if dtype == "float16" else torch.bfloat16
    return torch.autocast(local_device().type, dtype=half, enabled=dtype != "float32")


@contextlib.contextmanager
def matmul_precision(dtype: str) -> Iterator[None]:
    """Where autocast is to bfloat16, products of what it leaves in float32 may round their factors to it as well.

    Sums stay float32. On CPUs this also chooses oneDNN's products, on some twice as fast with factors unrounded.
    """
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium" if dtype == "bfloat16" else before)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def emulates_bfloat16() -> bool:
    """Return whether this CPU is known to lack instructions for bfloat16, so that float32 is faster."""
    read = getattr(torch.cpu, "get_capabilities", None)  # not in every supported torch
    found = read() if read else {}
    return bool(found) and not any(has for name, has in found.items() if "bf16" in name)
