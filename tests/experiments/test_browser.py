"""The page of all experiments in a real Chromium, opened from disk: `make test-browser`."""

import pytest

from amrg.config import Config
from amrg.experiments.registry import EXPERIMENTS
from tests.browser import WIDTH, Keys, Page, chromium
from tests.experiments.fake_results import write_results

#: Of an element in view: its place, and what of it is a picture that was read and has a size.
PICTURE = """
const place = arguments[0].getBoundingClientRect();
return [arguments[0].complete, arguments[0].naturalWidth, arguments[0].naturalHeight, place.width, place.height];
"""
ADDRESSES = "return performance.getEntriesByType('resource').map((entry) => entry.name.slice(0, 5))"


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    return write_results(Config(name="made-up", runs=str(tmp_path_factory.mktemp("runs")))).as_uri()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with chromium(tmp_path_factory.mktemp("profile")) as driver:
        yield driver


@pytest.fixture
def page(browser, address):
    browser.get(address)
    yield Page(browser)
    assert not browser.get_log("browser")


def pictures(page, css):
    """(loaded, natural width and height, shown width and height) of each."""
    return [page.driver.execute_script(PICTURE, image) for image in page.all(css)]


def test_every_experiment_has_its_words_table_and_plot(page):
    assert page.texts("nav a") == page.texts("section h2") == [one.title for one in EXPERIMENTS.values()]
    for name, experiment in EXPERIMENTS.items():
        assert page.text(f"#{name} .soft") == experiment.question
        assert "Not run" not in page.text(f"#{name}")
        rows = page.all(f"#{name} tbody tr")
        assert len(rows) == (len(experiment.variants(Config(), 1000)) or 6)
        assert all(row.is_displayed() and row.size["height"] > 10 for row in rows)
        ((loaded, wide, high, *shown),) = pictures(page, f"#{name} .plot img")
        assert loaded
        assert min(wide, high, *shown) > 100
        assert shown[0] / shown[1] == pytest.approx(wide / high, rel=0.02)  # not squeezed


def test_the_lesions_are_drawn_over_one_another(page):
    films = page.all("#mask-threshold .film")
    assert len(films) == 50
    found = pictures(page, "#mask-threshold .film img")
    assert len(found) == 150
    assert all(loaded and min(sizes) > 10 for loaded, *sizes in found)
    for film in (films[0], films[-1]):
        one, *others = film.find_elements("tag name", "img")
        assert all(other.rect == one.rect for other in others)


def test_nothing_is_loaded_from_elsewhere(page):
    assert all(name == "data:" for name in page.driver.execute_script(ADDRESSES))
    assert not page.all("script, link:not([href^=data])")


def test_with_the_keyboard_alone(page):
    """An experiment is reached through its link, a table that is wider than the screen is moved by its arrows."""
    page.focus("nav a:last-child")
    page.keys(Keys.ENTER)
    name = list(EXPERIMENTS)[-1]
    page.wait(lambda: page.one(f"#{name}").rect["y"] - page.driver.execute_script("return scrollY") < 900)
    with page.seen(390):
        page.focus(f"#{name} .scroll")
        page.keys(*[Keys.ARROW_RIGHT] * 5)
        page.wait(lambda: page.driver.execute_script("return document.activeElement.scrollLeft") > 50)
        first = page.one(f"#{name} tbody td")
        assert first.rect["x"] >= 0  # the variant's name stays in sight


@pytest.mark.parametrize(("width", "scheme"), [(1440, "light"), (390, "dark")])
def test_readable_at_any_width(page, width, scheme):
    """WCAG A and AA as far as axe-core can tell, contrast among it; nothing is cut off at the side."""
    with page.seen(width, scheme):
        assert page.broken_rules() == []
        assert page.driver.execute_script(WIDTH) <= width
        page.shot(f"experiments-{scheme}-{width}", whole=True)
