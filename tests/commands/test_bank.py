"""``amrg bank``: every command on a small bank, and what a user can get wrong."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.numpy import save_file

from amrg.banks.bank import MemoryBank, normalise_rows
from amrg.cli import _dispatch
from amrg.errors import UserError

D = 8


@pytest.fixture
def given(tmp_path):
    """Vectors and provenance as a user has them: 12 rows."""
    vectors = np.random.default_rng(0).normal(size=(12, D)).astype(np.float32)
    origins = [
        {"key": f"k{i}", "group": f"p{i % 3}", "split": "train", "source": "report", "text": f"secret {i}",
         "findings": ["Edema"] if i % 2 else []}
        for i in range(12)
    ]  # fmt: skip
    np.save(tmp_path / "v.npy", vectors)
    save_file({"rows": vectors}, tmp_path / "v.safetensors")
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in origins))
    pq.write_table(pa.Table.from_pylist(origins), tmp_path / "p.parquet")
    return tmp_path, vectors


def bank(*arguments):
    _dispatch(["bank", *map(str, arguments)])


def test_build_merge_subset_verify(given, capsys) -> None:
    folder, vectors = given
    bank("build", folder / "v.npy", folder / "p.jsonl", folder / "a")
    bank("build", folder / "v.safetensors", folder / "p.parquet", folder / "b", "--dtype", "float32")
    first, second = (MemoryBank.open(folder / name) for name in "ab")
    torch.testing.assert_close(first.load(), normalise_rows(torch.from_numpy(vectors)))
    assert first.content_hash == second.content_hash
    bank("merge", folder / "a", folder / "b", "--to", folder / "both")
    bank("subset", folder / "both", "--to", folder / "part", "--duplicates", 0.999, "--findings", "Edema", "--dtype",
         "int8")  # fmt: skip
    part = MemoryBank.open(folder / "part")
    assert part.provenance["key"].to_pylist() == [f"k{i}" for i in range(1, 12, 2)]
    assert part.dtype == torch.int8
    bank("verify", folder / "a", folder / "both", folder / "part")
    said = capsys.readouterr().out
    assert said.count("are as they were written") == 3
    assert "24 rows" in said
    assert "secret" not in said


def test_show_counts_by_finding_and_split_and_draws(given, capsys) -> None:
    folder, _ = given
    bank("build", folder / "v.npy", folder / "p.jsonl", folder / "a")
    bank("show", folder / "a", "--plot", folder / "plot.png")
    said = capsys.readouterr().out
    assert [line.split()[1:4:2] for line in said.splitlines() if "Edema" in line or " none " in line] == [
        ["Edema", "6"], ["none", "6"],
    ]  # fmt: skip
    assert (folder / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_search_by_row_is_by_cosine_and_hides_texts(given, capsys) -> None:
    folder, vectors = given
    bank("build", folder / "v.npy", folder / "p.jsonl", folder / "a")
    capsys.readouterr()
    bank("search", folder / "a", "--row", 3, "--count", 4)
    said = capsys.readouterr().out
    centered = vectors - vectors.mean(1, keepdims=True)
    unit = centered / np.linalg.norm(centered, axis=1, keepdims=True)
    expected = [row for row in np.argsort(-(unit @ unit[3])) if row != 3][:4]
    found = [int(line.split("│")[1]) for line in said.splitlines() if line.startswith("│")]
    assert found == expected
    assert "secret" not in said
    bank("search", folder / "a", "--row", 3, "--show-text")
    assert "secret" in capsys.readouterr().out


def test_search_by_text_finds_the_report_that_says_so(tmp_path, capsys) -> None:
    from amrg.banks.writer import BankWriter
    from amrg.models.text_encoder import TextEncoder

    texts = ["The lungs are clear.", "There is a large left pleural effusion.", "A pacemaker is in place."]
    encoder = TextEncoder("minilm", 64)
    with BankWriter(tmp_path / "bank", encoder.dim, encoder_info={"encoder": "minilm"}) as writer:
        origin = {"group": "p", "split": "train", "source": "report"}
        writer.add(encoder.encode(texts), [origin | {"key": str(i), "text": text} for i, text in enumerate(texts)])
    bank("search", tmp_path / "bank", "--text", "fluid around the left lung", "--count", 1)
    (row,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("│")]
    assert int(row.split("│")[1]) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["shuffle"], "invalid choice: 'shuffle'"),
        (["show", "nowhere"], "nowhere is not a memory bank"),
        (["search", "a"], "one of the arguments --row --text is required"),
        (["search", "a", "--row", "12"], "has rows 0 to 11, not 12"),
        (["search", "a", "--text", "x"], "was not made from texts"),
        (["subset", "a", "--to", "c", "--findings", "Gout"], "no row of this bank"),
        (["merge", "a", "--to", "a"], "a is not empty"),
        (["build", "v.npy", "none.jsonl", "c"], "none.jsonl is not readable provenance"),
        (["build", "p.jsonl", "p.jsonl", "c"], "p.jsonl holds no vectors"),
        (["build", "v.npy", "short.jsonl", "c"], "v.npy has 12 rows, short.jsonl tells of 1"),
        (["build", "v.npy", "wrong.jsonl", "c"], "row 0: source 'dream' is none of"),
        (["build", "v.npy", "asked.jsonl", "c"], "row 0: `context` may have texts of indication, technique"),
        (["build", "v.npy", "half.jsonl", "c"], "row 0 holds half of a surrogate pair"),
        (["build", "v.npy", "test.jsonl", "c"], "row 0 comes from the split `test`"),
    ],
)
def test_mistakes_are_one_line(given, monkeypatch, arguments, message) -> None:
    folder, _ = given
    monkeypatch.chdir(folder)
    bank("build", "v.npy", "p.jsonl", "a")
    line = json.loads((folder / "p.jsonl").read_text().splitlines()[0])
    (folder / "short.jsonl").write_text(json.dumps(line) + "\n")
    (folder / "wrong.jsonl").write_text(json.dumps(line | {"source": "dream"}) + "\n")
    (folder / "asked.jsonl").write_text(json.dumps(line | {"context": {"question": "Cough."}}) + "\n")
    (folder / "half.jsonl").write_text(json.dumps(line | {"context": {"indication": "\ud800"}}) + "\n")
    (folder / "test.jsonl").write_text(json.dumps(line | {"split": "test"}) + "\n")
    with pytest.raises(UserError) as caught:
        bank(*arguments)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (folder / "c" / "bank.json").exists()
