"""Weights that lie apart on the ranks (ZeRO 3): loaded so, made whole for a moment, hashed one after the other.

On one process, and under the other ZeRO stages, all of this does nothing.
"""

import contextlib
import hashlib
import sys
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from transformers.integrations.deepspeed import HfDeepSpeedConfig, unset_hf_deepspeed_config

#: What ``zero_optimization`` of a DeepSpeed JSON says where its stage is 3; None: weights are loaded whole.
Zero3Config = dict[str, Any] | None


@contextlib.contextmanager
def zero3_loading(zero: Zero3Config, dtype: str) -> Iterator[None]:
    """Within the block ``from_pretrained`` gives each rank its part of each weight, one module after the other.

    Only the first rank reads the values, from memory-mapped files. Every rank must load the same model.

    Args:
        zero: as above.
        dtype: of the weights, ``float32`` or ``bfloat16``.
    """
    if zero is None:
        yield
        return
    precision = {"bf16": {"enabled": True}} if dtype == "bfloat16" else {}
    alive = HfDeepSpeedConfig({"train_micro_batch_size_per_gpu": 1, "zero_optimization": zero, **precision})
    try:
        yield
    finally:
        del alive  # transformers knows it by a weak reference
        unset_hf_deepspeed_config()


@contextlib.contextmanager
def gathered(parameters: Iterable[Tensor], modifier: bool = False) -> Iterator[None]:
    """Within the block the parameters are whole on every rank. Every rank must call this.

    Args:
        parameters: those that are whole anyway stay as they are.
        modifier: the block changes them; what the first rank has then holds for all.
    """
    parted = [parameter for parameter in parameters if hasattr(parameter, "ds_id")]
    if not parted:
        yield
        return
    deepspeed: Any = sys.modules["deepspeed"]  # it has parted them, so it is there; this room does not import it
    with deepspeed.zero.GatheredParameters(parted, modifier_rank=0 if modifier else None):
        yield


def weights_hash(weights: Iterable[tuple[str, Tensor]]) -> str:
    """SHA-256 over names, shapes, dtypes and contents, one tensor at a time. Every rank must call this."""
    digest = hashlib.sha256()
    for name, weight in weights:
        with gathered([weight]):
            digest.update(f"{name} {tuple(weight.shape)} {weight.dtype}\n".encode())
            digest.update(weight.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
