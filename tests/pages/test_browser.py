"""The result page in a real Chromium, opened from disk: `make test-browser`."""

import pytest

from amrg.pages.result_page import write_result_page
from tests.browser import WIDTH, Keys, Page, chromium
from tests.pages.fake_page import page as content

HEADINGS = "#findings th button"
ROWS = "#findings tbody tr td:first-child"
COUNTS = "#findings tbody tr td:nth-child(2)"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    address = tmp_path_factory.mktemp("page") / "index.html"
    write_result_page(content(), address)
    with chromium(tmp_path_factory.mktemp("profile")) as driver:
        driver.get(address.as_uri())
        yield driver


@pytest.fixture
def page(browser):
    browser.refresh()
    yield Page(browser)
    assert not browser.get_log("browser")


def test_a_table_is_sorted_by_mouse_and_keyboard(page):
    """From the highest, from the lowest, as it was; what has no number stays last."""
    before = page.texts(ROWS)
    second = page.all(HEADINGS)[1]
    second.click()
    counts = page.texts(COUNTS)
    numbers = [int(text) for text in counts[:-1]]
    assert (numbers, counts[-1]) == (sorted(numbers, reverse=True), "–")
    assert page.all("#findings th")[1].get_attribute("aria-sort") == "descending"
    second.send_keys(Keys.ENTER)
    assert page.texts(COUNTS) == [*reversed(counts[:-1]), "–"]
    second.send_keys(Keys.SPACE)
    assert page.texts(ROWS) == before
    assert page.all("#findings th")[1].get_attribute("aria-sort") is None
    page.all(HEADINGS)[0].click()
    assert page.texts(ROWS) == sorted(before)


@pytest.mark.parametrize(("width", "scheme"), [(1440, "light"), (1024, "dark"), (390, "light")])
def test_it_is_readable(page, width, scheme):
    """No rule of WCAG that axe knows is broken, contrast among them, and nothing is wider than the window."""
    with page.seen(width, scheme):
        page.driver.execute_script("document.querySelectorAll('details').forEach((one) => one.open = true)")
        assert page.driver.execute_script(WIDTH) <= width
        assert page.broken_rules() == []
        page.shot(f"result-{width}-{scheme}", whole=True)


def test_sections_stay_in_reach(page):
    """The links to the sections stay in view, and what they lead to is not behind them."""
    with page.seen(1280):
        page.one('nav a[href="#worst"]').click()
        bar, heading = (page.one(css).rect for css in ("nav.sections", "#worst h2"))
        scrolled = page.driver.execute_script("return window.scrollY")
        assert bar["y"] - scrolled == pytest.approx(0, abs=1)
        assert heading["y"] >= bar["y"] + bar["height"]


def test_print_is_light_without_what_cannot_be_pressed(page):
    page.driver.execute_cdp_cmd(
        "Emulation.setEmulatedMedia",
        {"media": "print", "features": [{"name": "prefers-color-scheme", "value": "dark"}]},
    )
    assert not any(one.is_displayed() for one in page.all("nav, .switches, .steps"))
    ink = "return getComputedStyle(document.body).color"
    assert page.driver.execute_script(ink) == "rgb(23, 33, 43)"
