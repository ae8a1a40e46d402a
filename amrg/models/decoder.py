"""The language model that writes: any causal LM of transformers, or a small Llama made from scratch."""

import contextlib
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import HFValidationError
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from amrg.config import DecoderConfig
from amrg.errors import UserError
from amrg.models.tokenizer import train_tokenizer

SMALL_LLAMA = "small_llama"
ADAPTER = "adapter_config.json"


def build_decoder(config: DecoderConfig, reports: Sequence[str], seed: int) -> tuple[Any, PreTrainedTokenizerBase]:
    """The decoder as training starts with it, tuned as ``config.tuning`` says, and its tokenizer.

    Args:
        config: ``small_llama`` or the name or folder of a pretrained model.
        reports: train reports; only ``small_llama`` reads them, for its tokenizer.
        seed: of the weights made here (small_llama, LoRA).

    Raises:
        UserError: no such model, no weights on disk and no network, or settings that make no sense together.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if config.model == SMALL_LLAMA:
            tokenizer = train_tokenizer(reports, config.vocab_size)
            return _tune(_small_llama(config, tokenizer), config), tokenizer
        model, tokenizer = load_pretrained(config.model)
        return _tune(model, config), tokenizer


def shape_decoder(config: DecoderConfig, architecture: Any, tokenizer: Any) -> Any:
    """What ``build_decoder`` makes, of an architecture alone: for the meta device, where nothing weighs.

    Args:
        config: as above.
        architecture: configuration of a causal LM of transformers; ``small_llama`` needs none.
        tokenizer: its length and special tokens are read, for ``small_llama``.
    """
    if config.model == SMALL_LLAMA:
        return _tune(_small_llama(config, tokenizer), config)
    return _tune(AutoModelForCausalLM.from_config(architecture, dtype=torch.float32), config)


def load_pretrained(name: str) -> tuple[Any, PreTrainedTokenizerBase]:
    """A causal LM (float32) and its tokenizer from a folder, the local cache, or the hub.

    Raises:
        UserError: it is in none of them.
    """
    folder = _find(name)
    with _quiet():
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            # Safetensors only: a checkpoint in pickles could run code.
            model = AutoModelForCausalLM.from_pretrained(
                folder, local_files_only=True, dtype=torch.float32, use_safetensors=True
            )
        except (OSError, ValueError, KeyError, ImportError) as error:
            raise UserError(
                f"decoder.model {name} holds no causal LM that transformers can load ({type(error).__name__}): "
                f"give a folder with config.json, safetensors and a tokenizer, or `{SMALL_LLAMA}`"
            ) from None
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return model, tokenizer


def _find(name: str) -> str:
    """The folder of a model: itself a folder, in the local cache of the hub, or downloaded now."""
    if Path(name).is_dir():
        return name
    try:
        return snapshot_download(name, local_files_only=True)
    except (HFValidationError, OSError):  # OSError: not in the cache
        pass
    try:
        HfApi().model_info(name, timeout=10)
        return snapshot_download(name, allow_patterns=["*.json", "*.safetensors", "*.model", "*.txt"])
    except Exception as error:  # whichever HTTP library the hub's client uses raises errors of its own
        raise UserError(
            f"decoder.model {name}: no such folder, not in the local cache, and not to be downloaded "
            f"({type(error).__name__}): give the folder of a causal LM, or `{SMALL_LLAMA}`"
        ) from None


def save_decoder(model: Any, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Save what training could change: the whole model, or the LoRA adapter alone; with the tokenizer."""
    with _quiet():
        if any(parameter.requires_grad for parameter in model.parameters()):
            model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def load_decoder(config: DecoderConfig, folder: Path) -> tuple[Any, PreTrainedTokenizerBase]:
    """What ``save_decoder`` wrote; a base model that was not trained comes from where ``config.model`` says.

    Raises:
        UserError: the folder or the base model is missing.
    """
    if config.tuning == "full":
        return load_pretrained(str(folder))
    model, tokenizer = load_pretrained(config.model)
    if config.tuning == "lora":
        if not (folder / ADAPTER).is_file():
            raise UserError(f"{folder} holds no LoRA adapter: train it with `amrg stage2`")
        model = PeftModel.from_pretrained(model, str(folder))
    return model, tokenizer


def _small_llama(config: DecoderConfig, tokenizer: PreTrainedTokenizerBase) -> LlamaForCausalLM:
    if config.hidden_size % config.heads:
        raise UserError(f"decoder.hidden_size {config.hidden_size} must be a multiple of decoder.heads {config.heads}")
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


def _tune(model: Any, config: DecoderConfig) -> Any:
    if config.tuning == "full":
        return model
    if config.model == SMALL_LLAMA:
        raise UserError(f"decoder.tuning is {config.tuning}, but {SMALL_LLAMA} starts from scratch: use `full`")
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


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No loading bars and no advice between our own lines."""
    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity(logging.ERROR)
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        transformers_logging.enable_progress_bar()
