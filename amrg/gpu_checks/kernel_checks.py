"""Checks of the retrieval's back ends: against float64, random bits, repeatability, speed.

Shape legend: M queries, N memory rows, D width.
"""

import platform
import statistics
import time
from collections.abc import Callable
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor

from amrg.gpu_checks.result import StageResult
from amrg.kernels import hopfield_retrieve, quantize_rows
from amrg.kernels.hopfield import backends, blockwise, launch_configs
from amrg.kernels.hopfield.reference import (
    Operands,
    Outputs,
    dropout_keep_mask,
    reference_retrieve,
    softmax_delta,
)
from amrg.planning.devices import DEVICES

#: Relative errors that half-precision products may have, of outputs and of gradients.
OUTPUT_TOLERANCE, GRADIENT_TOLERANCE = 2e-2, 5e-2
_SEED = 2**40 + 11
_REPEATS = 20


def check_environment(device: torch.device) -> StageResult:
    """Report versions, the card, and the back end that a training step of the paper's size takes."""
    row: dict[str, Any] = {"torch": torch.__version__, "cuda": torch.version.cuda, "python": platform.python_version()}
    if device.type != "cuda":
        return StageResult(f"torch {torch.__version__}, no GPU", [row])
    import triton

    from amrg.kernels.hopfield.triton_backend import TRITON_VERSION

    card = torch.cuda.get_device_properties(device)
    capability = (card.major, card.minor)
    row |= {
        "triton": triton.__version__, "card": card.name, "capability": f"sm_{card.major}{card.minor}",
        "multiprocessors": card.multi_processor_count, "memory_gb": round(card.total_memory / 1e9),
        "shared_kib": card.shared_memory_per_block_optin // 1024,  # type: ignore[attr-defined]
        "native_bfloat16": torch.cuda.is_bf16_supported(including_emulation=False),
        "devices": torch.cuda.device_count(),
    }  # fmt: skip
    name, why = backends.choose_backend(
        random_operands(672, 7014, 768, torch.bfloat16, device), capability, TRITON_VERSION
    )
    row["back_end"] = f"{name} ({why})"
    failures = [] if row["native_bfloat16"] else [f"{card.name} emulates bfloat16: use float16 with zero1.json"]
    return StageResult(f"{card.name}, Triton {triton.__version__}: {row['back_end']}", [row], failures)


def random_operands(
    M: int, N: int, D: int, dtype: torch.dtype, device: torch.device, *, grouped: bool = False, dropout: float = 0.0
) -> Operands:
    """Random operands, the same on every device; int8 rows have a scale."""
    generator = torch.Generator().manual_seed(0)
    queries = torch.randn(M, D, generator=generator) * 2 / D**0.5
    rows = torch.nn.functional.layer_norm(torch.randn(N, D, generator=generator), (D,))
    groups = [torch.randint(-1, 5, (n,), generator=generator) for n in (M, N)] if grouped else [None, None]
    rows, scale = quantize_rows(rows) if dtype == torch.int8 else (rows.to(dtype), None)
    queries = queries.to(torch.bfloat16 if dtype == torch.int8 else dtype)
    seed = torch.tensor(_SEED) if dropout else None
    tensors = [queries, rows, scale, *groups, seed]
    return Operands._make([*(None if t is None else t.to(device) for t in tensors), dropout])


def _back_ends(given: Operands) -> dict[str, Callable[[], Any]]:
    """Back ends that serve these operands on their device, as constructors of an object with forward and backward."""
    found: dict[str, Callable[[], Any]] = {"blockwise": lambda: _Blockwise(given)}
    if given.queries.is_cuda:
        from amrg.kernels.hopfield.triton_backend import TRITON_VERSION, FusedRetrieval
        from amrg.kernels.hopfield.two_products import TwoProductsRetrieval

        generation = launch_configs.gpu_generation(torch.cuda.get_device_capability(given.queries.device))
        if generation is not None and launch_configs.MIN_TRITON[80] <= TRITON_VERSION:
            found["two_products"] = lambda: TwoProductsRetrieval(given)
            if (
                launch_configs.MIN_TRITON[generation] <= TRITON_VERSION
                and given.memory.shape[1] <= launch_configs.WIDTHS[-1]
            ):
                found["fused"] = lambda: FusedRetrieval(given)
    return found


class _Blockwise:
    """The blockwise back end with the interface of the others."""

    def __init__(self, given: Operands) -> None:
        self.operands = given

    def forward(self, top_k: int, return_entropy: bool) -> Outputs:
        return blockwise.forward(self.operands, top_k, return_entropy, False)

    def backward(
        self, do: Tensor, lse: Tensor, delta: Tensor, dmass: Tensor, needs_memory_grad: bool
    ) -> tuple[Tensor, Tensor]:
        return blockwise.backward(self.operands, do, lse, delta, dmass, do.new_empty(0), needs_memory_grad)


def check_kernels(device: torch.device) -> StageResult:
    """Compare forward and gradients of every back end with float64: all storages and widths, mask, dropout, top-k."""
    full = device.type == "cuda"
    shapes = ((84, 7014), (672, 1000), (1, 1)) if full else ((9, 70),)
    rows, failures = [], []
    storages = (torch.bfloat16, torch.float16, torch.int8)
    for D, dtype, (M, N) in product((64, 384, 768) if full else (64,), storages, shapes):
        given = random_operands(M, N, D, dtype, device, grouped=True, dropout=0.1)
        truth, truth_grads = _truth(given)
        for name, build in _back_ends(given).items():
            row: dict[str, Any] = {"back_end": name, "storage": str(dtype)[6:], "M": M, "N": N, "D": D}
            try:
                row |= _errors(build(), given, truth, truth_grads)
            except Exception as error:  # whatever a compiler or a launch raises is what the check is for
                row["error"] = f"{type(error).__name__}: {str(error)[:200]}"
            rows.append(row)
            if "error" in row or row["output"] > OUTPUT_TOLERANCE or row["gradient"] > GRADIENT_TOLERANCE:
                failures.append(f"{name}, {row['storage']}, M {M}, N {N}, D {D}: {row.get('error', row)}")
    worst = max((row["output"] for row in rows if "output" in row), default=float("nan"))
    return StageResult(f"{len(rows) - len(failures)} of {len(rows)} cases agree; worst {worst:.1e}", rows, failures)


def _truth(given: Operands) -> tuple[tuple[Tensor, ...], list[Tensor]]:
    """Outputs in float64 on the CPU, and the gradients of their sum in queries and (floating) memory."""
    queries, memory, scale, query_group, memory_group, seed, dropout = (
        t.cpu() if isinstance(t, Tensor) else t for t in given
    )
    inputs = [queries.double().requires_grad_()]
    if scale is None:
        inputs.append(memory.double().requires_grad_())
    found = reference_retrieve(
        inputs[0], memory if scale is not None else inputs[1], memory_scale=scale, query_group=query_group,
        memory_group=memory_group, dropout=dropout, seed=0 if seed is None else seed, top_k=5,
    )  # fmt: skip
    grads = torch.autograd.grad(found.retrieved_MD.sum() + found.mass_M.sum(), inputs)
    return (found.retrieved_MD.detach(), found.mass_M.detach(), found.entropy_M, found.weights_MK), list(grads)


def _errors(call: Any, given: Operands, truth: tuple[Tensor, ...], truth_grads: list[Tensor]) -> dict[str, float]:
    o, lse, mass, entropy, weights, *_ = call.forward(5, True)
    do, ones, zeros = torch.ones_like(o), torch.ones_like(lse), torch.zeros_like(lse)
    delta = softmax_delta(do, zeros, ones, o, lse, mass)
    grads = call.backward(do, lse, delta, ones, len(truth_grads) > 1)
    outputs = (o, mass, entropy, weights)
    return {
        "output": max(_relative(found, true) for found, true in zip(outputs, truth, strict=True)),
        "gradient": max(_relative(found, true) for found, true in zip(grads, truth_grads, strict=False)),
    }


def _relative(found: Tensor, truth: Tensor) -> float:
    return float((found.double().cpu() - truth).norm() / truth.norm().clamp_min(1e-9))


def check_random_bits(device: torch.device) -> StageResult:
    """Check that the device drops what the CPU drops, and that the same call gives the same bits."""
    seed = torch.tensor(_SEED)
    masks = [dropout_keep_mask(s, (0, 70), (0, 300), 0.3).cpu() for s in (seed, seed.to(device))]
    given = random_operands(70, 300, 64, torch.bfloat16, device, dropout=0.3)
    first, again = (hopfield_retrieve(given.queries, given.memory, dropout=0.3, seed=given.seed) for _ in range(2))
    reference = reference_retrieve(given.queries.cpu(), given.memory.cpu(), dropout=0.3, seed=_SEED)
    checks = {
        "the same entries are dropped": torch.equal(*masks),
        "two calls give the same bits": torch.equal(first.retrieved_MD, again.retrieved_MD),
        "the mass is that of the formula": _relative(first.mass_M, reference.mass_M) < OUTPUT_TOLERANCE,
    }
    failures = [name for name, holds in checks.items() if not holds]
    return StageResult(
        "; ".join(f"{name}: {'yes' if holds else 'NO'}" for name, holds in checks.items()), [checks], failures
    )


def check_forward_speed(device: torch.device) -> StageResult:
    """Time the forward of the back ends on the same operands, with the share of the card's published peak."""
    full = device.type == "cuda"
    shapes = (
        (84, 7014, 768), (672, 7014, 768), (1344, 7014, 768), (5376, 7014, 768), (672, 7014, 384), (64, 1_000_000, 768),
        (672, 1_000_000, 768),
    )  # fmt: skip
    peak = _peak(device)
    rows, failures, fastest = [], [], []
    for M, N, D in shapes if full else ((16, 300, 64),):
        given = random_operands(M, min(N, 20_000), D, torch.bfloat16, device)
        if len(given.memory) < N:
            given = given._replace(memory=given.memory.repeat(N // len(given.memory), 1))
        seconds: dict[str, float] = {}
        for name, build in _back_ends(given).items():
            row: dict[str, Any] = {"back_end": name, "M": M, "N": N, "D": D}
            try:
                seconds[name] = _seconds(partial(_forward, build), device)
                flops = 4 * M * N * D / seconds[name]
                row |= {"us": seconds[name] * 1e6, "tflops": flops / 1e12, "peak_share": peak and flops / peak}
            except Exception as error:  # as in `check_kernels`
                row["error"] = f"{type(error).__name__}: {str(error)[:200]}"
                failures.append(f"{name}, M {M}, N {N}, D {D}: {row['error']}")
            rows.append(row)
        best = min(seconds, key=seconds.__getitem__)
        fastest.append(f"M {M}, N {N:,}, D {D}: {best} {seconds[best] * 1e6:.0f} µs")
    return StageResult("; ".join(fastest), rows, failures)


def _forward(build: Callable[[], Any]) -> None:
    build().forward(0, False)


def _seconds(function: Callable[[], object], device: torch.device) -> float:
    """Median seconds of a call, by CUDA events on a GPU."""
    if device.type != "cuda":
        start = time.perf_counter()
        function()
        return time.perf_counter() - start
    for _ in range(3):
        function()
    times = []
    for _ in range(_REPEATS):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        function()
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end) / 1e3)
    return statistics.median(times)


def _peak(device: torch.device) -> float | None:
    """Published bfloat16 peak of the card, operations per second; None if it is not in ``DEVICES``."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device).lower()
    return next((known.flops["bfloat16"] for key, known in DEVICES.items() if key in name), None)
