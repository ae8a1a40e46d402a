"""Rendering of one patient's film from a list of findings."""

from dataclasses import replace

import numpy as np
from scipy import ndimage

from amrg.data.sources.openi_drr import devices, lesions, pleura, projection
from amrg.data.sources.openi_drr.anatomy import SPACING, load_anatomy
from amrg.data.sources.openi_drr.canvas import Canvas
from amrg.data.sources.openi_drr.findings import KIND_LABELS, Finding
from amrg.data.sources.openi_drr.lateral import render_lateral
from amrg.data.sources.openi_drr.lesions import Site
from amrg.data.sources.openi_drr.projection import Pose

_PAIRED = {"effusion", "blunted angle"}  # without a side in the report, sometimes in both lungs
_HEARTS = {"cardiomegaly", "large heart?"}
_PARENCHYMA = {"consolidation", "pneumonia", "atelectasis"}


def render_film(
    findings: tuple[Finding, ...], seed: tuple[int, ...], size: int, visit: int = 0
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Render a film, uint8 [size, size], and the projected extent of each label's lesions, bool [size, size].

    The patient (pose, habitus, exposure, noise) depends on ``seed`` only, not on the findings: the same seed with and
    without a lesion gives two films of one patient. Another ``visit`` of that patient has another pose and
    exposure; lesions that have a number keep their places.
    """
    film, masks, _, _ = _render(findings, seed, size, visit)
    return film, masks


def render_two_views(
    findings: tuple[Finding, ...], seed: tuple[int, ...], size: int
) -> tuple[list[np.ndarray], dict[str, np.ndarray]]:
    """Render the film of ``render_film`` and the lateral film of the same chest; the extents are those on the first."""
    film, masks, canvas, drawn = _render(findings, seed, size)
    return [film, render_lateral(canvas, drawn, seed, size)], masks


def _render(
    findings: tuple[Finding, ...], seed: tuple[int, ...], size: int, visit: int = 0
) -> tuple[np.ndarray, dict[str, np.ndarray], Canvas, np.ndarray]:
    """Return the results of ``render_film``, the painted chest, and the devices in mm of water, [R, C]."""
    patient, places, exposure = (np.random.default_rng((*seed, part)) for part in range(3))
    pose = projection.draw_patient_pose(patient)
    if visit:
        other, exposure = (np.random.default_rng((*seed, part, visit)) for part in (0, 2))
        pose = replace(projection.draw_patient_pose(other), breadth=pose.breadth, scoliosis=pose.scoliosis)
    canvas = Canvas(load_anatomy(), places, _posed(pose, findings, places))
    usual_heart = patient.uniform(0, 4)
    if not any(finding.kind in _HEARTS for finding in findings):
        lesions.habitus_heart(canvas, usual_heart)
    drawn = _paint_all(canvas, findings, seed)
    path = canvas.paths() + patient.uniform(0.65, 1.05) * canvas.bones()
    path += _habitus(canvas, patient) + drawn
    wobble = np.stack([projection.draw_smooth_field(patient, size, 5, 2.0) for _ in range(2)])
    grid = projection.film_pixel_grid(canvas.pose, size, canvas.anatomy.midline, wobble)
    film = projection.apply_detector(projection.interpolate_plane(path, grid, 3), exposure)
    masks = {label: projection.interpolate_plane(plane, grid, 1) >= 1 for label, plane in canvas.extents(path).items()}
    if drawn.any():
        masks["Support Devices"] = projection.interpolate_plane(drawn, grid, 1) > 3
    return film, {label: mask for label, mask in masks.items() if mask.any()}, canvas, drawn


def _posed(pose: Pose, findings: tuple[Finding, ...], rng: np.random.Generator) -> Pose:
    """Apply findings of shape (inflation, a raised dome, scoliosis) to the pose."""
    for finding in findings:
        severity = finding.severity
        if finding.kind == "small lungs":
            pose = replace(pose, inflation=rng.uniform(0.79, 0.85) + 0.03 * (1 - severity))
        elif finding.kind == "large lungs":
            pose = replace(pose, inflation=rng.uniform(1.05, 1.09) + 0.03 * severity)
        elif finding.kind == "scoliosis":
            pose = replace(pose, scoliosis=rng.choice([-1, 1]) * (7 + 4 * severity))
        elif finding.kind == "raised dome":
            side = (finding.sides or (str(rng.choice(["left", "right"])),))[0]
            height = rng.uniform(15, 22) + 6 * severity
            pose = replace(pose, raised=(height, 0.0) if side == "right" else (0.0, height))
    return pose


def _paint_all(canvas: Canvas, findings: tuple[Finding, ...], seed: tuple[int, ...]) -> np.ndarray:
    """Paint every finding; return the attenuation of devices in mm of water, [R, C]."""
    drawn = np.zeros(canvas.anatomy.water.shape[1:], np.float32)
    filled = {side for finding in findings if finding.kind in _PARENCHYMA for side in finding.sides}
    for finding in sorted(findings, key=lambda finding: finding.kind in _PAIRED):
        labels = KIND_LABELS.get(finding.kind, ())
        if finding.number >= 0:
            canvas.rng = np.random.default_rng((*seed, 1, finding.number))
        if finding.kind == "device":
            drawn += devices.draw_device(
                canvas, finding.device, _side(canvas, finding, finding.device == "pacemaker")[0]
            )
        elif finding.kind == "edema":
            lesions.paint_edema(canvas, finding.severity, labels)
        elif finding.kind in _HEARTS:
            lesions.paint_cardiomegaly(canvas, finding.severity - (finding.kind == "large heart?"), labels)
        else:
            for side in _side(canvas, finding):
                # an opacity with another airspace lesion on that side names the same shadow
                if not (finding.kind == "opacity" and side in filled):
                    _paint(canvas, finding, side, labels)
    return drawn


def _side(canvas: Canvas, finding: Finding, leftward: bool = False) -> tuple[str, ...]:
    if finding.sides:
        return finding.sides
    if finding.kind in _PAIRED and canvas.rng.random() < 0.4:
        return ("left", "right")
    return ("left",) if canvas.rng.random() < (0.9 if leftward else 0.5) else ("right",)


def _paint(canvas: Canvas, finding: Finding, side: str, labels: tuple[str, ...]) -> None:
    """Paint a finding of one lung or its pleura."""
    site = Site(side, finding.zone, finding.severity, finding.scale)
    if finding.kind in ("consolidation", "pneumonia"):
        lesions.consolidation(canvas, site, labels)
    elif finding.kind == "opacity":
        lesions.paint_opacity(canvas, site, labels)
    elif finding.kind == "interstitial":
        lesions.paint_interstitial(canvas, site, labels)
    elif finding.kind == "atelectasis":
        lesions.paint_atelectasis(canvas, replace(site, zone=site.zone or "base"), labels)
    elif finding.kind in ("nodule", "mass", "granuloma"):
        for _ in range(canvas.rng.integers(2, 5) if finding.several else 1):
            lesions.paint_round_lesion(canvas, site, labels, finding.kind)
    elif finding.kind == "effusion":
        pleura.paint_effusion(canvas, side, finding.severity, labels)
    elif finding.kind == "blunted angle":
        pleura.paint_effusion(canvas, side, -0.4, labels)
    elif finding.kind == "pneumothorax":
        pleura.paint_pneumothorax(canvas, side, finding.severity, labels)


def _habitus(canvas: Canvas, rng: np.random.Generator) -> np.ndarray:
    """Return the mm of water that habitus adds: fat, more over the lower chest, and breasts for some patients."""
    rows, columns = np.ogrid[: canvas.anatomy.water.shape[1], : canvas.anatomy.water.shape[2]]
    x = (columns - canvas.anatomy.midline) * SPACING[2]
    z = rows * SPACING[1]
    added = np.full(canvas.anatomy.water.shape[1:], rng.uniform(0, 50), np.float32)
    added += rng.uniform(0, 25) / (1 + np.exp(-(z - 190) / 50))
    if rng.random() < 0.5:
        thick, wide, low = rng.uniform(10, 38), rng.uniform(48, 62), rng.uniform(135, 175)
        for sign in (-1, 1):
            level = ((x - sign * rng.uniform(66, 82)) / wide) ** 2 + ((z - low) / np.where(z > low, 42, 70)) ** 2
            added += thick * np.sqrt(np.clip(1 - level, 0, 1))
        added = ndimage.gaussian_filter(added, 3)
    return added
