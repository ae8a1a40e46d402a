"""The earlier study of a patient in the viewer."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from amrg.inference.run_artifacts import find_run_artifacts
from amrg.webapp.server import create_viewer_app
from amrg.webapp.session import PRIOR
from tests.conftest import report


@pytest.fixture(scope="module")
def client(comparing: Path) -> TestClient:
    return TestClient(create_viewer_app(find_run_artifacts(comparing), ["testserver"]), raise_server_exceptions=False)


def written(client: TestClient, key: str, off: str = "") -> tuple[str, list[dict[str, float]]]:
    """Return the report, and the shares of attention of each sentence."""
    text = client.get(f"/api/looks/test/{key}/report", params={"off": off}).text
    events = [(kind, json.loads(content)) for kind, content in re.findall(r"event: (\w+)\ndata: (.+)\n\n", text)]
    assert events[-1][0] == "end"
    shares = [content["shares"] for kind, content in events if kind == "sentence"]
    return " ".join([content["sentences"] for kind, content in events if kind == "text"][-1]), shares


def test_a_study_is_written_with_its_earlier_one_unless_it_is_switched_off(client: TestClient) -> None:
    """The decoder has learned report 0 for a prior, which studies of odd number have, and report 1 for none."""
    assert f'name="{PRIOR}"' in client.get("/").text
    look: dict[str, Any] = client.get("/api/looks/test/test-1").json()
    earlier = client.get("/api/looks/test/test-0").json()
    assert earlier["prior"] is None
    assert look["prior"]["films"] is True
    assert look["prior"]["report"] == earlier["reference"]
    text, shares = written(client, "test-1")
    assert text == report(0)
    assert all(0 < share[PRIOR] < 1 and sum(share.values()) == pytest.approx(1, abs=0.01) for share in shares)
    for key, off in (("test-1", PRIOR), ("test-0", "")):
        text, shares = written(client, key, off)
        assert text == report(1)
        assert not any(PRIOR in share for share in shares)
    assert client.get("/api/looks/test/test-1/report", params={"off": "films"}).status_code == 404
