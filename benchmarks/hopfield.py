"""Speed and peak memory of the retrieval beside its rivals, one set-up for all.

    python -m benchmarks.hopfield [--batch 2 6 16] [--rows 7014] [--width 768] [--csv FILE] [--plot FILE]
    python -m benchmarks.hopfield --bank-sizes 10000 100000 1000000

(a) ours, the absorbed form; (b) the published layer, projected per sample (``--hflayers-path PATH`` adds hflayers
itself from a clone of it); (c) projected once and read with ``scaled_dot_product_attention``; (d) for the operator's
forward, the floor: bare matrix products of the same operation count. Module rows time forward and backward. Variants
take turns within every repeat and medians are shown, so that a busy machine disturbs all alike. A speed-up is printed
only if outputs and all gradients agree with ours; peak memory is measured in a fresh process for each variant.
"""

import argparse
import logging
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from amrg.kernels.hopfield.ops import hopfield_retrieve, quantize_rows
from benchmarks import hopfield_baselines
from benchmarks.memory_usage import PeakSampler, in_fresh_process, proc_status_bytes, reset_peak
from benchmarks.report import Row, plot, show, write

QUERIES, HEADS, HEAD_DIM, BETA = 14, 6, 1024, 4.0 / 32  # the paper's sizes; β that keeps gradients away from 0
#: Relative errors of output and gradients that a variant may have: single precision, and half precision on a GPU.
TOLERANCES = {"cpu": (1e-5, 1e-4), "cuda": (2e-2, 5e-2)}
CALLS_PER_EVENT = 20  # GPU: calls between two events, as one call takes about as long as its launch
#: Published dense bfloat16 peak of a card, TFLOP/s, and its memory bandwidth, TB/s, by a part of its name.
CARDS = {
    "A100": (312, 2.039), "A6000": (154.8, 0.768), "L40S": (362, 0.864), "H100": (989, 3.35), "H200": (989, 4.8),
    "B200": (2250, 8.0),
}  # fmt: skip


@dataclass(frozen=True)
class Setting:
    """One shape to time."""

    batch: int
    rows: int
    width: int
    device: str
    hflayers_path: str | None = None


def random_parameters(width: int) -> dict[str, Tensor]:
    """Parameters of the layer by the names of ``HopfieldMemory``, with non-trivial norms and biases."""
    inner = HEADS * HEAD_DIM
    linears = {"q_proj": (inner, width), "k_proj": (inner, width), "v_proj": (inner, width), "out_proj": (width, inner)}
    gains = ("state_norm.weight", "key_gain", "value_gain")
    shifts = ("state_norm.bias", "key_shift", "value_shift")
    return (
        {f"{name}.weight": 0.02 * torch.randn(shape) for name, shape in linears.items()}
        | {f"{name}.bias": 0.1 * torch.randn(shape[0]) for name, shape in linears.items()}
        | {name: 1 + 0.1 * torch.randn(width) for name in gains}
        | {name: 0.1 * torch.randn(width) for name in shifts}
    )


class Case:
    """Parameters of the layer, an input and a bank, and every variant as a function of them."""

    def __init__(self, setting: Setting) -> None:
        torch.manual_seed(0)
        width = setting.width
        self.parameters = {name: p.to(setting.device).requires_grad_() for name, p in random_parameters(width).items()}
        self.x = torch.randn(setting.batch, QUERIES, width, device=setting.device, requires_grad=True)
        memory = functional.layer_norm(torch.randn(setting.rows, width, device=setting.device), (width,))
        self.device = setting.device
        self.memory = memory.bfloat16() if self.device == "cuda" else memory  # the dtype of a bank there
        self.weight = torch.randn_like(self.x)
        forms = {
            "ours": hopfield_baselines.absorbed,
            "published": hopfield_baselines.hflayers_formula,
            "projected once": hopfield_baselines.project_once_sdpa,
        }
        self.variants: dict[str, Callable[[], Tensor]] = {
            name: partial(form, self.parameters, self.x, self.memory, HEADS, BETA) for name, form in forms.items()
        }
        if setting.hflayers_path:
            self._add_hflayers(setting)

    def _add_hflayers(self, setting: Setting) -> None:
        sys.path.insert(0, str(setting.hflayers_path))
        from hflayers import HopfieldLayer

        layer = HopfieldLayer(
            setting.width, hidden_size=HEAD_DIM, num_heads=HEADS, scaling=BETA, quantity=setting.rows, trainable=False
        )
        layer.lookup_weights.data[0] = self.memory.float().cpu()
        p, core = self.parameters, layer.hopfield.association_core
        core.in_proj_weight.data = torch.cat([p[f"{name}_proj.weight"].data for name in "qkv"])
        core.in_proj_bias.data = torch.cat([p[f"{name}_proj.bias"].data for name in "qkv"])
        core.out_proj.load_state_dict({part: p[f"out_proj.{part}"].data for part in ("weight", "bias")})
        layer.to(setting.device)
        for norm, names in (
            ("norm_state_pattern", ("state_norm.weight", "state_norm.bias")),
            ("norm_stored_pattern", ("key_gain", "key_shift")),
            ("norm_pattern_projection", ("value_gain", "value_shift")),
        ):
            module = getattr(layer.hopfield, norm)
            module.weight.data, module.bias.data = (p[name].data for name in names)
        self.variants["hflayers"] = lambda: layer(self.x)

    def step(self, variant: str) -> Tensor:
        """Forward and backward; gradients are left on the parameters."""
        self.x.grad = None
        for parameter in self.parameters.values():
            parameter.grad = None
        with torch.autocast(self.device, torch.bfloat16, enabled=self.device == "cuda"):
            y = self.variants[variant]()
        y.backward(self.weight.to(y.dtype))
        return y.detach()

    def result(self, variant: str) -> tuple[Tensor, dict[str, Tensor]]:
        """Output and the gradients that exist; hflayers holds its own parameters, so only that of the input."""
        y = self.step(variant)
        assert self.x.grad is not None
        grads = {name: p.grad.clone() for name, p in self.parameters.items() if p.grad is not None}
        return y, {"x": self.x.grad.clone(), **grads}


def relative(found: Tensor, truth: Tensor) -> float:
    """Return the relative error in the Frobenius norm."""
    return float((found.double() - truth.double()).norm() / truth.double().norm())


def _seconds(function: Callable[[], object], device: str) -> float:
    """Seconds of one call: on a GPU by CUDA events around several, without the host's clock."""
    if device != "cuda":
        start = time.perf_counter()
        function()
        return time.perf_counter() - start
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(CALLS_PER_EVENT):
        function()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) / 1e3 / CALLS_PER_EVENT


def interleaved(
    variants: Mapping[str, Callable[[], object]], repeats: int, device: str, warm: bool = True
) -> dict[str, float]:
    """Median seconds of each, the variants taking turns."""
    times: dict[str, list[float]] = {name: [] for name in variants}
    for repeat in range(repeats + warm):
        for name, function in variants.items():
            seconds = _seconds(function, device)
            if repeat or not warm:
                times[name].append(seconds)
    return {name: statistics.median(values) for name, values in times.items()}


def extra_memory(setting: Setting, variant: str) -> float:
    """Peak megabytes of one step beyond what the case itself holds; run in a fresh process."""
    # code pages and library buffers of a first call are not the variant's
    Case(replace(setting, batch=1, rows=64, width=32)).step(variant)
    case = Case(setting)
    if setting.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        case.step(variant)
        return (torch.cuda.max_memory_allocated() - before) / 1e6
    reset_peak()
    before = proc_status_bytes("VmRSS")
    case.step(variant)
    return (proc_status_bytes("VmHWM") - before) / 1e6


def module_rows(setting: Setting, repeats: int, skip: list[str]) -> list[Row]:
    """Time the whole layer in all variants."""
    case = Case(setting)
    names = [name for name in case.variants if name not in skip]
    truth, truth_grads = case.result("ours")
    count = setting.batch * QUERIES * HEADS
    # four products with the memory (the association is kept), and the four projections, forward and twice backward
    operations = 2 * count * setting.width * (4 * setting.rows + 12 * HEAD_DIM)
    errors = {}
    for name in names:
        y, grads = case.result(name)
        errors[name] = (
            relative(y, truth),
            max(relative(grads[key], truth_grads[key]) for key in grads if key in truth_grads),
        )
    # one repeat of the published layer takes as long as dozens of ours
    slow = [name for name in names if name in ("published", "hflayers")]
    seconds = interleaved({n: partial(case.step, n) for n in names if n not in slow}, repeats, setting.device)
    seconds |= interleaved({n: partial(case.step, n) for n in slow}, 1, setting.device, warm=False)
    rows = []
    for name in names:
        agree = all(error <= bound for error, bound in zip(errors[name], TOLERANCES[setting.device], strict=True))
        rows.append(Row(
            "module", name, setting.batch, setting.rows, setting.width, str(case.memory.dtype)[6:], seconds[name],
            operations / seconds[name] / 1e9, in_fresh_process(extra_memory, setting, name),
            seconds[name] / seconds["ours"] if agree else None, *errors[name],
        ))  # fmt: skip
    return rows


def operator_rows(setting: Setting, repeats: int) -> list[Row]:
    """The operator's forward beside the bare products."""
    torch.manual_seed(0)
    count, dtype = setting.batch * QUERIES * HEADS, torch.float32 if setting.device == "cpu" else torch.bfloat16
    queries = torch.randn(count, setting.width, device=setting.device, dtype=dtype) / setting.width**0.5
    memory = torch.randn(setting.rows, setting.width, device=setting.device, dtype=dtype)
    scores, out = queries @ memory.T, torch.empty_like(queries)

    def floor() -> None:
        torch.mm(queries, memory.T, out=scores)
        torch.mm(scores, memory, out=out)

    seconds = interleaved(
        {"ours": lambda: hopfield_retrieve(queries, memory), "bare products": floor}, repeats, setting.device
    )
    operations = 4 * count * setting.rows * setting.width
    moved = (2 * queries.numel() + memory.numel()) * queries.element_size()
    rows = []
    for name, value in seconds.items():
        row = Row(
            "operator", name, setting.batch, setting.rows, setting.width, str(dtype)[6:], value,
            operations / value / 1e9, slowdown=value / seconds["ours"],
        )  # fmt: skip
        if setting.device == "cuda":
            row.gigabytes_per_second = moved / value / 1e9
            row.peak_share = peak_share(torch.cuda.get_device_name(), row.gigaflops, row.gigabytes_per_second)
        rows.append(row)
    return rows


def peak_share(card: str, gigaflops: float, gigabytes_per_second: float) -> float | None:
    """Share of the card's published peak, of products or bandwidth, whichever is larger; None for other cards."""
    for part, (teraflops, terabytes) in CARDS.items():
        if part in card:
            return max(gigaflops / teraflops, gigabytes_per_second / terabytes) / 1e3
    return None


def bank_size_rows(sizes: list[int], width: int, repeats: int) -> list[Row]:
    """Cost and extra memory of one batch-1 retrieval from memory-mapped banks of growing size."""
    queries = torch.randn(QUERIES * HEADS, width, generator=torch.Generator().manual_seed(0)) / width**0.5
    rows = []
    for size, dtype in ((n, t) for n in sizes for t in (torch.bfloat16, torch.int8)):
        with tempfile.NamedTemporaryFile(suffix=".bank") as file:
            bank, scale = _mapped_bank(file.name, size, width, dtype)
            # the first call also loads code
            hopfield_retrieve(queries, bank[:8192], memory_scale=None if scale is None else scale[:8192])
            seconds, extra = [], 0
            for _ in range(repeats):
                before, start = proc_status_bytes("RssAnon"), time.perf_counter()
                with PeakSampler() as sampler:
                    hopfield_retrieve(queries, bank, memory_scale=scale)
                seconds.append(time.perf_counter() - start)
                extra = max(extra, sampler.peak - before)
        value = statistics.median(seconds)
        rate = 4 * len(queries) * size * width / value / 1e9
        rows.append(Row("operator", "ours", 1, size, width, str(dtype)[6:], value, rate, extra / 1e6))
    return rows


def _mapped_bank(path: str, size: int, width: int, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    bank = torch.from_file(path, shared=True, size=size * width, dtype=dtype).view(size, width)
    scale = torch.empty(size) if dtype == torch.int8 else None
    for start in range(0, size, 65536):
        rows = torch.randn(min(65536, size - start), width)
        part = slice(start, start + len(rows))
        if scale is None:
            bank[part] = rows
        else:
            bank[part], scale[part] = quantize_rows(rows)
    return bank, scale


def main() -> None:
    """Time all settings and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, nargs="+", default=[2, 6, 16])
    parser.add_argument("--rows", type=int, nargs="+", default=[7014])
    parser.add_argument("--width", type=int, nargs="+", default=[768])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--skip", nargs="+", default=[], help="variants to leave out, such as `published`")
    parser.add_argument(
        "--bank-sizes", "--linear", type=int, nargs="+", help="only retrieval from mapped banks of these sizes"
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--hflayers-path", "--peer", help="a clone of ml-jku/hopfield-layers to time as well")
    parser.add_argument("--csv", type=Path)
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    device = platform.processor() or platform.machine()
    device = (
        torch.cuda.get_device_name() if options.device == "cuda" else f"{device}, {torch.get_num_threads()} threads"
    )
    print(f"{device}; torch {torch.__version__}, Python {platform.python_version()}")
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("amrg.kernels").setLevel(logging.INFO)  # which back end each setting takes
    rows: list[Row] = []
    if options.bank_sizes:
        rows = bank_size_rows(options.bank_sizes, options.width[0], options.repeats)
        for row in rows:
            show(row)
    else:
        for batch, count, width in ((b, n, d) for b in options.batch for n in options.rows for d in options.width):
            setting = Setting(batch, count, width, options.device, options.hflayers_path)
            for row in operator_rows(setting, 4 * options.repeats) + module_rows(
                setting, options.repeats, options.skip
            ):
                rows.append(row)
                show(row)
    if options.csv:
        write(rows, options.csv)
    if options.plot:
        plot(rows, options.plot)


if __name__ == "__main__":
    main()
