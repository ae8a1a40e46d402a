"""``amrg export RUN --hub``: the folder writes the same reports, and without texts holds none of them."""

import json
import socket

import pyarrow.parquet as pq
import pytest
from huggingface_hub import constants
from transformers import AutoModel

from amrg import load_run
from amrg.banks.bank import REPORTS, MemoryBank
from amrg.cli import main
from amrg.data.stream import iter_split_samples
from amrg.data.text.cleaning import split_sentences
from amrg.errors import UserError
from amrg.inference import hub
from tests.webapp.tiny_run import make_run


@pytest.fixture(scope="module")
def retrieved(tmp_path_factory):
    """A run whose reports begin with sentences of its memory."""
    return make_run(tmp_path_factory.mktemp("retrieved"), "retrieved")


@pytest.fixture(scope="module")
def studies(retrieved):
    return [list(sample.views) for sample in iter_split_samples(retrieved["data"].path, "test")]


def export(run, folder, *options):
    main(["export", str(run["reports"].path), "--hub", str(folder), *options])
    return folder


def test_the_folder_writes_the_reports_of_the_run(retrieved, studies, tmp_path, monkeypatch):
    folder = export(retrieved, tmp_path / "hub")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    expected = load_run(retrieved["reports"].path).generate_records(studies)
    assert any(record["sentences"] for record in expected)
    assert load_run(folder).generate_records(studies) == expected
    model = AutoModel.from_pretrained(folder, trust_remote_code=True)
    assert model.generate(studies) == [record["generated"] for record in expected]
    assert not [path.name for path in folder.rglob("*") if path.name in ("reports.jsonl", "logs", "index.parquet")]
    card = (folder / "README.md").read_text()
    assert card.startswith("---\n")
    assert "Not for clinical use" in card
    assert "The memory holds texts and contexts of train reports" in card


def test_without_reports_no_text_study_or_patient_is_left(retrieved, studies, tmp_path):
    folder = export(retrieved, tmp_path / "hub", "--without-reports")
    bank = MemoryBank.open(retrieved["banks"].path / REPORTS)
    texts = [text for study in iter_split_samples(retrieved["data"].path, "train") for text in [study.study.report]]
    sentences = {sentence for text in texts for sentence in split_sentences(text)}
    secrets = {*sentences, *texts, *bank.provenance["key"].to_pylist(), *bank.provenance["group"].to_pylist()} - {""}
    assert len(secrets) > 20
    for path in folder.rglob("*"):
        if path.suffix == ".parquet":
            table = pq.read_table(path)
            content = json.dumps(table.to_pylist())
            assert pq.ParquetFile(path).schema_arrow.metadata is None
        else:
            content = path.read_bytes().decode("latin-1") if path.is_file() else ""
        assert not [secret for secret in secrets if secret in content], path.name
    for bank_folder in (folder / retrieved["banks"].path.name).glob("*/bank.json"):
        MemoryBank.open(bank_folder.parent).verify()
    records = load_run(folder).generate_records(studies)
    assert all(record["generated"] and not record["sentences"] for record in records)
    assert "every sentence is the decoder's own" in "".join(load_run(folder).artifacts.warnings)
    assert "every sentence is the decoder's own" in (folder / "README.md").read_text()


def test_without_reports_no_context_asks_for_words(tmp_path):
    """Nothing is said to read a context that no row has any longer."""
    manifest = {"config": {"outline_source": "retrieved", "memory": "uniform", "recall_context": ["age"]}}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    hub._let_the_decoder_write(tmp_path / "manifest.json")
    settings = json.loads((tmp_path / "manifest.json").read_text())["config"]
    assert settings == {"outline_source": "classifier", "memory": "own"}


def test_what_cannot_be_exported_is_one_line(retrieved, tmp_path, monkeypatch, capsys):
    folder = export(retrieved, tmp_path / "hub")
    with pytest.raises(SystemExit) as stopped:
        export(retrieved, tmp_path / "hub")
    assert stopped.value.code == 2
    assert "hub exists: delete it or choose another name" in capsys.readouterr().err
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
    with pytest.raises(SystemExit):
        export(retrieved, tmp_path / "pushed", "--push", "somebody/model")
    error = capsys.readouterr().err
    assert "cannot push to somebody/model" in error
    assert "is whole" in error
    assert (tmp_path / "pushed" / "README.md").read_text() == (folder / "README.md").read_text()
    for wrong in (["--hub", "a", "b"], [], ["b", "--without-reports"], ["--hub", "a", "--onto", "c"]):
        with pytest.raises(SystemExit) as stopped:
            main(["export", str(retrieved["reports"].path), *wrong])
        assert stopped.value.code == 2


def test_a_run_without_reports_has_no_settings_to_export(retrieved, tmp_path):
    with pytest.raises((UserError, SystemExit)):
        main(["export", str(retrieved["stage2"].path), "--hub", str(tmp_path / "hub")])
    assert not (tmp_path / "hub").exists()
