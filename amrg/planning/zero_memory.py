"""Bytes on one device under ZeRO, by part, for DeepSpeed 0.18–0.19; tests compare them with measured ones.

All counts are of numbers, not bytes, unless a name says so.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import nn

from amrg.errors import UserError
from amrg.models.tensor_parallel import partition_of
from amrg.planning.meta_models import Base

#: DeepSpeed's defaults.
_BUCKET, _PERSISTENT, _LIVE, _PREFETCH = 500_000_000, 100_000, 1_000_000_000, 50_000_000

#: Bytes that the first rank's host holds of a trained number while a checkpoint is written: weight and two moments.
CHECKPOINT = 12

#: Bytes of a quantised number with its scales: LLM.int8 (arXiv:2208.07339) has one scale a row, which is next to
#: nothing; NF4 with double quantisation takes 4.127 bits (arXiv:2305.14314, section 3).
_QUANTISED = {"int8": 1.0, "nf4": 4.127 / 8}


@dataclass(frozen=True)
class ZeroSettings:
    """Settings of a DeepSpeed JSON that decide about memory.

    Attributes:
        stage: the ZeRO stage.
        element: bytes of a weight and of a gradient: 4, or 2 where the file enables DeepSpeed's own bf16 or fp16.
        bucket: numbers of a communication buffer.
        persistent: a parameter of at most this many numbers is never partitioned (stage 3).
        live: numbers of gathered parameters at a time (stage 3).
        offload_weights, offload_optimizer: where they are offloaded to (``cpu``, ``nvme`` or None).
        accumulation: micro-batches per step.
        micro: samples per micro-batch.
    """

    stage: int
    element: int
    bucket: int
    persistent: int
    live: int
    offload_weights: str | None
    offload_optimizer: str | None
    accumulation: int
    micro: int

    @classmethod
    def read(cls, resolved: dict[str, Any]) -> "ZeroSettings":
        """Read the result of ``deepspeed_config.resolve_ds_config``."""
        zero = resolved.get("zero_optimization", {})
        halves = any((resolved.get(name) or {}).get("enabled") for name in ("bf16", "bfloat16", "fp16"))

        def place(name: str) -> str | None:
            device = (zero.get(name) or {}).get("device", "none")
            return None if device == "none" else str(device)

        stage = int(zero.get("stage", 0))
        return cls(
            stage,
            2 if halves else 4,
            int(zero.get("reduce_bucket_size", _BUCKET)),
            int(zero.get("stage3_param_persistence_threshold", _PERSISTENT)),
            int(zero.get("stage3_max_live_parameters", _LIVE))
            + int(zero.get("stage3_prefetch_bucket_size", _PREFETCH)),
            place("offload_param") if stage == 3 else None,
            place("offload_optimizer") if stage else None,
            resolved["gradient_accumulation_steps"],
            resolved["train_micro_batch_size_per_gpu"],
        )


@dataclass(frozen=True)
class ParameterCounts:
    """Sizes of a model's parameters.

    Attributes:
        trained, frozen: numbers of each parameter, in the order of the model (trained: matrices, then vectors, as the
            optimiser groups them).
        frozen_bytes: of all frozen parameters, as they are kept outside DeepSpeed's bf16.
        buffer_bytes: of persistent and other buffers but the banks.
        saved: trained numbers of all ranks that share the model, as checkpoints hold them.
    """

    trained: tuple[tuple[int, ...], ...]
    frozen: tuple[int, ...]
    frozen_bytes: float
    buffer_bytes: int
    saved: int

    @property
    def trainable(self) -> int:
        """Number of trained weights."""
        return sum(map(sum, self.trained))

    @property
    def total(self) -> int:
        """Number of all weights."""
        return self.trainable + sum(self.frozen)

    def frozen_size(self, element: int) -> float:
        """Bytes of a frozen number; DeepSpeed's own bf16 (``element`` 2) makes all of them 2."""
        return 2 if element == 2 else self.frozen_bytes / max(sum(self.frozen), 1)


def count_parameters(model: nn.Module, base: Base) -> ParameterCounts:
    """Sizes of a model's parameters; the frozen ones of its decoder are kept as ``base`` says."""
    trained: list[nn.Parameter] = [p for p in model.parameters() if p.requires_grad]
    frozen = [(name, p) for name, p in model.named_parameters() if not p.requires_grad]
    quantised = _quantised(model) if base in _QUANTISED else set()
    frozen_bytes = sum(p.numel() * (_QUANTISED[base] if id(p) in quantised else p.itemsize) for _, p in frozen)
    buffers = sum(b.nbytes for name, b in model.named_buffers() if not name.rpartition(".")[2].startswith("memory"))
    groups = ([p.numel() for p in trained if p.ndim >= 2], [p.numel() for p in trained if p.ndim < 2])
    return ParameterCounts(
        tuple(tuple(group) for group in groups if group),
        tuple(p.numel() for _, p in frozen),
        frozen_bytes,
        buffers,
        sum(p.numel() * (1 if (part := partition_of(p)) is None else part.groups.size) for p in trained),
    )


def _quantised(model: nn.Module) -> set[int]:
    """Frozen matrices inside the decoder's layers: neither embeddings nor the output layer."""
    decoder: Any = getattr(model, "decoder", None)
    if decoder is None:
        return set()
    output = decoder.get_output_embeddings()
    layers = [m for m in decoder.modules() if isinstance(m, nn.Linear) and m is not output]
    return {id(m.weight) for m in layers if not m.weight.requires_grad}


@dataclass(frozen=True)
class MemoryUse:
    """Bytes of one part: on the device, and on the host (memory or NVMe) where it was offloaded."""

    device: float
    host: float = 0.0


def zero_memory_per_rank(weights: ParameterCounts, zero: ZeroSettings, ranks: int) -> dict[str, MemoryUse]:
    """Weights, gradients, optimiser and communication buffers of one rank, the fullest one.

    Raises:
        UserError: a combination that DeepSpeed cannot train.
    """
    p, trainable = zero.element, weights.trainable
    share = sum(_padded(sum(group), ranks) // ranks for group in weights.trained)
    optimiser = 8 * trainable if zero.stage == 0 and p == 4 else 12 * (trainable if zero.stage == 0 else share)
    if zero.stage == 3:
        return _partitioned(weights, zero, ranks, optimiser)
    gradients, buffers = _unpartitioned(weights, zero, ranks)
    return {
        "weights": MemoryUse(trainable * p + weights.frozen_size(p) * sum(weights.frozen) + weights.buffer_bytes),
        "gradients": MemoryUse(gradients) if not zero.offload_optimizer else MemoryUse(0, share * 4),
        "optimiser": _placed(optimiser, zero.offload_optimizer),
        "buffers": MemoryUse(buffers),
    }


def _partitioned(weights: ParameterCounts, zero: ZeroSettings, ranks: int, optimiser: float) -> dict[str, MemoryUse]:
    """ZeRO 3: a share of each parameter, small parameters in full, and others while they are gathered."""
    p, f = zero.element, weights.frozen_size(zero.element)
    sizes = [(size, p) for group in weights.trained for size in group] + [(size, f) for size in weights.frozen]
    shares = sum(-(-size // ranks) * element for size, element in sizes)
    persistent = sum(size * element for size, element in sizes if size <= zero.persistent)
    passing = [(size, element) for size, element in sizes if size > zero.persistent]
    numbers = sum(size for size, _ in passing)
    alone = ranks == 1 and not zero.offload_weights
    gathered = 0.0 if alone else sum(s * e for s, e in passing) * min(1.0, zero.live / max(numbers, 1))
    gradients = sum(-(-size // ranks) for group in weights.trained for size in group) * p
    stay = persistent + weights.buffer_bytes
    return {
        "weights": MemoryUse(stay, shares) if zero.offload_weights else MemoryUse(stay + shares),
        # Offloaded, they lie on the host twice: as they came, and in float32 for the optimiser there.
        "gradients": MemoryUse(0, gradients * (1 + 4 / p)) if zero.offload_optimizer else MemoryUse(gradients),
        "optimiser": _placed(optimiser, zero.offload_optimizer),
        "buffers": MemoryUse(zero.bucket * p + gathered),
    }


def _placed(size: float, place: str | None) -> MemoryUse:
    return MemoryUse(0, size) if place else MemoryUse(size)


def _unpartitioned(weights: ParameterCounts, zero: ZeroSettings, ranks: int) -> tuple[float, float]:
    """Gradients kept and buffers, bytes, of the stages whose weights are replicated."""
    p, trainable = zero.element, weights.trainable
    bucket = min(trainable, zero.bucket) * p
    if zero.stage == 0:
        return trainable * p, (bucket if ranks > 1 else 0) + (4 * trainable if p == 2 else 0)
    if zero.stage == 1 and zero.accumulation > 1:
        return trainable * p, bucket
    return sum(_max_owned_gradients(group, ranks) for group in weights.trained) * p, bucket


def _max_owned_gradients(group: Iterable[int], ranks: int) -> int:
    """Gradients on the fullest rank, in numbers: ZeRO 1 and 2 keep a full gradient if a rank owns any part of it."""
    sizes = tuple(group)
    share = _padded(sum(sizes), ranks) // ranks
    kept, start = [0] * ranks, 0
    for size in sizes:
        for rank in range(start // share, (start + size - 1) // share + 1):
            kept[rank] += size
        start += size
    return max(kept)


def _padded(size: int, ranks: int) -> int:
    """Flat groups are filled up to a multiple of twice the ranks."""
    return -(-size // (2 * ranks)) * 2 * ranks


def check_zero_with_base(zero: ZeroSettings, base: Base) -> None:
    """Raise UserError if the JSON cannot train with a quantised base."""
    if base in _QUANTISED and (zero.stage == 3 or zero.element == 2):
        raise UserError(f"a {base} base is planned for ZeRO 0 to 2 without DeepSpeed's own bf16 or fp16")
