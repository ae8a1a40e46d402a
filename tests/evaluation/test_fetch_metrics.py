"""Weights of the learned metrics: fetched from a hub on this machine's loopback to where radeval looks, or refused."""

import io
import json
import re
import socket
import tarfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest
from huggingface_hub import constants
from safetensors.numpy import save

from amrg import cli, model_files
from amrg.evaluation.scorers import SCORERS, missing_metric_files, weights_table

COMMIT = "a" * 40
CONFIG = b'{"model_type": "bert"}'
TENSORS = save({"weight": np.zeros(3, np.float32)})
DOCS = Path(__file__).parents[2] / "docs" / "evaluation.md"


def archive(encoder):
    """What RadGraph's archive holds, as far as it is read here."""
    named = {"bert": {"model_name": encoder}}
    config = {"dataset_reader": {"token_indexers": named}, "model": {"embedder": {"token_embedders": named}}}
    content, file = json.dumps(config).encode(), io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as opened:
        for name, data in (("./weights.th", b"w" * 9), ("./config.json", content)):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            opened.addfile(member, io.BytesIO(data))
    return file.getvalue()


def repositories():
    """What is on the hub, by repository and file."""
    bert = {"config.json": CONFIG, "vocab.txt": b"[UNK]", "README.md": b"", "onnx/config.json": b"{}"}
    return {
        "StanfordAIMI/RRG_scorers": {"chexbert.pth": b"chexbert", "radgraph-xl.tar.gz": archive("some/encoder")},
        "bert-base-uncased": {**bert, "model.safetensors": TENSORS},
        "some/encoder": {**bert, "pytorch_model.bin": b"PK"},
        "distilbert-base-uncased": {**bert, "model.safetensors": TENSORS, "pytorch_model.bin": b"", "tf_model.h5": b""},
    }


class Hub(ThreadingHTTPServer):
    """The three answers of the hub that a download needs, and the paths that were asked for."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Answer)
        self.files, self.asked = repositories(), []


class Answer(BaseHTTPRequestHandler):
    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = unquote(urlsplit(self.path).path)
        self.server.asked.append(path)
        status, body, headers = 404, b"{}", {"X-Error-Code": "EntryNotFound"}
        for repository, files in self.server.files.items():
            if path == f"/api/models/{repository}/auth-check":
                status, headers = 200, {}
            elif path == f"/api/models/{repository}/tree/main":
                found = [{"type": "file", "path": n, "oid": n, "size": len(data)} for n, data in files.items()]
                status, body, headers = 200, json.dumps(found).encode(), {}
            elif path.startswith(f"/{repository}/resolve/main/"):
                name = path.removeprefix(f"/{repository}/resolve/main/")
                if name in files:
                    status, body = 200, files[name]
                    headers = {"ETag": f'"{repository.replace("/", "-")}-{name}"', "X-Repo-Commit": COMMIT}
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), "Content-Type": "application/json", **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def caches(tmp_path, monkeypatch):
    """Empty caches, the hub's and the user's; nothing is forbidden, and the hub was not asked yet."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(model_files, "_silent", [])
    return tmp_path


@pytest.fixture
def hub(caches, monkeypatch):
    with Hub() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(constants, "ENDPOINT", address := f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}"
        )
        yield server
        server.shutdown()


def refused(capsys, *arguments):
    """The lines of a command that ends with exit code 2."""
    with pytest.raises(SystemExit) as stop:
        cli.main(["fetch-metrics", *arguments])
    assert stop.value.code == 2
    return [line for line in capsys.readouterr().err.splitlines() if line.startswith("amrg: ")]


def test_files_land_where_radeval_looks(hub, caches, capsys):
    cli.main(["fetch-metrics", "CheXbert", "RadGraph"])
    snapshot = Path("models--StanfordAIMI--RRG_scorers", "snapshots", COMMIT)
    assert (caches / "user" / "chexbert" / snapshot / "chexbert.pth").read_bytes() == b"chexbert"
    radgraph = caches / "user" / "radgraph" / "0.1.18"
    assert (radgraph / snapshot / "radgraph-xl.tar.gz").exists()
    assert (radgraph / "models--StanfordAIMI--RRG_scorers" / "refs" / "main").read_text() == COMMIT
    # the encoders of both without their weights, which are in the files above; RadGraph's archive names its own
    for repository in ("models--bert-base-uncased", "models--some--encoder"):
        found = caches / "hub" / repository / "snapshots" / COMMIT
        assert {file.name for file in found.iterdir()} == {"config.json", "vocab.txt"}
    assert not missing_metric_files(["CheXbert", "RadGraph"])

    hub.asked.clear()
    capsys.readouterr()
    cli.main(["fetch-metrics", "CheXbert", "RadGraph"])
    assert hub.asked == []
    told = capsys.readouterr().out
    assert "missing" not in told
    assert f"there   StanfordAIMI/RRG_scorers (chexbert.pth), 1.31 GB, MIT: {caches / 'user' / 'chexbert'}" in told


def test_of_a_model_one_kind_of_weights_is_fetched(hub, caches):
    cli.main(["fetch-metrics", "BERTScore"])
    found = caches / "hub" / "models--distilbert-base-uncased" / "snapshots" / COMMIT
    assert {file.name for file in found.iterdir()} == {"config.json", "vocab.txt", "model.safetensors"}
    assert SCORERS["BERTScore"].weights[0].wanted(["pytorch_model.bin", "tf_model.h5", "vocab.txt"]) == [
        "vocab.txt",
        "pytorch_model.bin",
    ]


def test_it_goes_on_where_it_ended(hub, capsys):
    """What could not be had is told in a line; the rest is fetched, and not asked for again."""
    weights = hub.files["StanfordAIMI/RRG_scorers"].pop("chexbert.pth")
    (line,) = refused(capsys, "CheXbert")
    assert "StanfordAIMI/RRG_scorers (chexbert.pth) is missing" in line
    hub.files["StanfordAIMI/RRG_scorers"]["chexbert.pth"] = weights
    hub.asked.clear()
    cli.main(["fetch-metrics", "CheXbert"])
    assert hub.asked
    assert all("RRG_scorers" in path for path in hub.asked)


def test_what_is_only_half_there_is_missing(hub, caches):
    cli.main(["fetch-metrics", "BERTScore"])
    found = caches / "hub" / "models--distilbert-base-uncased" / "snapshots" / COMMIT / "model.safetensors"
    found.resolve().write_bytes(TENSORS[:-1])
    assert [weights.repository for weights in missing_metric_files(["BERTScore"])] == ["distilbert-base-uncased"]


def test_a_dry_run_asks_nobody(hub, capsys):
    cli.main(["fetch-metrics", "--dry-run"])
    told = capsys.readouterr().out
    assert hub.asked == []
    assert all(weights.repository in told for scorer in SCORERS.values() for weights in scorer.weights)
    assert "distilbert-base-uncased, layer 5" in told


def test_a_silent_hub_is_asked_once(caches, capsys, monkeypatch):
    monkeypatch.setattr(model_files, "HUB_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as server:  # takes calls, answers none
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        lines = refused(capsys, "RadCliQ", "CheXbert")
        server.settimeout(0)
        server.accept()[0].close()
        with pytest.raises(BlockingIOError):
            server.accept()
    assert len(lines) == len(missing_metric_files(["RadCliQ"])) == 4
    assert all("the hub does not answer" in line for line in lines)


def test_offline_it_is_not_asked(hub, capsys, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert all("HF_HUB_OFFLINE" in line for line in refused(capsys))
    assert hub.asked == []


def test_an_unknown_metric(capsys):
    (line,) = refused(capsys, "BLEU")
    assert line.startswith("amrg: unknown metric BLEU: one of BERTScore, CheXbert,")


def test_the_documentation_has_the_same_table():
    told = [row.strip("|").split("|") for row in re.findall(r"^\|.*\|$", DOCS.read_text(), re.MULTILINE)]
    cells = [[cell.strip().strip("`") for cell in row] for row in told]
    start = cells.index(["metric", "repository", "part", "folder", "size", "licence"])
    assert cells[start + 2 : start + 2 + len(weights_table())] == weights_table()
