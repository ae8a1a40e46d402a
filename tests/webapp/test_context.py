"""The clinical context of a study in the viewer."""

import io
import json
import logging
import re

import pytest
from PIL import Image
from starlette.testclient import TestClient

from amrg.inference.run_artifacts import find_run_artifacts
from amrg.webapp.server import MAX_CONTEXT_BYTES, create_viewer_app
from tests.conftest import report
from tests.data.test_image_io import dicom
from tests.made_films import chest_film

SECRET = "cough since a visit to Ruritania"
BYTES = {"content-type": "application/octet-stream"}


@pytest.fixture(scope="module")
def client(informed):
    return TestClient(
        create_viewer_app(find_run_artifacts(informed), ["testserver"]), raise_server_exceptions=False, headers=BYTES
    )


def written(client, look):
    """The report, and the shares of attention of each sentence."""
    text = client.get(f"/api/looks/{look['place']}/{look['name']}/report").text
    told = [(kind, json.loads(content)) for kind, content in re.findall(r"event: (\w+)\ndata: (.+)\n\n", text)]
    assert told[-1][0] == "end"
    shares = [content["shares"] for kind, content in told if kind == "sentence"]
    return " ".join([content["sentences"] for kind, content in told if kind == "text"][-1]), shares


def tell(client, look, content):
    return client.post(f"/api/looks/{look['place']}/{look['name']}/context", content=content)


def test_a_study_is_written_with_its_own_context_until_another_is_told(client):
    page = client.get("/").text
    assert re.findall(r'<input name="(\w+)" autocomplete', page) == ["indication", "age", "sex"]
    look = client.get("/api/looks/test/test-0").json()
    assert look["context"] == {"indication": "Cough.", "age": "", "sex": ""}
    text, shares = written(client, look)
    assert text == report(0)
    assert all(0 < share["context"] < 1 and sum(share.values()) == pytest.approx(1, abs=0.01) for share in shares)
    assert tell(client, look, "{}").json() == {"indication": "", "age": "", "sex": ""}
    text, shares = written(client, look)
    assert text == report(1)
    assert not any("context" in share for share in shares)


def test_an_opened_film_has_the_age_and_sex_of_its_tags_and_what_is_told(client, tmp_path, caplog):
    caplog.set_level(logging.DEBUG)
    path = dicom(tmp_path / "film.dcm", chest_film(3), PatientAge="041Y", PatientSex="F")
    look = client.post("/api/looks", content=path.read_bytes()).json()
    assert look["context"] == {"indication": "", "age": "41", "sex": "female"}
    told = tell(client, look, json.dumps({"indication": SECRET, "age": "041Y", "sex": ""}))
    assert told.json() == {"indication": f"{SECRET[0].upper()}{SECRET[1:]}.", "age": "41", "sex": ""}
    assert tell(client, look, json.dumps({"indication": "XXXX cough"})).json()["indication"] == "Cough."
    assert written(client, look)[0] == report(0)
    assert SECRET not in caplog.text


@pytest.mark.parametrize(
    ("content", "code", "message"),
    [
        (json.dumps({"age": SECRET}), 422, "age must be whole years"),
        (json.dumps({SECRET: "x"}), 422, "may have indication, technique"),
        (json.dumps([SECRET]), 422, "must be a JSON object"),
        (SECRET, 422, "must be a JSON object"),
        ("x" * (MAX_CONTEXT_BYTES + 1), 413, "longer than 64 kB"),
    ],
)
def test_a_wrong_context_is_refused_without_its_text(client, content, code, message):
    look = client.get("/api/looks/test/test-1").json()
    answer = tell(client, look, content)
    assert answer.status_code == code
    assert message in answer.json()["error"]
    assert SECRET not in answer.text


def test_a_run_without_context_has_no_fields(folder):
    client = TestClient(create_viewer_app(find_run_artifacts(folder), ["testserver"]), headers=BYTES)
    assert 'id="context"' not in client.get("/").text
    with io.BytesIO() as file:
        Image.fromarray(chest_film(0)).save(file, "PNG")
        assert client.post("/api/looks", content=file.getvalue()).json()["context"] == {}
