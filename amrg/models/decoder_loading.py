"""Weights of a published causal LM or adapter: in which precision they are loaded, and what refuses them."""

import time
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file
from transformers import (
    BitsAndBytesConfig,
    GenerationConfig,
    PreTrainedTokenizerBase,
)

from amrg.errors import UserError
from amrg.model_files import error_in_one_line, silence_transformers, weights_files
from amrg.models.decoder_checks import (
    DecoderFiles,
    describe_decoder,
    stop_token_ids,
)
from amrg.models.decoder_files import (
    ADAPTER,
    resolve_model,
)
from amrg.models.zero3 import Zero3Config, zero3_loading
from amrg.progress import print_on_rank_0

# peft asks by a name that transformers has given up.
warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)

QUANTISED = ("int8", "nf4")
#: What becomes of the LoRA adapter that ``decoder.model`` may be.
UseAdapter = Literal["train", "merge", "leave"]


def load_pretrained(
    name: str,
    dtype: str = "float32",
    zero: Zero3Config = None,
    use_adapter: UseAdapter = "merge",
    tuning: str = "frozen",
) -> tuple[Any, PreTrainedTokenizerBase]:
    """A causal LM and its tokenizer from a folder, a GGUF file, the local cache, or the hub.

    Of a multimodal model it is the language model.

    Args:
        name: of the model, or of a LoRA adapter, which names its base.
        dtype: of its weights: ``float32``, ``bfloat16``, or quantised as ``int8`` or ``nf4``.
        zero: see ``amrg.models.zero3``.
        use_adapter: go on training an adapter, add it to the weights, or leave it away.
        tuning: ``full`` refuses what is stored quantised.

    Raises:
        UserError: it is in none of them, or cannot serve as a decoder.
    """
    if zero is not None:
        refuse_quantised(dtype)
    try:
        files = describe_decoder(Path(resolve_model(name)), download=True)
    except UserError as error:
        raise UserError(str(error).splitlines()[0]) from None
    assert files is not None  # downloaded
    for fault in use_faults(files, dtype, tuning, use_adapter, zero):
        raise UserError(fault)
    began = time.perf_counter()
    precision = precision_arguments(dtype)
    if files.quantization is not None:
        precision.pop("quantization_config", None)
        _report_quantized(files, dtype)
    model = _load_weights(files, dtype, precision, zero)
    if zero is not None:
        numbers = sum(getattr(parameter, "ds_numel", parameter.numel()) for parameter in model.parameters())
        print_on_rank_0(
            f"decoder: {numbers / 1e6:,.1f} million weights read in parts, {time.perf_counter() - began:.1f} s"
        )
    for module in model.modules():
        # bitsandbytes on some CPUs reorders 4-bit weights in evaluation for good; training would then go wrong unseen.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    tokenizer = files.tokenizer
    # How to write is said by `generate` alone: what the base model's own file says would clash with it.
    ends = list(dict.fromkeys([tokenizer.eos_token_id, *stop_token_ids(files.folder)]))
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=ends if len(ends) > 1 else tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    if files.adapter is not None and use_adapter != "leave":
        from amrg.models.lora import load_published_lora

        model = load_published_lora(model, files, use_adapter == "train")
    return model, tokenizer


def _load_weights(files: DecoderFiles, dtype: str, precision: dict[str, Any], zero: Zero3Config) -> Any:
    """The model of a folder with its weights."""
    given: dict[str, Any] = {"config": files.config, "key_mapping": files.key_mapping, **precision}
    if (files.folder / ADAPTER).is_file():
        # transformers would put the adapter around the model by itself.
        weights = {name: value for file in weights_files(files.folder) for name, value in load_file(file).items()}
        given |= {"pretrained_model_name_or_path": None, "state_dict": weights}
    else:
        # Safetensors only: a checkpoint in pickles could run code.
        given |= {"pretrained_model_name_or_path": files.folder, "local_files_only": True, "use_safetensors": True}
    try:
        with silence_transformers(), zero3_loading(zero, dtype):
            model, info = files.model_class.from_pretrained(**given, output_loading_info=True)
    except Exception as error:  # attention kernels and quantisers that are not installed refuse in their own ways
        raise UserError(
            f"decoder.model: {files.folder} cannot be loaded by transformers ({error_in_one_line(error)})"
        ) from None
    if missing := sorted(info["missing_keys"]):
        raise UserError(
            f"decoder.model: the weights of {files.folder} lack {len(missing)} (first: {missing[0]}): download it again"
        )
    if files.key_mapping:  # else saving would try to give the weights their names in the multimodal checkpoint
        model._weight_conversions = None
    model.name_or_path = str(files.folder)
    return model


def use_faults(
    files: DecoderFiles, dtype: str, tuning: str, use_adapter: UseAdapter, zero: Zero3Config = None
) -> list[str]:
    """What cannot be done with a folder that is well."""
    stored = files.quantization
    if stored is not None and tuning == "full":
        return [f"decoder.model: {files.folder} is {_stored(files)}, and tuning `full` trains all weights: take `lora`"]
    if stored is not None and zero is not None:
        return [f"decoder.model: {files.folder} is {_stored(files)}, and ZeRO 3 does not split that: take zero2.json"]
    if files.adapter is not None and use_adapter == "merge":
        if stored is not None or dtype in QUANTISED:
            return [f"decoder.model: the LoRA {files.adapter} is not added to quantized weights: take tuning `lora`"]
        if zero is not None:
            return [f"decoder.model: the LoRA {files.adapter} is not added to split weights: take zero2.json"]
    return []


def _stored(files: DecoderFiles) -> str:
    method, bits = files.quantization or ("", None)
    return f"stored quantized ({method}{'' if bits is None else f', {bits} bits'})"


def _report_quantized(files: DecoderFiles, dtype: str) -> None:
    """Print that the weights are quantised in another way than the setting says."""
    same = {"int8": ("bitsandbytes", 8), "nf4": ("bitsandbytes", 4)}
    if files.quantization != same.get(dtype):
        print_on_rank_0(f"decoder: {files.folder} is {_stored(files)}, whatever decoder.base_dtype says ({dtype})")


def refuse_quantised(dtype: str) -> None:
    """Raises UserError for weights that ZeRO 3 cannot split."""
    if dtype in QUANTISED:
        raise UserError(
            f"decoder.base_dtype {dtype} with ZeRO 3: quantised weights are not split over ranks; take zero2.json, or "
            "base_dtype bfloat16"
        )


def precision_arguments(dtype: str) -> dict[str, Any]:
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
