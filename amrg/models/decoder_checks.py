"""What a folder of a language model holds, and whether it can serve as a decoder, told without reading a weight.

The model is built on the meta device, and the headers of its safetensors files are loaded into it.
"""

import inspect
import json
import re
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from amrg.errors import UserError
from amrg.model_files import (
    error_in_one_line,
    folder_faults,
    has_tokenizer,
    is_git_lfs_pointer,
    read_weight_shapes,
    safetensors_faults,
    silence_transformers,
    weights_files,
)
from amrg.models.decoder_files import ADAPTER_WEIGHTS, find_adapter_base, is_adapter_folder

#: Language models of multimodal ones that transformers has no causal LM for, by the one that computes the same for
#: text: positions of three axes are equal there.
_SAME_FOR_TEXT = {
    "qwen2_vl_text": "qwen2",
    "qwen2_5_vl_text": "qwen2",
    "qwen3_vl_text": "qwen3",
    "qwen3_vl_moe_text": "qwen3_moe",
}
#: Names of a language model's weights inside a multimodal model, and alone.
_OF_LANGUAGE_MODEL = {
    r"^(?:model\.)?(?:language_model|text_model)\.lm_head": "lm_head",
    r"^(?:model\.)?(?:language_model|text_model)\.(?:model\.)?": "model.",
}
#: Constants that older versions of transformers saved, too.
_CONSTANTS = re.compile(r"(\binv_freq|\b(attn|attention)\.(masked_)?bias|\bmasked_bias|\bposition_ids)$")


@dataclass(frozen=True)
class DecoderFiles:
    """A causal LM on disk, described.

    Attributes:
        folder: with config and weights.
        config: of the language model.
        tokenizer: as the decoder uses it.
        adapter: folder of a LoRA around it; None: there is none.
        key_mapping: renames its weights in a multimodal checkpoint; None: they have their names.
        model: on the meta device, with the shapes of the folder's weights.
    """

    folder: Path
    config: PretrainedConfig
    tokenizer: PreTrainedTokenizerBase
    adapter: Path | None
    key_mapping: dict[str, str] | None
    model: Any

    @property
    def model_class(self) -> Any:
        """Class of transformers that the model is loaded with."""
        return MODEL_FOR_CAUSAL_LM_MAPPING[type(self.config)]

    @property
    def quantization(self) -> tuple[str, int | None] | None:
        """Method and bits of weights that are stored quantised."""
        return _quantization(self.config)


def describe_decoder(found: Path, download: bool = False) -> DecoderFiles | None:
    """Describe the causal LM in a folder, or the LoRA adapter there with its base.

    Args:
        found: the folder.
        download: fetch an adapter's base from the hub; otherwise None is returned where it is only there.

    Raises:
        UserError: it cannot serve as a decoder; one line for each fault.
    """
    adapter = found if is_adapter_folder(found) else None
    if adapter is not None and is_git_lfs_pointer(found / ADAPTER_WEIGHTS):
        raise UserError(f"decoder.model: {safetensors_faults(found / ADAPTER_WEIGHTS)[0]}")
    folder = found if adapter is None else find_adapter_base(adapter, download)
    if folder is None:
        return None
    with silence_transformers(), torch.random.fork_rng(devices=[]):
        if faults := folder_faults(folder, "decoder.model"):
            raise UserError("\n".join(faults))
        shapes = read_weight_shapes(weights_files(folder))
        config, key_mapping = _language_config(folder, shapes)
        model = _refuse_weights(folder, config, shapes, key_mapping)
        _refuse_interface(folder, type(model))
        embeddings = model.get_input_embeddings().num_embeddings
        holder = adapter if adapter is not None and has_tokenizer(adapter) else folder
        tokenizer = read_tokenizer(holder, embeddings, stop_token_ids(folder))
        if adapter is not None:
            from amrg.models.lora import refuse_unfit_lora

            refuse_unfit_lora(adapter, folder, model, key_mapping)
    return DecoderFiles(folder, config, tokenizer, adapter, key_mapping, model)


def _language_config(folder: Path, names: dict[str, Tensor]) -> tuple[PretrainedConfig, dict[str, str] | None]:
    """The configuration of a folder's language model, and how its weights are renamed."""
    where = f"decoder.model: {folder}"
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # configurations check themselves in their own ways
        raw = json.loads((folder / "config.json").read_text())
        if "auto_map" in raw and raw["model_type"] not in CONFIG_MAPPING:
            raise UserError(
                f"{where} is of type {raw['model_type']}, which needs Python code of its own (auto_map); such code is "
                "never run: give a model that transformers itself knows"
            ) from None
        raise UserError(
            f"{where}/config.json cannot be used by transformers {version('transformers')} "
            f"({error_in_one_line(error)}): update transformers, or give another model"
        ) from None
    text = language_config(config, str(folder))
    if text is config:
        return config, None
    has_head = any(name.endswith("lm_head.weight") for name in names)
    either = text.tie_word_embeddings or config.tie_word_embeddings
    text.tie_word_embeddings = config.tie_word_embeddings if has_head else either
    text.dtype = config.dtype
    if (quantized := getattr(config, "quantization_config", None)) is not None:
        text.quantization_config = quantized
    return text, _OF_LANGUAGE_MODEL


def language_config(config: PretrainedConfig, name: str) -> PretrainedConfig:
    """The configuration of a model's causal LM: itself, or that of the language model in a multimodal one.

    Raises:
        UserError: transformers has no causal LM for it.
    """
    try:
        text = config.get_text_config()
    except ValueError:  # several
        text = config
    if (same := _SAME_FOR_TEXT.get(text.model_type)) is not None:
        values = text.to_dict()
        del values["model_type"]
        rope = values.get("rope_parameters") or {}
        values["rope_parameters"] = {key: rope[key] for key in rope if not key.startswith("mrope")}
        text = CONFIG_MAPPING[same].from_dict(values)
    if type(text) not in MODEL_FOR_CAUSAL_LM_MAPPING or config.is_encoder_decoder or text.is_encoder_decoder:
        inner = "" if text is config else f", whose language model is of type {text.model_type}"
        raise UserError(
            f"decoder.model {name} is of type {config.model_type}, which is no causal LM of transformers{inner}"
        )
    return text


def _refuse_weights(
    folder: Path, config: PretrainedConfig, shapes: dict[str, Tensor], key_mapping: dict[str, str] | None
) -> Any:
    """The model on the meta device; UserError if its weights are not those of the folder."""
    model_class: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    try:
        if _quantization(config) is not None:  # packed weights have other shapes
            with torch.device("meta"):
                return model_class(config)
        model, info = model_class.from_pretrained(
            None,
            config=config,
            state_dict=shapes,
            device_map="meta",
            key_mapping=key_mapping,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    except Exception as error:  # each architecture refuses its settings in its own way
        raise UserError(
            f"decoder.model: {folder} cannot be built by transformers {version('transformers')} "
            f"({error_in_one_line(error)})"
        ) from None
    surplus = [] if key_mapping else [name for name in info["unexpected_keys"] if not _CONSTANTS.search(name)]
    mismatched = [f"{name} {list(has)} for {list(wants)}" for name, has, wants in info["mismatched_keys"]]
    faults = [
        f"decoder.model: the weights of {folder} {what} {len(names)} of what its config.json tells of "
        f"(first: {min(names)}): download both again, from one place"
        for what, names in (
            ("lack", sorted(info["missing_keys"])),
            ("hold, beyond that,", sorted(surplus)),
            ("have other shapes in", mismatched),
        )
        if names
    ]
    if faults:
        raise UserError("\n".join(faults))
    return model


def _refuse_interface(folder: Path, model_class: Any) -> None:
    """Raise UserError unless a class takes embeddings in the forward pass and in generation."""
    forward = inspect.signature(model_class.forward).parameters
    prepare = getattr(model_class, "prepare_inputs_for_generation", None)
    able = prepare is not None and "inputs_embeds" in inspect.signature(prepare).parameters
    if not able or "inputs_embeds" not in forward:
        raise UserError(
            f"decoder.model: {folder} is a {model_class.__name__}, which cannot generate from embeddings "
            "(inputs_embeds): give a model of another architecture"
        )


def read_tokenizer(folder: Path, embeddings: int, ends: list[int]) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder, with an end token and a padding token that the model has embeddings for.

    Args:
        folder: with its files.
        embeddings: number of the model's token embeddings.
        ends: ``stop_token_ids`` of the model; the first is taken where the tokenizer names none.

    Raises:
        UserError: it cannot be read, has no end token, or more tokens than there are embeddings.
    """
    where = f"decoder.model: the tokenizer of {folder}"
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # the Rust library's errors have no common class
        installed = ", ".join(f"{name} {version(name)}" for name in ("tokenizers", "transformers"))
        raise UserError(
            f"{where} cannot be read by {installed} ({error_in_one_line(error)}): update both (`pip install -U "
            "tokenizers transformers`), or download the tokenizer again"
        ) from None
    beyond = {token: number for token, number in tokenizer.get_vocab().items() if number >= embeddings}
    if tokenizer.pad_token is not None and tokenizer.pad_token_id >= embeddings:
        del beyond[tokenizer.pad_token]  # replaced below
        tokenizer.pad_token = None
    if beyond:
        token = min(beyond, key=lambda token: beyond[token])
        raise UserError(
            f"{where} has {len(beyond)} tokens (first: {token!r}, {beyond[token]}) beyond the {embeddings} embeddings "
            "of the model: give the tokenizer that the model was trained with"
        )
    if tokenizer.eos_token_id is None:
        if not ends or not ends[0] < embeddings:
            raise UserError(
                f"{where} has no end token, and neither generation_config.json nor config.json names one: add "
                "eos_token to tokenizer_config.json"
            )
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(ends[0])
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def stop_token_ids(folder: Path) -> list[int]:
    """Ids of the tokens that end a text by ``generation_config.json``, else by ``config.json``; perhaps none."""
    for name in ("generation_config.json", "config.json"):
        try:
            content = json.loads((folder / name).read_text())
            value = content.get("eos_token_id", content.get("text_config", {}).get("eos_token_id"))
        except (OSError, ValueError, AttributeError):
            continue
        if found := [number for number in (value if isinstance(value, list) else [value]) if isinstance(number, int)]:
            return found
    return []


def _quantization(config: PretrainedConfig) -> tuple[str, int | None] | None:
    found = getattr(config, "quantization_config", None)
    if found is None:
        return None
    values = found if isinstance(found, dict) else found.to_dict()
    bits = 4 if values.get("load_in_4bit") else 8 if values.get("load_in_8bit") else values.get("bits")
    return str(values.get("quant_method") or "quantized"), bits
