"""A real headless Chromium for tests of pages: `make test-browser`. Screenshots go to build/screenshots."""

import contextlib
import os
from base64 import b64decode
from importlib.util import find_spec
from pathlib import Path

import pytest

if os.environ.get("AMRG_BROWSER") != "1":
    pytest.skip("needs Chromium: make test-browser", allow_module_level=True)

from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.actions.wheel_input import ScrollOrigin
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select, WebDriverWait

__all__ = ["PATIENCE", "WIDTH", "ActionChains", "Keys", "Page", "ScrollOrigin", "chromium"]

SHOTS = Path("build/screenshots")
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--window-size=1440,1000",
    "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",  # every page works without a network
)  # fmt: skip
#: Seconds within which a busy machine of two cores does what is waited for.
PATIENCE = 90
#: A script for web pages, taken from a package that is not imported.
AXE = Path(find_spec("axe_playwright_python").origin).with_name("axe.min.js")
CHECK = """
axe.run({runOnly: ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"]}).then(({violations}) => arguments[0](violations));
"""
WIDTH = "return document.documentElement.scrollWidth"


@contextlib.contextmanager
def chromium(profile):
    """The driver; ``profile`` is an empty folder."""
    options = webdriver.ChromeOptions()
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.binary_location = "/usr/bin/chromium"
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService("/usr/bin/chromedriver"))
    driver.set_script_timeout(2 * PATIENCE)
    try:
        yield driver
    finally:
        driver.quit()


class Page:
    """A page in the browser, by what a reader sees."""

    def __init__(self, driver):
        self.driver = driver

    def one(self, css):
        return self.driver.find_element(By.CSS_SELECTOR, css)

    def all(self, css):
        return self.driver.find_elements(By.CSS_SELECTOR, css)

    def text(self, css):
        return self.one(css).text

    def texts(self, css):
        """Of all at once: what is growing may be replaced between two questions."""
        script = "return [...document.querySelectorAll(arguments[0])].map((one) => one.innerText)"
        return self.driver.execute_script(script, css)

    def wait(self, condition):
        replaced = [StaleElementReferenceException]  # between finding an element and reading it
        waiting = WebDriverWait(self.driver, PATIENCE, poll_frequency=0.05, ignored_exceptions=replaced)
        return waiting.until(lambda _: condition())

    def keys(self, *keys):
        self.driver.switch_to.active_element.send_keys(*keys)

    def choose(self, css, value):
        """An option, by its value: letters that are typed would go on with those of the choice before."""
        next(one for one in Select(self.one(css)).options if one.get_attribute("value") == value).click()

    def focus(self, css):
        self.driver.execute_script("arguments[0].focus()", self.one(css))

    @contextlib.contextmanager
    def seen(self, width, scheme="light", height=900):
        """Inside, the page is so many pixels wide and high, and light or dark."""
        wanted = {"name": "prefers-color-scheme", "value": scheme}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [wanted]})
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        try:
            yield
        finally:
            self.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})

    def shot(self, name, whole=False):
        """Of what is in view, or of the whole page."""
        SHOTS.mkdir(parents=True, exist_ok=True)
        asked = {"captureBeyondViewport": whole}
        (SHOTS / f"{name}.png").write_bytes(
            b64decode(self.driver.execute_cdp_cmd("Page.captureScreenshot", asked)["data"])
        )

    def broken_rules(self):
        """WCAG 2 A and AA rules that axe-core finds broken, contrast among them, and where."""
        self.driver.execute_script(AXE.read_text())
        rules = self.driver.execute_async_script(CHECK)
        return [(rule["id"], [node["target"] for node in rule["nodes"]]) for rule in rules]
