"""Localisation on maps whose answer is known."""

import numpy as np
import pytest

from amrg.evaluation.localization import Localization, localization_scores, upsample_maps


def _square(x: int, y: int, size: int = 16) -> np.ndarray:
    mask = np.zeros((64, 64), dtype=bool)
    mask[y : y + size, x : x + size] = True
    return mask


def test_perfect_maps() -> None:
    masks = np.stack([_square(0, 0), _square(32, 16), _square(16, 48)])
    result = localization_scores(masks.astype(np.float32), masks)
    assert result.ratio == pytest.approx([16.0] * 3)  # the lesion is 1/16 of the image
    assert result.control == pytest.approx([0.0] * 3)
    assert result.iou == pytest.approx([1.0] * 3)
    assert result.pointing_hit.tolist() == [1, 1, 1]
    assert result.lesion_area_share == pytest.approx([1 / 16] * 3)


def test_a_position_prior_is_unmasked_by_the_control() -> None:
    masks = np.stack([_square(10, 10), _square(12, 10), _square(10, 12)])
    average = masks.mean(0, dtype=np.float32)
    summary = localization_scores(np.stack([average] * 3), masks).summary(["a", "b", "c"], 100, 0)
    assert summary["ratio"] > 8
    assert summary["over_control"] == pytest.approx(1.0, abs=1e-9)  # the same map for all: others' masks do as well


def test_control_is_the_mean_over_other_masks() -> None:
    rng = np.random.default_rng(0)
    masks = rng.random((5, 20, 30)) < 0.2
    maps = rng.random((5, 20, 30)).astype(np.float32)
    result = localization_scores(maps, masks)
    expected = [np.mean([maps[i][masks[j]].mean() / maps[i].mean() for j in range(5) if j != i]) for i in range(5)]
    assert result.control == pytest.approx(expected, rel=1e-5)


def test_empty_map_counts_as_pointing_nowhere() -> None:
    masks = np.stack([_square(0, 0), _square(32, 16)])
    maps = masks.astype(np.float32)
    maps[1] = 0
    result = localization_scores(maps, masks)
    assert result.empty.tolist() == [False, True]
    assert result.summary(["a", "b"], 10, 0)["empty_maps"] == 1
    assert (result.ratio[1], result.pointing_hit[1], result.iou[1]) == (0, 0, 0)


def test_terciles_by_area() -> None:
    """Seven lesions of sides 4 to 16, the maps perfect for the large ones and blind to the others."""
    sides = [10, 4, 16, 6, 12, 8, 14]
    masks = np.stack([_square(3 * i, 3 * i, side) for i, side in enumerate(sides)])
    maps = np.stack([mask if side >= 14 else ~mask for mask, side in zip(masks, sides, strict=True)])
    result = localization_scores(maps.astype(np.float32), masks)
    assert [[sides[i] for i in rows] for rows in result.terciles()] == [[4, 6, 8], [10, 12], [14, 16]]
    sizes = result.summary([str(i) for i in range(7)], 50, 0)["sizes"]
    assert list(sizes) == ["small", "medium", "large"]
    assert [row["studies"] for row in sizes.values()] == [3, 2, 2]
    assert [row["pointing"] for row in sizes.values()] == [0, 0, 1]
    assert sizes["large"]["iou"] == sizes["large"]["iou_interval"][0] == pytest.approx(1)
    assert sizes["small"]["area_most"] == pytest.approx(64 / 64**2)
    assert not localization_scores(maps[:5].astype(np.float32), masks[:5]).summary(list("abcde"), 5, 0)["sizes"]


def test_lesions_of_several_findings_together() -> None:
    masks = np.stack([_square(0, 0), _square(32, 16)])
    one, two = (
        localization_scores(masks.astype(np.float32), masks),
        localization_scores((~masks).astype(np.float32), masks),
    )
    both = Localization.concat([one, two])
    assert both.pointing_hit.tolist() == [1, 1, 0, 0]
    assert both.summary(["a", "b", "a", "b"], 20, 0)["pointing_interval"] == [0.5, 0.5]  # patients stay together


def test_enlarge_keeps_cell_centers() -> None:
    grid = np.zeros((1, 7, 7), dtype=np.float32)
    grid[0, 2, 5] = 1
    large = upsample_maps(grid, (224, 224))[0]
    y, x = np.unravel_index(large.argmax(), large.shape)
    assert (y // 32, x // 32) == (2, 5)
    weights = large / large.sum()
    assert (weights.sum(1) @ (np.arange(224) + 0.5)) / 32 == pytest.approx(2.5, abs=1e-3)
