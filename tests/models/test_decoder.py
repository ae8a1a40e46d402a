"""Decoders: made from scratch, loaded, tuned, saved; and what a user hears when there is none."""

import dataclasses
from pathlib import Path

import pytest
import torch

from amrg.config import DecoderConfig
from amrg.errors import UserError
from amrg.models.decoder import base_fingerprint, build_decoder, load_saved_decoder, save_decoder
from amrg.models.tokenizer import train_tokenizer

REPORTS = [
    f"The heart is {size}. {lungs} No pneumothorax."
    for size in ("normal", "large")
    for lungs in ("Clear lungs.", "Small effusion.")
]
SMALL = DecoderConfig(hidden_size=16, layers=1, heads=2, vocab_size=60)


def test_tokenizer_round_trip_and_order_independence() -> None:
    tokenizer, other = train_tokenizer(REPORTS, 60), train_tokenizer([*reversed(REPORTS), REPORTS[0]], 60)
    for report in REPORTS:
        ids = tokenizer(report, add_special_tokens=False).input_ids
        assert tokenizer.decode(ids, skip_special_tokens=True) == report
        assert other(report, add_special_tokens=False).input_ids == ids
    assert len({tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}) == 3


def test_a_vocabulary_smaller_than_the_alphabet_is_refused() -> None:
    with pytest.raises(UserError, match="vocab_size"):
        train_tokenizer(REPORTS, 10)


def test_small_llama_is_a_function_of_the_seed_and_leaves_global_randomness_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first, second, other = (build_decoder(SMALL, REPORTS, seed)[0].state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=torch.arange(4, 14)[None]).logits


@pytest.mark.parametrize("tuning", ["full", "lora", "frozen"])
def test_saved_and_loaded_it_gives_the_same_logits(tmp_path: Path, tuning: str) -> None:
    base = tmp_path / "base"
    model, tokenizer = build_decoder(SMALL, REPORTS, 0)
    model.save_pretrained(base)
    tokenizer.save_pretrained(base)
    config = dataclasses.replace(SMALL, model=str(base), tuning=tuning, lora_rank=2)
    model, tokenizer = build_decoder(config, REPORTS, 0)
    untrained = logits(model)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert (len(trained) == 0) == (tuning == "frozen")
    for parameter in trained:
        torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(1))
    save_decoder(model, tokenizer, tmp_path / "saved")
    assert (tmp_path / "saved" / "model.safetensors").exists() == (tuning == "full")  # no copy of a frozen base
    loaded, _ = load_saved_decoder(config, tmp_path / "saved")
    torch.testing.assert_close(logits(loaded), logits(model), rtol=0, atol=0)
    assert torch.equal(logits(model), untrained) == (tuning == "frozen")


def test_the_fingerprint_is_that_of_the_frozen_base(tmp_path: Path) -> None:
    model, tokenizer = build_decoder(SMALL, REPORTS, 0)
    assert base_fingerprint(model) == ""
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    tuned = {
        (tuning, rank): build_decoder(
            dataclasses.replace(SMALL, model=str(tmp_path), tuning=tuning, lora_rank=rank), [], 0
        )[0]
        for tuning, rank in (("frozen", 1), ("lora", 1), ("lora", 2))
    }
    found = {base_fingerprint(model) for model in tuned.values()}
    assert len(found) == 1
    weight = next(p for n, p in tuned["lora", 2].named_parameters() if n.endswith("v_proj.base_layer.weight"))
    weight.data[0, 0] = -weight.data[0, 0]
    assert base_fingerprint(tuned["lora", 2]) not in found


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8", "nf4"])
def test_lora_is_float32_on_a_base_of_any_dtype(tmp_path: Path, dtype: str) -> None:
    """Outputs near those of float32, gradients for the adapter alone, and the same logits after a reload."""
    model, tokenizer = build_decoder(dataclasses.replace(SMALL, hidden_size=64), REPORTS, 0)
    model.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    config = dataclasses.replace(SMALL, model=str(tmp_path / "base"), tuning="lora", base_dtype=dtype)
    tuned, _ = build_decoder(config, [], 0)
    before = base_fingerprint(tuned)
    error = (logits(tuned).float() - logits(model)).norm() / logits(model).norm()
    assert error < {"float32": 1e-6, "bfloat16": 0.02, "int8": 0.05, "nf4": 0.2}[dtype]
    ids = torch.arange(4, 14)[None]
    tuned.train()(input_ids=ids, labels=ids).loss.backward()
    for name, parameter in tuned.named_parameters():
        assert parameter.requires_grad == (parameter.grad is not None) == (".lora_" in name)
        assert not parameter.requires_grad or parameter.dtype == torch.float32
    save_decoder(tuned, tokenizer, tmp_path / "saved")
    loaded, _ = load_saved_decoder(config, tmp_path / "saved")
    assert base_fingerprint(loaded) == base_fingerprint(tuned) == before
    torch.testing.assert_close(logits(loaded), logits(tuned), rtol=0, atol=0)


def test_full_tuning_needs_float32() -> None:
    with pytest.raises(UserError, match="base_dtype nf4"):
        build_decoder(dataclasses.replace(SMALL, base_dtype="nf4"), REPORTS, 0)


def test_errors_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    (tmp_path / "empty").mkdir()
    for name in ("nobody/no-such-model", str(tmp_path / "empty"), str(tmp_path / "missing")):
        with pytest.raises(UserError) as error:
            build_decoder(dataclasses.replace(SMALL, model=name), REPORTS, 0)
        assert name in str(error.value)
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="from scratch"):
        build_decoder(dataclasses.replace(SMALL, tuning="lora"), REPORTS, 0)
