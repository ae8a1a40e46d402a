"""The page in a real Chromium, clicked and typed through: `make test-browser`. Screenshots go to build/screenshots."""

import contextlib
import os
import threading
import time
from base64 import b64encode
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import uvicorn
from PIL import Image

from amrg.app.chain import open_chain
from amrg.app.server import create_app
from tests.data.test_film_files import dicom

if os.environ.get("AMRG_BROWSER") != "1":
    pytest.skip("needs Chromium: make test-browser", allow_module_level=True)

from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

SHOTS = Path("build/screenshots")
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--window-size=1440,1000",
)  # fmt: skip
#: A script for web pages, taken from a package that is not imported.
AXE = Path(find_spec("axe_playwright_python").origin).with_name("axe.min.js")
CHECK = """
axe.run({runOnly: ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"]}).then(({violations}) => arguments[0](violations));
"""
DROP = """
const data = new DataTransfer();
data.items.add(new File([Uint8Array.from(atob(arguments[0]), (c) => c.charCodeAt(0))], "film.png"));
document.body.dispatchEvent(new DragEvent("drop", {dataTransfer: data, bubbles: true, cancelable: true}));
"""


class Page:
    """The page in a browser, by what a reader sees."""

    def __init__(self, driver, address):
        self.driver, self.address = driver, address

    def open(self, place=""):
        self.driver.get("about:blank")
        self.driver.get(f"{self.address}/{place}")
        return self.done()

    def one(self, css):
        return self.driver.find_element(By.CSS_SELECTOR, css)

    def all(self, css):
        return self.driver.find_elements(By.CSS_SELECTOR, css)

    def text(self, css):
        return self.one(css).text

    def wait(self, condition):
        return WebDriverWait(self.driver, 30, poll_frequency=0.05).until(lambda _: condition())

    def done(self):
        """Until the report is written."""
        self.wait(lambda: "sentence" in self.text("#state") and self.text("#above"))
        return self

    def keys(self, *keys):
        self.driver.switch_to.active_element.send_keys(*keys)

    def focus(self, css):
        self.driver.execute_script("arguments[0].focus()", self.one(css))

    def sentences(self):
        return [element.text for element in self.all("#sentences .text")]

    def give(self, path):
        self.one("#file").send_keys(str(path))

    def shot(self, name):
        SHOTS.mkdir(parents=True, exist_ok=True)
        assert self.driver.save_screenshot(str(SHOTS / f"{name}.png"))

    def broken_rules(self):
        """WCAG 2 A and AA rules that axe-core finds broken, and where."""
        self.driver.execute_script(AXE.read_text())
        rules = self.driver.execute_async_script(CHECK)
        return [(rule["id"], [node["target"] for node in rule["nodes"]]) for rule in rules]


@contextlib.contextmanager
def served(folder):
    server = uvicorn.Server(uvicorn.Config(create_app(open_chain(folder)), port=0, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.05)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    options = webdriver.ChromeOptions()
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.binary_location = "/usr/bin/chromium"
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService("/usr/bin/chromedriver"))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def address(folder):
    with served(folder) as address:
        yield address


@pytest.fixture
def page(browser, address):
    page = Page(browser, address).open()
    yield page
    errors = [entry for entry in browser.get_log("browser") if "the server responded with" not in entry["message"]]
    assert not errors


def test_a_study_is_shown_with_all_there_is_to_it(page):
    assert page.text("#film-title") == page.one("#studies :checked").get_attribute("value")
    assert "Not for clinical use" in page.text(".warning")
    assert "rendered lesions" in page.text(".warning")
    assert len(page.all("#findings .choice")) == 13
    assert page.sentences()[-1] == "No pneumothorax."
    page.wait(lambda: len(page.all("[data-bank] li")) == 10)
    assert len(page.all("[data-bank=visual] img")) == 5
    assert "Heart size is" in page.text("[data-bank=report] li")
    page.wait(lambda: "Edema, region" in page.text("#sentences .drew"))
    page.shot("study")


def test_everything_comes_from_this_machine(page):
    script = "return performance.getEntriesByType('resource').map((entry) => entry.name)"
    assert all(name.startswith((page.address, "data:")) for name in page.driver.execute_script(script))


def test_with_the_keyboard_alone(page):
    page.focus("#studies :checked")
    before = page.text("#film-title")
    page.keys(Keys.ARROW_DOWN)
    page.wait(lambda: page.text("#film-title") != before)
    page.done()
    assert page.one("#studies :checked").get_attribute("value") == page.text("#film-title")

    page.focus("#findings :checked")
    before = page.text("#above")
    page.keys(Keys.ARROW_UP)
    page.wait(lambda: page.text("#above") != before)

    page.focus("#threshold")
    page.keys(Keys.HOME)
    page.wait(lambda: page.text("#tau") == "0.00")
    page.keys(Keys.END)
    page.wait(lambda: page.text("#tau") == "1.50")

    page.focus("#sentences li:nth-child(2) button")
    page.keys(Keys.ENTER)
    assert page.one("#sentences li:nth-child(2) button").get_attribute("aria-pressed") == "true"
    assert page.sentences()[1] in page.text("#memory-what")
    assert "visual memory" in page.text("#shares")
    page.shot("sentence")
    page.keys(Keys.ENTER)
    page.wait(lambda: "What the film retrieved" in page.text("#memory-what"))


def test_a_memory_switched_off_changes_the_report(page):
    whole = page.sentences()
    page.focus("#switches [name=visual]")
    page.keys(Keys.SPACE)
    page.wait(lambda: "without visual memory: the report changed" in page.text("#state"))
    assert page.sentences() != whole
    assert page.all(".differs")
    assert "Switched off" in page.text("[data-bank=visual]")
    page.shot("visual-memory-off")
    page.keys(Keys.SPACE)
    page.wait(lambda: "with every memory" in page.text("#state"))
    assert page.sentences() == whole
    assert not page.all(".differs")


def test_studies_are_found_by_split_and_words(page):
    page.one("#split").send_keys("train")
    page.wait(lambda: "16 of 16" in page.text("#count"))
    page.one("#words").send_keys("train-1 no")
    page.wait(lambda: "7 of 16" in page.text("#count"))
    page.one("#studies .choice").click()
    page.wait(lambda: page.text("#film-title").startswith("train-1"))


def test_films_of_every_kind_are_taken_and_what_is_none_is_refused(page, tmp_path):
    film = np.add.outer(np.arange(300), np.arange(260)).clip(0, 255).astype(np.uint8)
    Image.fromarray(film).save(tmp_path / "film.png")
    Image.fromarray(film).save(tmp_path / "film.jpg")
    dicom(tmp_path / "film.dcm", film)
    for kind in ("png", "jpg", "dcm"):
        page.open()
        page.give(tmp_path / f"film.{kind}")
        page.wait(lambda: page.text("#film-title") == "Film (opened here)")
        page.done()
        assert "no reference report" in page.text("#no-reference")
    page.shot("dropped")
    before = page.sentences()

    (tmp_path / "no.png").write_text("a page of html")
    page.give(tmp_path / "no.png")
    page.wait(lambda: "no film that can be read" in page.text("#problem"))
    assert page.sentences() == before  # nothing is lost
    page.shot("refused")
    page.one("#problem button").click()
    with (tmp_path / "huge.dcm").open("wb") as file:
        file.truncate(200 * 2**20)
    page.give(tmp_path / "huge.dcm")
    page.wait(lambda: "huge.dcm has 200 MB" in page.text("#problem"))
    assert page.sentences() == before


def test_a_film_can_be_dropped_on_the_page(page, tmp_path):
    Image.fromarray(np.eye(64, dtype=np.uint8) * 255).save(tmp_path / "film.png")
    page.driver.execute_script(DROP, b64encode((tmp_path / "film.png").read_bytes()).decode())
    page.wait(lambda: page.text("#film-title") == "Film (opened here)")
    page.done()


def test_the_address_names_the_study(page):
    page.open("#train/train-3")
    assert page.text("#film-title") == "train-3"
    assert len(page.all("#views .choice")) == 2
    page.one("#views .choice:nth-child(2)").click()
    page.wait(lambda: page.one("#image").get_attribute("alt") == "Film 2 of 2")
    page.driver.get("about:blank")
    page.driver.get(f"{page.address}/#test/nobody")
    page.wait(lambda: "no such study among the test studies" in page.text("#problem"))


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1440, 1000, 390])
def test_readable_at_any_width_in_both_schemes(page, scheme, width):
    """WCAG A and AA as far as axe-core can tell, contrast among it; nothing is cut off at the side."""
    wanted = {"name": "prefers-color-scheme", "value": scheme}
    page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [wanted]})
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    page.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        page.one("#switches [name=report] + span").click()
        page.wait(lambda: "without report memory" in page.text("#state"))
        page.one("#sentences button").click()
        page.driver.execute_script("document.getElementById('problem').hidden = false")
        page.driver.execute_script("document.querySelector('#problem p').textContent = 'Something is not right.'")
        assert page.broken_rules() == []
        assert page.driver.execute_script("return document.documentElement.scrollWidth") <= width
        page.shot(f"{scheme}-{width}")
    finally:
        page.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_when_the_viewer_is_gone_the_page_says_so(browser, folder):
    with served(folder) as address:
        page = Page(browser, address).open()
    page.one("#again").click()
    page.wait(lambda: "stopped answering" in page.text("#problem"))
    assert page.text("#state") == "not finished"
    browser.get_log("browser")
