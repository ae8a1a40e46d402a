"""Rows of the benchmark: what was measured, shown as text, CSV and a plot."""

import csv
from dataclasses import asdict, dataclass, fields
from pathlib import Path


@dataclass
class Row:
    """One measured variant."""

    scope: str  # module (forward and backward) or operator (forward)
    variant: str
    batch: int
    rows: int
    width: int
    dtype: str
    seconds: float  # median
    gigaflops: float  # of the absorbed form's operation count, whatever the variant spends
    extra_megabytes: float | None = None  # peak beyond parameters, input and bank
    slowdown: float | None = None  # time relative to ours; None where the results disagree
    output_error: float | None = None
    gradient_error: float | None = None
    peak_share: float | None = None  # GPU: of the GPU's published peak, whichever binds
    gigabytes_per_second: float | None = None  # GPU: operands moved once


def show(row: Row) -> None:
    """Print one row."""
    memory = "" if row.extra_megabytes is None else f"{row.extra_megabytes:8.0f} MB extra"
    ratio = "" if row.slowdown is None else f"{row.slowdown:7.2f}× ours"
    if row.output_error is not None:
        ratio = (ratio or "disagrees, no ratio") + f"  errors {row.output_error:.0e} {row.gradient_error:.0e}"
    gpu = "" if row.gigabytes_per_second is None else f"{row.gigabytes_per_second:.0f} GB/s"
    gpu += "" if row.peak_share is None else f", {row.peak_share:.0%} of its peak"
    print(
        f"{row.scope:8} {row.variant:14} batch {row.batch:3} N {row.rows:8} D {row.width:4} {row.dtype:8} "
        f"{row.seconds * 1e3:10.1f} ms {row.gigaflops:8.1f} GFLOP/s {memory} {ratio} {gpu}", flush=True,
    )  # fmt: skip


def plot(rows: list[Row], path: Path) -> None:
    """Draw all rows as bars."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    axes = figure.subplots()
    labels = [f"{row.scope} {row.variant}\nB {row.batch}, N {row.rows}" for row in rows]
    axes.barh(labels, [row.seconds for row in rows], color=["C0" if row.variant == "ours" else "C7" for row in rows])
    axes.set(xscale="log", xlabel="seconds (median)")
    axes.tick_params(labelsize=6)
    figure.savefig(path)


def write(rows: list[Row], path: Path) -> None:
    """Write all rows as CSV."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Row)])
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)
