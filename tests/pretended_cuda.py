"""A pretended CUDA device: the CPU computes, and every tensor's storage has a device of its own, ``cpu`` or ``cuda``.

The program under test runs for real. What would fail on a GPU fails here: an operator whose tensors lie on different
devices, ``numpy`` of a tensor on the GPU, a CPU generator for a tensor on the GPU. What makes the host wait for the GPU
is counted by the line that causes it: reads, and uploads without ``non_blocking``. Storages that no one placed (made
inside an operator) follow the tensors they meet.
"""

import sys
import traceback
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from amrg import distributed

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
_MOVES = {"aten::copy_", "aten::_to_copy", "aten::lift_fresh", "aten::set_", "aten::_copy_from"}
_READS = {"aten::_local_scalar_dense", "aten::is_nonzero", "aten::equal", "aten::nonzero", "aten::masked_select",
          "aten::bincount"}  # fmt: skip
_FACTORIES = {torch.tensor, torch.as_tensor, torch.zeros, torch.ones, torch.empty, torch.full, torch.arange, torch.rand,
              torch.randn, torch.randint, torch.randperm, torch.linspace, torch.from_numpy}  # fmt: skip
_ROOT = Path(__file__).resolve().parent.parent


class MixedDevicesError(RuntimeError):
    """Tensors on different devices met in one operator."""


class PretendedCuda:
    """Context in which ``amrg.distributed.local_device`` is the pretended GPU.

    Attributes:
        syncs: reads from the GPU, and results whose size depends on its values, by file, line and function of this
            repository.
        uploads: copies to the GPU that wait for it, in the same way.
    """

    def __init__(self) -> None:
        self.syncs: Counter[str] = Counter()
        self.uploads: Counter[str] = Counter()
        # Storages are kept, so that a new one never has the address of an old one.
        self._placed: dict[int, tuple[torch.UntypedStorage, torch.device]] = {}
        self._modes = (_Dispatch(self), _Function(self))

    def __enter__(self) -> "PretendedCuda":
        self._real = distributed.local_device, torch.nn.Module.to, torch.autocast, torch.cuda._lazy_init
        distributed.local_device = lambda: CUDA
        torch.nn.Module.to = _module_to(self, torch.nn.Module.to)
        torch.autocast = _CpuAutocast
        torch.cuda._lazy_init = lambda: None
        for mode in self._modes:
            mode.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        for mode in reversed(self._modes):
            mode.__exit__(*error)
        distributed.local_device, torch.nn.Module.to, torch.autocast, torch.cuda._lazy_init = self._real

    def place(self, tensor: torch.Tensor, device: torch.device) -> None:
        """Put a tensor's storage on a device."""
        if tensor.layout == torch.strided and tensor.device.type != "meta":
            storage = tensor.untyped_storage()
            self._placed[storage._cdata] = (storage, device)

    def device_of(self, tensor: torch.Tensor) -> torch.device | None:
        """Device on which a tensor's storage was put; None if nobody did."""
        if tensor.layout != torch.strided or torch.Tensor.device.__get__(tensor).type == "meta":
            return None
        placed = self._placed.get(tensor.untyped_storage()._cdata)
        return None if placed is None else placed[1]

    def sync(self) -> None:
        """Count a read."""
        self.syncs[_caller()] += 1

    def upload(self) -> None:
        """Count a copy to the GPU that waits for it."""
        self.uploads[_caller()] += 1

    def move(self, tensor: torch.Tensor, device: torch.device, non_blocking: bool = False) -> torch.Tensor:
        """Copy a tensor to a device; itself if it is there."""
        if (self.device_of(tensor) or CPU).type == device.type:
            self.place(tensor, device)
            return tensor
        if device.type == "cpu":
            self.sync()
        elif not non_blocking:
            self.upload()
        moved = tensor.clone()
        self.place(moved, device)
        return moved


def _module_to(pretended: PretendedCuda, real: Any) -> Any:
    def to(self: torch.nn.Module, *args: Any, **kwargs: Any) -> torch.nn.Module:
        devices = [device for value in (*args, *kwargs.values()) if (device := _as_device(value)) is not None]
        dtypes = [value for value in (*args, *kwargs.values()) if isinstance(value, torch.dtype)]
        if not devices:
            return real(self, *args, **kwargs)
        if dtypes:
            real(self, *dtypes)
        for module in self.modules():
            for tensor in (*module._parameters.values(), *module._buffers.values()):
                if tensor is not None:
                    pretended.place(tensor, devices[0])
        return self

    return to


class _CpuAutocast(torch.autocast):
    """Autocast of the CPU under the name of the pretended device."""

    def __init__(self, device_type: str, *args: Any, **kwargs: Any) -> None:
        super().__init__("cpu", *args, **kwargs)


class _Dispatch(TorchDispatchMode):
    """Checks the devices of every operator and places what it makes."""

    def __init__(self, pretended: PretendedCuda) -> None:
        super().__init__()
        self.pretended = pretended

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, pretended = kwargs or {}, self.pretended
        name = func._schema.name
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        known = [(pretended.device_of(t), t) for t in inputs]
        on_cuda = any(device == CUDA for device, _ in known)
        # A number on the CPU may meet anything, and indices are copied where they are needed.
        vectors = [t for device, t in known if device == CPU and t.dim() and not name.startswith("aten::index")]
        if on_cuda and vectors and name not in _MOVES:
            shapes = ", ".join(f"{device or '?'}{[*t.shape]}" for device, t in known)
            raise MixedDevicesError(f"{name}: {shapes} at {_caller()}")
        if on_cuda and (name in _READS or name.startswith("aten::_unique")):
            pretended.sync()
        if on_cuda and name.startswith("aten::index"):
            indices = [leaf for leaf in tree_leaves(args[1]) if isinstance(leaf, torch.Tensor)]
            if any(index.dtype == torch.bool for index in indices):
                pretended.sync()
            elif any(pretended.device_of(index) == CPU and index.dim() for index in indices):
                pretended.upload()
        if name == "aten::copy_":
            target, source = known[0][0], known[1][0]
            if (target, source) == (CPU, CUDA):
                pretended.sync()
            elif (target, source) == (CUDA, CPU) and True not in (kwargs.get("non_blocking"), *args[2:]):
                pretended.upload()
        out = func(*args, **kwargs)
        old = {t.untyped_storage()._cdata for t in inputs if t.layout == torch.strided}
        for made in tree_leaves(out):
            strided = isinstance(made, torch.Tensor) and made.layout == torch.strided
            if on_cuda and strided and made.untyped_storage()._cdata not in old:
                pretended.place(made, CUDA)
        return out


class _Function(TorchFunctionMode):
    """Answers what a tensor says of its device, and moves it."""

    def __init__(self, pretended: PretendedCuda) -> None:
        super().__init__()
        self.pretended = pretended

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, pretended = dict(kwargs or {}), self.pretended
        first = args[0] if args and isinstance(args[0], torch.Tensor) else None
        if func == torch.Tensor.device.__get__:
            # ZeRO 3 compares it with the accelerator that DeepSpeed has found, which is the CPU.
            asks_zero3 = sys._getframe(1).f_code.co_filename.endswith("zero/partition_parameters.py")
            return CUDA if pretended.device_of(args[0]) == CUDA and not asks_zero3 else func(*args)
        if func == torch.Tensor.is_cuda.__get__:
            return pretended.device_of(args[0]) == CUDA
        if func == torch.Tensor.is_cpu.__get__:
            return pretended.device_of(args[0]) != CUDA
        if func in (torch.Tensor.numpy, torch.Tensor.__array__) and pretended.device_of(args[0]) == CUDA:
            raise TypeError(f"can't convert cuda:0 device type tensor to numpy at {_caller()}")
        if func is torch.Tensor.pin_memory:
            return args[0]
        if func is torch.Tensor.tolist and first is not None and first.dim() and pretended.device_of(first) == CUDA:
            pretended.sync()
        if func is torch.Tensor.cpu:
            return pretended.move(args[0], CPU)
        if func is torch.Tensor.cuda:
            return pretended.move(args[0], CUDA, kwargs.get("non_blocking", False))
        if func is torch.Tensor.to and first is not None:
            return self._to(first, args[1:], kwargs)
        if func is torch.stack and pretended.device_of(args[0][0]) != CUDA:  # autocast of a GPU does not see it
            with torch.amp.autocast_mode.autocast("cpu", enabled=False):
                return func(*args, **kwargs)
        if func is torch.nn.functional.scaled_dot_product_attention:  # it makes masks of its own inside
            with torch._C.DisableTorchFunction():
                return func(*args, **kwargs)
        device = _as_device(kwargs.get("device"))
        if device is not None and device.type == "cuda":
            if kwargs.get("generator") is not None:
                raise RuntimeError(f"Expected a 'cuda' device type for generator but found 'cpu' at {_caller()}")
            kwargs["device"] = CPU
            if func in (torch.tensor, torch.as_tensor):
                pretended.upload()
        out = func(*args, **kwargs)
        if device is not None or func in _FACTORIES:
            for made in tree_leaves(out):
                if isinstance(made, torch.Tensor) and made.device.type != "meta":
                    pretended.place(made, device or CPU)
        return out

    def _to(self, tensor: torch.Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
        values = [*args, *(kwargs.get(name) for name in ("device", "dtype"))]
        device = next((d for value in values if (d := _as_device(value)) is not None), None)
        dtype = next((value for value in values if isinstance(value, torch.dtype)), None)
        for value in values:
            if isinstance(value, torch.Tensor):
                device, dtype = self.pretended.device_of(value) or CPU, value.dtype
        if dtype is not None and dtype != tensor.dtype:
            tensor = tensor.type(dtype)
        if device is None or device.type == "meta":
            return tensor
        return self.pretended.move(tensor, device, kwargs.get("non_blocking", False))


def _as_device(value: object) -> torch.device | None:
    if isinstance(value, torch.device) or (isinstance(value, str) and value.split(":")[0] in ("cpu", "cuda", "meta")):
        device = torch.device(value)
        return CUDA if device.type == "cpu" and _inside("deepspeed") else device
    return None


def _inside(package: str) -> bool:
    """Whether a function of a package asks: DeepSpeed takes this machine for one without a GPU."""
    frame: FrameType | None = sys._getframe(3)
    for _ in range(5):
        if frame is None:
            return False
        if f"/{package}/" in frame.f_code.co_filename:
            return True
        frame = frame.f_back
    return False


def _caller() -> str:
    """File, line and function of this repository that is at work."""
    for frame in reversed(traceback.extract_stack()):
        path = Path(frame.filename).resolve()
        if path.is_relative_to(_ROOT) and "site-packages" not in path.parts and path != Path(__file__).resolve():
            return f"{path.relative_to(_ROOT)}:{frame.lineno} {frame.name}"
    return "elsewhere"
