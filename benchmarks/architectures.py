"""Decoders of many architectures, tiny and with random weights: trained, saved, read back, and writing.

``python -m benchmarks.architectures`` prints the table of docs/training.md.
"""

import argparse
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from amrg.config import DecoderConfig
from amrg.errors import UserError
from amrg.model_files import silence_transformers
from amrg.models.decoder import build_decoder, decoder_faults, load_saved_decoder, save_decoder
from amrg.models.decoder_smoke_test import smoke_test_decoder

#: Sizes of a tiny decoder by the names that most configurations use.
SIZES: dict[str, Any] = {
    "vocab_size": 272,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
}
GROUPED = {**SIZES, "num_key_value_heads": 2, "head_dim": 8}
MOE = {**GROUPED, "num_experts_per_tok": 2, "moe_intermediate_size": 24}

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", GROUPED),
    "mistral": ("MistralConfig", {**GROUPED, "sliding_window": 48}),
    "qwen2": ("Qwen2Config", {**GROUPED, "tie_word_embeddings": True}),
    "qwen3": ("Qwen3Config", {**GROUPED, "tie_word_embeddings": True}),
    "gemma": ("GemmaConfig", GROUPED),
    "gemma2": ("Gemma2Config", {**GROUPED, "sliding_window": 16, "query_pre_attn_scalar": 8}),
    "gemma3_text": ("Gemma3TextConfig", {**GROUPED, "sliding_window": 16, "query_pre_attn_scalar": 8}),
    "phi": ("PhiConfig", SIZES),
    "phi3": ("Phi3Config", {**GROUPED, "pad_token_id": 0}),
    "gpt2": ("GPT2Config", {"vocab_size": 272, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256}),
    "gpt_neo": (
        "GPTNeoConfig",
        {
            "vocab_size": 272,
            "hidden_size": 32,
            "num_layers": 2,
            "num_heads": 4,
            "max_position_embeddings": 256,
            "attention_types": [[["global", "local"], 1]],
            "window_size": 32,
        },
    ),
    "gpt_neox": ("GPTNeoXConfig", SIZES),
    "gptj": (
        "GPTJConfig",
        {"vocab_size": 272, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256, "rotary_dim": 4},
    ),
    "gpt_bigcode": (
        "GPTBigCodeConfig",
        {"vocab_size": 272, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256},
    ),
    "opt": (
        "OPTConfig",
        {
            "vocab_size": 272,
            "hidden_size": 32,
            "ffn_dim": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": 256,
            "word_embed_proj_dim": 16,
            "do_layer_norm_before": False,
        },
    ),
    "bloom": ("BloomConfig", {"vocab_size": 272, "hidden_size": 32, "n_layer": 2, "n_head": 4}),
    "falcon": ("FalconConfig", SIZES),
    "stablelm": ("StableLmConfig", GROUPED),
    "biogpt": ("BioGptConfig", SIZES),
    "xglm": (
        "XGLMConfig",
        {
            "vocab_size": 272,
            "d_model": 32,
            "ffn_dim": 48,
            "num_layers": 2,
            "attention_heads": 4,
            "max_position_embeddings": 256,
        },
    ),
    "mpt": ("MptConfig", {"vocab_size": 272, "d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 256}),
    "olmo2": ("Olmo2Config", SIZES),
    "granite": ("GraniteConfig", {**SIZES, "embedding_multiplier": 12.0}),
    "cohere": ("CohereConfig", SIZES),
    "bert": ("BertConfig", {**SIZES, "is_decoder": True}),
    "mixtral": ("MixtralConfig", {**GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen2_moe": ("Qwen2MoeConfig", {**MOE, "num_experts": 4, "shared_expert_intermediate_size": 24}),
    "qwen3_moe": ("Qwen3MoeConfig", {**MOE, "num_experts": 4}),
    "mamba": ("MambaConfig", {"vocab_size": 272, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 8}),
    "mamba2": (
        "Mamba2Config",
        {
            "vocab_size": 272,
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "state_size": 8,
            "num_heads": 4,
            "head_dim": 16,
            "n_groups": 2,
            "chunk_size": 16,
        },
    ),
}
VISION = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
QWEN_VISION = {"depth": 1, "embed_dim": 16, "hidden_size": 32, "num_heads": 2, "patch_size": 14}
ROPE = {"rope_parameters": {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 10000.0}}
MULTIMODAL: dict[str, tuple[str, str, dict[str, Any]]] = {
    "gemma3": (
        "Gemma3Config",
        "Gemma3ForConditionalGeneration",
        {
            "text_config": FAMILIES["gemma3_text"][1],
            "vision_config": VISION,
            "mm_tokens_per_image": 1,
            "image_token_index": 270,
        },
    ),
    "qwen2_vl": (
        "Qwen2VLConfig",
        "Qwen2VLForConditionalGeneration",
        {
            "text_config": {**SIZES, "num_key_value_heads": 2, **ROPE},
            "vision_config": QWEN_VISION,
            "image_token_id": 270,
            "video_token_id": 271,
        },
    ),
    "qwen2_5_vl": (
        "Qwen2_5_VLConfig",
        "Qwen2_5_VLForConditionalGeneration",
        {
            "text_config": {**SIZES, "num_key_value_heads": 2, **ROPE},
            "vision_config": {
                "depth": 1,
                "hidden_size": 16,
                "out_hidden_size": 32,
                "num_heads": 2,
                "patch_size": 14,
                "intermediate_size": 24,
            },
            "image_token_id": 270,
            "video_token_id": 271,
        },
    ),
    "qwen3_vl": (
        "Qwen3VLConfig",
        "Qwen3VLForConditionalGeneration",
        {
            "text_config": {**GROUPED, **ROPE},
            "vision_config": {
                "depth": 1,
                "hidden_size": 16,
                "out_hidden_size": 32,
                "num_heads": 2,
                "patch_size": 14,
                "intermediate_size": 24,
                "deepstack_visual_indexes": [0],
            },
            "image_token_id": 270,
            "video_token_id": 271,
        },
    ),
    "llava": (
        "LlavaConfig",
        "LlavaForConditionalGeneration",
        {
            "text_config": {"model_type": "llama", **GROUPED},
            "vision_config": {"model_type": "clip_vision_model", **VISION, "projection_dim": 16},
            "image_token_index": 270,
        },
    ),
    "paligemma": (
        "PaliGemmaConfig",
        "PaliGemmaForConditionalGeneration",
        {
            "text_config": {"model_type": "gemma", **GROUPED},
            "vision_config": {"model_type": "siglip_vision_model", **VISION, "projection_dim": 32},
            "projection_dim": 32,
            "image_token_index": 270,
        },
    ),
    "idefics3": (
        "Idefics3Config",
        "Idefics3ForConditionalGeneration",
        {
            "text_config": {"model_type": "llama", **GROUPED, "pad_token_id": 0},
            "vision_config": VISION,
            "image_token_id": 270,
        },
    ),
}


def make_tokenizer(size: int = 272, **special: str) -> PreTrainedTokenizerFast:
    """A tokenizer of bytes with special tokens; ``<s>``, ``</s>`` and ``<pad>`` unless they are named."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    named = special or {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    vocabulary = {token: number for number, token in enumerate([*dict.fromkeys(named.values()), *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **named)


def make_folder(family: str, folder: Path, **changes: Any) -> None:
    """Save a tiny decoder of a family with random weights of seed 0, and its tokenizer."""
    torch.manual_seed(0)
    ids = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
    if family in MULTIMODAL:
        kind, model_class, settings = MULTIMODAL[family]
        settings = {**settings, "text_config": {**settings["text_config"], **ids}}
        model = getattr(transformers, model_class)(getattr(transformers, kind)(**settings, **changes))
    else:
        kind, settings = FAMILIES[family]
        model = transformers.AutoModelForCausalLM.from_config(
            getattr(transformers, kind)(**{**settings, **ids, **changes})
        )
    with silence_transformers():
        model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)


TUNINGS: tuple[Literal["frozen", "lora", "full"], ...] = ("frozen", "lora", "full")


@dataclass(frozen=True)
class Outcome:
    """What became of one architecture with one tuning.

    Attributes:
        trained: every trained tensor got a gradient.
        read_back: the same logits after saving and loading.
        greedy: tokens that ``generate`` writes from embeddings equal the argmax of forwards without a cache.
        refused: the line that refuses it; empty if it works.
    """

    trained: bool = False
    read_back: bool = False
    greedy: bool = False
    refused: str = ""

    @property
    def works(self) -> bool:
        """Whether all is right."""
        return self.trained and self.read_back and self.greedy

    def row(self) -> str:
        """Cells of the table."""
        if self.refused:
            return f"refused: {self.refused} | | "
        cells = self.trained, self.read_back, self.greedy
        return " | ".join("yes" if cell else "**no**" for cell in cells)


def try_family(source: Path, config: DecoderConfig, scratch: Path, tokens: int = 12) -> Outcome:
    """Train one step, save, load and write with the model in a folder.

    Args:
        source: folder of the model.
        config: ``tuning`` and the LoRA's settings are read.
        scratch: receives the saved decoder.
        tokens: that are written.
    """
    config = replace(config, model=str(source))
    if faults := decoder_faults(config):
        return Outcome(refused=" ".join(faults))
    try:
        model, tokenizer = build_decoder(config, [], 0)
        smoke_test_decoder(model, tokenizer, "float32")
    except UserError as error:
        return Outcome(refused=str(error))
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if trained:
        embeddings = model.get_input_embeddings()(torch.arange(3, 23)[None])
        model.train()(inputs_embeds=embeddings, logits_to_keep=4, use_cache=False).logits.square().mean().backward()
        with torch.no_grad():
            for parameter in trained:
                parameter += 0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    reached = all(parameter.grad is not None for parameter in trained)
    save_decoder(model, tokenizer, scratch)
    loaded, _ = load_saved_decoder(config, scratch)
    prefix = model.get_input_embeddings()(torch.arange(30, 50)[None]).detach()
    with torch.no_grad():
        before, after = (one.eval()(inputs_embeds=prefix, use_cache=False).logits for one in (model, loaded))
    return Outcome(reached, bool(torch.equal(before, after)), _greedy(loaded, prefix, tokens))


@torch.no_grad()
def _greedy(model: Any, prefix: Tensor, tokens: int) -> bool:
    written = model.generate(
        inputs_embeds=prefix, attention_mask=torch.ones(prefix.shape[:2], dtype=torch.long), do_sample=False,
        min_new_tokens=tokens, max_new_tokens=tokens, pad_token_id=2,
    )[0].tolist()  # fmt: skip
    ends = model.generation_config.eos_token_id
    expected: list[int] = []
    for _ in range(tokens):
        ids = torch.tensor([expected], dtype=torch.long)
        full = torch.cat([prefix, model.get_input_embeddings()(ids)], dim=1)
        scores = model(inputs_embeds=full, use_cache=False).logits[0, -1]
        scores[ends] = -torch.inf
        expected.append(int(scores.argmax()))
    return written == expected


def main(arguments: list[str]) -> None:
    """Print a row for each architecture; one for each tuning where they differ."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.architectures", description=__doc__)
    parser.add_argument("families", nargs="*", help="architectures; none: all")
    chosen = parser.parse_args(arguments).families or [*FAMILIES, *MULTIMODAL]
    print("| architecture | tuning | trained | saved, read back | written = argmax without cache |")
    print("|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for family in chosen:
            make_folder(family, Path(folder) / family)
            rows: dict[str, list[str]] = {}
            for tuning in TUNINGS:
                config = DecoderConfig(tuning=tuning, lora_rank=2, lora_dropout=0.0)
                outcome = try_family(Path(folder) / family, config, Path(folder) / f"{family}-{tuning}")
                rows.setdefault(outcome.row(), []).append(tuning)
            for row, tunings in rows.items():
                print(f"| `{family}` | {', '.join(tunings)} | {row} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
