"""A language model that two ranks load in parts is the one that one loads whole, and no rank ever holds all of it."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from amrg.config import DecoderConfig
from amrg.errors import UserError
from amrg.models.decoder import build_decoder
from tests.training import zero3_loading_worker
from tests.training.test_sharding_equivalence import lines, start

REPORTS = [
    f"{lungs} {heart} No pneumothorax."
    for lungs in ("The lungs are clear.", "There is a small left pleural effusion.", "Mild bibasilar atelectasis.")
    for heart in ("Heart size is normal.", "Heart size is enlarged.")
]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Odd sizes; the head is tied to the embeddings."""
    folder = tmp_path_factory.mktemp("base")
    parts = build_decoder(DecoderConfig(hidden_size=36, layers=2, heads=3, vocab_size=99, dropout=0.0), REPORTS, 7)
    for part in parts:
        part.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def two_ranks(artefacts: Any, base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Any]]:
    """What two ranks left, and what each saw."""
    folder, large = (tmp_path_factory.mktemp(name) for name in ("parted", "large"))
    shape = {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 8, "num_attention_heads": 8}
    LlamaForCausalLM(LlamaConfig(vocab_size=512, **shape)).save_pretrained(large)
    for file in base.glob("*token*"):
        (large / file.name).write_bytes(file.read_bytes())
    runs = artefacts.data.parent.parent
    start(2, runs, base, large, folder, script="zero3_loading_worker")
    return folder, [json.loads((folder / f"seen-{rank}.json").read_text()) for rank in (0, 1)]


def test_each_rank_holds_half_and_never_the_whole(two_ranks: tuple[Path, list[Any]]) -> None:
    for seen in two_ranks[1]:
        elements, held, peak = (seen["large"][name] for name in ("elements", "held", "peak"))
        assert elements > 25_000_000
        assert held == pytest.approx(elements / 2, rel=0.01)
        assert 4 * held < 1.1 * peak  # else this measures nothing
        assert peak < 0.65 * 4 * elements


def test_it_is_built_as_one_that_is_whole(two_ranks: tuple[Path, list[Any]]) -> None:
    """Q-Former, memories, streams (their size comes from the embeddings) and LoRA too, on both ranks."""
    for seen in two_ranks[1]:
        plain, parted = seen["zero0.json"], seen["zero3.json"]
        assert parted["hashes"] == plain["hashes"] == two_ranks[1][0]["zero0.json"]["hashes"]
        assert plain["apart"] == []
        assert all(name.startswith("decoder.") and ".lora_" not in name for name in parted["apart"])
        assert len(parted["apart"]) == 2 * 9 + 2
        shape, is_apart, rows = parted["bank"]
        assert (shape[0], is_apart) == (rows, False)


@pytest.mark.parametrize("name", zero3_loading_worker.TUNINGS)
def test_it_learns_writes_and_is_saved_alike(
    artefacts: Any, base: Path, two_ranks: tuple[Path, list[Any]], tmp_path: Path, name: str
) -> None:
    found, runs = two_ranks[0] / name, artefacts.data.parent.parent
    exact = zero3_loading_worker.TUNINGS[name][0] == "float32"
    zero3_loading_worker.train(zero3_loading_worker.configuration(base, name, "zero0.json"), runs, tmp_path)
    for file, keys in (("logs/steps.jsonl", ("loss",)), ("curves.jsonl", ("val_loss", "visual_perplexity"))):
        rows, expected = (lines(folder / "stage2" / file) for folder in (found, tmp_path))
        assert len(rows) == len(expected) > 0
        for key in keys:
            near = pytest.approx([row[key] for row in expected], rel=1e-5 if exact else 1e-4)
            assert [row[key] for row in rows] == near, key
    files = sorted(path.relative_to(tmp_path) for path in (tmp_path / "stage2" / "model").rglob("*.safetensors"))
    assert len(files) == 3
    for file in files:
        weights, truth = load_file(found / file), load_file(tmp_path / file)
        assert weights.keys() == truth.keys()
        for key, value in weights.items():
            if exact:
                torch.testing.assert_close(value, truth[key], rtol=1e-3, atol=2e-5, msg=f"{file} {key}")
            else:  # rounding decides where a gradient is all but nothing, and Adam's first steps are as large there
                assert (value - truth[key]).norm() <= 0.1 * truth[key].norm(), f"{file} {key}"
    config = Path("stage2", "model", "config.json")
    assert (found / config).read_text() == (tmp_path / config).read_text()  # with the fingerprint of the base
    written, expected = (lines(folder / "reports.jsonl") for folder in (found, tmp_path))
    assert [line["generated"] for line in written] == [line["generated"] for line in expected]


def test_quantised_weights_are_not_parted(base: Path) -> None:
    with pytest.raises(UserError, match=r"base_dtype nf4 .* zero2\.json"):
        build_decoder(DecoderConfig(model=str(base), tuning="lora", base_dtype="nf4"), [], 0, zero={"stage": 3})
