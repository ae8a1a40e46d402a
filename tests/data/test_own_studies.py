"""The files of a study: each is used once, and its name is one line."""

import warnings

import numpy as np
import pytest
from PIL import Image

from amrg.data.film_checks import check_chest_film
from amrg.data.image_io import decode_film_bytes
from amrg.data.own_studies import find_own_studies, printable_file_name
from tests.made_films import chest_film


def test_a_film_that_is_named_twice_is_used_once(tmp_path):
    (tmp_path / "table.csv").write_text("study,film\ns,b.png\ns,a.png\ns,./b.png\ns,x/../a.png\nt,a.png\n")
    first, second = find_own_studies([tmp_path / "table.csv"])[0]
    assert first.films == (tmp_path / "b.png", tmp_path / "a.png")
    assert second.films == (tmp_path / "a.png",)


def test_a_name_is_one_line(tmp_path):
    (tmp_path / "a\nb").mkdir()
    (tmp_path / "a\nb/film.png").touch()
    (tmp_path / "no\rfilm").touch()
    (study,), skipped = find_own_studies([tmp_path])
    assert study.name == f"{tmp_path}/a\\nb"
    assert study.films == (tmp_path / "a\nb/film.png",)
    assert skipped == ["no\\rfilm"]


@pytest.mark.parametrize(
    ("name", "shown"),
    [("Thorax für Ärzte.png", "Thorax für Ärzte.png"), ("a\x1b[2J", "a\\x1b[2J"), ("a\u2028b", "a\\u2028b")],
)
def test_only_control_characters_are_escaped(name, shown):
    assert printable_file_name(name) == shown


def test_a_transparent_palette_is_read_without_a_warning(tmp_path):
    film = chest_film(0)
    image = Image.fromarray(film).convert("P")
    image.save(tmp_path / "film.png", transparency=bytes([0, 128, 255]))
    data = (tmp_path / "film.png").read_bytes()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pixels = decode_film_bytes(data, 224)
        check_chest_film(data, pixels)
    np.testing.assert_array_equal(pixels, film)
