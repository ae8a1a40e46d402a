"""The HTTP interface on a small run whose artefacts are real, and `amrg serve` as a process that others call."""

import base64
import functools
import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import jsonschema
import numpy as np
import pydicom
import pytest
from openapi_spec_validator import validate
from pydicom.uid import DigitalXRayImageStorageForPresentation
from starlette.testclient import TestClient

from amrg.commands.serve import main
from amrg.commands.write import write_own_studies
from amrg.data.context import Context
from amrg.data.own_studies import GivenPrior, StudyFiles
from amrg.errors import UserError
from amrg.inference.run import LoadedRun
from amrg.inference.run_artifacts import find_run_artifacts
from amrg.models.training_distance import TrainingDistance
from amrg.serving import api, docs_page
from amrg.serving.api import MAX_BYTES, OPENAPI, PATHS, Access, create_serving_app
from amrg.serving.batching import Batcher, OpenModel
from amrg.serving.inputs import parse_study_request
from amrg.serving.metrics import Metrics
from amrg.serving.outputs import UNLIKE
from tests.asgi import post as asgi_post
from tests.data.test_image_io import dicom
from tests.made_films import chest_film, encoded

FILMS = [encoded(chest_film(seed)) for seed in range(6)]
NOISE = encoded(np.random.default_rng(0).integers(0, 256, (224, 224), np.uint8))
HOSTS = Access(hosts={"testserver"})
DOCUMENT = json.loads(OPENAPI.read_text())


@pytest.fixture(scope="module")
def chain(folder):
    return find_run_artifacts(folder)


class Gate:
    """The run's model; a test can hold it or let it raise."""

    def __init__(self, chain):
        self.loaded = LoadedRun(chain)
        self.error = None
        self.open = threading.Event()
        self.open.set()

    def write(self, studies):
        assert self.open.wait(60)
        if self.error:
            error, self.error = self.error, None
            raise error
        self.films, self.contexts, self.priors, self.views = zip(*studies, strict=True)
        priors = [self.loaded.read_prior(one) for one in self.priors]
        return self.loaded.generate_records(self.films, self.contexts, priors, self.views)

    @contextmanager
    def model(self):
        yield OpenModel(self.write, self.loaded.image_size)


@pytest.fixture(scope="module")
def gate(chain):
    return Gate(chain)


@pytest.fixture(scope="module")
def metrics():
    return Metrics(PATHS)


@pytest.fixture(scope="module")
def batcher(gate, metrics):
    batcher = Batcher(gate.model, gate.loaded.batch_size, metrics.add_batch)
    yield batcher
    batcher.close()


@pytest.fixture(scope="module")
def make(chain, batcher):
    """Make a client of an application with other settings on the same model."""

    with ExitStack() as clients:  # entered, as all requests of a server are in one event loop

        def made(access=HOSTS, queue=64, seconds=60.0, metrics=None):
            app = create_serving_app(chain, batcher, metrics or Metrics(PATHS), access, queue, seconds)
            return clients.enter_context(TestClient(app, raise_server_exceptions=False))

        yield made


@pytest.fixture(scope="module")
def client(make, metrics):
    return make(metrics=metrics)


def post(client, *films, headers=None, **fields):
    """Send films as a form."""
    parts = [("film", (f"{number}.png", film)) for number, film in enumerate(films)]
    return client.post("/v1/reports", files=parts, data=fields, headers=headers)


def expected(chain, tmp_path, *films):
    """What `amrg write --json` prints of a study, but for its name."""
    paths = []
    for number, film in enumerate(films):
        paths.append(tmp_path / f"{number}.png")
        paths[-1].write_bytes(film)
    (record,) = write_own_studies(chain, [StudyFiles("", tuple(paths))])
    return record


def schema(name):
    """A schema of the document, with what it refers to."""
    return {"$ref": f"#/components/schemas/{name}", "components": DOCUMENT["components"]}


def test_a_form_is_answered_with_the_record_of_write(client, chain, tmp_path):
    response = post(client, *FILMS[:2], study="Müller")
    record = response.json()
    assert (response.status_code, response.headers["content-type"]) == (200, "application/json")
    assert record == {**expected(chain, tmp_path, *FILMS[:2]), "study": "Müller"}
    jsonschema.validate(record, schema("Record"))


def test_the_clinical_context_reaches_the_model(client, gate, tmp_path):
    film = dicom(tmp_path / "film.dcm", chest_film(1), PatientAge="041Y", PatientSex="F").read_bytes()
    assert post(client, film, indication="Cough for XXXX days.", age="42").status_code == 200
    assert gate.contexts == (Context("Cough for days.", age=42, sex="female"),)
    body = {"films": [{"data": base64.b64encode(film).decode()}], "comparison": "None.", "sex": "m"}
    assert client.post("/v1/reports", json=body).status_code == 200
    assert gate.contexts == (Context(comparison="None.", age=41, sex="male"),)


def test_the_earlier_study_reaches_the_model(client, gate):
    assert post(client, FILMS[0], prior_report="Small effusion.", prior_days="30").status_code == 200
    assert gate.priors == (GivenPrior("Small effusion.", (), 30),)
    body = {"films": [{"data": base64.b64encode(FILMS[0]).decode()}], "prior_report": "Clear."}
    assert client.post("/v1/reports", json=body).status_code == 200
    assert gate.priors == (GivenPrior("Clear."),)
    assert post(client, FILMS[0]).status_code == 200
    assert gate.priors == (None,)


def test_films_of_the_earlier_study_are_read_like_those_of_the_study(client, gate):
    earlier = PART.replace(b"film", b"prior_film"), FILMS[1]
    sent = form((PART, FILMS[0]), earlier, (PART.replace(b"film", b"prior_days"), b"30"))
    assert client.post("/v1/reports", **sent).status_code == 200
    (prior,) = gate.priors
    assert (prior.report, prior.days, prior.views) == ("", 30, ("",))
    assert post(client, FILMS[1]).status_code == 200
    np.testing.assert_array_equal(prior.films[0], gate.films[0][0])
    one = [{"data": base64.b64encode(data).decode()} for data in FILMS[:2]]
    assert client.post("/v1/reports", json={"films": one[:1], "prior_films": one[1:]}).status_code == 200
    np.testing.assert_array_equal(gate.priors[0].films[0], prior.films[0])
    for films, message in (([{"data": ""}], "film 1 is empty"), (one * 5, "prior_films: List should have at most 8")):
        response = client.post("/v1/reports", json={"films": one[:1], "prior_films": films})
        assert (response.status_code, message in response.text) == (422, True), response.text
    no_film = [{"data": base64.b64encode(b"no film").decode()}]
    for body, begins in (({"films": one, "prior_films": no_film}, True), ({"films": no_film}, False)):
        error = client.post("/v1/reports", json=body).json()["error"]
        assert ("no film that can be read" in error, error.startswith("the earlier study: ")) == (True, begins), error


def test_json_and_a_form_are_answered_alike(client, tmp_path):
    film = dicom(tmp_path / "film.dcm", chest_film(1)).read_bytes()
    films = [{"name": "a", "data": base64.b64encode(data).decode()} for data in (FILMS[0], film)]
    response = client.post("/v1/reports", json={"study": "s", "films": films})
    assert response.status_code == 200
    assert response.json() == post(client, FILMS[0], film, study="s").json()


def test_reports_do_not_depend_on_what_waits_beside_them(client, gate, batcher):
    alone = [post(client, film).json()["generated"] for film in FILMS]
    gate.open.clear()
    with ThreadPoolExecutor(len(FILMS)) as pool:
        answers = [pool.submit(post, client, film) for film in FILMS]
        while len(batcher) + len(batcher._batch) < len(FILMS):
            time.sleep(0.01)
        gate.open.set()
        assert [answer.result().json()["generated"] for answer in answers] == alone


def test_films_that_are_not_used_are_named(client, tmp_path):
    lateral = dicom(tmp_path / "a.dcm", chest_film(1), ViewPosition="LL").read_bytes()
    record = post(client, FILMS[0], lateral).json()
    assert record["left_out"] == ["1.png: a lateral film, and this model has seen frontal ones only"]
    assert record["findings"] == post(client, FILMS[0]).json()["findings"]
    jsonschema.validate(record, schema("Record"))


def test_what_is_refused_can_be_forced(client):
    refused = post(client, NOISE)
    text = "refused as no chest film for this model: 0.png: noise or text, no radiograph"
    assert (refused.status_code, refused.json()) == (422, {"error": text})
    record = post(client, NOISE, force="true").json()
    assert record["forced"] == "0.png: noise or text, no radiograph"
    assert record["generated"]
    jsonschema.validate(record, schema("Record"))


def form(*parts, boundary="b"):
    """A form from (header, content) pairs."""
    lines = b"".join(b"--b\r\n%s\r\n\r\n%s\r\n" % part for part in parts) + b"--b--\r\n"
    return {"content": lines, "headers": {"content-type": f"multipart/form-data; boundary={boundary}"}}


def as_json(content):
    return {"content": content, "headers": {"content-type": "application/json"}}


PART = b'Content-Disposition: form-data; name="film"'


@pytest.mark.parametrize(
    ("sent", "status", "text"),
    [
        (form(), 422, "no film: give at least one"),
        (form((PART, b"")), 422, "film 1 is empty"),
        (form((PART, b"a page of html")), 422, "no film that can be read: not a readable image"),
        (form((PART, FILMS[0]), (PART, FILMS[0][:80])), 422, "no film that can be read"),
        (form(*[(PART, b"x")] * 9), 422, "more than the 8 films"),
        (form(*[(PART, b"x")] * 99), 422, "cut off, or has more than 25 parts"),
        (form((b'Content-Disposition: form-data; name="prior"', b"x")), 422, "no such field: prior"),
        (form((b"Content-Disposition: form-data", b"x")), 422, "a part of the form has no name"),
        (form((PART.replace(b"film", b"force"), b"yes"), (PART, FILMS[0])), 422, "force must be true or false"),
        (form((PART.replace(b"film", b"age"), b"old"), (PART, FILMS[0])), 422, "age must be whole years"),
        (form((PART.replace(b"film", b"prior_days"), b"9"), (PART, FILMS[0])), 422, "no report or film of an earlier"),
        (form((PART.replace(b"film", b"indication"), b"x" * 4097), (PART, FILMS[0])), 422, "longer than 4096"),
        (as_json(b'{"films": [{"data": ""}], "sex": 3}'), 422, "sex: Input should be a valid string"),
        (form((PART.replace(b"film", b"study"), b"x" * 257), (PART, FILMS[0])), 422, "longer than 256"),
        (form((PART, FILMS[0]), boundary="c"), 422, "cut off"),
        ({**form(), "headers": {"content-type": "multipart/form-data"}}, 422, "no valid boundary"),
        (as_json(b'{"films": []}'), 422, "no film: give at least one"),
        (as_json(b"{}"), 422, "films: Field required"),
        (as_json(b"film"), 422, "Invalid JSON"),
        (as_json(b"[" * 10**5), 422, "Invalid JSON"),
        (as_json(b'{"films": [{"data": "..."}]}'), 422, "film 1: `data` is not base64"),
        (as_json(b'{"films": [{"data": "/etc", "path": "/etc/passwd"}]}'), 422, "path: Extra inputs"),
        (as_json(b'{"films": [{"data": ""}], "force": "yes"}'), 422, "force: Input should be a valid boolean"),
        ({"content": FILMS[0], "headers": {"content-type": "image/png"}}, 415, "send a study as multipart/form-data"),
        ({"content": FILMS[0]}, 415, "or application/json"),
    ],
)  # fmt: skip
def test_what_is_no_study_is_refused_in_one_line(client, sent, status, text):
    response = client.post("/v1/reports", **sent)
    assert response.status_code == status
    assert text in response.json()["error"]
    assert "\n" not in response.json()["error"]
    jsonschema.validate(response.json(), schema("Error"))


def test_bytes_of_films_pass_a_form_unchanged():
    chance = np.random.default_rng(0)
    films = [bytes(chance.choice(list(b"\r\n-b\0\xff"), 5000).astype(np.uint8)) for _ in range(3)]
    films = [film.replace(b"\r\n--b", b"") for film in films]
    sent = form(*((PART + b'; filename="f\xc3\xbc.png"', film) for film in films))
    received = parse_study_request(sent["headers"]["content-type"], sent["content"])
    assert received.films == [("fü.png", film) for film in films]


@pytest.mark.parametrize(
    ("accept", "status"),
    [("*/*", 200), ("text/html, application/json;q=0.9", 200), ("text/html", 406), ("image/png", 406)],
)
def test_the_format_is_what_is_accepted(client, accept, status):
    assert post(client, FILMS[0], headers={"accept": accept}).status_code == status


asgi = functools.partial(asgi_post, path="/v1/reports", content_type=b"multipart/form-data; boundary=b")


def test_what_is_too_large_is_refused_before_it_is_read(client):
    (start, body), taken = asgi(client.app, headers=[(b"content-length", b"%d" % (MAX_BYTES + 1))], body=iter([]))
    assert (start["status"], taken) == (413, 0)
    assert json.loads(body["body"]) == {"error": "larger than the 128 MB that a request may have"}
    endless = (bytes(2**20) for _ in range(10**6))
    (start, _), taken = asgi(client.app, headers=[], body=endless)
    assert (start["status"], taken) == (413, MAX_BYTES + 2**20)


def test_a_client_that_leaves_takes_its_study_from_the_queue(client, gate, batcher, caplog, capfd):
    asgi(client.app, headers=[], body=iter([b"--b", None]))
    gate.open.clear()
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(post, client, FILMS[0])
        while not batcher._batch:
            time.sleep(0.01)
        content = form((PART, FILMS[1]))["content"]
        asgi(
            client.app,
            headers=[(b"content-length", b"%d" % len(content))],
            body=iter([content[:-4], content[-4:], None]),
        )
        waiting = len(batcher)
        gate.open.set()
        assert first.result().status_code == 200
    assert waiting == 0
    assert not caplog.records
    assert not capfd.readouterr().err


def test_more_than_the_queue_are_sent_away(make, gate, batcher):
    client = make(queue=2)
    gate.open.clear()
    with ThreadPoolExecutor(8) as pool:
        held = [pool.submit(post, client, FILMS[0]) for _ in range(2)]
        while len(batcher) + len(batcher._batch) < 2:
            time.sleep(0.01)
        refused = post(client, FILMS[1])
        gate.open.set()
        assert [answer.result().status_code for answer in held] == [200, 200]
    assert refused.status_code == 429
    assert int(refused.headers["retry-after"]) >= 1
    assert "too many studies are waiting" in refused.json()["error"]
    assert post(client, FILMS[1]).status_code == 200


def test_bodies_that_are_read_together_have_a_limit(client, monkeypatch):
    monkeypatch.setattr(api, "MAX_HELD", 1000)
    assert post(client, FILMS[0]).status_code == 429


def test_a_request_has_a_time_limit(make, gate, batcher):
    client = make(seconds=0.5)
    gate.open.clear()
    late = post(client, FILMS[0])
    gate.open.set()
    assert (late.status_code, late.json()["error"]) == (503, "not written within the 0.5 s of a request")
    assert int(late.headers["retry-after"]) >= 1
    assert len(batcher) == 0


def test_a_worker_that_fails_answers_503_and_comes_back(client, gate, batcher, capfd):
    while batcher._batch:  # of the test before, whose client has left
        time.sleep(0.01)
    gate.open.clear()
    gate.error = RuntimeError("There is a small left pleural effusion.")
    with ThreadPoolExecutor(3) as pool:
        answers = [pool.submit(post, client, film, study="Doe") for film in FILMS[:3]]
        while len(batcher) + len(batcher._batch) < 3:
            time.sleep(0.01)
        gate.open.set()
        for answer in answers:
            assert answer.result().status_code == 503
            assert answer.result().json()["error"].startswith("the worker failed and is started again")
            assert int(answer.result().headers["retry-after"]) >= 1
    assert post(client, FILMS[0]).status_code == 200
    said = capfd.readouterr()
    assert "RuntimeError in test_api.py" in said.err
    assert not re.search("Doe|effusion|png", said.err + said.out)


def test_an_error_of_the_server_says_no_more_than_its_type(client, monkeypatch, capfd, caplog):
    def read(*_):
        raise RuntimeError("Doe^John")

    monkeypatch.setattr(api, "read_own_study", read)
    response = post(client, FILMS[0])
    assert (response.status_code, response.json()) == (500, {"error": "something went wrong here (RuntimeError)"})
    assert "Doe" not in capfd.readouterr().err + caplog.text


def test_with_a_token_only_who_knows_it_is_answered(make):
    client = make(Access(token="secret"))
    known = {"authorization": "Bearer secret"}
    for path in ("/metrics",):
        assert client.get(path).status_code == 401
        assert client.get(path, headers={**known, "host": "any.example"}).status_code == 200
    for given in ("Bearer secre", "Bearer ", "Basic secret", "Bearer ségret".encode("latin-1")):
        response = post(client, FILMS[0], headers={"authorization": given})
        assert (response.status_code, response.headers["www-authenticate"]) == (401, "Bearer")
    assert post(client, FILMS[0], headers=known).status_code == 200
    assert client.get("/health").status_code == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"host": "attacker.example"}, 400),
        ({"origin": "https://attacker.example"}, 403),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"origin": "null"}, 403),
    ],
)
def test_without_a_token_pages_of_other_sites_are_not_answered(client, headers, status):
    response = post(client, FILMS[0], headers=headers)
    assert response.status_code == status
    assert "access-control-allow-origin" not in response.headers
    assert response.headers["cache-control"] == "no-store"


@pytest.mark.parametrize("token", [None, "secret"])
def test_pages_of_an_allowed_origin_are_answered(make, token):
    mine, other = "https://ward.example", "https://attacker.example"
    client = make(Access(token, [mine], {"testserver"}))
    asks = {"access-control-request-method": "POST", "access-control-request-headers": "authorization"}
    allowed = client.options("/v1/reports", headers={"origin": mine, **asks})
    assert (allowed.status_code, allowed.headers["access-control-allow-origin"]) == (200, mine)
    assert client.options("/v1/reports", headers={"origin": other, **asks}).status_code == 400
    known = {"authorization": "Bearer secret", "sec-fetch-site": "cross-site"}
    answer = post(client, FILMS[0], headers={"origin": mine, **known})
    assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, mine)
    assert "access-control-allow-origin" not in post(client, FILMS[0], headers={"origin": other, **known}).headers


def test_health_names_the_model(client, chain, batcher, monkeypatch):
    told = client.get("/health")
    assert told.status_code == 200
    assert (told.json()["ready"], told.json()["model"]) == (True, chain.reports.path.name)
    assert told.json()["warnings"][0] == "Research software. Not for clinical use."
    jsonschema.validate(told.json(), schema("Health"))
    monkeypatch.setattr(batcher, "ready", False)
    told = client.get("/health")
    assert (told.status_code, told.json()["live"], told.json()["ready"]) == (503, True, False)


def test_metrics_count_requests_and_batches(make):
    metrics = Metrics(PATHS)
    client = make(metrics=metrics)
    for _ in range(2):
        post(client, FILMS[0], study="Doe")
    post(client, NOISE)
    client.get("/patients/Doe")
    metrics.add_batch(3, 0.2)
    told = client.get("/metrics")
    assert told.headers["content-type"].startswith("text/plain; version=0.0.4")
    for line in (
        'amrg_requests_total{path="/v1/reports",status="200"} 2.0',
        'amrg_requests_total{path="/v1/reports",status="422"} 1.0',
        'amrg_requests_total{path="other",status="404"} 1.0',
        'amrg_request_seconds_count{path="/v1/reports"} 3.0',
        'amrg_batch_studies_bucket{le="2.0"} 0.0',
        'amrg_batch_studies_bucket{le="4.0"} 1.0',
        "amrg_batch_seconds_sum 0.2",
        "amrg_waiting_studies 0.0",
        "amrg_requests_in_work 0.0",
        "amrg_ready 1.0",
    ):
        assert line in told.text.splitlines(), line
    assert "Doe" not in told.text


def test_the_document_is_valid_and_names_every_route(client):
    validate(DOCUMENT)
    assert client.get("/openapi.json").json() == DOCUMENT
    app = client.app
    while not hasattr(app, "routes"):
        app = app.app
    routes = {route.path: {method.lower() for method in route.methods - {"HEAD"}} for route in app.routes}
    assert {path: set(methods) for path, methods in DOCUMENT["paths"].items()} == {
        path: methods for path, methods in routes.items() if not path.startswith("/docs")
    }
    assert set(PATHS) == {path for path in routes if "{" not in path}
    formats = DOCUMENT["paths"]["/v1/reports"]["post"]["responses"]["200"]["content"]
    assert set(formats) == {"application/json", "text/event-stream", "application/fhir+json", "application/dicom"}


def events(text):
    """(kind, content) of each server-sent event."""
    parts = [dict(line.split(": ", 1) for line in one.splitlines()) for one in text.split("\n\n") if one.strip(":\n")]
    return [(part["event"], json.loads(part["data"])) for part in parts]


STREAMED = {"accept": "text/event-stream"}


def test_a_report_as_events(client, gate, batcher):
    """One study waits behind another, is written, and is answered with the record of the whole answer."""
    whole = post(client, FILMS[1], study="s").json()
    assert batcher.batch_size >= 2
    gate.open.clear()
    with ThreadPoolExecutor(2) as pool:
        held = pool.submit(post, client, FILMS[0])
        while not batcher._batch:
            time.sleep(0.01)
        answer = pool.submit(post, client, FILMS[1], study="s", headers=STREAMED)
        while not len(batcher):
            time.sleep(0.01)
        time.sleep(2 * api.POLL)  # its state is sent
        gate.open.set()
        assert held.result().status_code == 200
    response = answer.result()
    assert (response.status_code, response.headers["content-type"].split(";")[0]) == (200, "text/event-stream")
    first, *_, last = events(response.text)
    assert first == ("state", {"state": "waiting", "before": 0})
    assert last == ("report", whole)
    assert {kind for kind, _ in events(response.text)} == {"state", "report"}


def test_what_goes_wrong_in_a_stream_is_an_event_and_nothing_stays_in_work(make, gate, batcher, monkeypatch):
    monkeypatch.setattr(api, "KEEP_ALIVE", 0.2)
    client = make(seconds=1.0)
    refused = post(client, NOISE, headers=STREAMED)
    assert refused.status_code == 422  # before the stream begins
    gate.open.clear()
    late = post(client, FILMS[0], headers=STREAMED)
    assert events(late.text)[-1][0] == "error"
    told = events(late.text)[-1][1]
    assert (told["error"], told["status"]) == ("not written within the 1 s of a request", 503)
    assert told["retry_after"] >= 1
    assert "\n:\n\n" in late.text  # comments while nothing else is sent
    gate.open.set()
    while batcher._batch:
        time.sleep(0.01)
    gate.error = RuntimeError("There is a small left pleural effusion.")
    (failed,) = [content for kind, content in events(post(make(), FILMS[0], headers=STREAMED).text) if kind == "error"]
    assert failed["error"].startswith("the worker failed and is started again")
    assert "effusion" not in str(failed)
    assert "amrg_requests_in_work 0.0" in client.get("/metrics").text.splitlines()
    assert len(batcher) == 0


def test_the_interface_has_a_page(make, monkeypatch):
    """Swagger UI from a package, under the same policy as everything, without a token; what is not there says why."""
    client = make(Access(token="secret"))
    page = client.get("/docs")
    assert (page.status_code, page.headers["content-type"].split(";")[0]) == (200, "text/html")
    linked = re.findall(r'(?:href|src)="(/docs/[^"]+)"', page.text)
    assert len(linked) == 3
    for path in linked:
        assert client.get(path).status_code == 200
    assert client.get("/openapi.json").status_code == 200
    assert not re.search("https?:", page.text)
    assert client.get("/docs/index.html").status_code == 401
    assert make().get("/docs/index.html").status_code == 404
    monkeypatch.setattr(docs_page, "_PACKAGE", "not_installed_here")
    missing = client.get("/docs")
    assert missing.status_code == 404
    assert "amrg[swagger]" in missing.json()["error"]


def test_a_report_as_fhir(client, monkeypatch):
    report = pytest.importorskip("fhir.resources.R4B.diagnosticreport").DiagnosticReport
    monkeypatch.setattr(TrainingDistance, "records", lambda _, vision: [{"unlike_training": True}])
    record = post(client, FILMS[0]).json()
    answer = post(client, FILMS[0], study="<s>", headers={"accept": "application/fhir+json"})
    assert answer.headers["content-type"] == "application/fhir+json"
    content = answer.json()
    report.model_validate(content)
    assert (content["status"], content["conclusion"]) == ("preliminary", record["generated"])
    assert content["identifier"] == [{"value": "<s>"}]
    said = {one["code"]["text"].removeprefix("Probability of "): one["valueQuantity"]["value"]
            for one in content["contained"]}  # fmt: skip
    assert said == record["findings"]
    assert [one["reference"] for one in content["result"]] == [f"#{one['id']}" for one in content["contained"]]
    text = base64.b64decode(content["presentedForm"][0]["data"]).decode()
    assert text.splitlines()[:2] == [record["generated"], "Research software. Not for clinical use."]
    assert UNLIKE in text


def test_a_report_as_dicom(client, tmp_path):
    pytest.importorskip("highdicom")
    identifiers = {"StudyInstanceUID": "1.2.3", "SeriesInstanceUID": "1.2.3.4", "SOPInstanceUID": "1.2.3.4.5"}
    tags = {**identifiers, "SOPClassUID": DigitalXRayImageStorageForPresentation, "PatientName": "Doe^John"}
    film = dicom(tmp_path / "film.dcm", chest_film(0), **tags, PatientID="p").read_bytes()
    record = post(client, film).json()
    accept = {"accept": "application/dicom"}
    answer = post(client, film, headers=accept)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/dicom")
    told = pydicom.dcmread(io.BytesIO(answer.content))
    assert (told.Modality, told.StudyInstanceUID, told.PatientID, told.PatientName) == ("SR", "1.2.3", "p", "Doe^John")
    assert (told.VerificationFlag, told.PreliminaryFlag) == ("UNVERIFIED", "PRELIMINARY")
    findings, notice, *_ = told.ContentSequence
    report, *probabilities = findings.ContentSequence
    assert report.TextValue == record["generated"]
    assert notice.TextValue == "Research software. Not for clinical use."
    said = {one.ConceptNameCodeSequence[0].CodeMeaning.removeprefix("Probability of "):
            float(one.MeasuredValueSequence[0].NumericValue) for one in probabilities}  # fmt: skip
    assert said == record["findings"]
    (refused,) = [post(client, FILMS[0], headers=accept)]
    assert (refused.status_code, "0.png is no DICOM object" in refused.text) == (422, True)
    anonymous = dicom(tmp_path / "bare.dcm", chest_film(0)).read_bytes()
    assert "0.png has no StudyInstanceUID" in post(client, anonymous, headers=accept).json()["error"]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--host", "0.0.0.0"], "lets others send films: give --token-file"),
        (["--host", "0.0.0.0", "--token-file", "missing"], "--token-file missing cannot be read"),
        (["--token-file", os.devnull], "must be one word of ASCII"),
        (["--batch-size", "1000"], "at most generate.batch_size"),
        (["--queue", "0"], "must be above 0"),
    ],
)
def test_what_cannot_be_served_is_one_line(folder, arguments, text):
    with pytest.raises(UserError, match=re.escape(text)):
        main([str(folder), *arguments])


def test_a_token_can_be_asked_for_or_not(folder, monkeypatch):
    monkeypatch.setenv("AMRG_TOKEN", "secret")
    with pytest.raises(UserError, match="--no-token, but there is a token"):
        main([str(folder), "--host", "0.0.0.0", "--no-token"])


def call(address, film=None, headers=None):
    """Status and content of an answer of a real server."""
    sent = form((PART, film)) if film else {"content": None, "headers": {}}
    request = Request(address, sent["content"], {**sent["headers"], **(headers or {})})
    try:
        with urlopen(request, timeout=120) as answer:
            return answer.status, json.load(answer)
    except HTTPError as error:
        return error.code, json.load(error)


def test_the_server_survives_its_worker(folder, tmp_path, chain):
    """`amrg serve`: its worker is killed while it writes, answers 503, and comes back. Ctrl-C ends both."""
    (tmp_path / "token").write_text("secret\n")
    command = [sys.executable, "-m", "amrg.cli", "serve", str(folder), "--port", "0"]
    known = {"authorization": "Bearer secret"}
    with subprocess.Popen(
        [*command, "--token-file", str(tmp_path / "token")], stderr=subprocess.PIPE, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    ) as server:  # fmt: skip
        try:
            lines = []
            while not (found := re.search(r"serving at (http\S+)", lines[-1] if lines else "")):
                lines.append(server.stderr.readline())
                assert lines[-1], lines
            first = call(f"{found[1]}/v1/reports", FILMS[0], known)
            assert call(f"{found[1]}/v1/reports", FILMS[0])[0] == 401
            (worker,) = [int(pid) for pid in children(server.pid) if b"spawn_main" in command_line(pid)]
            os.kill(worker, signal.SIGSTOP)
            with ThreadPoolExecutor(1) as pool:
                answer = pool.submit(call, f"{found[1]}/v1/reports", FILMS[0], known)
                time.sleep(1)
                os.kill(worker, signal.SIGKILL)
                status, told = answer.result()
            assert (status, told["error"].startswith("the worker failed")) == (503, True)
            assert call(f"{found[1]}/v1/reports", FILMS[0], known) == first  # waits until the model is loaded
            assert call(f"{found[1]}/health")[1]["model"] == chain.model
            server.send_signal(signal.SIGINT)
            rest = server.stderr.read()
            assert server.wait(60) == 0
        finally:
            server.kill()  # else a failure would wait for it
    assert first[0] == 200
    assert "the worker failed (" in rest
    assert not re.search("effusion|png|lungs", "".join(lines) + rest)


def children(pid):
    """Children of all threads of a process."""
    return " ".join(path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/children")).split()


def command_line(pid):
    return Path(f"/proc/{pid}/cmdline").read_bytes()
