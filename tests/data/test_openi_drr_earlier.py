"""Earlier states of rendered studies: what the report says of change, by hand, and what the films show of it."""

from dataclasses import replace

import numpy as np
import pytest

from amrg.config import DataConfig
from amrg.data.labels import POSITIVE
from amrg.data.prior import choose_priors
from amrg.data.sources.openi_drr import OpeniDrr
from amrg.data.sources.openi_drr.earlier import LARGER, SEVERITY, SMALLER, earlier_state
from amrg.data.sources.openi_drr.film import render_film
from amrg.data.sources.openi_drr.findings import Finding

SIZE, SEED = 112, (0, 11)
MASS, EFFUSION = Finding("mass", ("right",)), Finding("effusion", ("left",), severity=0.7)
HEART, DEVICE = Finding("cardiomegaly"), Finding("device", device="port")


def test_a_report_that_does_not_compare_has_no_earlier_state() -> None:
    assert earlier_state((MASS, HEART), "Cardiomegaly. A right lung mass.") is None


def test_what_was_before_by_hand() -> None:
    text = "Stable cardiomegaly. The right lung mass has increased. New left pleural effusion. A port."
    found = earlier_state((MASS, EFFUSION, HEART, DEVICE), text)
    assert found is not None
    assert [finding.number for finding in found.now] == [0, 1, 2, 3]
    assert found.before == (
        replace(MASS, scale=SMALLER, number=0),
        replace(HEART, number=2),
        replace(DEVICE, number=3),
    )
    assert found.changes == {
        "Lung Lesion": "worse", "Pleural Effusion": "new", "Cardiomegaly": "unchanged", "Support Devices": "unchanged",
    }  # fmt: skip
    assert found.report == "Right lung mass. Enlarged heart. Port."


def test_what_has_improved_or_gone() -> None:
    found = earlier_state((EFFUSION,), "The left effusion has decreased. Resolved pulmonary edema.")
    assert found is not None
    assert found.before == (replace(EFFUSION, severity=0.7 + SEVERITY, number=0), Finding("edema", number=2))
    assert found.changes == {"Pleural Effusion": "improved", "Edema": "improved", "Lung Opacity": "improved"}
    nothing = earlier_state((MASS,), "New right lung mass.")
    assert nothing is not None
    assert nothing.before == ()
    assert nothing.report == "The lungs are clear. The heart is normal in size. No pleural effusion or pneumothorax."


def test_a_side_selects_the_finding_and_findings_that_differ_have_no_truth() -> None:
    both = (Finding("nodule", ("left",)), Finding("nodule", ("right",)))
    found = earlier_state(both, "The left lung nodule has increased. The right lung nodule is unchanged.")
    assert found is not None
    assert [finding.scale for finding in found.before] == [SMALLER, 1.0]
    assert found.changes == {}


@pytest.mark.parametrize(("kind", "label"), [("mass", "Lung Lesion"), ("consolidation", "Consolidation")])
def test_a_lesion_that_was_smaller_or_larger_was_at_the_same_place(kind: str, label: str) -> None:
    """In the anatomy: on films of one pose the smaller lies in the larger, and areas are ordered."""
    finding = Finding(kind, ("right",), number=0)
    masks = [render_film((replace(finding, scale=scale),), SEED, SIZE)[1][label] for scale in (SMALLER, 1.0, LARGER)]
    small, usual, large = masks
    assert small.sum() < usual.sum() < large.sum()
    assert (small & large).sum() > 0.9 * small.sum()
    film, moved = render_film((finding,), SEED, SIZE, visit=1)
    same, _ = render_film((finding,), SEED, SIZE)
    assert np.abs(film.astype(float) - same).mean() > 3  # another pose and exposure
    centers = [np.argwhere(mask).mean(0) for mask in (moved[label], usual)]
    assert np.abs(centers[0] - centers[1]).max() < 0.15 * SIZE
    assert np.array_equal(render_film((finding,), SEED, SIZE, visit=1)[0], film)


def test_a_finding_more_leaves_the_others_where_they_are() -> None:
    mass = replace(MASS, number=0)
    _, alone = render_film((mass,), SEED, SIZE)
    _, both = render_film((replace(EFFUSION, number=1), mass), SEED, SIZE)
    overlap = (alone["Lung Lesion"] & both["Lung Lesion"]).sum() / (alone["Lung Lesion"] | both["Lung Lesion"]).sum()
    assert overlap > 0.95


def test_the_source_with_and_without_earlier_states() -> None:
    config = DataConfig(train_studies=60, val_studies=10, test_studies=10, renders_per_study=2, image_size=SIZE)
    plain = OpeniDrr(config, 0).studies()
    source = OpeniDrr(replace(config, earlier_states=True), 0)
    studies = source.studies()
    by_key = {study.key: study for study in studies}
    later = [study for study in studies if study.prior]
    assert later
    assert [replace(s, prior="", prior_report="", changes={}) for s in studies if s.report] == plain
    for study in later:
        earlier = by_key[study.prior]
        assert (earlier.group, earlier.split, earlier.report) == (study.group, study.split, "")
        for label, change in study.changes.items():
            assert (earlier.labels[label] == POSITIVE) is (change != "new")
    train = [study for study in studies if study.split == "train"]
    assert choose_priors(train, "last") == choose_priors(train, "first")
    one = next(study for study in later if study.changes)
    film, before = (source.films(study).views[0] for study in (one, by_key[one.prior]))
    assert film.shape == before.shape
    assert not np.array_equal(film, before)
