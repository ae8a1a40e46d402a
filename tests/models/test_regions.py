"""Regions of labels against a slow loop, values by hand, and what must hold of any map."""

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor

from amrg.models.regions import EXTENT, GRID, PLACES, Regions, boxes_of_regions, regions_of_films, regions_of_studies

D = 24  # of a state: 8 numbers of what the region looks like, 16 of where it is


def box_of(map_HW: np.ndarray) -> tuple[int, ...]:
    """Of one map, without the number of the film."""
    return tuple(boxes_of_regions(torch.from_numpy(map_HW)[None, None])[0, 0, 1:].int().tolist())


def some(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def films(count: int = 3, labels: int = 2, side: int = 8, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Features, and maps that are 0 in places."""
    return some(count, side, side, D, seed=seed), some(count, labels, side, side, seed=seed + 1).clamp_min(0)


def state_by_hand(features_HWD: np.ndarray, map_HW: np.ndarray) -> np.ndarray:
    """Cell by cell, in float64, for a side that is a multiple of ``GRID``."""
    height, width = map_HW.shape
    peak = map_HW.max()
    look = np.zeros(features_HWD.shape[-1])
    total = 0.0
    places = np.zeros((GRID, GRID))
    for y in range(height):
        for x in range(width):
            if map_HW[y, x] > EXTENT * peak:
                look += map_HW[y, x] ** 2 * features_HWD[y, x]
                total += map_HW[y, x] ** 2
            places[y * GRID // height, x * GRID // width] += map_HW[y, x]
    look = look / total - features_HWD.reshape(height * width, -1).mean(0)
    look = look[:-PLACES]
    state = np.concatenate([look / np.linalg.norm(look), np.sqrt(places.ravel() / places.sum())])
    centered = state - state.mean()
    return centered / np.linalg.norm(centered) * np.sqrt(len(state))


def test_states_are_those_of_a_slow_loop() -> None:
    features, maps = films()
    found = regions_of_films(features, maps)
    for b in range(3):
        for k in range(2):
            expected = state_by_hand(features[b].double().numpy(), maps[b, k].double().numpy())
            np.testing.assert_allclose(found.states_BKD[b, k].numpy(), expected, rtol=1e-3, atol=1e-4)
            assert found.peaks_BK[b, k] == maps[b, k].max()


def test_places_by_hand() -> None:
    """A map of 8 × 8 cells: 3 in the upper left place, 1 in the last place of the second row."""
    maps = torch.zeros(1, 1, 8, 8)
    maps[0, 0, 0, 0], maps[0, 0, 1, 1], maps[0, 0, 2, 7] = 2.0, 1.0, 1.0
    found = regions_of_films(some(1, 8, 8, D), maps)
    expected = torch.zeros(PLACES)
    expected[0], expected[GRID + 3] = 0.75, 0.25
    torch.testing.assert_close(found.places_BKP[0, 0], expected)


def test_both_sides_of_a_bilateral_finding_have_their_share() -> None:
    maps = torch.zeros(1, 1, 8, 8)
    maps[0, 0, 6, 0], maps[0, 0, 6, 7] = 1.0, 0.9
    features = some(1, 8, 8, D)
    found = regions_of_films(features, maps)
    expected = torch.zeros(PLACES)
    expected[3 * GRID], expected[3 * GRID + 3] = 1 / 1.9, 0.9 / 1.9
    torch.testing.assert_close(found.places_BKP[0, 0], expected)
    look = (features[0, 6, 0] + 0.81 * features[0, 6, 7]) / 1.81 - features[0].flatten(0, 1).mean(0)
    state = found.states_BKD[0, 0, :-PLACES]
    assert torch.corrcoef(torch.stack([state, look[:-PLACES]]))[0, 1] > 0.9999
    assert found.boxes_BK5[0, 0].tolist() == [0, 0, 6, 1, 7]  # the box is the stronger side's alone


def test_a_map_of_zeros_has_no_region() -> None:
    features, maps = films()
    maps[1, 0] = 0.0
    found = regions_of_films(features, maps)
    for part in found:
        assert part.isfinite().all()
        assert not part[1, 0].any()
    assert all(part[1, 1].any() for part in found[:3])
    torch.testing.assert_close(found.states_BKD[0], regions_of_films(*films()).states_BKD[0])


def test_a_map_that_is_alike_everywhere_has_a_place_and_no_look() -> None:
    found = regions_of_films(some(1, 8, 8, D), torch.ones(1, 1, 8, 8))
    assert found.states_BKD.isfinite().all()
    torch.testing.assert_close(found.places_BKP[0, 0], torch.full((PLACES,), 1 / PLACES))
    assert found.boxes_BK5[0, 0].tolist() == [0, 0, 0, 8, 8]


def test_scale_of_a_map_and_what_the_whole_film_shares_do_not_count() -> None:
    features, maps = films()
    found = regions_of_films(features, maps)
    scaled = regions_of_films(features + some(3, 1, 1, D, seed=9) * 3, maps * 7)
    torch.testing.assert_close(scaled.states_BKD, found.states_BKD, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(scaled.places_BKP, found.places_BKP)
    torch.testing.assert_close(scaled.peaks_BK, 7 * found.peaks_BK)
    assert torch.equal(scaled.boxes_BK5, found.boxes_BK5)


def test_what_lies_outside_the_region_changes_nothing_but_the_place() -> None:
    features, maps = films(1, 1)
    faint = (maps > 0) & (maps < 0.4 * maps.amax())
    looks = [
        torch.nn.functional.normalize(state - state.mean(), dim=0)
        for changed in (maps, torch.where(faint, 0.0, maps))
        for state in [regions_of_films(features, changed).states_BKD[0, 0, :-PLACES]]
    ]
    assert faint.any()
    torch.testing.assert_close(*looks)
    assert not torch.allclose(regions_of_films(features, torch.where(faint, 0.0, maps)).places_BKP, found_places(maps))


def found_places(maps: Tensor) -> Tensor:
    return regions_of_films(torch.zeros(*maps.shape[:1], *maps.shape[2:], D), maps).places_BKP


def test_the_product_of_two_states_is_look_and_place() -> None:
    """cos(x, y) of the rows without their mean: (u·v + BC(h, g) − D m_x m_y) / (…); BC is Bhattacharyya's."""
    features, maps = films(2, 1, seed=3)
    found = regions_of_films(features, maps)
    raw = []
    for b in range(2):
        weights_N = torch.where(maps[b, 0] > EXTENT * maps[b, 0].max(), maps[b, 0].square(), 0.0).flatten()
        look = (weights_N / weights_N.sum()) @ features[b].flatten(0, 1) - features[b].flatten(0, 1).mean(0)
        look = look[:-PLACES] / look[:-PLACES].norm()
        raw.append((look, found.places_BKP[b, 0]))
    (u, h), (v, g) = raw
    overlap = (h * g).sqrt().sum()
    means = [(look.sum() + place.sqrt().sum()) / D for look, place in raw]
    product = u @ v + overlap - D * means[0] * means[1]
    lengths = [(2 - D * mean**2).sqrt() for mean in means]  # both halves have length 1
    expected = product / (lengths[0] * lengths[1])
    x, y = found.states_BKD[:, 0]
    torch.testing.assert_close(x @ y / D, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("shape", [(7, 7), (5, 9), (3, 14), (1, 1)])
def test_odd_grids(shape: tuple[int, int]) -> None:
    """Cells that lie in two places are shared, and a map of one place still fills a place."""
    features, maps = some(2, *shape, D), some(2, 3, *shape, seed=1).abs() + 0.1
    found = regions_of_films(features, maps)
    assert found.states_BKD.isfinite().all()
    torch.testing.assert_close(found.places_BKP.sum(-1), torch.ones(2, 3))
    assert (found.boxes_BK5[..., 3] <= shape[1]).all()
    assert (found.boxes_BK5[..., 4] <= shape[0]).all()
    mirrored = regions_of_films(features.flip(2), maps.flip(3)).places_BKP.unflatten(2, (GRID, GRID)).flip(3)
    torch.testing.assert_close(mirrored, found.places_BKP.unflatten(2, (GRID, GRID)))


def test_bfloat16_films_have_nearly_the_same_regions() -> None:
    features, maps = films(side=14)
    whole, rounded = regions_of_films(features, maps), regions_of_films(features.bfloat16(), maps.bfloat16())
    assert all(part.dtype == torch.float32 for part in rounded)
    cosine = torch.nn.functional.cosine_similarity(whole.states_BKD, rounded.states_BKD, dim=-1)
    assert float(cosine.min()) > 0.99
    torch.testing.assert_close(rounded.places_BKP, whole.places_BKP, rtol=0.02, atol=2e-3)
    with torch.autocast("cpu", torch.bfloat16):
        under = regions_of_films(features, maps)
    assert all(torch.equal(a, b) for a, b in zip(under, whole, strict=True))  # autocast rounds nothing
    assert torch.equal(whole.boxes_BK5.bfloat16().float(), whole.boxes_BK5)


@pytest.mark.parametrize("seed", range(4))
def test_a_box_holds_the_connected_part_with_the_peak(seed: int) -> None:
    """Beside a flood fill, cell by cell."""
    map_HW = ndimage.gaussian_filter(np.random.default_rng(seed).random((14, 14)), 1.0)
    map_HW = (map_HW - map_HW.min()) ** 3
    peak = tuple(int(i) for i in np.unravel_index(map_HW.argmax(), map_HW.shape))
    reached, edge = {peak}, [peak]
    while edge:
        y, x = edge.pop()
        for v in range(max(y - 1, 0), min(y + 2, 14)):
            for u in range(max(x - 1, 0), min(x + 2, 14)):
                if (v, u) not in reached and map_HW[v, u] > EXTENT * map_HW.max():
                    reached.add((v, u))
                    edge.append((v, u))
    ys, xs = zip(*reached, strict=True)
    assert box_of(map_HW) == (min(xs), min(ys), max(xs) + 1, max(ys) + 1)
    boxes = regions_of_films(some(1, 14, 14, D), torch.from_numpy(map_HW)[None, None]).boxes_BK5
    assert boxes[0, 0].tolist() == [0, *box_of(map_HW)]


def test_cells_that_touch_by_a_corner_are_connected_and_a_gap_is_not() -> None:
    map_HW = np.zeros((6, 6))
    map_HW[1, 1], map_HW[2, 2], map_HW[5, 5], map_HW[3, 3] = 1.0, 0.6, 0.9, EXTENT
    assert box_of(map_HW) == (1, 1, 3, 3)  # the extent itself does not exceed the extent


def test_a_study_has_the_region_of_the_film_with_the_highest_peak() -> None:
    features, maps = films(5)
    maps *= torch.tensor([1.0, 3.0, 2.0, 0.5, 4.0])[:, None, None, None]
    maps[1, 1], maps[4, 0] = maps[1, 1] * 0.01, 0.0
    regions = regions_of_films(features, maps)
    found = regions_of_studies(regions, [3, 2])
    peaks = regions.peaks_BK
    chosen = [[0 + int(peaks[:3, k].argmax()) for k in range(2)], [3 + int(peaks[3:, k].argmax()) for k in range(2)]]
    assert chosen[0] == [1, 2]
    assert chosen[1] == [3, 4]
    for study, first in enumerate((0, 3)):
        for k, film in enumerate(chosen[study]):
            for name in ("states_BKD", "places_BKP", "peaks_BK"):
                assert torch.equal(getattr(found, name)[study, k], getattr(regions, name)[film, k])
            assert found.boxes_BK5[study, k].tolist() == [film - first, *regions.boxes_BK5[film, k, 1:].tolist()]
    assert all(part.shape[0] == 2 for part in found)


def test_studies_of_one_film_are_their_films() -> None:
    regions = regions_of_films(*films(3))
    found = regions_of_studies(regions, [1, 1, 1])
    assert all(torch.equal(a, b) for a, b in zip(found, regions, strict=True))
    assert not found.boxes_BK5[..., 0].any()
    assert isinstance(found, Regions)
