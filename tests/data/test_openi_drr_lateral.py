"""Lateral films of the embedded data: the same chest from the side, and nothing of the frontal film changes."""

from dataclasses import replace

import numpy as np
import pytest

from amrg.config import DataConfig
from amrg.config_files import config_to_dict
from amrg.data.sources.openi_drr import OpeniDrr
from amrg.data.sources.openi_drr.anatomy import load_anatomy
from amrg.data.sources.openi_drr.canvas import Canvas
from amrg.data.sources.openi_drr.film import render_film, render_two_views
from amrg.data.sources.openi_drr.findings import Finding
from amrg.data.sources.openi_drr.lateral import render_lateral
from amrg.data.sources.openi_drr.projection import Pose

SIZE = 112
SEED = (0, 11)
SMALL = DataConfig(train_studies=20, val_studies=5, test_studies=8, image_size=SIZE)


def lateral(findings: tuple[Finding, ...]) -> np.ndarray:
    return render_two_views(findings, SEED, SIZE)[0][1].astype(float)


def test_the_frontal_film_is_what_it_was() -> None:
    findings = (Finding("consolidation", ("left",)),)
    (film, side), masks = render_two_views(findings, SEED, SIZE)
    alone, masks_alone = render_film(findings, SEED, SIZE)
    assert np.array_equal(film, alone)
    assert masks.keys() == masks_alone.keys()
    assert side.shape == film.shape
    assert np.array_equal(side, render_two_views(findings, SEED, SIZE)[0][1])
    assert not np.array_equal(side, render_two_views(findings, (0, 12), SIZE)[0][1])


@pytest.mark.parametrize(("place", "front"), [((20.0, 80.0), False), ((60.0, 80.0), True), ((60.0, 140.0), True)])
def test_a_lesion_is_seen_at_its_depth_and_height(place: tuple[float, float], front: bool) -> None:
    """A block of tissue in the left lung: the front of the patient is on the left of the film."""
    depth, row = place
    films = []
    for painted in (False, True):
        canvas = Canvas(load_anatomy(), np.random.default_rng(0), Pose())
        if painted:
            box = canvas.box((depth, row, canvas.anatomy.midline + 50), (12.0, 12.0, 20.0))
            canvas.paint(box, np.ones([part.stop - part.start for part in box]))
        films.append(render_lateral(canvas, np.zeros(canvas.anatomy.water.shape[1:], np.float32), SEED, SIZE))
    change = np.abs(films[1].astype(float) - films[0])
    change[change < 0.5 * change.max()] = 0
    rows, columns = (np.average(axis, weights=change) / SIZE for axis in np.indices(change.shape))
    assert (columns < 0.5) == front
    # About 300 mm of 0.88 of the width are shown, from 5 mm below the top on.
    assert rows == pytest.approx((row * 1.40625 - 5) / (300 * 0.88), abs=0.1)


def test_devices_are_seen_from_the_side() -> None:
    change = lateral((Finding("device", ("left",), device="port"),)) - lateral(())
    assert np.abs(change).max() > 20


def test_studies_that_list_two_films_have_a_lateral() -> None:
    before = {study.key: study for study in OpeniDrr(SMALL, 0).studies()}
    source = OpeniDrr(replace(SMALL, lateral_films=True), 0)
    for study in source.studies():
        assert study.views in (("PA",), ("PA", "LATERAL"))
        assert replace(study, views=()) == before[study.key]
    both, one = (
        next(study for study in source.studies() if study.split == "train" and len(study.views) == count)
        for count in (2, 1)
    )
    assert [len(source.films(study).views) for study in (both, one)] == [2, 1]
    films = source.films(both)
    assert all(mask.shape == films.views[0].shape for mask in films.masks.values())
    listed = OpeniDrr(replace(SMALL, lateral_films=True, listed_films=2), 0).studies()
    assert {study.views for study in listed} == {("PA", "LATERAL")}


def test_an_earlier_study_has_a_frontal_film_alone() -> None:
    source = OpeniDrr(replace(SMALL, lateral_films=True, earlier_states=True, listed_films=2, sections="separate"), 0)
    studies = {study.key: study for study in source.studies()}
    later = next(study for study in studies.values() if study.prior and study.impression)
    earlier = studies[later.prior]
    assert (later.views, earlier.views) == (("PA", "LATERAL"), ("PA",))
    assert later.report.endswith(later.impression)
    now, before = source.films(later).views, source.films(earlier).views
    assert (len(now), len(before)) == (2, 1)
    alone = OpeniDrr(replace(SMALL, earlier_states=True, listed_films=2), 0)
    same = {study.key: study for study in alone.studies()}
    for key, films in ((later.key, now), (earlier.key, before)):
        assert np.array_equal(alone.films(same[key]).views[0], films[0])


def test_without_the_settings_the_data_have_the_identity_that_they_had() -> None:
    assert not {"lateral_films", "listed_films"} & config_to_dict(SMALL).keys()
