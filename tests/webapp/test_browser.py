"""The page in a real Chromium, clicked and typed through: `make test-browser`. Screenshots go to build/screenshots."""

import contextlib
import json
import threading
import time
from base64 import b64encode
from urllib.request import urlopen

import numpy as np
import pytest
import uvicorn
from PIL import Image
from sklearn.datasets import load_sample_image

from amrg.data.labels import FINDINGS
from amrg.errors import UserError
from amrg.evaluation.highlight import FindingErrors
from amrg.inference.run import open_generator
from amrg.inference.run_artifacts import find_run_artifacts
from amrg.models.composed import Composed, ComposedSentence
from amrg.models.composer import Composer
from amrg.models.finding_calibration import Certainty
from amrg.models.training_distance import TrainingDistance
from amrg.webapp.comparison import ComparedRun
from amrg.webapp.run_store import NotFound, RunStore
from amrg.webapp.server import Handlers, create_viewer_app
from amrg.webapp.session import InferenceSession
from tests.browser import PATIENCE, WIDTH, ActionChains, Keys, Page, ScrollOrigin, chromium
from tests.conftest import report
from tests.data.test_image_io import dicom
from tests.made_films import chest_film
from tests.webapp.tiny_run import copy_with_reports, make_run

TOLD = {"unlike_training": True, "training_distance": 34.911, "training_distance_threshold": 10.67}
#: In the browser's log: answers that tests ask for, and advice about the way they read pixels.
EXPECTED = ("the server responded with", "Multiple readback operations using getImageData")
DROP = """
const data = new DataTransfer();
data.items.add(new File([Uint8Array.from(atob(arguments[0]), (c) => c.charCodeAt(0))], "film.png"));
document.body.dispatchEvent(new DragEvent("drop", {dataTransfer: data, bubbles: true, cancelable: true}));
"""


class Viewer(Page):
    """The page of `amrg view`."""

    def __init__(self, driver, address):
        super().__init__(driver)
        self.address = address

    def open(self, place=""):
        self.driver.get("about:blank")
        self.driver.get(f"{self.address}/{place}")
        return self.done()

    def done(self):
        """Until the report is written."""
        self.wait(lambda: "sentence" in self.text("#state") and self.text("#above"))
        return self

    def sentences(self):
        return self.texts("#sentences .text")

    def levels(self):
        """The gray values of the film as they are painted, [H, W]; once it is there in full resolution."""
        self.wait(lambda: self.text("#film-facts") and self.one("#pixels").is_displayed())
        script = """
        const [canvas, done] = [document.getElementById("pixels"), arguments[0]];
        requestAnimationFrame(() => requestAnimationFrame(() => {
          const {data} = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
          done([canvas.height, canvas.width, [...data].filter((_, place) => place % 4 === 0)]);
        }));
        """
        height, width, values = self.driver.execute_async_script(script)
        return np.array(values).reshape(height, width)

    def place(self, css, number=0):
        """Left, top, width and height of an element of the film, in pixels of the page."""
        rect = "const {x, y, width, height} = arguments[0].getBoundingClientRect(); return [x, y, width, height]"
        return np.array(self.driver.execute_script(rect, self.all(css)[number]))

    def on_film(self, css, number=0):
        """The same in sides of the film's canvas, wherever that lies."""
        film = self.place("#pixels")
        return (self.place(css, number) - [*film[:2], 0, 0]) / film[2]

    def touch(self, kind, *points):
        touches = [{"x": float(x), "y": float(y), "id": number} for number, (x, y) in enumerate(points)]
        self.driver.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": f"touch{kind}", "touchPoints": touches})

    def give(self, path):
        self.one("#file").send_keys(str(path))

    def film(self):
        """What is shown of the film that is chosen: its name, film, map, patches as they are marked, and cut out."""
        crops = "return [...document.querySelectorAll('#patches canvas')].map((canvas) => canvas.toDataURL())"
        marks = self.all("#overlay rect:not(.under)")
        return {
            "name": self.one("#image").get_attribute("alt"),
            "image": self.one("#image").get_attribute("src"),
            "heat": self.one("#heat").get_attribute("src"),
            "patches": [(int(mark.get_attribute("y")), int(mark.get_attribute("x"))) for mark in marks],
            "crops": self.driver.execute_script(crops),
        }


@contextlib.contextmanager
def served(folder, other=None):
    chain = find_run_artifacts(folder)
    app = create_viewer_app(
        chain, {"127.0.0.1"}, compared=ComparedRun.open(chain, find_run_artifacts(other)) if other else None
    )
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning"))
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
    with chromium(tmp_path_factory.mktemp("profile")) as driver:
        yield driver


@pytest.fixture(scope="module")
def address(folder):
    with served(folder) as address:
        yield address


@pytest.fixture
def page(browser, address):
    page = Viewer(browser, address).open()
    yield page
    errors = [entry for entry in browser.get_log("browser") if not any(part in entry["message"] for part in EXPECTED)]
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


def test_the_report_of_a_film_unlike_the_training_films_is_gray_until_it_is_asked_for(browser, folder, monkeypatch):
    everything_is_unlike = lambda distance, vision: [TOLD] * len(vision.film_BD)  # noqa: E731
    monkeypatch.setattr(TrainingDistance, "records", everything_is_unlike)
    with served(folder) as address:
        page = Viewer(browser, address).open()
        opacity = lambda: float(page.one("#sentences").value_of_css_property("opacity"))  # noqa: E731
        assert "Unlike the training films" in page.text("#unlike")
        assert "Its distance from them is 34.9; the threshold is 10.7." in page.text("#unlike")
        assert opacity() < 0.5
        page.shot("unlike")
        page.one("#unlike button").click()
        assert opacity() == 1
        assert "Unlike the training films" in page.text("#unlike")


def test_everything_comes_from_this_machine(page):
    script = "return performance.getEntriesByType('resource').map((entry) => entry.name)"
    assert all(name.startswith((page.address, "data:")) for name in page.driver.execute_script(script))


def test_with_the_keyboard_alone(page):
    address = page.driver.current_url
    page.focus(".skip")
    page.keys(Keys.ENTER)
    assert page.driver.execute_script("return document.activeElement.id") == "report"
    assert page.driver.current_url == address

    page.focus("#studies :checked")
    before = page.text("#film-title")
    page.keys(Keys.ARROW_DOWN)
    page.wait(lambda: page.text("#film-title") != before)
    page.done()
    assert page.one("#studies :checked").get_attribute("value") == page.text("#film-title")

    page.driver.execute_script("document.getElementById('rest').open = true")
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


def test_an_empty_report_is_said_to_be_empty(page, monkeypatch):
    whole = page.sentences()
    empty = {"plan": "", "sentences": []}
    with monkeypatch.context() as patched:
        patched.setattr(InferenceSession, "write", lambda reader, look, off, tell: tell("text", empty))
        page.one("#again").click()
        page.wait(lambda: "0 sentences" in page.text("#state"))
    assert page.text("#sentences") == "The report is empty: the writer ended without a word."
    page.one("#again").click()
    page.wait(lambda: page.done() and page.sentences() == whole)


def test_studies_are_found_by_split_and_words(page):
    page.choose("#split", "train")
    page.wait(lambda: "16 of 16" in page.text("#count"))
    page.one("#words").send_keys("train-1 no")
    page.wait(lambda: "7 of 16" in page.text("#count"))
    page.one("#studies .choice").click()
    page.wait(lambda: page.text("#film-title").startswith("train-1"))
    page.one("#words").send_keys(" zzz")
    page.wait(lambda: "No study fits" in page.text("#none"))
    page.one("#clear").click()
    page.wait(lambda: "16 of 16" in page.text("#count"))


def test_the_worklist_shows_the_errors_of_reports_and_the_report_its_verdict(browser, folder, monkeypatch):
    """Of the errors below the third study has most; the first has no report."""
    errors = {
        "test-0": None,
        "test-1": FindingErrors(("Cardiomegaly",), (), (), ()),
        "test-2": FindingErrors((), ("Pleural Effusion",), ("Edema", "Fracture"), ("Pneumonia",)),
    }
    monkeypatch.setattr(RunStore, "_errors_of", lambda store, study: errors.get(study.key))
    monkeypatch.setattr(FindingErrors, "of", lambda *_: errors["test-2"])
    monkeypatch.setattr("amrg.webapp.session._thresholds", lambda _: dict.fromkeys(FINDINGS, 1.0) | {"Edema": 0.0})
    with served(folder) as address:
        page = Viewer(browser, address).open()
        chips = {row.text.split()[0]: row.text.split("\n")[0].split()[1:] for row in page.all("#studies .choice")}
        assert (chips["test-0"], chips["test-1"], chips["test-2"]) == ([], ["✓"], ["−2", "+1", "⇄1"])
        assert page.text("#verdict") == (
            "1 of 3 findings of the reference stated; Edema, Fracture missed; Pneumonia not in the reference; "
            "Pleural Effusion with another side or device."
        )
        page.choose("#order", "errors")
        page.wait(lambda: page.text("#studies .choice").startswith("test-2"))
        assert page.broken_rules() == []
        page.shot("worklist")
        assert page.texts("#found .choice b") == ["Edema"]
        assert page.text("#rest-count") == "12 of 13 below their thresholds"
        assert not page.one("#others").is_displayed()
        page.one("#rest-count").click()
        page.wait(page.one("#others").is_displayed)


def test_a_long_worklist_is_shown_page_by_page(page, monkeypatch):
    monkeypatch.setattr("amrg.webapp.run_store.MAX_LISTED", 10)
    page.choose("#split", "train")
    page.wait(lambda: "16 of 16 studies, the first 10 shown" in page.text("#count"))
    page.one("#more").click()
    page.wait(lambda: page.text("#count") == "16 of 16 studies")
    assert len(page.all("#studies .choice")) == 16
    assert not page.one("#more").is_displayed()


def test_films_of_every_kind_are_taken_and_what_is_none_is_refused(page, tmp_path):
    film = chest_film(0, 300, 260)
    Image.fromarray(film).save(tmp_path / "film.png")
    Image.fromarray(film).save(tmp_path / "film.jpg")
    dicom(tmp_path / "film.dcm", film)
    for kind in ("png", "jpg", "dcm"):
        page.open()
        page.give(tmp_path / f"film.{kind}")
        page.wait(lambda kind=kind: page.text("#film-title").startswith(f"film.{kind}, "))
        page.done()
        assert page.text("#film-title").endswith(" kB (opened here)")
        assert "no reference report" in page.text("#no-reference")
    page.shot("dropped")
    before = page.sentences()

    (tmp_path / "no.png").write_text("a page of html")
    page.give(tmp_path / "no.png")
    page.wait(lambda: "no film that can be read" in page.text("#problem"))
    assert page.text("#problem p").startswith("no.png: This file is no film")
    assert "The film and the report below are those of before, not of this file." in page.text("#problem")
    assert page.sentences() == before  # nothing is lost, but it is marked
    assert len(page.all(".former")) == 3
    assert float(page.one("#report").value_of_css_property("opacity")) < 0.6
    page.shot("refused")
    page.one("#close").click()
    with (tmp_path / "huge.dcm").open("wb") as file:
        file.truncate(200 * 2**20)
    page.give(tmp_path / "huge.dcm")
    page.wait(lambda: "huge.dcm: It has 200 MB" in page.text("#problem"))
    assert page.sentences() == before
    page.give(tmp_path / "film.png")
    page.wait(lambda: not page.all(".former") and not page.one("#problem").is_displayed())
    page.done()


def test_a_film_can_be_dropped_on_the_page(page, tmp_path):
    Image.fromarray(chest_film(0)).save(tmp_path / "film.png")
    page.driver.execute_script(DROP, b64encode((tmp_path / "film.png").read_bytes()).decode())
    page.wait(lambda: page.text("#film-title").startswith("film.png, "))
    page.done()
    assert page.text("#own") == "Opened here\nfilm.png"
    page.one("#studies .choice").click()
    page.wait(lambda: page.text("#film-title").startswith("test-"))
    assert not page.all("#own :checked")
    page.one("#own .choice").click()
    page.wait(lambda: page.text("#film-title").startswith("film.png, "))
    assert page.one("#own :checked")
    page.driver.refresh()  # its name is in this page only
    page.wait(lambda: page.text("#film-title") == "Film (opened here)")


def test_each_film_of_a_study_has_its_maps_and_patches(page):
    """Chosen by the keyboard: what is shown is what the models see of that film, and on each it is something else."""
    page.open("#train/train-3")
    with urlopen(f"{page.address}/api/looks/train/train-3") as answer:
        films = json.load(answer)["films"]
    finding = page.one("#findings :checked").get_attribute("value")

    def shown(number):
        """Once the patches of the film are there that the viewer tells when it is asked for them."""
        query = f"film={number - 1}&finding={finding.replace(' ', '%20')}&threshold={page.text('#tau')}"
        with urlopen(f"{page.address}/api/looks/train/train-3/patches?{query}") as answer:
            patches = [(patch["row"], patch["column"]) for patch in json.load(answer)]
        page.wait(lambda: page.film()["patches"] == patches and len(page.film()["crops"]) == len(patches))
        found = page.film()
        assert found["name"] == f"Film {number} of 2"
        assert found["image"] == films[number - 1]["image"]
        assert found["heat"] == films[number - 1]["maps"][finding]["heat"]
        return found

    page.focus("#threshold")
    page.keys(Keys.HOME)  # so that both films have patches
    first = shown(1)
    page.focus("#views :checked")
    page.keys(Keys.ARROW_RIGHT)
    second = shown(2)
    assert len(first["patches"]) == len(second["patches"]) == 6
    assert all(first[part] != second[part] for part in ("image", "heat", "patches", "crops"))
    page.shot("second-film")

    page.focus("#findings :checked")  # another finding, on the same film
    page.keys(Keys.ARROW_DOWN)
    before, finding = finding, page.one("#findings :checked").get_attribute("value")
    assert finding != before
    assert shown(2)["heat"] != second["heat"]
    page.keys(Keys.ARROW_UP)
    finding = before
    page.focus("#views :checked")
    page.keys(Keys.ARROW_LEFT)
    assert shown(1) == first
    page.keys(Keys.ARROW_RIGHT, Keys.ARROW_LEFT, Keys.ARROW_RIGHT)  # faster than the viewer answers
    assert shown(2) == second
    assert not page.one("#problem").is_displayed()


def test_the_film_is_zoomed_and_moved_and_all_marks_stay_in_place(page):
    page.open("#train/train-3")
    page.focus("#threshold")
    page.keys(Keys.HOME)
    page.wait(lambda: len(page.film()["patches"]) == 6)
    page.levels()
    marks = ["#overlay path", "#overlay rect", "#heat", "#image"]
    before = [page.on_film(css) for css in marks]

    def registered():
        return all(np.abs(page.on_film(css) - place).max() < 2e-3 for css, place in zip(marks, before, strict=True))

    square, frame = page.place("#square"), page.one("#frame")
    pointer = ScrollOrigin.from_element(frame, 50, -80)
    under = (square[2] / 2 + np.array([50, -80])) / square[2]  # in sides of the film, which fills the square
    ActionChains(page.driver).scroll_from_origin(pointer, 0, -500).perform()
    page.wait(lambda: page.text("#zoom") == "2.7×")  # exp(500 · 0.002)
    film = page.place("#pixels")
    assert np.abs((square[:2] + under * square[2] - film[:2]) / film[2] - under).max() < 5e-3  # the wheel's point stays
    assert registered()
    ActionChains(page.driver).click_and_hold(frame).move_by_offset(40, 25).release().perform()
    assert np.abs(page.place("#pixels")[:2] - film[:2] - [40, 25]).max() < 1
    assert registered()
    page.shot("zoomed")
    page.focus("#frame")
    page.keys("0")
    assert np.abs(page.place("#pixels") - square).max() < 0.5
    page.keys("+", "+", Keys.ARROW_RIGHT)
    assert page.text("#zoom") == "2.0×"
    assert registered()
    page.keys("h")
    assert not page.one("#heat").is_displayed()
    page.keys("h", "1")
    assert page.text("#zoom") == "1.0×"  # 224 pixels of the film are fewer than those of the screen
    ActionChains(page.driver).double_click(frame).perform()
    assert page.text("#zoom") == "3.0×"
    page.one("#zoom-out").click()
    assert page.text("#zoom") == "2.1×"
    page.one("#full").click()
    page.wait(lambda: page.driver.execute_script("return document.fullscreenElement !== null"))
    page.wait(registered)
    page.focus("#frame")
    page.keys("f")
    page.wait(lambda: page.driver.execute_script("return document.fullscreenElement === null"))
    page.one("#views .choice:nth-child(2)").click()
    page.wait(lambda: page.text("#zoom") == "1.0×")


def test_the_film_is_zoomed_by_two_fingers(page):
    with page.seen(390):
        page.open()
        page.levels()
        page.driver.execute_script("document.getElementById('frame').scrollIntoView()")
        left, top, side, _ = page.place("#square")
        middle, half = np.array([left + side / 2, top + side / 2]), np.array([30, 0])
        page.touch("Start", middle - half, middle + half)
        for wide in (1.5, 2, 2.5, 3):
            page.touch("Move", middle - wide * half, middle + wide * half)
        page.touch("End")
        page.wait(lambda: page.text("#zoom") == "3.0×")
        assert np.abs(page.place("#pixels")[:2] + 1.5 * side - middle).max() < 5  # about the middle
        page.touch("Start", middle)
        moved = middle + np.array([20, 30])
        page.touch("Move", moved)
        page.touch("End")
        page.wait(lambda: np.abs(page.place("#pixels")[:2] + 1.5 * side - moved).max() < 5)
        page.shot("phone-zoomed")


def test_the_window_changes_the_gray_values_of_the_film(page, tmp_path):
    """Of 16 bits, which no image of a page has; expected values are by hand."""
    deep = chest_film(0, 300, 260).astype(np.uint16) * 11 + 1000
    window = {"WindowCenter": 2500, "WindowWidth": 1001}
    page.give(dicom(tmp_path / "film.dcm", deep, **window))
    page.wait(lambda: page.text("#film-title").startswith("film.dcm"))
    levels = int(deep.max()) - int(deep.min()) + 1
    as_read = ((deep - 2499.5) / 1000 + 0.5).clip(0, 1) * 255
    assert (as_read.min(), as_read.max()) == (0, 255)
    assert np.abs(page.levels() - as_read).max() <= 1
    assert page.text("#film-facts") == f"All of the 260 × 300 pixels, and all {levels} gray levels of the file."
    assert abs(int(page.one("#center").get_attribute("value")) - 2500) <= 3
    assert abs(int(page.one("#width").get_attribute("value")) - 1000) <= 6
    first = page.levels()
    page.one("#invert").click()
    assert (page.levels() == 255 - first).all()
    page.one("#invert").click()
    for name, value in (("center", "1500"), ("width", "400")):
        page.one(f"#{name}").clear()
        page.one(f"#{name}").send_keys(value, Keys.TAB)
    assert page.one("#preset").get_attribute("value") == "own"
    own = ((deep - 1300.0) / 400).clip(0, 1) * 255
    assert np.abs(page.levels() - own).max() <= 1
    page.choose("#preset", "full")
    full = (deep - float(deep.min())) / (levels - 1) * 255
    assert np.abs(page.levels() - full).max() <= 1
    page.choose("#preset", "dark")
    assert (page.levels() == 255).mean() == pytest.approx(0.4, abs=0.02)
    before = float(page.one("#width").get_attribute("value"))
    page.focus("#frame")
    page.keys(Keys.SHIFT + Keys.ARROW_RIGHT)
    page.wait(lambda: float(page.one("#width").get_attribute("value")) > before)
    page.one("#drag-window").click()
    ActionChains(page.driver).click_and_hold(page.one("#frame")).move_by_offset(-60, 0).release().perform()
    assert float(page.one("#width").get_attribute("value")) < before
    page.shot("window")
    assert page.broken_rules() == []
    page.one("#reset").click()
    assert (page.levels() == first).all()
    page.one("#drag-window").click()


def test_two_runs_are_compared(browser, run, tmp_path):
    texts = {"test-0": "The heart is enlarged.", "test-1": "Pulmonary edema. Rib fracture.", "test-2": "Clear."}
    other = copy_with_reports(run, tmp_path / "other", texts, [(row, 0.1) for row in range(16)])
    with served(other, run["reports"].path.parent) as address:
        page = Viewer(browser, address).open("#test/test-1")
        page.wait(lambda: page.all("#compared .pair"))
        assert "3 studies are compared" in page.text("#compare")
        assert "Edema, Fracture not in the reference" in page.text("#compared .pair")
        errors = next(row for row in page.texts("#compared tbody tr") if row.startswith("errors"))
        assert errors.split() == ["errors", "3", "0", "−3"]
        page.one("#compared details summary").click()
        page.wait(lambda: page.one("#compared details li").is_displayed())
        assert {mark.text for mark in page.all("#compared mark.extra")} == {"edema", "fracture"}
        page.choose("#order", "better")
        page.wait(lambda: page.text("#studies .choice").startswith("test-1"))
        assert "Δ −3" in page.text("#studies .choice")
        # Every report has retrieved each row with 0.1: the weights of the film's own rows are compared with that.
        with urlopen(f"{page.address}/api/looks/test/test-1") as answer:
            (first, *_) = json.load(answer)["memory"]["visual"]
        page.wait(lambda: f"×{first['weight'] / 0.1:.1f}" in page.text("[data-bank=visual] li"))
        assert "retrieved by 100 % of the films" in page.text("[data-bank=visual] li")
        assert len(page.all("#memory [data-bank=visual] .usual")) == 5
        assert "over the 3 test films" in page.text("#lift-what")
        assert "×1.0" in page.text("#compared details li")
        for width, scheme in ((1440, "dark"), (390, "light")):
            with page.seen(width, scheme):
                assert page.broken_rules() == []
                assert page.driver.execute_script(WIDTH) <= width
                page.shot(f"compare-{scheme}-{width}", whole=True)
        page.driver.execute_script("location.hash = '#test/test-4'")
        page.wait(lambda: "only one of the runs has a report of it" in page.text("#compared"))
        page.driver.back()
        page.wait(lambda: page.text("#film-title") == "test-1" and page.all("#compared .pair"))


def test_a_photograph_is_refused(page, tmp_path):
    Image.fromarray(load_sample_image("flower.jpg")).save(tmp_path / "cat.jpg")
    page.give(tmp_path / "cat.jpg")
    page.wait(lambda: "refused as no chest film" in page.text("#problem"))
    assert len(page.all(".former")) == 3


def test_the_context_is_read_typed_and_written_with(browser, informed):
    """The run writes its first report where it is told of a cough, and its second where it is told nothing."""
    with served(informed) as address:
        page = Viewer(browser, address).open("#test/test-0")
        assert page.one("#context [name=indication]").get_attribute("value") == "Cough."
        assert " ".join(page.sentences()) == report(0)
        page.one("#context [name=indication]").clear()
        page.one("#again").click()
        page.wait(lambda: page.done() and " ".join(page.sentences()) == report(1))
        page.one("#context [name=indication]").send_keys("XXXX cough", Keys.ENTER)
        page.wait(lambda: page.done() and " ".join(page.sentences()) == report(0))
        assert page.one("#context [name=indication]").get_attribute("value") == "Cough."
        page.one("#context [name=age]").send_keys("old")
        page.one("#again").click()
        page.wait(lambda: "age must be whole years" in page.text("#problem"))
        assert page.broken_rules() == []
        page.shot("context")


def test_the_earlier_study_is_shown_and_can_be_switched_off(browser, comparing):
    """The run writes its first report where there is an earlier study, and its second where there is none."""
    with served(comparing) as address:
        page = Viewer(browser, address).open("#test/test-1")
        assert page.text("#prior").startswith(
            "Earlier study, 30 days before. The writer reads its films, and its report: "
        )
        assert " ".join(page.sentences()) == report(0)
        assert page.broken_rules() == []
        page.shot("earlier-study")
        page.driver.execute_script("document.querySelector('#switches [name=\"earlier study\"]').click()")
        page.wait(lambda: page.done() and " ".join(page.sentences()) == report(1))
        page.wait(lambda: "without earlier study: the report changed" in page.text("#state"))
        page.open("#test/test-0")
        page.wait(lambda: page.text("#prior").startswith("No earlier study of this patient is known"))


def test_another_study_begins_with_its_first_film(page):
    page.open("#train/train-3")
    page.one("#views .choice:nth-child(2)").click()
    page.wait(lambda: page.film()["name"] == "Film 2 of 2")
    page.driver.execute_script("location.hash = '#train/train-4'")
    page.wait(lambda: page.film()["name"] == "Film 1 of 1")
    assert not page.one("#views").is_displayed()


def test_the_address_names_the_study(page):
    page.open("#train/train-3")
    assert page.text("#film-title") == "train-3"
    page.driver.get("about:blank")
    page.driver.get(f"{page.address}/#test/nobody")
    page.wait(lambda: "no such study among the test studies" in page.text("#problem"))
    page.driver.get("about:blank")
    page.driver.get(f"{page.address}/#test/%E0%A4%A")
    page.wait(lambda: "The address names no study" in page.text("#problem"))
    assert len(page.all("#studies .choice")) == 5


def test_a_study_that_is_opened_slowly_is_named_over_the_one_that_is_shown(page, monkeypatch):
    shown, loaded, load = page.text("#film-title"), threading.Event(), RunStore.study

    def slowly(store, split, key):
        loaded.wait(PATIENCE)
        if key == "test-3":
            raise UserError("test-3 is damaged")
        return load(store, split, key)

    monkeypatch.setattr(RunStore, "study", slowly)
    page.driver.execute_script("location.hash = '#test/test-3'")
    page.wait(lambda: page.text("#opening") == "opening test-3 …")
    assert page.text("#film-title") == shown
    assert {"film", "report", "memory"} == {card.get_attribute("id") for card in page.all(".loading")}
    loaded.set()
    page.wait(lambda: "test-3 is damaged" in page.text("#problem"))
    assert page.text("#film-title") == shown
    assert not page.all(".loading")
    assert not page.one("#opening").is_displayed()


def test_the_report_of_a_film_that_is_no_longer_held_says_so(page, monkeypatch):
    def gone(*_):
        raise NotFound("This film is no longer held: drop it again.")

    monkeypatch.setattr(Handlers, "_find", gone)
    page.one("#again").click()
    page.wait(lambda: page.text("#problem p") == "This film is no longer held: drop it again.")
    assert page.text("#state") == "not finished"


@pytest.mark.parametrize(
    ("width", "height", "scheme"),
    [
        (1440, 900, "light"),
        (1440, 900, "dark"),
        (1280, 720, "light"),
        (1000, 900, "dark"),
        (390, 844, "light"),
        (390, 844, "dark"),
    ],
)
def test_readable_at_any_width_in_both_schemes(page, width, height, scheme):
    """WCAG A and AA as far as axe-core can tell, contrast among it; nothing is cut off at the side."""
    with page.seen(width, scheme, height):
        page.one("#switches [name=report] + span").click()
        page.wait(lambda: "without report memory" in page.text("#state"))
        page.one("#sentences button").click()
        page.driver.execute_script("document.getElementById('problem').hidden = false")
        page.driver.execute_script("document.querySelector('#problem p').textContent = 'Something is not right.'")
        assert page.broken_rules() == []
        assert page.driver.execute_script(WIDTH) <= width
        page.shot(f"{scheme}-{width}")


def test_a_sentence_of_memory_is_marked_and_names_its_row(browser, tmp_path):
    with served(make_run(tmp_path, "retrieved", steps=0)["reports"].path) as address:
        page = Viewer(browser, address).open()
        recalled = [bool(line.find_elements("css selector", ".recalled")) for line in page.all("#sentences li")]
        assert recalled[:1] == [True]
        assert recalled == sorted(recalled, reverse=True)  # they come first
        assert not page.one("#origin").is_displayed()
        page.one("#sentences button").click()
        page.wait(lambda: page.sentences()[0] in page.text("#origin-report li"))
        assert page.broken_rules() == []
        page.shot("recalled")
        page.focus("#switches [name=report]")
        page.keys(Keys.SPACE)
        page.wait(lambda: "without report memory" in page.text("#state"))
        assert not page.all("#sentences .recalled")


def test_a_recalled_sentence_shows_its_region_and_rows(browser, folder, monkeypatch):
    """Its region lies on the second film of the study; a sentence of normal anatomy has none."""
    effusion = "Pleural Effusion"
    details = ((effusion, "side", "left", 0.93), (effusion, "severity", "mild", None))
    regions = ((3, 0.6), (4, 0.12))
    said = (
        ComposedSentence(
            "There is a small left pleural effusion.",
            (effusion,),
            1,
            regions,
            (1, 3, 4, 8, 9),
            {effusion: 0.83},
            details,
        ),
        ComposedSentence("No pneumothorax.", ("No Finding",), 2),
    )
    text = " ".join(one.text for one in said)
    monkeypatch.setattr(Composer, "compose", lambda *_, **__: [Composed(text, (effusion,), said)])
    certain = Composer(Certainty(((0.0, 0.0, 0.0),) * 13, (0.0,) * 13, 0.5))
    monkeypatch.setattr("amrg.webapp.session.open_generator", lambda *given: (open_generator(*given)[0], certain, None))
    with served(folder) as address:
        page = Viewer(browser, address).open("#test/test-0")

        def region():
            marks = page.all("#region rect:not(.under)")
            return [tuple(int(mark.get_attribute(name)) for name in ("x", "y", "width", "height")) for mark in marks]

        first, second = "#sentences li:nth-child(1) button", "#sentences li:nth-child(2) button"
        told = "Pleural Effusion 83 % likely · side left 93 % · severity mild (probability not known)"
        page.wait(lambda: told in page.text(first))
        page.wait(lambda: "from report row 1" in page.text(f"{first} .drew"))
        assert page.film()["name"] == "Film 1 of 2"
        page.focus(first)
        assert region() == []  # it is on the other film
        page.keys(Keys.ENTER)
        page.wait(lambda: page.film()["name"] == "Film 2 of 2")
        assert page.one("#views input:checked").get_attribute("value") == "1"
        assert region() == [(3, 4, 5, 5)]
        assert page.text("#region text") == "Pleural Effusion 83 % likely"
        assert "region on film 2: columns 4 to 8, rows 5 to 9" in page.text("#origin-facts")
        page.wait(lambda: page.all("#origin-visual li"))
        assert "row 1, from" in page.text("#origin-report")
        page.wait(lambda: "its own row: row 1, from" in page.text("[data-bank=report] li:first-child"))
        assert page.one("#findings input:checked").get_attribute("value") == effusion
        voters = page.texts("#origin-visual li")
        assert ["60 %" in voters[0], "12 %" in voters[1]] == [True, True]
        assert ["row 3, from" in voters[0], "row 4, from" in voters[1]] == [True, True]
        assert len(page.all("#origin-visual img")) == 2
        page.focus("#threshold")
        assert region() == [(3, 4, 5, 5)]  # as long as it is chosen
        for scheme in ("light", "dark"):
            with page.seen(1440, scheme):
                assert page.broken_rules() == []
                page.shot(f"region-{scheme}")
        page.focus(second)
        assert region() == []
        page.focus("#threshold")
        page.one(second).click()
        assert region() == []
        assert "no region on the film" in page.text("#origin-facts")
        page.wait(lambda: "the visual memory is off, or has no such row" in page.text("#origin-visual"))
        page.focus(first)
        assert region() == [(3, 4, 5, 5)]  # pointed at
        page.one("#whole").click()
        assert not page.one("#origin").is_displayed()
        assert region() == []


def test_keys_walk_through_the_worklist(page):
    """Not while something is typed, and not when they are switched off."""
    studies = [row.get_attribute("value") for row in page.all("#studies input")]
    page.open(f"#test/{studies[1]}")
    assert "rendered lesions" in page.text(".warning")
    page.focus("#report")
    for key, number in (("j", 2), ("j", 3), ("k", 2)):
        page.keys(key)
        page.wait(lambda number=number: page.text("#film-title") == studies[number])
    assert "Not for clinical use" in page.text(".warning")
    assert "rendered lesions" not in page.text(".warning")  # folded once another study is looked at
    page.keys("/")
    page.keys("jk")
    assert page.one("#words").get_attribute("value") == "jk"
    page.wait(lambda: "No study fits" in page.text("#none"))
    page.one("#clear").click()
    page.wait(lambda: page.text("#count") == "5 of 5 studies")
    page.one("#list-keys").click()
    page.keys("j", "/")
    assert page.driver.execute_script("return document.activeElement.id") == "list-keys"
    page.done()
    assert page.text("#film-title") == studies[2]
    page.one("#list-keys").click()


def test_on_a_phone_the_parts_of_the_page_are_one_touch_away(page):
    with page.seen(390):
        page.open()
        assert page.text("#parts-title") == page.text("#film-title")
        page.one("#parts [data-to=memory]").click()
        page.wait(lambda: 0 < page.place("#memory")[1] < 100)
        parts = page.place("#parts")
        assert parts[1] == 0
        assert page.place("#memory")[1] >= parts[3]
        page.shot("phone-memory")
    assert not page.one("#parts").is_displayed()


def test_without_a_connection_the_page_keeps_what_it_shows_and_tries_again(page):
    page.open("#test/test-0")
    shown = page.text("#film-title"), page.sentences()
    connect = {"latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
    page.driver.execute_cdp_cmd("Network.enable", {})
    try:
        page.driver.execute_cdp_cmd("Network.emulateNetworkConditions", connect | {"offline": True})
        page.driver.execute_script("location.hash = '#test/test-1'")
        page.wait(lambda: "does not answer" in page.text("#problem"))
        assert (page.text("#film-title"), page.sentences()) == shown
        page.one("#again").click()
        page.wait(lambda: page.text("#state") == "not finished")
    finally:
        page.driver.execute_cdp_cmd("Network.emulateNetworkConditions", connect | {"offline": False})
    page.one("#retry").click()
    page.done()
    assert (page.text("#film-title"), page.sentences()) == shown
    assert not page.one("#problem").is_displayed()
    page.driver.get_log("browser")


def test_when_the_viewer_is_gone_the_page_says_so(browser, folder):
    with served(folder) as address:
        page = Viewer(browser, address).open()
    page.one("#again").click()
    page.wait(lambda: "does not answer" in page.text("#problem"))
    assert page.text("#state") == "not finished"
    assert page.one("#retry").is_displayed()
    browser.get_log("browser")
