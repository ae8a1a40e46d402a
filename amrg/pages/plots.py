"""Line charts and forest plots as SVG text: a few hundred bytes each, deterministic."""

import math
from collections.abc import Mapping, Sequence
from html import escape

from markupsafe import Markup

_WIDTH, _HEIGHT = 360, 200
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 10, 12, 34
#: Colors of the style sheet, distinct for readers with any color vision; dashes distinguish them in print.
_STYLES = (
    ("var(--series-1)", ""),
    ("var(--series-2)", "6 3"),
    ("var(--series-3)", "2 3"),
    ("var(--series-4)", "8 3 2 3"),
)
#: Of forest plots: heights of a row and of the axis, where the interval begins, and where the value is written.
_ROW, _AXIS, _NAMES, _VALUES = 20, 22, 128, 44


def line_chart_svg(
    lines: Mapping[str, Sequence[tuple[float, float]]], title: str, x_label: str = "epoch", integers: bool = True
) -> Markup:
    """Draw named lines, each a sequence of (x, y), with ``integers`` or any numbers on the x axis.

    Points that are not finite are left out.
    """
    lines = {n: [p for p in line if all(map(math.isfinite, p))] for n, line in lines.items()}
    points = [p for line in lines.values() for p in line]
    if not points:
        return Markup("")
    xs, ys = _ticks([p[0] for p in points], integers), _ticks([p[1] for p in points])

    decimals = _decimals(ys)

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - xs[0]) / (xs[-1] - xs[0]) * (_WIDTH - _LEFT - _RIGHT)
        up = (y - ys[0]) / (ys[-1] - ys[0]) * (_HEIGHT - _TOP - _BOTTOM)
        return round(_LEFT + across, 1), round(_HEIGHT - _BOTTOM - up, 1)

    parts = [f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(title)}">']
    for y in ys:
        height = place(xs[0], y)[1]
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{height}" y2="{height}"/>')
        parts.append(f'<text x="{_LEFT - 5}" y="{height + 3.5}" text-anchor="end">{y:.{decimals}f}</text>')
    for x in xs:
        parts.append(f'<text x="{place(x, ys[0])[0]}" y="{_HEIGHT - _BOTTOM + 14}" text-anchor="middle">{x:g}</text>')
    parts.append(f'<text x="{(_LEFT + _WIDTH - _RIGHT) / 2}" y="{_HEIGHT - 4}" text-anchor="middle">{x_label}</text>')
    for (_, line), (color, dash) in zip(lines.items(), _STYLES * len(lines), strict=False):
        path = " ".join(f"{x},{y}" for x, y in (place(*p) for p in line))
        parts.append(f'<polyline fill="none" style="stroke:{color}" stroke-dasharray="{dash}" points="{path}"/>')
        parts += [f'<circle cx="{x}" cy="{y}" r="2.2" style="fill:{color}"/>' for x, y in (place(*p) for p in line)]
    legend = [
        f'<span style="--c:{color}">{escape(name)}</span>'
        for name, (color, _) in zip(lines, _STYLES * len(lines), strict=False)
    ]
    return Markup(
        f"<figure><figcaption>{escape(title)}</figcaption>{''.join(parts)}</svg>"
        f'<div class="legend">{"".join(legend)}</div></figure>'
    )


def forest_plot_svg(
    rows: Mapping[str, tuple[float, float, float]], title: str, reference: float, filled: str | None = None
) -> Markup:
    """Draw a value with its interval (value, low, high) per row, and a line at ``reference``.

    The row ``filled`` is emphasized.
    """
    xs = _ticks([number for row in rows.values() for number in row] + [reference], most=5)
    decimals, bottom = _decimals(xs), _ROW * len(rows)

    def place(x: float) -> float:
        return round(_NAMES + (x - xs[0]) / (xs[-1] - xs[0]) * (_WIDTH - _NAMES - _VALUES - 8), 1)

    spoken = "; ".join(f"{n} {value:.3f}, interval {low:.3f} to {high:.3f}" for n, (value, low, high) in rows.items())
    height = bottom + _AXIS
    parts = [f'<svg viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{escape(f"{title}: {spoken}")}">']
    for x in xs:
        parts.append(f'<line class="grid" x1="{place(x)}" x2="{place(x)}" y1="0" y2="{bottom}"/>')
        parts.append(f'<text x="{place(x)}" y="{bottom + 14}" text-anchor="middle">{x:.{decimals}f}</text>')
    at = place(reference)
    parts.append(f'<line class="reference" x1="{at}" x2="{at}" y1="0" y2="{bottom}" stroke-dasharray="3 3"/>')
    for number, (name, (value, low, high)) in enumerate(rows.items()):
        y, kind = _ROW * number + _ROW // 2, "first" if name == filled else "other"
        parts.append(f'<text class="{kind}" x="{_NAMES - 8}" y="{y + 3.5}" text-anchor="end">{escape(name)}</text>')
        parts.append(f'<line class="{kind}" x1="{place(low)}" x2="{place(high)}" y1="{y}" y2="{y}"/>')
        parts.append(f'<circle class="{kind}" cx="{place(value)}" cy="{y}" r="4"/>')
        parts.append(f'<text class="{kind}" x="{_WIDTH}" y="{y + 3.5}" text-anchor="end">{value:.3f}</text>')
    return Markup(f'<figure class="forest"><figcaption>{escape(title)}</figcaption>{"".join(parts)}</svg></figure>')


def _decimals(ticks: Sequence[float]) -> int:
    """Return how many decimals tell the ticks apart."""
    step = ticks[1] - ticks[0]
    decimals = max(0, math.ceil(-math.log10(step) - 1e-9))
    return decimals + (round(step * 10**decimals, 6) % 1 > 0)  # a step of 0.25 needs one more


def _ticks(values: Sequence[float], integers: bool = False, most: int = 7) -> list[float]:
    """Return a few round numbers, about ``most``, that span the values."""
    low, high = min(values), max(values)
    if high - low < 1e-12:
        low, high = low - 0.5, high + 0.5
    raw = (high - low) / (most - 2)
    size = 10.0 ** math.floor(math.log10(raw))
    step = next(size * m for m in (1, 2, 2.5, 5, 10) if size * m >= raw - 1e-12)
    step = max(1.0, math.ceil(step)) if integers else step
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 10) for i in range(first, max(last, first + 1) + 1)]
