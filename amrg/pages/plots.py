"""Line charts as SVG text: a few hundred bytes each, deterministic."""

import math
from collections.abc import Mapping, Sequence
from html import escape

from markupsafe import Markup

_WIDTH, _HEIGHT = 360, 200
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 10, 12, 34
#: Okabe–Ito colors, distinct for readers with any color vision; dashes distinguish them in print.
_STYLES = (("#0072b2", ""), ("#d55e00", "6 3"), ("#009e73", "2 3"), ("#cc79a7", "8 3 2 3"))


def line_chart(
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

    decimals = max(0, math.ceil(-math.log10(ys[1] - ys[0]) - 1e-9))
    decimals += round((ys[1] - ys[0]) * 10**decimals, 6) % 1 > 0  # a step of 0.25 needs one more

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
        parts.append(f'<polyline fill="none" stroke="{color}" stroke-dasharray="{dash}" points="{path}"/>')
        parts += [f'<circle cx="{x}" cy="{y}" r="2.2" fill="{color}"/>' for x, y in (place(*p) for p in line)]
    legend = [
        f'<span style="--c:{color}">{escape(name)}</span>'
        for name, (color, _) in zip(lines, _STYLES * len(lines), strict=False)
    ]
    return Markup(
        f"<figure><figcaption>{escape(title)}</figcaption>{''.join(parts)}</svg>"
        f'<div class="legend">{"".join(legend)}</div></figure>'
    )


def _ticks(values: Sequence[float], integers: bool = False) -> list[float]:
    """Return four to seven round numbers that span the values."""
    low, high = min(values), max(values)
    if high - low < 1e-12:
        low, high = low - 0.5, high + 0.5
    raw = (high - low) / 5
    size = 10.0 ** math.floor(math.log10(raw))
    step = next(size * m for m in (1, 2, 2.5, 5, 10) if size * m >= raw - 1e-12)
    step = max(1.0, math.ceil(step)) if integers else step
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 10) for i in range(first, max(last, first + 1) + 1)]
