"""Rendered films: reproducible, lesions where they belong and nowhere else."""

import pickle

import numpy as np
import pytest

from amrg.config import DataConfig
from amrg.data.sources.openi_drr import OpeniDrr, devices
from amrg.data.sources.openi_drr.anatomy import load_anatomy
from amrg.data.sources.openi_drr.canvas import Canvas
from amrg.data.sources.openi_drr.film import render_film
from amrg.data.sources.openi_drr.findings import Finding
from amrg.data.sources.openi_drr.projection import Pose, cumulative_path, film_pixel_grid, project_volume, slice_shifts

SIZE = 112
SEED = (0, 11)

#: A finding of one lung, with the label of its mask.
SIDED = [
    ("consolidation", "Consolidation"),
    ("opacity", "Lung Opacity"),
    ("atelectasis", "Atelectasis"),
    ("effusion", "Pleural Effusion"),
    ("pneumothorax", "Pneumothorax"),
    ("mass", "Lung Lesion"),
    ("granuloma", "Lung Lesion"),
]


def centroid(mask: np.ndarray) -> tuple[float, float]:
    rows, columns = np.nonzero(mask)
    return rows.mean() / len(mask), columns.mean() / len(mask)


@pytest.mark.parametrize(("kind", "label"), SIDED)
@pytest.mark.parametrize("side", ["left", "right"])
def test_the_patients_left_is_on_the_images_right(kind: str, label: str, side: str) -> None:
    _, masks = render_film((Finding(kind, (side,)),), SEED, SIZE)
    _, column = centroid(masks[label])
    assert column > 0.5 if side == "left" else column < 0.5


@pytest.mark.parametrize(("kind", "label"), [*SIDED, ("cardiomegaly", "Cardiomegaly"), ("edema", "Edema")])
def test_a_lesion_changes_the_film_where_its_mask_is(kind: str, label: str) -> None:
    """The same patient, pose, exposure and noise: only the lesion differs."""
    healthy, none = render_film((), SEED, SIZE)
    film, masks = render_film((Finding(kind, ("right",)),), SEED, SIZE)
    change = np.abs(film.astype(float) - healthy)
    mask = masks[label]
    assert not none
    assert 0 < mask.mean() < 0.5
    assert change[mask].mean() > 2.5 * change[~mask].mean()


def test_zones_are_ordered_from_apex_to_base() -> None:
    rows = []
    for zone in ("apex", "middle", "base"):
        masks = [
            render_film((Finding("mass", ("right",), zone),), (0, seed), SIZE)[1]["Lung Lesion"] for seed in range(3)
        ]
        rows.append(np.mean([centroid(mask)[0] for mask in masks]))
    assert rows[0] < rows[1] < rows[2]


def test_severity_scales_size() -> None:
    for kind, label in (("effusion", "Pleural Effusion"), ("cardiomegaly", "Cardiomegaly")):
        small, large = (
            render_film((Finding(kind, ("left",), "", severity),), SEED, SIZE)[1][label] for severity in (0.3, 2)
        )
        assert large.sum() > 1.1 * small.sum()


def test_an_effusions_border_rises_outwards() -> None:
    _, masks = render_film((Finding("effusion", ("left",), severity=1.5),), SEED, SIZE)
    rows, columns = np.nonzero(masks["Pleural Effusion"])
    outer, inner = columns > np.quantile(columns, 0.8), columns < np.quantile(columns, 0.3)
    assert rows[outer].min() < rows[inner].min() - 2


def test_films_follow_from_key_and_seed_in_any_process() -> None:
    config = DataConfig(train_studies=6, val_studies=1, test_studies=2, image_size=SIZE, renders_per_study=2)
    source = OpeniDrr(config, seed=5)
    copy = pickle.loads(pickle.dumps(source))
    studies = source.studies()
    forwards = [source.films(study) for study in studies[:4]]
    backwards = [copy.films(study) for study in reversed(studies[:4])][::-1]
    for one, two in zip(forwards, backwards, strict=True):
        assert one.views[0].dtype == np.uint8
        assert one.views[0].shape == (SIZE, SIZE)
        np.testing.assert_array_equal(one.views[0], two.views[0])
        assert list(one.masks) == list(two.masks)
        assert all(np.array_equal(one.masks[label], two.masks[label]) for label in one.masks)
    assert not np.array_equal(forwards[0].views[0], forwards[1].views[0])  # two renders of one study
    other = OpeniDrr(config, seed=6)
    assert all(not np.array_equal(other.films(s).views[0], forwards[0].views[0]) for s in other.studies()[:1])


def test_masks_carry_positive_labels_of_the_study_only() -> None:
    config = DataConfig(train_studies=1, val_studies=1, test_studies=12, abnormal_fraction=None, image_size=SIZE)
    source = OpeniDrr(config, seed=0)
    for study in (s for s in source.studies() if s.split == "test"):
        for label, mask in source.films(study).masks.items():
            assert study.labels[label] == 1.0
            assert mask.shape == (SIZE, SIZE)
            assert mask.any()


def test_every_device_is_drawn() -> None:
    for device in ("pacemaker", "port", "picc", "central line", "endotracheal tube", "enteric tube", "chest tube"):
        canvas = Canvas(load_anatomy(), np.random.default_rng(0), Pose())
        plane = devices.draw_device(canvas, device, "right")
        assert 5 < plane.max() < 150
        assert 0 < (plane > 3).mean() < 0.1


def test_lungs_are_dark_and_the_film_is_not_clipped() -> None:
    chest = load_anatomy()
    for seed in range(3):
        film, _ = render_film((), (1, seed), SIZE)
        grid = film_pixel_grid(Pose(), SIZE, chest.midline, np.zeros((2, SIZE, SIZE)))
        open_field = chest.open_field[
            tuple(np.clip(g.astype(int), 0, n - 1) for g, n in zip(grid, chest.open_field.shape, strict=True))
        ]
        inner = film[:, SIZE // 4 : -SIZE // 4]
        assert film[open_field].mean() < inner[SIZE // 2 :].mean()
        assert np.mean(film == film.max()) < 0.05


class TestProjection:
    volume = np.random.default_rng(0).random((9, 7, 8), dtype=np.float32)

    def test_straight_on_is_a_sum(self) -> None:
        np.testing.assert_allclose(
            project_volume(cumulative_path(self.volume), Pose(), 9), self.volume.sum(0) * 2.8125, rtol=1e-5
        )

    def test_a_box_adds_what_the_whole_would(self) -> None:
        box = (slice(2, 6), slice(1, 5), slice(3, 7))
        only = np.zeros_like(self.volume)
        only[box] = self.volume[box]
        pose = Pose(yaw=8.0, pitch=-6.0)
        plane = project_volume(cumulative_path(self.volume[box]), pose, 9, box, np.zeros((7, 8), np.float32))
        # slices are grouped by their shear to half a pixel, and a box may group them otherwise
        np.testing.assert_allclose(plane.sum(), project_volume(cumulative_path(only), pose, 9).sum(), rtol=0.02)
        assert np.abs(plane - project_volume(cumulative_path(only), pose, 9)).max() < 0.5 * plane.max()

    def test_a_point_lands_where_geometry_says(self) -> None:
        volume = np.zeros((40, 60, 60), np.float32)
        volume[35, 30, 30] = 1
        pose = Pose(yaw=10.0, pitch=5.0)
        plane = project_volume(cumulative_path(volume), pose, 40)
        rows, columns = np.indices(plane.shape)
        expected = slice_shifts(40, pose)[0][35], slice_shifts(40, pose)[1][35]
        found = (rows * plane).sum() / plane.sum() - 30, (columns * plane).sum() / plane.sum() - 30
        np.testing.assert_allclose(found, expected, atol=0.3)
        np.testing.assert_allclose(expected[1], 15 * 2.8125 * np.tan(np.radians(10)) / 1.40625)
