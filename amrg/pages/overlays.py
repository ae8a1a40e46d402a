"""Films, activation maps, lesion outlines and texts as inlined HTML, so that the page needs no server."""

import base64
import io
from collections.abc import Sequence
from html import escape

import numpy as np
from markupsafe import Markup
from PIL import Image
from scipy.ndimage import binary_erosion

#: Color of activation, weak to strong: (share of the maximum, red, green, blue, opacity).
_HEAT = ((0.0, 255, 220, 80, 0), (0.35, 255, 200, 60, 60), (0.7, 255, 120, 20, 130), (1.0, 235, 30, 30, 175))
#: x0, y0, x1, y1 in cells of a square grid that covers a film.
Box = tuple[int, int, int, int]

_OUTLINE = (64, 224, 255, 255)  # cyan: not in the heat scale, and distinct from it for color-blind readers


def film_data_url(film: np.ndarray, size: int | None = None) -> str:
    """Encode a gray film, uint8 [H, W], as a JPEG data URL, scaled to ``size`` pixels on the long side if given."""
    image = Image.fromarray(film)
    if size is not None:
        image.thumbnail((size, size), Image.Resampling.LANCZOS)
    return _url(image, "JPEG", quality=82)


def heat_map_data_url(map_HW: np.ndarray, top: float | None = None) -> str:
    """Encode a non-negative activation map as a transparent PNG on its own grid; the browser interpolates it.

    ``top`` has the strongest color; the default is the map's maximum.
    """
    share = np.asarray(map_HW, dtype=np.float64)
    top = share.max() if top is None else top
    share = share / top if top > 0 else share
    stops = np.array(_HEAT, dtype=np.float64)
    channels = [np.interp(share, stops[:, 0], stops[:, c]) for c in range(1, 5)]
    return _url(Image.fromarray(np.stack(channels, axis=-1).round().astype(np.uint8)), "PNG")


def outline_data_url(mask: np.ndarray) -> str:
    """Encode the border of a mask, bool [H, W], as a transparent PNG of twice the size."""
    large = np.kron(mask, np.ones((2, 2), dtype=bool))
    border = large & ~binary_erosion(large, iterations=2)
    return _url(Image.fromarray(border[..., None] * np.array(_OUTLINE, dtype=np.uint8)), "PNG")


def named_boxes_svg(boxes: Sequence[tuple[str, Box]], grid: int) -> Markup:
    """Draw named boxes as an SVG over a square film. It is hidden from screen readers, as the text repeats it.

    Names are placed over the upper left corner of their box, inside the film, without overlap.
    """
    parts = []
    for _, (x0, y0, x1, y1) in boxes:
        place = f'x="{x0}" y="{y0}" width="{x1 - x0}" height="{y1 - y0}" fill="none" vector-effect="non-scaling-stroke"'
        parts += [f'<rect {place} stroke="#000" stroke-width="4"/>', f'<rect {place} stroke="#fff" stroke-width="2"/>']
    height, taken = 0.07 * grid, list[tuple[float, float, float]]()
    for name, box in boxes:
        if not name:
            continue
        x, y, width = _free_place(box, height * (0.5 + 0.5 * len(name)), height, grid, taken)
        taken.append((x, y, width))
        parts.append(f'<rect x="{x:.2f}" y="{y:.2f}" width="{width:.2f}" height="{height:.2f}" fill="#fff"/>')
        parts.append(
            f'<text x="{x + width / 2:.2f}" y="{y + 0.77 * height:.2f}" font-size="{0.85 * height:.2f}" '
            f'font-weight="700" text-anchor="middle" fill="#000">{escape(name)}</text>'
        )
    return Markup(f'<svg viewBox="0 0 {grid} {grid}" aria-hidden="true">{"".join(parts)}</svg>')


def _free_place(
    box: Box, width: float, height: float, grid: int, taken: Sequence[tuple[float, float, float]]
) -> tuple[float, float, float]:
    """Return x, y and width of a name that covers none of the placed names (``taken``)."""
    x, y = min(box[0], grid - width), max(0.0, box[1] - height)
    while covered := [u + w for u, v, w in taken if abs(v - y) < height and u < x + width and x < u + w]:
        x, y = (max(covered), y) if max(covered) + width <= grid else (0.0, y + height)
    return x, y, width


def crop_film_to_box(film: np.ndarray, box: Box, grid: int, margin: float = 1.0) -> np.ndarray:
    """Crop a square film [S, S] to a box (x0, y0, x1, y1 in cells of a ``grid`` × ``grid`` patch grid).

    ``margin`` cells are added on each side, since a single patch is not recognizable.
    """
    cell = film.shape[0] / grid
    x0, y0 = (max(0, round((v - margin) * cell)) for v in box[:2])
    x1, y1 = (min(film.shape[0], round((v + margin) * cell)) for v in box[2:])
    return film[y0:y1, x0:x1]


#: Kinds of marked text, and their tooltips.
KINDS = {
    "hit": "in both reports",
    "detail": "in both reports, with another side or kind of device",
    "miss": "only in the reference",
    "extra": "only in the generated report",
    "unsure": "uncertain",
}


def mark_text_spans(text: str, spans: Sequence[tuple[int, int, str, str]]) -> Markup:
    """Mark spans (start, end, kind, label) of a text; of overlapping spans the first wins."""
    pieces, at = [], 0
    for start, end, kind, label in sorted(spans):
        if start < at:
            continue
        pieces += [escape(text[at:start]), f'<mark class="{kind}" title="{escape(label)}: {KINDS[kind]}">']
        pieces += [escape(text[start:end]), "</mark>"]
        at = end
    return Markup("".join([*pieces, escape(text[at:])]).replace("\n", "<br>"))


def _url(image: Image.Image, kind: str, **options: int) -> str:
    with io.BytesIO() as file:
        image.save(file, kind, **options)
        return f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"
