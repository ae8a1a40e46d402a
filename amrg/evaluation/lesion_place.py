"""Sides and zones of a lesion on the film, from its true mask.

A film shows the patient from the front: the patient's left is the right half of the image. Zones are overlapping
ranges of height, as the lobes overlap on a film: the rows of ``_ROWS`` in ``amrg/data/sources/openi_drr/lesions.py``,
widened by 0.05 for the differences in inflation and position between films.
"""

import numpy as np

#: Minimal share of a lesion's area in a half of the film, or in a zone's rows, to assign it that side or zone.
LEAST_SIDE, LEAST_ZONE = 0.2, 0.4

#: First and last row of the open lung field as shares of the film's height: medians of 200 drawn poses of openi_drr
#: (95% of them: 0.03 to 0.08, and 0.71 to 0.85).
FIELD = (0.06, 0.77)

#: Rows of each zone as shares of the lung field's height. Rows above or below the field belong to the end zones.
ZONE_ROWS = {"upper": (-np.inf, 0.55), "middle": (0.4, 0.9), "lower": (0.45, np.inf)}


def lesion_sides_of_mask(mask: np.ndarray) -> frozenset[str]:
    """Return the patient's sides (``left``, ``right``) of a mask, bool [H, W]; empty for an empty mask."""
    columns = mask.sum(0, dtype=np.float64)
    if not columns.sum():
        return frozenset()
    centers = (np.arange(len(columns)) + 0.5) / len(columns)
    left = float(columns[centers > 0.5].sum() / columns.sum())  # a middle column is on neither side
    right = float(columns[centers < 0.5].sum() / columns.sum())
    return frozenset(side for side, share in (("left", left), ("right", right)) if share >= LEAST_SIDE)


def lesion_zones_of_mask(mask: np.ndarray) -> frozenset[str]:
    """Return the zones that contain a lesion, several where zones overlap; empty for an empty mask (bool [H, W])."""
    rows = mask.sum(1, dtype=np.float64)
    if not rows.sum():
        return frozenset()
    height = ((np.arange(len(rows)) + 0.5) / len(rows) - FIELD[0]) / (FIELD[1] - FIELD[0])
    shares = {z: rows[(height >= low) & (height <= high)].sum() / rows.sum() for z, (low, high) in ZONE_ROWS.items()}
    return frozenset(zone for zone, share in shares.items() if share >= LEAST_ZONE)
