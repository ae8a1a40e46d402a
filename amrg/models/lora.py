"""LoRA around a causal LM, by peft (arXiv:2106.09685).

This module is imported where a model has a LoRA: peft brings what quantizes, and takes a second to import.
"""

import copy
import re
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import HFValidationError
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers
from transformers import PretrainedConfig

from amrg.config import DecoderConfig
from amrg.errors import UserError
from amrg.model_files import error_in_one_line, read_weight_shapes, safetensors_faults, silence_transformers
from amrg.models.decoder_checks import DecoderFiles
from amrg.models.decoder_files import ADAPTER, ADAPTER_WEIGHTS
from amrg.progress import print_on_rank_0

#: peft's class for causal LMs refuses embeddings for these, which its plain class passes on.
_NO_TASK = ("mpt",)
_PEFT_PREFIX = "base_model.model."


def add_lora(model: Any, config: DecoderConfig) -> PeftModel:
    """Put a LoRA that has not learned anything around a causal LM."""
    return get_peft_model(model, _lora_config(config, model))


def load_trained_lora(model: Any, folder: Path) -> PeftModel:
    """Put the LoRA that was saved in a folder around its base.

    Raises:
        UserError: the folder holds none.
    """
    if not (folder / ADAPTER).is_file():
        raise UserError(f"{folder} holds no LoRA adapter: train it with `amrg stage2`")
    return PeftModel.from_pretrained(model, str(folder), config=_read_adapter_config(folder, model.config))


def load_published_lora(model: Any, files: DecoderFiles, train: bool) -> Any:
    """Put the LoRA of the model's files around it to train it further; else add it to the weights."""
    adapter = str(files.adapter)
    config = _read_adapter_config(Path(adapter), model.config)
    print_on_rank_0(f"decoder: going on from the LoRA adapter {adapter} (rank {config.r}) around {files.folder}")
    with silence_transformers():
        tuned = PeftModel.from_pretrained(
            model, adapter, config=config, is_trainable=train, key_mapping=files.key_mapping
        )
        return tuned if train else tuned.merge_and_unload().requires_grad_(True)


def refuse_unfit_lora(adapter: Path, base: Path, model: Any, key_mapping: dict[str, str] | None) -> None:
    """Raise UserError unless a folder holds a LoRA adapter of the base; the meta model gets a LoRA around."""
    where = f"decoder.model: the adapter {adapter}"
    weights = adapter / ADAPTER_WEIGHTS
    if not weights.is_file():
        raise UserError(f"{where} has no {ADAPTER_WEIGHTS} (others are not read: they could run code)")
    if faults := safetensors_faults(weights):
        raise UserError(f"decoder.model: {faults[0]}")
    model.name_or_path = str(base)  # peft takes it over
    try:
        config = _read_adapter_config(adapter, model.config)
        if str(config.peft_type).rpartition(".")[2] != "LORA":
            raise UserError(f"{where} is a {config.peft_type} of peft: only LoRA can be gone on from")
        with torch.device("meta"):
            expected = get_peft_model_state_dict(get_peft_model(model, config), save_embedding_layers=False)
    except (ValueError, TypeError, KeyError, RuntimeError, HFValidationError) as error:
        raise UserError(f"{where} does not fit its base {base} ({error_in_one_line(error)})") from None
    found = {_renamed(name, key_mapping): value for name, value in read_weight_shapes([weights]).items()}
    wrong = sorted(
        name
        for name in expected.keys() | found.keys()
        if name not in expected or name not in found or expected[name].shape != found[name].shape
    )
    if wrong:
        raise UserError(
            f"{where} does not fit its base {base}: {len(wrong)} of their weights are lacking, surplus or of other "
            f"shapes (first: {wrong[0]}): correct base_model_name_or_path in {ADAPTER}"
        )


def _lora_config(config: DecoderConfig, model: Any) -> LoraConfig:
    """The LoRA around a causal LM: all linear layers, experts too, except those whose weights are read elsewhere."""
    # The fused kernels of state-space layers read these weights themselves, so that a LoRA would have no effect.
    state_space = any("Mamba" in type(module).__name__ for module in model.modules())
    excluded = ["out_proj", "dt_proj"] if state_space else []
    # A router that is a linear layer by its class gives more than a layer's output.
    excluded += sorted({name.rpartition(".")[2] for name, module in model.named_modules() if _is_router(module)})
    lora = LoraConfig(
        r=config.lora_rank,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules="all-linear",
        exclude_modules=excluded or None,
        task_type=None if model.config.model_type in _NO_TASK else "CAUSAL_LM",
    )
    converted = copy.deepcopy(lora)
    convert_peft_config_for_transformers(converted, model, None)
    if converted.target_parameters and config.lora_dropout:
        lora.lora_dropout = 0.0
        print_on_rank_0("decoder: a LoRA of stacked experts has no dropout, so decoder.lora_dropout is taken as 0")
    return lora


def _is_router(module: Any) -> bool:
    return isinstance(module, torch.nn.Linear) and "Router" in type(module).__name__


def _read_adapter_config(adapter: Path, base: PretrainedConfig) -> Any:
    """The configuration of an adapter, as peft can use it around a base."""
    config = PeftConfig.from_pretrained(str(adapter))
    if base.model_type in _NO_TASK:
        config.task_type = None
    return config


def _renamed(name: str, key_mapping: dict[str, str] | None) -> str:
    """The name of an adapter's weight around the language model alone."""
    inner = name.removeprefix(_PEFT_PREFIX)
    for pattern, target in (key_mapping or {}).items():
        if re.match(pattern, inner):
            return _PEFT_PREFIX + re.sub(pattern, target, inner, count=1)
    return name
