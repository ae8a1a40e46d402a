"""Disease-aware regions: what a film shows where the classifier found a label, and where on the film that is.

The same function makes the rows of the visual bank (from train films) and the states that ask it, so that a state and
the rows share a space. A region is the set of cells whose activation exceeds ``EXTENT`` of the map's own peak. Its
state

    x_k = LayerNorm([ u_k ; √h_k ]),   u_k = (Σ_p w_kp v_p − mean_p v_p) / ‖…‖,   w_kp ∝ M_kp² inside the region

has the projected fine features v of its cells (the film's mean taken off, so that pose, habitus and exposure are left
out), and the place: h_k is the share of the map's mass in each cell of a 4×4 grid over the film. The product of two
square roots of such shares is the Bhattacharyya coefficient: 1 for the same place, 0 for places apart.

Shape legend: B films or studies, M films, K = 14 labels, H W fine grid, D width of a state, P = 16 places.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from amrg.banks.bank import normalise_rows

GRID = 4  # cells on a side of the grid of places
PLACES = GRID * GRID
EXTENT = 0.5  # of a map's peak: where a region ends


class Regions(NamedTuple):
    """Of each film (or study) and label.

    Attributes:
        states_BKD: as rows of the visual bank; 0 where the map is 0 everywhere.
        places_BKP: share of the map's mass in each cell of the grid of places, row by row.
        peaks_BK: maximum of the unscaled map.
        boxes_BK5: number of the film in its study, then x0, y0, x1, y1 on the fine grid: the connected part of the
            region that holds the peak. Small whole numbers, exact in bfloat16.
    """

    states_BKD: Tensor
    places_BKP: Tensor
    peaks_BK: Tensor
    boxes_BK5: Tensor


def regions_of_films(projected_BHWD: Tensor, maps_BKHW: Tensor) -> Regions:
    """Regions of films.

    Args:
        projected_BHWD: fine features through the trained projection (``DiseaseClassifier.regions``), D > ``PLACES``.
        maps_BKHW: activation maps (``amrg.models.cam``), of any scale.
    """
    projected_BND = projected_BHWD.float().flatten(1, 2)
    maps_BKN = maps_BKHW.float().flatten(2)
    peaks_BK = maps_BKN.amax(-1)
    region_BKN = maps_BKN * (maps_BKN > EXTENT * peaks_BK[..., None])
    weights_BKN = _shares(region_BKN.square())
    with torch.autocast(projected_BHWD.device.type, enabled=False):  # as exact for a film as for the bank's rows
        features_BKD = weights_BKN @ projected_BND - projected_BND.mean(1, keepdim=True)
    cells_BKGG = F.adaptive_avg_pool2d(maps_BKHW.float(), GRID)
    places_BKP = _shares(cells_BKGG.flatten(2))
    unit_BKD = F.normalize(features_BKD[..., : features_BKD.shape[-1] - PLACES], dim=-1)
    states_BKD = normalise_rows(torch.cat([unit_BKD, places_BKP.sqrt()], dim=-1))
    states_BKD = states_BKD * (peaks_BK > 0)[..., None]
    return Regions(states_BKD, places_BKP, peaks_BK, boxes_of_regions(maps_BKHW))


def regions_of_studies(regions: Regions, views: Sequence[int]) -> Regions:
    """Regions of films, study after study → of studies: for each label that of the film with the highest peak.

    Args:
        regions: of M films.
        views: number of films of each study.
    """
    if len(regions.peaks_BK) == len(views):
        return regions
    chosen, first = [], 0
    for count in views:
        film_K = regions.peaks_BK[first : first + count].argmax(0)
        picked = Regions(*(part[first : first + count][film_K, torch.arange(len(film_K))] for part in regions))
        picked.boxes_BK5[:, 0] = film_K
        chosen.append(picked)
        first += count
    return Regions(*(torch.stack(parts) for parts in zip(*chosen, strict=True)))


def _shares(values: Tensor) -> Tensor:
    """Values that sum to 1 over the last axis; 0 where all are."""
    return values / values.sum(-1, keepdim=True).clamp_min(torch.finfo(values.dtype).tiny)


def boxes_of_regions(maps_BKHW: Tensor) -> Tensor:
    """0, x0, y0, x1, y1 of the cells of each region that are connected (by a corner, too) with its peak, [B, K, 5].

    The peak's part grows by a cell a time, H + W times: on the device, without waiting for it.
    """
    height, width = maps_BKHW.shape[-2:]
    maps_BKN = maps_BKHW.detach().float().flatten(2)
    peak_BK1, cell_BK1 = maps_BKN.max(-1, keepdim=True)
    region_BKHW = (maps_BKN > EXTENT * peak_BK1).view_as(maps_BKHW)
    part_BKHW = torch.zeros_like(maps_BKN).scatter(2, cell_BK1, 1.0).view_as(maps_BKHW) * region_BKHW
    for _ in range(height + width):
        part_BKHW = F.max_pool2d(part_BKHW, 3, stride=1, padding=1) * region_BKHW
    columns_BKW, rows_BKH = part_BKHW.amax(2), part_BKHW.amax(3)
    first = [ends.argmax(-1) for ends in (columns_BKW, rows_BKH)]
    last = [n - ends.flip(-1).argmax(-1) for n, ends in ((width, columns_BKW), (height, rows_BKH))]
    boxes_BK5 = torch.stack([torch.zeros_like(first[0]), *first, *last], dim=-1)
    return (boxes_BK5 * (peak_BK1 > 0)).float()
