"""Memory and operations of one forward and backward, found by running the model on fake tensors.

Fake tensors (shapes, dtypes, autograd and autocast, but no memory) let a 7B model be traced in seconds on a laptop.
"""

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from amrg.planning.meta_models import MetaModel
from amrg.torch_internals import (
    CPU_ATTENTION,
    CPU_ATTENTION_BACKWARD,
    FakeTensorMode,
    TorchDispatchMode,
    tree_leaves,
)


@dataclass(frozen=True)
class Trace:
    """Memory and operations of one micro-batch on one device.

    Attributes:
        saved: bytes that autograd keeps between forward and backward, parameters and banks not counted.
        peak: the most bytes that live at a time, gradients of parameters counted only while they come into being.
        flops: operations of forward and backward.
    """

    saved: float
    peak: float
    flops: float

    @property
    def workspace_bytes(self) -> float:
        """Transient bytes in addition to ``saved``."""
        return max(self.peak - self.saved, 0.0)

    def extrapolate(self, more: "Trace", samples: float) -> "Trace":
        """The line through traces of two samples (this one) and of three (``more``), at any number of samples.

        Not of one and two: a batch of one takes short cuts.
        """

        def line(name: str) -> float:
            two, three = getattr(self, name), getattr(more, name)
            return two + (three - two) * (samples - 2)

        return Trace(line("saved"), line("peak"), line("flops"))


class Tracer:
    """Traces a meta model at any number of samples.

    Args:
        skeleton: the model; its parameters become fake tensors.
        dtype: ``bfloat16`` traces under autocast.
        checkpointing: the decoder's layers are computed again in the backward instead of being kept.
    """

    def __init__(self, skeleton: MetaModel, dtype: str, checkpointing: bool = False) -> None:
        self.skeleton, self.dtype, self._fake = skeleton, dtype, FakeTensorMode(allow_non_fake_inputs=True)
        model = skeleton.model
        if checkpointing:
            checkpoint_layers(model)
        kept = torch.__future__.get_overwrite_module_params_on_conversion()
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        try:
            with self._fake:
                self.model = model.to_empty(device="cpu").train()
        finally:
            torch.__future__.set_overwrite_module_params_on_conversion(kept)

    def trace(self, samples: int) -> Trace:
        """Trace a micro-batch."""
        with self._fake:
            return trace_step(self.skeleton, self.model, samples, self.dtype)

    def cache_bytes(self) -> float:
        """Bytes that generation keeps of one position of one sequence: keys and values of all layers."""
        positions = 8
        self.model.eval()
        with self._fake, torch.no_grad(), engine_autocast(self.dtype):
            size = decoder_cache_bytes(self.model.decoder, positions)
        self.model.train()
        return size / positions

    def flops(self, run: Callable[[Any], Any]) -> float:
        """Operations of ``run(model)``, forwards of the model in use (torch's counter wants gradients nevertheless)."""
        self.model.eval()
        counter = FlopCounterMode(display=False, custom_mapping=_UNCOUNTED)
        with self._fake, engine_autocast(self.dtype), counter:
            run(self.model)
        self.model.train()
        return float(counter.get_total_flops())

    def generation_flops(self, prompt: int) -> tuple[float, float]:
        """Operations for one sequence: of reading ``prompt`` positions, and of a token that is written after them."""

        def read(model: Any, positions: int = prompt, **more: Any) -> Any:
            width = model.decoder.get_input_embeddings().embedding_dim
            embeddings = torch.zeros(2, positions, width)
            return model.decoder(inputs_embeds=embeddings, use_cache=True, logits_to_keep=1, **more).cache

        reading = self.flops(read)
        both = self.flops(lambda model: read(model, 1, cache=read(model)))
        return reading / 2, (both - reading) / 2


def decoder_cache_bytes(decoder: Any, positions: int, sequences: int = 1) -> int:
    """Bytes of the cache after a forward of a causal LM."""
    width = decoder.get_input_embeddings().embedding_dim
    cache = decoder(inputs_embeds=torch.zeros(sequences, positions, width), use_cache=True).cache
    return sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)


def checkpoint_layers(model: nn.Module) -> None:
    """Recompute the decoder's layers in the backward."""
    decoder: Any = getattr(model, "decoder", None)
    if decoder is not None:
        decoder.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})


def engine_autocast(dtype: str) -> torch.autocast:
    """Autocast as in the engine."""
    return torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == "bfloat16")


def trace_step(skeleton: MetaModel, model: nn.Module, samples: int, dtype: str) -> Trace:
    """Trace one forward and backward of ``model``, on fake or real tensors."""
    own = {id(tensor.untyped_storage()): tensor.untyped_storage() for tensor in (*model.parameters(), *model.buffers())}
    with torch.no_grad():
        inputs = skeleton.inputs(model, samples)
    saved: dict[int, tuple[int, Tensor]] = {}
    live = _Live()

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if id(storage) not in own and storage not in live.only_here:
            saved[id(storage)] = (storage.nbytes(), tensor)
        return tensor

    with _passing_gradients(model):
        with live:
            with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), engine_autocast(dtype):
                loss = skeleton.loss(model, inputs)
            kept = sum(size for size, _ in saved.values())
            saved.clear()
            loss.backward()
        # Apart from the above: the counter holds on to what would be freed.
        with FlopCounterMode(display=False, custom_mapping=_UNCOUNTED) as counter:
            with engine_autocast(dtype):
                loss = skeleton.loss(model, inputs)
            loss.backward()
    return Trace(float(kept), float(live.peak), float(counter.get_total_flops()))


@contextmanager
def _passing_gradients(model: nn.Module) -> Iterator[None]:
    """Drop gradients of parameters as soon as they are complete: they are counted elsewhere."""

    def drop(parameter: Tensor) -> None:
        parameter.grad = None

    hooks = [p.register_post_accumulate_grad_hook(drop) for p in model.parameters() if p.requires_grad]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


class _Live(TorchDispatchMode):
    """Counts the bytes of all storages made in the block while they live.

    Attributes:
        now, peak: bytes.
        only_here: associations that the CPU's retrieval keeps for the backward and a GPU's computes again; not counted.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: weakref.WeakSet[Any] = weakref.WeakSet()
        self.only_here: weakref.WeakSet[Any] = weakref.WeakSet()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for tensor in tree_leaves((args, kwargs)):
            if isinstance(tensor, Tensor):
                self._known.add(tensor.untyped_storage())  # it was there before, or is counted already
        out = func(*args, **(kwargs or {}))
        if func is torch.ops.amrg.hopfield_forward.default:
            self.only_here.add(out[-1].untyped_storage())
            self._known.add(out[-1].untyped_storage())
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor) and tensor.untyped_storage() not in self._known:
                storage = tensor.untyped_storage()
                self._known.add(storage)
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._free, storage.nbytes()).atexit = False
        return out

    def _free(self, size: int) -> None:
        self.now -= size


def _forward_flops(queries: Any, memory: Any, *_: Any, **__: Any) -> int:
    return 4 * queries[0] * memory[0] * memory[1]  # scores and what they retrieve


def _backward_flops(queries: Any, memory: Any, *_: Any, **__: Any) -> int:
    return 6 * queries[0] * memory[0] * memory[1]  # scores again, their gradient, and that of the queries


#: What torch's counter does not know: retrieval, and attention as it is on CPUs.
_UNCOUNTED = {
    torch.ops.amrg.hopfield_forward: _forward_flops,
    torch.ops.amrg.hopfield_backward: _backward_flops,
    CPU_ATTENTION: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v),
    CPU_ATTENTION_BACKWARD: (lambda grad, q, k, v, *_, **__: sdpa_backward_flop_count(grad, q, k, v)),
}
