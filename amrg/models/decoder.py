"""The language model that writes: any causal LM of transformers, or a small Llama made from scratch."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerBase,
)

from amrg import distributed
from amrg.config import DecoderConfig
from amrg.errors import UserError, collect_errors
from amrg.model_files import silence_transformers
from amrg.models.decoder_checks import (
    describe_decoder,
    language_config,
)
from amrg.models.decoder_files import (
    SMALL_LLAMA,
    check_model_on_hub,
    decoder_on_disk,
    find_gguf_faults,
)
from amrg.models.decoder_loading import UseAdapter, load_pretrained, precision_arguments, use_faults
from amrg.models.decoder_smoke_test import decoder_name, logits_agree, without_lora
from amrg.models.tensor_parallel import split_decoder
from amrg.models.tokenizer import train_tokenizer
from amrg.models.zero3 import Zero3Config, hash_of_weights


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
        use: UseAdapter = "train" if config.tuning == "lora" else "merge"
        model, tokenizer = load_pretrained(config.model, dtype, zero, use, config.tuning)
        torch.manual_seed(seed)  # a part of a model draws other numbers than the whole
        return _apply_tuning(model, config), tokenizer


def build_split_decoder(
    config: DecoderConfig, reports: Sequence[str], seed: int
) -> tuple[Any, PreTrainedTokenizerBase]:
    """Build a decoder of which this rank keeps its part (``distributed.current_groups``), on its device.

    Ranks of a machine build one after the other, as its memory need not hold more than one whole model.

    Args:
        config, reports, seed: as for ``build_decoder``.

    Raises:
        UserError: as ``build_decoder``; or the architecture cannot be split, or computes something else then.
    """
    with distributed.local_ranks_in_turn():
        model, tokenizer = build_decoder(config, reports, seed)
        expected = _some_logits(model, tokenizer)
        split_decoder(model, distributed.current_groups())
    if not logits_agree(_some_logits(model.to(distributed.local_device()), tokenizer), expected):
        raise UserError(
            f"decoder.model: {decoder_name(model)} computes something else when it is split over ranks: take zero3.json"
        )
    return model, tokenizer


@torch.no_grad()
def _some_logits(model: Any, tokenizer: PreTrainedTokenizerBase) -> Tensor:
    """Logits of three tokens, on the CPU."""
    training = model.training
    ids = torch.tensor([[0, tokenizer.eos_token_id, 1]], device=model.device)
    logits = model.eval()(inputs_embeds=model.get_input_embeddings()(ids), use_cache=False).logits
    model.train(training)
    return logits.float().cpu()


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
    text = language_config(architecture, config.model)
    return _apply_tuning(AutoModelForCausalLM.from_config(text, dtype=torch.float32, trust_remote_code=False), config)


def _base_dtype(config: DecoderConfig) -> str:
    """The dtype of weights that are not trained; UserError where they are."""
    if config.tuning == "full" and config.base_dtype != "float32":
        raise UserError(
            f"decoder.base_dtype {config.base_dtype} is for weights that are not trained; tuning `full` trains all "
            "of them in float32: use `lora` or `frozen`"
        )
    return config.base_dtype


def decoder_faults(config: DecoderConfig) -> list[str]:
    """What is missing of the model, or contradicts itself, told without opening its weights.

    A model on the hub is there if the hub says so.
    """
    name = config.model
    faults = collect_errors(lambda: _base_dtype(config), lambda: precision_arguments(config.base_dtype))
    if name == SMALL_LLAMA:
        return faults + collect_errors(lambda: _refuse_heads(config), lambda: _refuse_untrained(config))
    missing = collect_errors(lambda: decoder_on_disk(name))
    if missing:
        return faults + missing
    found = decoder_on_disk(name)
    if found is None:
        return faults + collect_errors(lambda: check_model_on_hub(name))
    if found.is_file():
        return faults + find_gguf_faults(found)
    use: UseAdapter = "train" if config.tuning == "lora" else "merge"

    def check() -> None:
        files = describe_decoder(found)
        if files is not None and (unusable := use_faults(files, config.base_dtype, config.tuning, use)):
            raise UserError("\n".join(unusable))

    return faults + [line for fault in collect_errors(check) for line in fault.splitlines()]


def find_tokenizer(config: DecoderConfig) -> PreTrainedTokenizerBase | None:
    """The tokenizer of a model in a folder; None if there is none yet.

    Raises:
        UserError: the folder cannot serve as a decoder.
    """
    found = None if config.model == SMALL_LLAMA else decoder_on_disk(config.model)
    files = describe_decoder(found) if found is not None and found.is_dir() else None
    return None if files is None else files.tokenizer


def save_decoder(model: Any, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Save what training could change: the whole model, or the LoRA adapter alone; with the tokenizer."""
    with silence_transformers():
        if any(parameter.requires_grad for parameter in model.parameters()):
            model.save_pretrained(folder)
            (folder / "README.md").unlink(missing_ok=True)  # peft's template, all blanks
        tokenizer.save_pretrained(folder)


def load_saved_decoder(
    config: DecoderConfig, folder: Path, zero: Zero3Config = None
) -> tuple[Any, PreTrainedTokenizerBase]:
    """What ``save_decoder`` wrote; a base model that was not trained comes from where ``config.model`` says.

    Args:
        config, folder: of the decoder.
        zero: see ``amrg.models.zero3``.

    Raises:
        UserError: the folder or the base model is missing.
    """
    if config.tuning == "full":
        return load_pretrained(str(folder), zero=zero)
    use: UseAdapter = "leave" if config.tuning == "lora" else "merge"
    model, tokenizer = load_pretrained(config.model, _base_dtype(config), zero, use)
    model.requires_grad_(False)
    if config.tuning == "lora":
        from amrg.models.lora import load_trained_lora

        model = load_trained_lora(model, folder)
    return model, tokenizer


def embedding_size(embedding: Any) -> float:
    """Standard deviation of token embeddings as they enter the model, which some architectures scale."""
    weight = embedding.weight.detach()
    some = torch.arange(min(len(weight), 1000), device=weight.device)
    with torch.no_grad():
        scale = embedding(some).float().norm() / weight[some].float().norm()
    return float(weight.std() * scale)


def base_fingerprint(model: Any) -> str:
    """SHA-256 over names, shapes and contents of the decoder's frozen weights; empty where all are trained.

    The same for a base model with and without a LoRA adapter around it. Every rank must call this (ZeRO 3).
    """
    base = without_lora(model)
    frozen = {
        name.replace(".base_layer.", ".").replace(".original_module.", "."): parameter
        for name, parameter in base.named_parameters()
        if not (parameter.requires_grad or ".lora_" in name or ".modules_to_save." in name)
    }
    return hash_of_weights(sorted(frozen.items())) if frozen else ""


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
    if without_lora(model) is not model:
        return model  # goes on from an adapter, which alone is trained
    model.requires_grad_(False)
    if config.tuning == "frozen":
        return model
    from amrg.models.lora import add_lora

    return add_lora(model, config)
