"""Decoder folders as people have them: what is wrong is one line before any weight is read, the rest is used."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from amrg.config import DecoderConfig
from amrg.errors import UserError
from amrg.models import decoder_loading
from amrg.models.decoder import (
    base_fingerprint,
    build_decoder,
    decoder_faults,
    embedding_size,
    load_saved_decoder,
    save_decoder,
)
from amrg.models.decoder_smoke_test import smoke_test_decoder
from benchmarks.architectures import make_folder, make_tokenizer

LORA = DecoderConfig(tuning="lora", lora_rank=2)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Folders of tiny models, each made once."""
    root = tmp_path_factory.mktemp("models")

    def make(family: str) -> Path:
        if not (root / family).is_dir():
            make_folder(family, root / family)
        return root / family

    return make


def copy_of(source: Path, folder: Path) -> Path:
    return Path(shutil.copytree(source, folder / "copy"))


def change(path: Path, **values: Any) -> None:
    """Set values of a JSON file; None removes."""
    content = {**json.loads(path.read_text()), **values}
    path.write_text(json.dumps({name: value for name, value in content.items() if value is not None}))


def change_weights(folder: Path, edit: Callable[[dict[str, torch.Tensor]], object]) -> None:
    weights = load_file(folder / "model.safetensors")
    edit(weights)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def pointer(folder: Path, name: str) -> None:
    (folder / name).write_text(f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 4\n")


def cut(folder: Path) -> None:
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[:-8])


def sharded(folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="30KB")
    sorted(folder.glob("model-00002-*"))[0].unlink()


def alien_tokenizer(folder: Path) -> None:
    change(folder / "tokenizer.json", model={"type": "BPE", "vocab": [1], "merges": [["a"]]})


def larger_tokenizer(folder: Path) -> None:
    tokenizer = make_tokenizer()
    tokenizer.add_tokens([f"<extra{number}>" for number in range(20)])
    tokenizer.save_pretrained(folder)


def no_end(folder: Path) -> None:
    change(folder / "tokenizer_config.json", eos_token=None)
    for name in ("config.json", "generation_config.json"):
        change(folder / name, eos_token_id=None)


def own_code(folder: Path) -> None:
    change(folder / "config.json", model_type="mine", auto_map={"AutoConfig": "mine.Mine", "AutoModel": "mine.Model"})
    (folder / "mine.py").write_text("raise SystemExit('run')")


def flash(folder: Path) -> None:
    change(folder / "config.json", _attn_implementation="flash_attention_2")


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no head": (
        lambda folder: change_weights(folder, lambda weights: weights.pop("lm_head.weight")),
        "lack 1 .*first: lm_head.weight",
    ),
    "a layer more": (
        lambda folder: change(folder / "config.json", num_hidden_layers=3), "lack 9 .*first: model.layers.2.",
    ),
    "a layer less": (
        lambda folder: change(folder / "config.json", num_hidden_layers=1), "hold, beyond that, 9 .*model.layers.1.",
    ),
    "another width": (
        lambda folder: change(folder / "config.json", intermediate_size=40), r"have other shapes in 6 .*mlp.down_proj",
    ),
    "pointer": (lambda folder: pointer(folder, "model.safetensors"), "model.safetensors is a git-lfs pointer.*pull"),
    "pointer of a tokenizer": (lambda folder: pointer(folder, "tokenizer.json"), "tokenizer.json is a git-lfs pointer"),
    "cut": (cut, "bytes where its header tells of"),
    "shard": (sharded, "lacks 1 of the . weight files .*first: model-00002-of"),
    "tokenizer of another version": (alien_tokenizer, "cannot be read by tokenizers [0-9.]+.*update"),
    "larger tokenizer": (larger_tokenizer, r"has 7 tokens \(first: '<extra13>', 272\) beyond the 272 embeddings"),
    "no end": (no_end, "has no end token, and neither"),
    "own code": (own_code, "type mine, which needs Python code of its own .*never run"),
    "no language model": (
        lambda folder: change(folder / "config.json", model_type="vit"), "is of type vit, which is no causal LM",
    ),
    "encoder and decoder": (
        lambda folder: change(folder / "config.json", model_type="t5"), "is of type t5, which is no causal LM",
    ),
    "unknown type": (lambda folder: change(folder / "config.json", model_type="llama9"), "llama9"),
}  # fmt: skip


@pytest.mark.parametrize(("damage", "line"), DAMAGES.values(), ids=DAMAGES)
def test_a_folder_that_cannot_serve_is_refused_in_a_line(
    made: Any, tmp_path: Path, damage: Callable[[Path], object], line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the checks and by loading alike, without a question, and before a weight is read."""
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("a question"))
    folder = copy_of(made("llama"), tmp_path)
    damage(folder)
    config = replace(LORA, model=str(folder))
    (fault,) = decoder_faults(config)
    with pytest.raises(UserError, match=line) as caught:
        build_decoder(config, [], 0)
    assert str(caught.value) == fault
    assert "\n" not in fault


def test_no_weight_is_read(made: Any, tmp_path: Path) -> None:
    """Values that are not even numbers: the checks do not see them."""
    folder = copy_of(made("mixtral"), tmp_path)
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    start = 8 + int.from_bytes(data[:8], "little")
    data[start:] = b"\xff" * (len(data) - start)
    path.write_bytes(bytes(data))
    assert decoder_faults(replace(LORA, model=str(folder))) == []


def test_what_a_library_refuses_is_told_with_its_reason(made: Any, tmp_path: Path) -> None:
    folder = copy_of(made("llama"), tmp_path)
    flash(folder)
    with pytest.raises(UserError, match="FlashAttention2") as caught:
        build_decoder(replace(LORA, model=str(folder)), [], 0)
    assert "\n" not in str(caught.value)


def test_constants_that_were_saved_once_are_no_surplus(made: Any, tmp_path: Path) -> None:
    folder = copy_of(made("gpt2"), tmp_path)
    names = {"transformer.h.0.attn.bias": torch.ones(1, 1, 4, 4), "transformer.h.0.attn.masked_bias": torch.ones(1)}
    change_weights(folder, lambda weights: weights.update(names))
    assert decoder_faults(replace(LORA, model=str(folder))) == []


def test_padding_beyond_the_embeddings_is_the_end_token(made: Any, tmp_path: Path) -> None:
    folder = copy_of(made("llama"), tmp_path)
    tokenizer = make_tokenizer()
    tokenizer.add_tokens([f"<extra{number}>" for number in range(13)])
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    assert tokenizer.pad_token_id == 272
    tokenizer.save_pretrained(folder)
    model, found = build_decoder(replace(LORA, model=str(folder)), [], 0)
    assert found.pad_token_id == found.eos_token_id == model.generation_config.pad_token_id == 1
    smoke_test_decoder(model, found, "float32")


def test_an_end_token_is_taken_from_the_generation_config(made: Any, tmp_path: Path) -> None:
    folder = copy_of(made("llama"), tmp_path)
    no_end(folder)
    change(folder / "generation_config.json", eos_token_id=[7, 1])
    model, tokenizer = build_decoder(replace(LORA, model=str(folder)), [], 0)
    assert tokenizer.eos_token_id == 7
    assert model.generation_config.eos_token_id == [7, 1]


@pytest.mark.parametrize("family", ["gemma3", "qwen2_vl"])
def test_of_a_multimodal_model_the_language_model_is_used(made: Any, tmp_path: Path, family: str) -> None:
    """Its logits are those of the whole model on text; trained in full it is saved alone, and read back."""
    import transformers

    folder = made(family)
    kind = {"gemma3": "Gemma3ForConditionalGeneration", "qwen2_vl": "Qwen2VLForConditionalGeneration"}[family]
    whole = getattr(transformers, kind).from_pretrained(folder).eval()
    config = replace(LORA, model=str(folder), tuning="full")
    model, tokenizer = build_decoder(config, [], 0)
    ids = torch.arange(10, 40)[None]
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(input_ids=ids).logits, whole(input_ids=ids).logits)
    save_decoder(model, tokenizer, tmp_path)
    assert not any("vision" in name or "visual" in name for name in load_file(tmp_path / "model.safetensors"))
    assert "vision_config" not in json.loads((tmp_path / "config.json").read_text())
    loaded, _ = load_saved_decoder(config, tmp_path)
    with torch.no_grad():
        assert torch.equal(loaded(input_ids=ids).logits, model(input_ids=ids).logits)


def test_an_architecture_that_cannot_generate_from_embeddings_is_refused(tmp_path: Path) -> None:
    from transformers import OpenAIGPTConfig, OpenAIGPTLMHeadModel

    OpenAIGPTLMHeadModel(OpenAIGPTConfig(vocab_size=272, n_embd=8, n_layer=1, n_head=2)).save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    (fault,) = decoder_faults(replace(LORA, model=str(tmp_path)))
    assert "OpenAIGPTLMHeadModel, which cannot generate from embeddings" in fault


def test_a_rehearsal_finds_what_signatures_do_not_tell(made: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = build_decoder(replace(LORA, model=str(made("llama"))), [], 0)
    modes = [module.training for module in model.modules()]
    smoke_test_decoder(model, tokenizer, "float32")
    assert [module.training for module in model.modules()] == modes
    base = model.get_base_model()
    forward = type(base.model).forward

    def scaled(self: Any, input_ids: Any = None, inputs_embeds: Any = None, **more: Any) -> Any:
        if inputs_embeds is None:
            inputs_embeds = 9.0 * self.embed_tokens(input_ids)
        return forward(self, inputs_embeds=inputs_embeds, **more)

    monkeypatch.setattr(type(base.model), "forward", scaled)
    with pytest.raises(UserError, match="LlamaForCausalLM does not compute the same from embeddings as from tokens"):
        smoke_test_decoder(model, tokenizer, "float32")


@pytest.mark.parametrize(
    ("family", "scale"),
    [("llama", 1.0), ("gemma", 32**0.5), ("gemma2", 32**0.5), ("gemma3_text", 32**0.5), ("biogpt", 32**0.5),
     ("xglm", 32**0.5), ("granite", 1.0)],
)  # fmt: skip
def test_streams_start_with_the_size_that_words_enter_with(made: Any, family: str, scale: float) -> None:
    """Granite multiplies whatever enters, streams too, so that its scale is not theirs."""
    model, _ = build_decoder(replace(LORA, model=str(made(family))), [], 0)
    weight = model.get_input_embeddings().weight
    assert embedding_size(model.get_input_embeddings()) == pytest.approx(scale * float(weight.std()), rel=1e-5)
    if scale == 1.0:
        assert embedding_size(model.get_input_embeddings()) == float(weight.std())


# ---- stored quantised ----


def test_quantised_weights_are_not_trained_in_full(made: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quantized = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
    AutoModelForCausalLM.from_pretrained(made("llama"), quantization_config=quantized).save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    full = replace(LORA, model=str(tmp_path), tuning="full")
    (fault,) = decoder_faults(full)
    assert fault.endswith(
        "is stored quantized (bitsandbytes, 4 bits), and tuning `full` trains all weights: take `lora`"
    )
    with pytest.raises(UserError, match="take `lora`"):
        build_decoder(full, [], 0)
    told: list[str] = []
    monkeypatch.setattr(decoder_loading, "print_on_rank_0", told.append)
    config = replace(full, tuning="lora", base_dtype="int8")
    assert decoder_faults(config) == []
    model, tokenizer = build_decoder(config, [], 0)
    assert any("4 bits" in line and "int8" in line for line in told)
    smoke_test_decoder(model, tokenizer, "float32")
    told.clear()
    build_decoder(replace(config, base_dtype="nf4"), [], 0)
    assert told == []


# ---- adapters ----


def save_adapter(base: Path, folder: Path, family_target: str = "all-linear", **settings: Any) -> torch.Tensor:
    """What peft saves of a LoRA with weights that are not the first ones, and its logits."""
    model: Any = AutoModelForCausalLM.from_pretrained(base)
    tuned = get_peft_model(model, LoraConfig(r=3, target_modules=family_target, task_type="CAUSAL_LM", **settings))
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for weight in tuned.parameters():
            if weight.requires_grad:
                weight.add_(0.3 * torch.randn(weight.shape, generator=generator))
    tuned.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return logits(tuned)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=torch.arange(10, 40)[None]).logits


@pytest.mark.parametrize("tuning", ["lora", "frozen", "full"])
@pytest.mark.parametrize("more", [{}, {"modules_to_save": ["lm_head"]}], ids=["LoRA", "with a head"])
def test_an_adapter_is_gone_on_from(made: Any, tmp_path: Path, tuning: str, more: dict[str, Any]) -> None:
    """Base and adapter give the logits to start with; what is trained further is read back."""
    expected = save_adapter(made("llama"), tmp_path / "adapter", **more)
    plain = logits(AutoModelForCausalLM.from_pretrained(made("llama")))
    assert (expected - plain).abs().max() > 0.1
    config = replace(LORA, model=str(tmp_path / "adapter"), tuning=tuning)
    assert decoder_faults(config) == []
    model, tokenizer = build_decoder(config, [], 0)
    torch.testing.assert_close(logits(model), expected, rtol=1e-4, atol=1e-4)
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert isinstance(model, PeftModel) == (tuning == "lora")
    assert bool(trained) == (tuning != "frozen")
    if tuning == "lora":
        assert all(".lora_" in name or ".modules_to_save." in name for name in trained)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name in trained:
                weight.mul_(1.1)
    save_decoder(model, tokenizer, tmp_path / "saved")
    loaded, _ = load_saved_decoder(config, tmp_path / "saved")
    torch.testing.assert_close(logits(loaded), logits(model), rtol=0, atol=0)
    if tuning == "lora":
        assert base_fingerprint(loaded) == base_fingerprint(model)


def test_a_base_beside_the_adapter_is_found(made: Any, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    expected = save_adapter(made("llama"), adapter)
    config = replace(LORA, model=str(adapter))
    change(adapter / "adapter_config.json", base_model_name_or_path="/gone/llama")
    shutil.copytree(made("llama"), tmp_path / "llama")
    torch.testing.assert_close(logits(build_decoder(config, [], 0)[0]), expected)
    for file in (tmp_path / "llama").iterdir():
        shutil.move(file, adapter / file.name)
    (tmp_path / "llama").rmdir()
    torch.testing.assert_close(logits(build_decoder(config, [], 0)[0]), expected)


def of_another_base(folder: Path) -> None:
    change(folder / "adapter_config.json", base_model_name_or_path=str(folder.parent / "other"))


ADAPTER_DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no base": (
        lambda folder: change(folder / "adapter_config.json", base_model_name_or_path="nobody/nothing"),
        "is a LoRA adapter, and its base is not found: .*nobody/nothing",
    ),
    "unnamed base": (
        lambda folder: change(folder / "adapter_config.json", base_model_name_or_path=None), "names no base_model",
    ),
    "another base": (of_another_base, "does not fit its base .*other"),
    "no weights": (lambda folder: (folder / "adapter_model.safetensors").unlink(), "has no adapter_model.safetensors"),
    "pointer": (lambda folder: pointer(folder, "adapter_model.safetensors"), "git-lfs pointer"),
    "another method": (
        lambda folder: change(folder / "adapter_config.json", peft_type="IA3", target_modules=["q_proj"]),
        "is a .*IA3",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("damage", "line"), ADAPTER_DAMAGES.values(), ids=ADAPTER_DAMAGES)
def test_an_adapter_that_cannot_be_gone_on_from_is_a_line(
    made: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: Callable[[Path], object], line: str
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    make_folder("llama", tmp_path / "other", hidden_size=16, head_dim=4)
    save_adapter(made("llama"), tmp_path / "adapter")
    damage(tmp_path / "adapter")
    config = replace(LORA, model=str(tmp_path / "adapter"))
    (fault,) = decoder_faults(config)
    with pytest.raises(UserError, match=line) as caught:
        build_decoder(config, [], 0)
    assert str(caught.value) == fault
    assert "\n" not in fault


def test_an_adapter_is_not_added_to_quantised_weights(made: Any, tmp_path: Path) -> None:
    save_adapter(made("llama"), tmp_path)
    (fault,) = decoder_faults(replace(LORA, model=str(tmp_path), tuning="frozen", base_dtype="nf4"))
    assert "is not added to quantized weights: take tuning `lora`" in fault
