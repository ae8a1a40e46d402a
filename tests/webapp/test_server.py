"""The application as a browser meets it, on a small run whose artefacts are real."""

import asyncio
import dataclasses
import functools
import html
import io
import json
import logging
import re
from base64 import b64decode
from dataclasses import asdict
from itertools import pairwise
from urllib.parse import quote

import numpy as np
import pydicom
import pytest
import torch
from PIL import Image
from starlette.testclient import TestClient

from amrg.banks.bank import NO_GROUP, REPORTS, VISUAL, MemoryBank, patient_group_id
from amrg.data.image_io import decode_film_bytes
from amrg.data.image_ops import letterbox_to_square
from amrg.data.labels import FINDINGS
from amrg.data.stream import SampleLookup, load_split_studies
from amrg.data.text.cleaning import split_sentences
from amrg.data.text.outline import positive_findings
from amrg.errors import UserError
from amrg.evaluation.highlight import FindingErrors
from amrg.evaluation.reports import GeneratedReport, Sentence
from amrg.inference.run import LoadedRun
from amrg.inference.run_artifacts import find_run_artifacts
from amrg.models.composed import Composed, ComposedSentence, Unsure
from amrg.models.open_banks import open_memory_banks
from amrg.models.report_generator import ReportGenerator
from amrg.pages import EMBEDDED_DATA_NOTICE, NOT_CLINICAL_NOTICE
from amrg.pages.overlays import crop_film_to_box, film_data_url
from amrg.webapp.requests import RequestGuard
from amrg.webapp.run_store import RunStore
from amrg.webapp.server import MAX_BYTES, Handlers, create_viewer_app
from amrg.webapp.session import ClientGone, InferenceSession
from tests.asgi import post as asgi_post
from tests.conftest import report
from tests.data.test_image_io import bomb, dicom
from tests.made_films import chest_film, encoded
from tests.webapp.tiny_run import STATED, make_run

KEY = "test-0"  # has two films
FILM = chest_film(0)


@pytest.fixture(scope="module")
def app(folder):
    return create_viewer_app(find_run_artifacts(folder), ["testserver"])


@pytest.fixture(scope="module")
def client(app):
    return TestClient(app, raise_server_exceptions=False, headers={"content-type": "application/octet-stream"})


@pytest.fixture(scope="module")
def handlers(app):
    return app.app.app.routes[0].endpoint.__self__


@pytest.fixture(scope="module")
def reader(folder):
    return InferenceSession(find_run_artifacts(folder))


def png(pixels=FILM):
    with io.BytesIO() as file:
        Image.fromarray(pixels).save(file, "PNG")
        return file.getvalue()


def events(client, address):
    """(kind, content) of each server-sent event."""
    response = client.get(address)
    assert response.headers["content-type"].startswith("text/event-stream")
    found = re.findall(r"event: (\w+)\ndata: (.+)\n\n", response.text)
    return [(kind, json.loads(content)) for kind, content in found]


def written(told):
    return " ".join([content["sentences"] for kind, content in told if kind == "text"][-1])


def test_the_page_needs_nothing_else_and_says_what_it_must(client):
    page = client.get("/")
    text = html.unescape(page.text)
    assert NOT_CLINICAL_NOTICE in text
    assert EMBEDDED_DATA_NOTICE in text
    assert "2 beams" in text
    assert not re.search(r"https?:|style=|<script>|\son\w+=", page.text)
    for address in re.findall(r'(?:src|href)="(/[^"]+)"', page.text):
        assert client.get(address).status_code == 200, address
    assert "script-src 'self'" in page.headers["content-security-policy"]
    assert page.headers["cache-control"] == "no-store"


def test_studies_are_listed_and_searched(client, run):
    found = client.get("/api/studies", params={"split": "test"}).json()
    keys = [study.key for study in load_split_studies(run["data"].path, "test")]
    assert [row["key"] for row in found["studies"]] == keys
    assert (found["total"], found["found"]) == (5, 5)
    some = client.get("/api/studies", params={"split": "train", "words": "TRAIN-1 no"}).json()
    assert {row["key"] for row in some["studies"]} == {"train-1", *(f"train-{i}" for i in range(10, 16))}


def test_the_worklist_tells_and_sorts_by_the_errors_of_the_runs_reports(client, handlers, run, monkeypatch):
    """The first report is right, the second misses what its reference states and invents a fracture."""
    first, second, *rest = load_split_studies(run["data"].path, "test")
    texts = {first.key: first.report, second.key: "Rib fracture."} | {study.key: "" for study in rest[:-1]}
    monkeypatch.setattr(handlers._store, "reports", {key: GeneratedReport(key, text) for key, text in texts.items()})
    monkeypatch.setattr(handlers._store, "_errors", {})
    listing = client.get("/api/studies").json()
    found = {row["key"]: row["errors"] for row in listing["studies"]}
    assert listing["compared"] is True
    stated = {study.key: positive_findings(study.report) for study in (first, second, *rest)}
    assert found[first.key] == {"found": stated[first.key], "conflicting": [], "missed": [], "extra": []}
    assert found[second.key] == {"found": [], "conflicting": [], "missed": stated[second.key], "extra": ["Fracture"]}
    assert found[rest[-1].key] is None
    by_errors = [row["key"] for row in client.get("/api/studies?order=errors").json()["studies"]]
    wrong = [sum(len(found[key][kind]) for kind in ("conflicting", "missed", "extra")) for key in by_errors[:-1]]
    assert wrong == sorted(wrong, reverse=True)
    assert by_errors[-1] == rest[-1].key
    assert [row["key"] for row in client.get("/api/studies?words=extra:fract").json()["studies"]] == [second.key]
    missed = client.get(f"/api/studies?words=missed:{stated[second.key][0].lower().split()[0]}+{second.key}").json()
    assert [row["key"] for row in missed["studies"]] == [second.key]
    assert client.get("/api/studies?words=conflicting:fract").json()["studies"] == []
    assert client.get("/api/studies?split=train").json()["compared"] is False


def test_the_worklist_has_pages(client, run, monkeypatch):
    monkeypatch.setattr("amrg.webapp.run_store.MAX_LISTED", 2)
    pages = [client.get("/api/studies", params={"start": start}).json()["studies"] for start in (0, 2, 4, 6, -1)]
    keys = [study.key for study in load_split_studies(run["data"].path, "test")]
    assert [[row["key"] for row in page] for page in pages] == [keys[:2], keys[2:4], keys[4:], [], keys[:2]]


def test_the_end_of_a_report_tells_its_errors(client, run):
    kind, content = events(client, f"/api/looks/test/{KEY}/report")[-1]
    study = SampleLookup(run["data"].path, "test")[KEY].study
    text = written(events(client, f"/api/looks/test/{KEY}/report"))
    assert (kind, content["errors"]) == ("end", json.loads(json.dumps(asdict(FindingErrors.of(study.report, text)))))
    assert "".join(piece[0] for piece in content["marks"]["reference"]) == study.report
    assert "".join(piece[0] for piece in content["marks"]["generated"]) == text
    assert ["Heart size is enlarged", "hit", "Cardiomegaly"] in content["marks"]["reference"]
    name = client.post("/api/looks", content=png()).json()["name"]
    assert events(client, f"/api/looks/dropped/{name}/report")[-1] == ("end", {"errors": None, "marks": None})


def test_a_look_tells_what_the_models_see(client, run, reader):
    told = client.get(f"/api/looks/test/{KEY}").json()
    sample = SampleLookup(run["data"].path, "test")[KEY]
    look = reader.analyze(sample.views, patient_group_id(sample.study.group))
    assert len(told["films"]) == len(sample.views) == 2
    assert told["reference"] == sample.study.report
    assert [row["name"] for row in told["findings"]] == list(FINDINGS)
    for row in told["findings"]:
        assert row["probability"] == pytest.approx(look.probabilities[row["name"]], abs=1e-4)
    assert told["memory"] == look.retrieved()
    assert told["unlike_training"] is False
    film = Image.open(io.BytesIO(b64decode(told["films"][1]["image"].split(",")[1])))
    assert film.size == (768, 768)


def levels_of(client, look, number=0):
    """The stored value of each pixel, and its gray value as the models read it."""
    film = look["films"][number]
    content = client.get(f"/api/looks/{look['place']}/{look['name']}/films/{number}").content
    kind, count = (np.dtype("<u2") if film["levels"] > 256 else np.dtype(np.uint8)), film["width"] * film["height"]
    index = np.frombuffer(content, kind, count).reshape(film["height"], film["width"])
    gray = np.frombuffer(content[index.nbytes :], np.uint8)
    assert len(gray) == film["levels"]
    return index.astype(int) + film["first"], gray[index]


def test_films_are_sent_as_the_run_stores_them(client, run):
    look = client.get(f"/api/looks/test/{KEY}").json()
    for number, view in enumerate(SampleLookup(run["data"].path, "test")[KEY].views):
        values, gray = levels_of(client, look, number)
        assert (values == view).all()
        assert (gray == view).all()
    for number in ("2", "-1", "x", "9" * 5000):
        assert client.get(f"/api/looks/test/{KEY}/films/{number}").status_code == 404


def test_an_opened_film_is_sent_with_all_of_its_gray_levels(client, tmp_path):
    """Stored values as they are in the file; gray values by hand from the window of the tags."""
    deep = FILM.astype(np.uint16) * 11 + 1000
    window = {"WindowCenter": 2500, "WindowWidth": 1001}
    data = dicom(tmp_path / "film.dcm", deep, PhotometricInterpretation="MONOCHROME1", **window).read_bytes()
    values, gray = levels_of(client, client.post("/api/looks", content=data).json())
    assert (values == deep).all()
    expected = 255 - ((deep - 2499.5) / 1000 + 0.5).clip(0, 1) * 255  # DICOM PS3.3 C.11.2.1.2, inverted
    assert (expected.min(), expected.max()) == (0, 255)
    assert np.abs(gray - expected).max() <= 1
    values, gray = levels_of(client, client.post("/api/looks", content=png(deep)).json())
    assert (values == deep).all()
    assert (gray == np.round((deep - deep.min()) / (int(deep.max()) - deep.min()) * 255)).all()
    values, _ = levels_of(client, client.post("/api/looks", content=encoded(FILM, "JPEG")).json())
    assert values.shape == FILM.shape


def test_values_that_are_no_whole_numbers_are_sent_as_gray_values(client):
    data = encoded(Image.fromarray(FILM.astype(np.float32) / 7), "TIFF")
    values, gray = levels_of(client, client.post("/api/looks", content=data).json())
    assert (values == gray).all()
    assert (gray == decode_film_bytes(data, 224)).all()


def test_held_films_have_a_size(handlers, client, monkeypatch):
    monkeypatch.setattr("amrg.webapp.server.MAX_CACHED_BYTES", 2 * FILM.size)
    names = [client.post("/api/looks", content=png(np.roll(FILM, 3 * i, 0))).json()["name"] for i in range(1, 5)]
    assert [name for _, name in handlers._uploads] == names[2:]


def test_patches_are_the_strongest_and_none_beside_a_stronger_one(client):
    told = client.get(f"/api/looks/test/{KEY}").json()
    cells = np.array(told["films"][1]["maps"]["Edema"]["cells"])
    threshold = float(np.median(cells))
    query = {"film": 1, "finding": "Edema", "threshold": threshold}
    found = client.get(f"/api/looks/test/{KEY}/patches", params=query).json()
    assert len(found) == 6
    left = np.pad(cells, 1, constant_values=-1.0)
    for patch in found:  # each is the strongest of what those before it leave
        y, x = patch["row"] + 1, patch["column"] + 1
        assert left[y, x] == left.max() > threshold
        assert patch["activation"] == pytest.approx(left[y, x], abs=2e-3)
        left[y - 1 : y + 2, x - 1 : x + 2] = -1.0
    nothing = client.get(f"/api/looks/test/{KEY}/patches", params=query | {"threshold": 1e9})
    assert nothing.json() == []


def test_rows_retrieved_are_the_banks_whole_and_never_the_patients_own(reader, run):
    """Bank by bank the shares of all rows sum to 1; a train study does not see its own."""
    sample = SampleLookup(run["data"].path, "train")["train-1"]
    look = reader.analyze(sample.views, patient_group_id(sample.study.group))
    for name, folder in (("visual", VISUAL), ("report", REPORTS)):
        bank = MemoryBank.open(run["banks"].path / folder)
        found = look.association[name].top_rows(torch.full((14,), 1 / 14), len(bank))
        assert sum(row["weight"] for row in found) == pytest.approx(1, abs=1e-4)
        own = {row for row, key in enumerate(bank.provenance["key"].to_pylist()) if key == "train-1"}
        assert own
        assert {row["row"] for row in found} == set(range(len(bank))) - own
        queries = look.loud_Q.double() if name == "visual" else torch.ones(14)
        assert look.retrieved()[name] == look.association[name].top_rows(queries / queries.sum(), 5)


def test_a_film_retrieves_what_is_written_beside_its_report(reader, folder):
    """The rows of the page are those of ``amrg write --json``: the reports of a run can be compared with them."""
    (record,) = LoadedRun(find_run_artifacts(folder)).generate_records([[FILM]])
    look = reader.analyze([FILM], NO_GROUP)
    assert 0 < look.loud_Q.sum() < 14
    assert look.retrieved() == record["memory"]


def test_words_for_probabilities_are_told_with_how_often_they_were_right(run, reader):
    """The references of test-0 and test-2 state Cardiomegaly, that of test-1 does not; nothing is stated at 0.5."""
    store = RunStore(find_run_artifacts(run["scores"].path), 224, reader.grid)
    probabilities = {"test-0": 0.9, "test-1": 0.8, "test-2": 0.3, "test-3": None}
    store.reports = {
        key: GeneratedReport(
            key, "", sentences=(Sentence("", ("Cardiomegaly",), 0, probabilities={"Cardiomegaly": p} if p else {}),)
        )
        for key, p in probabilities.items()
    }
    assert store.certainty == {
        "split": "test",
        "words": [
            {"word": "likely", "least": 0.75, "findings": 2, "right": 0.5},
            {"word": "possible", "least": 0.4, "findings": 0, "right": None},
            {"word": "unlikely", "least": 0.0, "findings": 1, "right": 1.0},
        ],
    }
    store = RunStore(find_run_artifacts(run["scores"].path), 224, reader.grid)
    store.reports = {}
    assert [word["findings"] for word in store.certainty["words"]] == [0, 0, 0]


def test_a_row_is_told_with_its_text_or_region(client, run, reader):
    bank = MemoryBank.open(run["banks"].path / REPORTS).provenance.to_pylist()
    row = client.get("/api/banks/report/3").json()
    assert (row["key"], row["text"], row["image"]) == (bank[3]["key"], bank[3]["text"], None)
    films = SampleLookup(run["data"].path, "train")["train-3"].views
    number = MemoryBank.open(run["banks"].path / VISUAL).provenance["key"].to_pylist().index("train-3")
    region = client.get(f"/api/banks/visual/{number}").json()
    assert (region["key"], region["view"], region["findings"]) == ("train-3", 1, ["Edema"])
    size = reader.classifier.config.image_size
    shown = [
        film_data_url(crop_film_to_box(letterbox_to_square(film, size), (3, 3, 4, 4), reader.grid), 144)
        for film in films
    ]
    assert region["image"] == shown[1] != shown[0]


@pytest.mark.parametrize("off", [[], ["visual"], ["visual", "report"]])
def test_the_report_is_what_the_generator_writes(client, reader, run, off):
    """Token by token it grows to the text of ``generate`` with fused attention, and each sentence has its rows."""
    told = events(client, f"/api/looks/test/{KEY}/report?off={','.join(off)}")
    kinds = [kind for kind, _ in told]
    texts = [" ".join(content["sentences"]) for kind, content in told if kind == "text"]
    assert kinds[-1] == "end"
    assert len(texts) > 5
    assert all(len(a) <= len(b) for a, b in pairwise(texts))

    chain = find_run_artifacts(run["scores"].path)
    model = ReportGenerator.from_pretrained(
        chain.stage2.path / "model", open_memory_banks(chain.config, chain.banks.path, 1)
    )
    sample = SampleLookup(run["data"].path, "test")[KEY]
    group = patient_group_id(sample.study.group)
    look = reader.analyze(sample.views, group)
    hidden = [f"{name} memory" for name in off]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        (text,) = model.generate(look.vision, torch.tensor([group]), reader.decoding, hidden=hidden)
    assert written(told).split() == text.split()

    finished = [content for kind, content in told if kind == "sentence"]
    assert [content["number"] for content in finished] == list(range(len(finished)))
    for content in finished:
        assert set(content["rows"]) == {"visual", "report"} - set(off)
        assert sum(content["shares"].values()) == pytest.approx(1, abs=1e-3)
        for rows in content["rows"].values():
            assert len(rows) == 5
            assert 0 < sum(row["weight"] for row in rows) <= 1


def test_switching_a_memory_off_changes_the_report(client):
    both, without = (written(events(client, f"/api/looks/test/{KEY}/report{off}")) for off in ("", "?off=visual"))
    assert both.endswith(" No pneumothorax.")
    assert both != without


def test_a_report_begins_in_the_words_of_memory_unless_it_is_off(tmp_path):
    found = make_run(tmp_path, "retrieved")
    client = TestClient(create_viewer_app(find_run_artifacts(found["reports"].path), ["testserver"]))
    both, without = (events(client, f"/api/looks/test/{KEY}/report{off}") for off in ("", "?off=report"))
    for told in (both, without):
        plans = [content["plan"] for kind, content in told if kind == "text"]
        assert plans[-1] == "cardiomegaly, atelectasis, pleural effusion."
    known = {sentence for number in range(3) for sentence in split_sentences(report(number))}
    first = [content["sentences"] for kind, content in both if kind == "text"][-1][:3]
    assert set(first) <= known
    assert tuple(finding for sentence in first for finding in positive_findings(sentence)) == STATED
    assert written(without) != written(both)
    said = [content["recalled"] for kind, content in both if kind == "sentence"]
    assert [one["text"] for one in said[: len(first)]] == first
    for one in said[: len(first)]:
        assert client.get(f"/api/banks/report/{one['row']}").json()["text"] == one["text"]
    assert all(one is None for one in said[len(first) :])
    assert all(content["recalled"] is None for kind, content in without if kind == "sentence")


@pytest.mark.parametrize("off", ["", "visual", "report", "visual,report"])
def test_a_recalled_sentence_is_told_with_what_it_stands_on(reader, run, monkeypatch, off):
    """What the composer is given: the rows of each memory that is on. What it says is told, and nothing of it twice."""
    sample, asked, told = SampleLookup(run["data"].path, "test")[KEY], [], []
    details = (("Pleural Effusion", "side", "left", 0.93456), ("Pleural Effusion", "severity", "mild", None))
    text = "There is a small left pleural effusion."
    sure = {"Pleural Effusion": 0.83456}
    said = ComposedSentence(text, ("Pleural Effusion",), 3, ((5, 0.6), (2, 0.1)), (1, 2, 3, 5, 6), sure, details)
    hidden = {name for name in off.split(",") if name}

    class Fixed:
        def fitted(self, sight, associations):
            return associations

        def compose(self, sight, associations, group, recall, priors, contexts):
            asked.append((associations, group.tolist(), recall))
            return [Composed(text, ("Pleural Effusion",), (said,), (Unsure("Mild edema.", ("Edema",), 0.4),))]

    monkeypatch.setattr(reader, "_composer", Fixed())
    look = reader.analyze(sample.views, 7)
    reader.write(look, hidden, lambda kind, content: told.append((kind, content)))
    ((associations, group, recall),) = asked
    assert (group, recall) == ([7], "report" not in hidden)
    assert associations.keys() == {"visual", "report"} - hidden
    for name, (weights, rows) in associations.items():
        assert weights.shape == rows.shape == (1, *look.association[name].rows_QK.shape)
    assert told[0] == ("unsure", {"texts": ["Mild edema."]})
    first, *later = [content for kind, content in told if kind == "sentence"]
    assert first["recalled"] == said.to_dict()
    assert first["recalled"]["box"] == [1, 2, 3, 5, 6]
    assert [detail["probability"] for detail in first["recalled"]["details"]] == [0.9346, None]
    assert all(content["recalled"] is None for content in later)


def test_of_all_the_rows_that_are_kept_few_are_told(client, reader, run):
    """Each query keeps every row of these banks; the page gets the heaviest five of each memory."""
    sample = SampleLookup(run["data"].path, "test")[KEY]
    look = reader.analyze(sample.views, patient_group_id(sample.study.group))
    for name, folder in (("visual", VISUAL), ("report", REPORTS)):
        assert look.association[name].rows_QK.shape == (14, len(MemoryBank.open(run["banks"].path / folder)))
    told = events(client, f"/api/looks/test/{KEY}/report")
    assert max(len(json.dumps(content)) for _, content in told) < 2000
    assert {len(rows) for rows in client.get(f"/api/looks/test/{KEY}").json()["memory"].values()} == {5}


@pytest.mark.parametrize("kind", ["png", "dicom"])
def test_a_dropped_film_is_looked_at_and_reported(client, tmp_path, kind):
    data = png() if kind == "png" else dicom(tmp_path / "film.dcm", FILM).read_bytes()
    told = client.post("/api/looks", content=data).json()
    assert (told["place"], told["reference"]) == ("dropped", None)
    assert all(finding["stated"] is None for finding in told["findings"])
    assert client.get(f"/api/looks/dropped/{told['name']}").json() == told
    assert events(client, f"/api/looks/dropped/{told['name']}/report")[-1][0] == "end"


def test_a_film_beyond_the_threshold_is_unlike_the_training_films(handlers, client, monkeypatch):
    reader = handlers._reader
    monkeypatch.setattr(reader, "_distance", dataclasses.replace(reader._distance, threshold=0.0))
    told = client.post("/api/looks", content=png(FILM[:, ::-1])).json()
    assert told["unlike_training"] is True
    assert told["training_distance"] > told["training_distance_threshold"] == 0.0


def test_a_film_dropped_twice_is_one(handlers, client):
    first, second = (client.post("/api/looks", content=png(FILM[::-1])).json() for _ in range(2))
    assert first == second
    assert sum(name == first["name"] for _, name in handlers._uploads) == 1


def test_browsing_studies_and_uploads_evict_only_their_own_kind(handlers, client, monkeypatch):
    monkeypatch.setattr("amrg.webapp.server.MAX_CACHED", 2)
    names = [client.post("/api/looks", content=png(np.roll(FILM, i, 1))).json()["name"] for i in (1, 2, 3)]
    for number in range(4):
        assert client.get(f"/api/looks/test/test-{number}").status_code == 200
    assert [name for _, name in handlers._uploads] == names[1:]
    assert [name for _, name in handlers._studies] == ["test-2", "test-3"]
    assert client.get(f"/api/looks/dropped/{names[0]}").status_code == 404


def test_a_writer_without_a_word_is_told_as_that(reader, run):
    sample = SampleLookup(run["data"].path, "test")[KEY]
    decoder, told = reader.model.decoder, []
    end = torch.tensor([reader.model.tokenizer.eos_token_id])
    mute = decoder.get_output_embeddings().register_forward_hook(lambda *parts: parts[-1].index_fill(-1, end, 1e9))
    try:
        reader.write(reader.analyze(sample.views, 1), set(), lambda kind, content: told.append((kind, content)))
    finally:
        mute.remove()
    assert told == [("text", {"plan": "", "sentences": []})]


def without_pixels(tmp_path):
    record = pydicom.dcmread(dicom(tmp_path / "film.dcm", FILM))
    del record.PixelData
    record.save_as(tmp_path / "empty.dcm")
    return (tmp_path / "empty.dcm").read_bytes()


def tagged(tmp_path, **tags):
    return dicom(tmp_path / "film.dcm", FILM, **tags).read_bytes()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda _: b"a page of html", "no film that can be read: not a readable image"),
        (lambda _: b"", "empty"),
        (lambda _: png()[:60], "not a readable image"),
        (lambda _: png(np.zeros((300, 300), np.uint8)), "refused as no chest film .* one grey value"),
        (lambda tmp_path: tagged(tmp_path, Modality="CT"), "refused as no chest film .* Modality is CT"),
        (lambda tmp_path: tagged(tmp_path, ViewPosition="LL"), "refused .* a lateral film, and this model has seen"),
        (lambda _: bomb(), "not a readable image .*Bomb"),
        (without_pixels, "a DICOM object without pixels"),
    ],
)
def test_what_is_no_film_is_refused_in_a_sentence(client, tmp_path, make, message):
    response = client.post("/api/looks", content=make(tmp_path))
    assert response.status_code == 422
    assert re.search(message, response.json()["error"])
    assert client.get(f"/api/looks/test/{KEY}").status_code == 200


asgi = functools.partial(asgi_post, path="/api/looks", content_type=b"application/octet-stream")


def test_200_megabytes_are_refused_before_they_are_read(app):
    length = str(200 * 2**20).encode()
    (start, body), taken = asgi(app, headers=[(b"content-length", length)], body=iter([]))
    assert (start["status"], taken) == (413, 0)
    assert "larger than 64 MB" in json.loads(body["body"])["error"]
    endless = (bytes(2**20) for _ in range(10**6))  # as HTTP sends what has no length
    (start, _), taken = asgi(app, headers=[(b"transfer-encoding", b"chunked")], body=endless)
    assert (start["status"], taken) == (413, MAX_BYTES + 2**20)


def test_a_client_that_leaves_during_its_upload_is_no_fault(app, caplog):
    asgi(app, headers=[], body=iter([b"x", None]))
    assert not caplog.records


@pytest.mark.parametrize(
    ("address", "status", "message"),
    [
        ("/api/looks/test/unknown", 404, "no such study among the test studies"),
        (f"/api/looks/val/{KEY}", 404, "no such study among the val studies"),
        (f"/api/looks/everything/{KEY}", 404, "no split `everything`"),
        ("/api/looks/dropped/0123456789abcdef", 404, "drop it again"),
        (f"/api/looks/test/{quote('../../../../etc/passwd', safe='')}", 404, ""),
        (f"/api/looks/{quote('../..', safe='')}/passwd", 404, ""),
        ("/static/../server.py", 404, ""),
        (f"/static/{quote('../server.py', safe='')}", 404, ""),
        (f"/static/{quote('/etc/passwd', safe='')}", 404, ""),
        ("/api/banks/visual/99999", 404, "no row 99999 in a visual bank"),
        ("/api/banks/other/0", 404, "no row 0 in a other bank"),
        ("/api/banks/visual/-1", 404, "a row of a bank has a number"),
        (f"/api/banks/visual/{'9' * 4500}", 404, "a row of a bank has a number"),
        ("/api/studies?split=all", 404, "no split `all`: one of train, val, test"),
        (f"/api/looks/test/{KEY}/patches?film=9&finding=Edema&threshold=0", 404, "no such film or finding"),
        (f"/api/looks/test/{KEY}/patches?film=0&finding=Nothing&threshold=0", 404, "no such film or finding"),
        (f"/api/looks/test/{KEY}/patches?film=0&finding=Edema&threshold=hot", 422, "`threshold` must be a number"),
        (f"/api/looks/test/{KEY}/patches?film=0&finding=Edema&threshold=nan", 422, "`threshold` must be a number"),
        (f"/api/looks/test/{KEY}/patches", 422, "`film` must be a number"),
        (f"/api/looks/test/{KEY}/report?off=all", 404, "no such memory: visual, report"),
    ],
)
def test_what_is_not_there_is_said(client, address, status, message):
    response = client.get(address)
    assert response.status_code == status
    assert message in response.json()["error"]
    assert "Traceback" not in response.text
    assert "root:" not in response.text


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"origin": "http://testserver"}, 200),
        ({"origin": "https://testserver", "sec-fetch-site": "same-origin"}, 200),  # TLS ends at a proxy
        ({"sec-fetch-site": "none"}, 200),
        ({"host": "attacker.example"}, 400),
        ({"host": "testserver.attacker.example"}, 400),
        ({"host": "testserver@attacker.example"}, 400),
        ({"host": "testserver."}, 400),
        ({"host": "127.0.0.1"}, 400),
        ({"host": "[::1"}, 400),
        ({"host": ""}, 400),
        ({"origin": "http://testserver:9017"}, 403),
        ({"origin": "http://attacker.example"}, 403),
        ({"origin": "null"}, 403),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"sec-fetch-site": "same-site"}, 403),
    ],
)
def test_requests_of_foreign_hosts_and_pages_are_refused(client, headers, status):
    response = client.get("/api/studies", headers=headers)
    assert response.status_code == status
    assert response.headers["cross-origin-resource-policy"] == "same-origin"
    posted = client.post("/api/looks", content=png(), headers=headers)
    assert posted.status_code == status
    assert client.get("/", headers=headers).status_code == (400 if status == 400 else 200)  # a link may open the page


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""])
def test_a_film_is_posted_as_bytes_which_no_form_of_another_page_can_do(client, kind):
    assert client.post("/api/looks", content=png(), headers={"content-type": kind}).status_code == 415


@pytest.mark.parametrize("host", ["10.0.0.7:8017", "[::1]:8017", "[fe80::1]", "gpu01:8017", "GPU01"])
def test_a_viewer_for_other_machines_answers_under_addresses_and_its_own_name(app, host):
    client = TestClient(RequestGuard(app.app.app, {"gpu01"}, any_address=True))
    assert client.get("/api/studies", headers={"host": host}).status_code == 200
    assert client.get("/api/studies", headers={"host": "rebound.attacker.example"}).status_code == 400


def test_an_error_names_no_folder_of_the_machine(client, monkeypatch):
    def damaged(*_):
        raise UserError("/data/secret/run/index.parquet is damaged: run `amrg prepare` for /home/a/b again")

    monkeypatch.setattr(Handlers, "_describe", damaged)
    error = client.get(f"/api/looks/test/{KEY}").json()["error"]
    assert error == "index.parquet is damaged: run `amrg prepare` for b again"


def test_a_fault_of_ours_shows_no_stack(client, monkeypatch):
    monkeypatch.setattr(Handlers, "_describe", lambda *_: 1 / 0)
    response = client.get(f"/api/looks/test/{KEY}")
    assert response.status_code == 500
    assert response.json()["error"].startswith("Something went wrong here (ZeroDivisionError)")
    assert "script-src 'self'" in response.headers["content-security-policy"]
    assert "Traceback" not in response.text


def test_no_report_reaches_a_log(client, run, caplog, capfd):
    caplog.set_level(logging.DEBUG)
    sample = SampleLookup(run["data"].path, "test")[KEY]
    text = written(events(client, f"/api/looks/test/{KEY}/report"))
    client.get(f"/api/looks/test/{KEY}")
    client.post("/api/looks", content=b"nothing")
    # The test's own client logs addresses; the application must not.
    said = "".join(r.getMessage() for r in caplog.records if not r.name.startswith("httpx")) + "".join(
        capfd.readouterr()
    )
    assert sample.study.report not in said
    assert text not in said
    assert KEY not in said


def test_when_nobody_reads_on_the_writing_ends(reader, run):
    sample = SampleLookup(run["data"].path, "test")[KEY]
    look = reader.analyze(sample.views, 1)
    told = []

    def tell(kind, content):
        told.append(kind)
        if len(told) == 3:
            raise ClientGone

    with pytest.raises(ClientGone):
        reader.write(look, set(), tell)
    assert told == ["text"] * 3
    reader.write(look, set(), lambda kind, _: told.append(kind))  # the models are free again
    assert len(told) > 8


def test_a_reader_who_leaves_stops_the_writer(folder):
    desk = Handlers(find_run_artifacts(folder))
    look = desk._find("test", KEY).analysis
    stopped = []
    write = desk._reader.write

    def watched(*arguments):
        try:
            write(*arguments)
        except ClientGone:
            stopped.append(True)
            raise

    desk._reader.write = watched

    async def leave():
        stream = desk._events(look, set(), "")
        first = await anext(stream)
        await stream.aclose()
        return first

    assert asyncio.run(leave()).startswith("event: text\n")
    with desk._reader._lock:  # free only when the writer is done
        pass
    assert stopped == [True]
