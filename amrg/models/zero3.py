"""Weights that ZeRO 3 partitions over the ranks: loading, temporary gathering, and hashing one tensor at a time.

Without ZeRO 3 none of the functions partitions anything. Those that tensor parallelism has split are gathered, too.
"""

import contextlib
import hashlib
import sys
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from transformers.integrations.deepspeed import HfDeepSpeedConfig, unset_hf_deepspeed_config

from amrg.models.tensor_parallel import cut_partition, join_partitions, partition_of

#: The ``zero_optimization`` section of a DeepSpeed JSON of stage 3; None: weights are not partitioned.
Zero3Config = dict[str, Any] | None


@contextlib.contextmanager
def zero3_loading(zero: Zero3Config, dtype: str) -> Iterator[None]:
    """Within the block, ``from_pretrained`` partitions each weight over the ranks, one module at a time.

    Only the first rank reads the values, from memory-mapped files. Every rank must load the same model.

    Args:
        zero: as above.
        dtype: dtype of the weights, ``float32`` or ``bfloat16``.
    """
    if zero is None:
        yield
        return
    precision = {"bf16": {"enabled": True}} if dtype == "bfloat16" else {}
    alive = HfDeepSpeedConfig({"train_micro_batch_size_per_gpu": 1, "zero_optimization": zero, **precision})
    try:
        yield
    finally:
        del alive  # transformers holds only a weak reference
        unset_hf_deepspeed_config()


@contextlib.contextmanager
def gathered_parameters(parameters: Iterable[Tensor], modifier: bool = False) -> Iterator[None]:
    """Within the block, the parameters are complete on every rank. Every rank must call this.

    Args:
        parameters: parameters; those that are not partitioned stay unchanged.
        modifier: the block changes them; the values of the first rank are then copied to all ranks (of split ones each
            rank keeps its part of its own values).
    """
    parameters = list(parameters)
    split = {id(one): one for one in parameters if partition_of(one) is not None}
    partitioned = [parameter for parameter in parameters if hasattr(parameter, "ds_id")]
    with _joined(split.values()):
        if not partitioned:
            yield
            return
        deepspeed: Any = sys.modules["deepspeed"]  # already imported, as it partitioned them
        with deepspeed.zero.GatheredParameters(partitioned, modifier_rank=0 if modifier else None):
            yield


@contextlib.contextmanager
def _joined(parameters: Iterable[Any]) -> Iterator[None]:
    """Within the block, parameters that lie in parts on the ranks are complete on each, in its host's memory."""
    parts = [(parameter, parameter.data) for parameter in parameters]
    for parameter, part in parts:
        parameter.data = join_partitions(parameter, part).cpu()
    try:
        yield
    finally:
        for parameter, part in parts:
            part.copy_(cut_partition(parameter, parameter.data))
            parameter.data = part  # the same memory as before, of which DeepSpeed's buffers consist


def hash_of_weights(weights: Iterable[tuple[str, Tensor]]) -> str:
    """SHA-256 over names, shapes, dtypes and contents, one tensor at a time. Every rank must call this."""
    digest = hashlib.sha256()
    for name, weight in weights:
        with gathered_parameters([weight]):
            digest.update(f"{name} {tuple(weight.shape)} {weight.dtype}\n".encode())
            digest.update(weight.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
