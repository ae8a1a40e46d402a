"""Lesions of lung and heart, painted on a canvas at the site of the report. Sizes are in mm."""

from dataclasses import dataclass

import numpy as np

from amrg.data.sources.openi_drr.anatomy import LOBES, SPACING
from amrg.data.sources.openi_drr.canvas import Box, Canvas, draw_smooth_noise, smooth_edge_step


@dataclass(frozen=True)
class Site:
    """Location and severity according to the annotation.

    Attributes:
        side: ``left`` or ``right``.
        zone: ``upper``, ``middle``, ``lower`` (lobes), ``base``, ``apex``, ``hilum``, or empty for anywhere.
        severity: from 0 (trace) through 1 (as usual) to 2 (severe).
        scale: of the lesion's size.
    """

    side: str
    zone: str = ""
    severity: float = 1.0
    scale: float = 1.0


_LOBE_OF = {
    ("left", "upper"): ("lung_upper_lobe_left",),
    ("left", "middle"): ("lung_upper_lobe_left",),  # the lingula
    ("left", "lower"): ("lung_lower_lobe_left",),
    ("right", "upper"): ("lung_upper_lobe_right",),
    ("right", "middle"): ("lung_middle_lobe_right",),
    ("right", "lower"): ("lung_lower_lobe_right",),
}
#: Range of rows of a zone, as fractions of the way from the apex to the lowest open lung on that side.
_ROWS = {"apex": (0.0, 0.3), "upper": (0.1, 0.5), "hilum": (0.4, 0.65), "middle": (0.55, 0.85), "lower": (0.5, 0.88),
         "base": (0.62, 0.88), "": (0.2, 0.88)}  # fmt: skip


def lobe_mask_in_box(canvas: Canvas, site: Site, box: Box = (slice(None),) * 3) -> np.ndarray:
    """Return a mask of the box's shape: the lobe of the site, or its full lung."""
    names = _LOBE_OF.get((site.side, site.zone)) or tuple(name for name in LOBES if name.endswith(site.side))
    table = np.zeros(len(LOBES) + 1, bool)
    table[[LOBES.index(name) + 1 for name in names]] = True
    return table[canvas.anatomy.lobe[box]]


def place_in_open_field(canvas: Canvas, site: Site, clear_mm: float = 0.0) -> tuple[float, float, float]:
    """Draw a voxel (y, r, c) of the site in the open field, if possible ``clear_mm`` inside the lung."""
    columns = np.arange(canvas.anatomy.open_field.shape[1])
    on_side = columns > canvas.anatomy.midline if site.side == "left" else columns < canvas.anatomy.midline
    field = canvas.anatomy.open_field & on_side
    rows = np.flatnonzero(field.any(1))
    low, high = _ROWS[site.zone]
    first, last = rows[0] + low * (rows[-1] - rows[0]), rows[0] + high * (rows[-1] - rows[0])
    field = field & ((np.arange(len(field)) >= first) & (np.arange(len(field)) <= last))[:, None]
    wanted = lobe_mask_in_box(canvas, site)
    found = np.argwhere(wanted[:, field])
    if not len(found):
        wanted = lobe_mask_in_box(canvas, Site(site.side))
        found = np.argwhere(wanted[:, field])
    depth = canvas.anatomy.wall[:, field][found[:, 0], found[:, 1]]
    deep = found[depth >= min(clear_mm, np.quantile(depth, 0.7))]
    y, index = deep[canvas.rng.integers(len(deep))]
    r, c = np.argwhere(field)[index]
    return float(y), float(r), float(c)


def paint_airspace(
    canvas: Canvas, site: Site, labels: tuple[str, ...], radius: float, density: float, patchy: float
) -> None:
    """Paint filled alveoli with a ragged edge inside one lobe; ``patchy`` in [0, 1] is the share of air left."""
    rng = canvas.rng
    center = place_in_open_field(canvas, site, 16.0)
    radii = site.scale * radius * rng.uniform(0.8, 1.25, 3)
    box = canvas.box(center, 1.7 * radii)
    y, r, c = canvas.offsets(box, center)
    distance = np.sqrt((y / radii[0]) ** 2 + (r / radii[1]) ** 2 + (c / radii[2]) ** 2)
    ragged = 0.22 * draw_smooth_noise(rng, box, 22.0) + (0.08 + 0.1 * patchy) * draw_smooth_noise(rng, box, 8.0)
    alpha = density * smooth_edge_step(1 - distance + ragged, 0.09)
    alpha *= np.clip(1 - patchy * (0.45 + 0.6 * draw_smooth_noise(rng, box, 8.0)), 0, 1) if patchy else 1
    alpha *= lobe_mask_in_box(canvas, site, box)
    canvas.paint(box, alpha, labels)


def consolidation(canvas: Canvas, site: Site, labels: tuple[str, ...]) -> None:
    """Paint a dense, confluent opacity bounded by its lobe (air bronchograms are below the resolution)."""
    radius = canvas.rng.uniform(28, 38) * (0.75 + 0.3 * site.severity)
    paint_airspace(canvas, site, labels, radius, canvas.rng.uniform(0.7, 0.9), 0.1)


def paint_opacity(canvas: Canvas, site: Site, labels: tuple[str, ...]) -> None:
    """Paint a patchy opacity or infiltrate: one to three parts, thinner than a consolidation."""
    for index in range(canvas.rng.integers(1, 4)):
        radius = canvas.rng.uniform(19, 28) * (0.8 + 0.25 * site.severity) * (1 if index == 0 else 0.7)
        paint_airspace(canvas, site, labels, radius, canvas.rng.uniform(0.55, 0.75), 0.4)


def paint_atelectasis(canvas: Canvas, site: Site, labels: tuple[str, ...]) -> None:
    """Paint plates of collapsed lung, parallel to the beam, with some haze around them."""
    rng = canvas.rng
    first = place_in_open_field(canvas, site, 6.0)
    for index in range(rng.integers(1, 4)):
        jitter = (0.0, index * rng.uniform(7, 13) * rng.choice([-1, 1]) / SPACING[1], rng.normal(0, 6) / SPACING[2])
        center = tuple(a + b for a, b in zip(first, jitter, strict=True))
        half = site.scale * rng.uniform(24, 38) * (0.75 + 0.25 * site.severity)
        depth, thick = rng.uniform(22, 36), rng.uniform(3.2, 5.2) * (0.8 + 0.2 * site.severity)
        box = canvas.box(center, (1.2 * depth, half, 1.2 * half))
        y, r, c = canvas.offsets(box, center)
        lateral = 1 if site.side == "left" else -1
        slope = np.tan(np.radians(rng.normal(12, 14))) * lateral
        normal = (
            r
            - slope * c
            - rng.normal(0, 0.08) * y
            + rng.uniform(-0.004, 0.004) * c**2
            + draw_smooth_noise(rng, box, 22.0)
        )
        inside = smooth_edge_step(1 - (c / half) ** 2 - (y / depth) ** 2, 0.12)
        alpha = 0.65 * smooth_edge_step(thick - np.abs(normal), 0.6) * inside
        alpha += 0.2 * np.exp(-((normal / (2.5 * thick)) ** 2)) * inside
        canvas.paint(box, np.minimum(alpha, 1) * (canvas.anatomy.lobe[box] > 0), labels)


def paint_round_lesion(canvas: Canvas, site: Site, labels: tuple[str, ...], kind: str) -> None:
    """Paint a slightly lobulated ``nodule`` or ``mass`` of soft tissue, or a small, sharp, calcified ``granuloma``."""
    smallest, largest, target, lobulation = {
        "nodule": (7.0, 11.0, 1.08, 0.10),
        "mass": (16.0, 28.0, 1.08, 0.10),
        "granuloma": (4.0, 6.5, 2.6, 0.04),
    }[kind]
    radius = canvas.rng.uniform(smallest, largest)
    center = place_in_open_field(canvas, site, radius + 3)
    radius *= site.scale
    box = canvas.box(center, (radius * 1.5,) * 3)
    y, r, c = canvas.offsets(box, center)
    distance = np.sqrt(y**2 + r**2 + c**2) / radius + lobulation * draw_smooth_noise(canvas.rng, box, 8.0)
    canvas.paint(box, smooth_edge_step(1 - distance, 0.07), labels, target)


def paint_cardiomegaly(canvas: Canvas, severity: float, labels: tuple[str, ...]) -> None:
    """Enlarge the heart by a margin, most to the left and downwards, none at the great vessels."""
    rng = canvas.rng
    margin = rng.uniform(9, 13) + 6.0 * severity
    _grow_heart(canvas, margin, labels)


def habitus_heart(canvas: Canvas, margin: float) -> None:
    """Enlarge the heart within the normal range, by ``margin`` mm."""
    _grow_heart(canvas, margin, ())


def _grow_heart(canvas: Canvas, margin: float, labels: tuple[str, ...]) -> None:
    center = canvas.anatomy.landmarks["heart"]
    box = canvas.box(center, (75.0, 75.0, 110.0))
    _, r, c = canvas.offsets(box, center)
    leftward = 0.45 + 0.55 * smooth_edge_step(c, 25.0)
    low = smooth_edge_step(r + 28.0, 12.0)
    reach = canvas.anatomy.heart[box] + margin * leftward * low
    heart = smooth_edge_step(reach, 1.2)
    canvas.paint(box, heart * canvas.anatomy.lung[box], labels, extent=heart)


def paint_edema(canvas: Canvas, severity: float, labels: tuple[str, ...]) -> None:
    """Paint perihilar haze, thickened septa and blurred vessels in both lungs, densest near the hila and below."""
    rng, chest = canvas.rng, canvas.anatomy
    density = rng.uniform(0.09, 0.12) + 0.05 * severity
    for side in ("left", "right"):
        columns = np.flatnonzero((chest.lobe > 0).any((0, 1)))
        middle = int(chest.midline)
        span = slice(middle, int(columns[-1]) + 1) if side == "left" else slice(int(columns[0]), middle)
        box = (slice(14, 86), slice(20, 190), span)
        center = (52.0, 95.0 + rng.normal(0, 5), chest.midline + (38 if side == "left" else -38))
        y, r, c = canvas.offsets(box, center)
        near = np.exp(-((r / 75) ** 2) - (c / 62) ** 2 - (y / 80) ** 2)
        septa = _septa(canvas, box)
        cloud = np.clip(1 + 0.55 * draw_smooth_noise(rng, box, 22.0), 0, None)
        haze = density * near * lobe_mask_in_box(canvas, Site(side), box)
        canvas.paint(box, np.clip(haze * cloud * (0.75 + 0.8 * septa), 0, 0.8), labels, extent=haze)


def _septa(canvas: Canvas, box: Box) -> np.ndarray:
    """Return a network of lines in sheets of about 17 mm; thinner ones would cancel along the beam."""
    sheets = -(-(box[0].stop - box[0].start) // 6)
    lines = np.exp(-((draw_smooth_noise(canvas.rng, (slice(0, sheets), *box[1:]), 6.0) / 0.3) ** 2))
    return lines.repeat(6, 0)[: box[0].stop - box[0].start]


def paint_interstitial(canvas: Canvas, site: Site, labels: tuple[str, ...]) -> None:
    """Paint a network of thickened septa without haze, in one lung or a part of it."""
    rng = canvas.rng
    center = place_in_open_field(canvas, site, 10.0)
    reach = site.scale * rng.uniform(38, 55)
    box = canvas.box(center, (60.0, reach * 1.5, reach * 1.5))
    _, r, c = canvas.offsets(box, center)
    near = np.exp(-((r / reach) ** 2) - (c / reach) ** 2)
    alpha = (0.3 + 0.08 * site.severity) * near * lobe_mask_in_box(canvas, Site(site.side), box)
    canvas.paint(box, alpha * _septa(canvas, box), labels, extent=0.4 * alpha)
