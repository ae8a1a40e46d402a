"""Films whose view is not told: frontal ones first by their look, if enough films of the data set tell theirs."""

import json
from dataclasses import replace

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from amrg.config import DataConfig
from amrg.data.labels import LABELS
from amrg.data.projection import FEWEST, ByProjection, cross_validate, film_features, fit_balanced_logistic
from amrg.data.shards import prepare_shards
from amrg.data.stream import iter_split_samples
from amrg.data.studies import Study, StudyImages
from tests.made_films import chest_film

CONFIG = DataConfig(image_size=64, shard_size=100, workers=1)
FRONTAL_SIZE, LATERAL_SIZE = (64, 72), (64, 76)  # tells in what order films were stored


def lateral_film(seed):
    """One lung behind the breastbone and one before the spine, which lies at a side of the film, left or right."""
    chance = np.random.default_rng([seed, 1])
    y, x = np.mgrid[0 : LATERAL_SIZE[0], 0 : LATERAL_SIZE[1]] / [[[LATERAL_SIZE[0]]], [[LATERAL_SIZE[1]]]]
    film = 170 + 30 * (x > 0.72 + chance.uniform(-0.03, 0.03)) - 150 * (x < 0.12)
    film -= 90 * (((y - 0.5) / 0.36) ** 2 + ((x - 0.45) / 0.24) ** 2 < 1)
    film = (film + chance.normal(0, 5, film.shape)).clip(0, 255).astype(np.uint8)
    return film if chance.random() < 0.5 else film[:, ::-1].copy()


class Views:
    """Studies with the given views; ``kinds`` tells what each film shows. One study's films may be unreadable."""

    def __init__(self, told=FEWEST, broken=""):
        self.broken, self.kinds, self.items = broken, {}, []
        for number in range(told):
            self.add(f"told-{number}", "train", "FL", ("PA", "LATERAL"))
        self.add("swapped", "train", "LF", ("", ""))
        self.add("no-views", "train", "LLF", ())
        self.add("told-first", "val", "FLFL", ("AP", "", "", "LATERAL"))
        self.add("two-frontal", "test", "FLF", ("AP SUPINE", "", ""))
        self.add("one", "test", "L", ("",))

    def add(self, key, split, kinds, views):
        self.kinds[key] = kinds
        self.items.append(Study(key, f"patient {key}", split, "Text.", dict.fromkeys(LABELS), views))

    def studies(self):
        return self.items

    def films(self, study):
        if study.key == self.broken:
            raise OSError("no such file")
        number = self.items.index(study)
        return StudyImages(
            [
                chest_film([number, place], *FRONTAL_SIZE) if kind == "F" else lateral_film(100 * number + place)
                for place, kind in enumerate(self.kinds[study.key])
            ]
        )


def stored(folder):
    """The kinds of the films and the views of each study, as they are stored."""
    kinds = {FRONTAL_SIZE: "F", LATERAL_SIZE: "L"}
    return {
        sample.study.key: ("".join(kinds[film.shape] for film in sample.views), sample.study.views)
        for split in ("train", "val", "test")
        for sample in iter_split_samples(folder, split)
    }


def written(source, folder):
    folder.mkdir()
    prepare_shards(source, CONFIG, folder, 0)
    return stored(folder), json.loads((folder / "statistics.json").read_text())


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("views") / "data"
    return folder, *written(Views(), folder)


def test_frontal_films_that_are_not_told_come_first(prepared):
    folder, found, statistics = prepared
    assert found["swapped"] == ("FL", ("", ""))  # never written as if the view were told
    assert found["no-views"] == ("FLL", ())
    assert found["told-first"] == ("FFLL", ("AP", "", "", "LATERAL"))
    assert found["two-frontal"] == ("FFL", ("AP SUPINE", "", ""))
    assert found["told-3"] == ("FL", ("PA", "LATERAL"))
    how = statistics["predicted_views"]["openi_drr"]  # the name of the source in the settings
    assert how["used"]
    assert how["balanced_accuracy"] >= 0.95
    assert (how["told_frontal"], how["told_lateral"]) == (FEWEST, FEWEST)
    assert (how["looks_frontal"], how["looks_lateral"], how["other_first_film"]) == (4, 5, 2)
    assert "4 films that look frontal and 5 that look lateral" in (folder / "card.md").read_text()


def test_again_gives_the_same_bytes(prepared, tmp_path):
    folder, *_ = prepared
    written(Views(), tmp_path / "again")
    for name in ("statistics.json", "card.md", "shards/train-000000.tar", "shards/val-000000.tar"):
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes()


def test_with_too_few_told_films_the_order_stays_and_it_is_said(tmp_path, capsys):
    source = Views(told=FEWEST - 1)
    found, statistics = written(source, tmp_path / "data")
    assert found == {study.key: (source.kinds[study.key], study.views) for study in source.items}
    how = statistics["predicted_views"]["openi_drr"]
    assert (how["used"], how["balanced_accuracy"], how["told_lateral"]) == (False, None, FEWEST - 1)
    assert f"only {FEWEST - 1} frontal and {FEWEST - 1} lateral" in capsys.readouterr().err
    assert "not predicted" in (tmp_path / "data/card.md").read_text()


def test_told_views_that_films_do_not_show_are_no_ground_for_an_order(tmp_path):
    source = Views()
    chance = np.random.default_rng(0)
    for study in source.items[:FEWEST]:
        source.kinds[study.key] = "".join(chance.permutation(["F", "L"]))
    ordered = ByProjection(source, "ours", 0)
    assert not ordered.summary["ours"]["used"]
    assert ordered.summary["ours"]["balanced_accuracy"] < 0.8
    swapped = next(study for study in source.items if study.key == "swapped")
    assert ordered.films(swapped).order == ()


def test_films_that_cannot_be_read_are_no_error_of_the_order():
    source = Views(told=FEWEST + 1, broken="told-5")
    assert ByProjection(source, "ours", 0).summary["ours"]["told_frontal"] == FEWEST
    source.broken = "swapped"
    ordered = ByProjection(source, "ours", 0)
    assert ordered.summary["ours"]["used"]
    with pytest.raises(OSError, match="no such file"):  # as without an order; prepare leaves the study out
        ordered.films(next(study for study in source.items if study.key == "swapped"))


@pytest.mark.parametrize("views", [(), ("PA", "LATERAL")])
def test_a_data_set_that_tells_all_views_or_none_is_not_looked_at(views):
    source = Views()
    source.items = [replace(study, views=views) for study in source.items]
    source.broken = source.items[0].key
    ordered = ByProjection(source, "ours", 0)
    assert ordered.summary == {}
    assert ordered.films(source.items[1]).order == ()


def test_each_of_several_data_sets_has_its_own_classifier():
    source = Views()
    source.items = [replace(study, dataset="b" if study.views == () else "a") for study in source.items]
    ordered = ByProjection(source, "mix", 0)
    assert list(ordered.summary) == ["a"]
    orders = {study.key: ordered.films(study).order for study in source.items}
    assert orders["swapped"] == (1, 0)
    assert orders["no-views"] == ()  # b tells no views


def test_features_do_not_tell_a_film_from_its_mirror_image():
    film = lateral_film(3)
    assert np.allclose(film_features(film), film_features(film[:, ::-1].copy()), atol=0.02)
    assert film_features(film).shape == (1024,)


def test_the_regression_agrees_with_scikit_learn():
    chance = np.random.default_rng(0)
    x = chance.normal(size=(80, 5))
    y = (x[:, 0] + chance.normal(size=80) > 0.8).astype(float)
    ours = fit_balanced_logistic(x, y, 0.05)
    # 80 balanced losses of mean 1, and half a squared norm by C: l2 = 1 / (2 · 80 · C)
    theirs = LogisticRegression(C=1 / (2 * 80 * 0.05), class_weight="balanced", tol=1e-8).fit(x, y)
    assert np.allclose(ours, [*theirs.coef_[0], theirs.intercept_[0]], atol=1e-3)


def test_patients_are_held_out_whole():
    chance = np.random.default_rng(0)
    frontal = np.arange(60) % 2 == 0
    noise = np.repeat(chance.normal(size=(10, 40)), 6, axis=0)  # six equal films of a patient: no help for others
    patients = [str(number // 6) for number in range(60)]
    kinds = np.repeat(chance.permutation(10) % 2 == 0, 6)
    assert cross_validate(noise, kinds, patients) < 0.8
    assert cross_validate(noise, kinds, [str(number) for number in range(60)]) == 1.0
    assert cross_validate(noise, frontal, ["one"] * 60) == 0.0
