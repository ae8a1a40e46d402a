"""The language model that writes: any causal LM of transformers, or a small Llama made from scratch."""

import copy
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers
from safetensors.torch import load_file
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerBase,
    masking_utils,
)

from amrg import distributed
from amrg.config import DecoderConfig
from amrg.errors import UserError, collect_errors
from amrg.model_files import error_in_one_line, silence_transformers, weights_files
from amrg.models.decoder_checks import (
    NO_TASK,
    DecoderFiles,
    describe_decoder,
    language_config,
    read_adapter_config,
    stop_token_ids,
)
from amrg.models.decoder_files import (
    ADAPTER,
    SMALL_LLAMA,
    check_model_on_hub,
    decoder_on_disk,
    find_gguf_faults,
    resolve_model,
)
from amrg.models.tensor_parallel import split_decoder
from amrg.models.tokenizer import train_tokenizer
from amrg.models.zero3 import Zero3Config, hash_of_weights, zero3_loading
from amrg.precision import autocast
from amrg.progress import print_on_rank_0

QUANTISED = ("int8", "nf4")
#: What becomes of the LoRA adapter that ``decoder.model`` may be.
UseAdapter = Literal["train", "merge", "leave"]

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
    if not _alike(_some_logits(model.to(distributed.local_device()), tokenizer), expected):
        raise UserError(
            f"decoder.model: {_name(model)} computes something else when it is split over ranks: take zero3.json"
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
    for fault in _use_faults(files, dtype, tuning, use_adapter, zero):
        raise UserError(fault)
    began = time.perf_counter()
    precision = _precision(dtype)
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
        model = _with_adapter(model, files, use_adapter)
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


def _with_adapter(model: Any, files: DecoderFiles, use: UseAdapter) -> Any:
    """The model with the LoRA of its folder around it, or added to its weights."""
    adapter = str(files.adapter)
    config = read_adapter_config(Path(adapter), model.config)
    print_on_rank_0(f"decoder: going on from the LoRA adapter {adapter} (rank {config.r}) around {files.folder}")
    with silence_transformers():
        tuned = PeftModel.from_pretrained(
            model, adapter, config=config, is_trainable=use == "train", key_mapping=files.key_mapping
        )
        return tuned if use == "train" else tuned.merge_and_unload().requires_grad_(True)


def _use_faults(
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


def smoke_test_decoder(model: Any, tokenizer: PreTrainedTokenizerBase, dtype: str) -> None:
    """Compute and generate two tokens from embeddings, so that a training does not begin that cannot be used.

    Args:
        model: on its device, not split over ranks.
        tokenizer: its tokenizer.
        dtype: of the training.

    Raises:
        UserError: the architecture cannot do it, or words mean another thing as embeddings than as tokens.
    """
    modes = {module: module.training for module in model.modules()}
    ids = torch.full((1, 3), tokenizer.eos_token_id, device=model.device)
    try:
        with torch.no_grad(), autocast(dtype), silence_transformers():
            embeddings = model.eval().get_input_embeddings()(ids)
            given = {"logits_to_keep": 2, "use_cache": False}
            logits = model(inputs_embeds=embeddings, **given).logits
            expected = model(input_ids=ids, **given).logits
            # The second token is computed with a cache, from positions that the model counts itself.
            written = model.generate(
                inputs_embeds=embeddings,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                min_new_tokens=2,
                max_new_tokens=2,
                pad_token_id=tokenizer.pad_token_id,
                return_dict_in_generate=True,
                output_logits=True,
            )
            first = model.get_input_embeddings()(written.sequences[:, :1])
            full = model(inputs_embeds=torch.cat([embeddings, first], dim=1), **given).logits
    except Exception as error:  # each architecture fails in its own way
        raise UserError(
            f"decoder.model: {_name(model)} cannot read or generate from embeddings ({error_in_one_line(error)}): "
            "give a model of another architecture, or another decoder.base_dtype"
        ) from None
    if tuple(logits.shape[:2]) != (1, 2) or not _alike(logits, expected):
        raise UserError(
            f"decoder.model: {_name(model)} does not compute the same from embeddings as from tokens: give a model of "
            "another architecture"
        )
    if written.sequences.shape[1] != 2 or not _alike(written.logits[1], full[:, -1]):
        raise UserError(
            f"decoder.model: {_name(model)} does not generate from embeddings what it computes in training: give a "
            "model of another architecture"
        )
    for module, training in modes.items():
        module.training = training


@contextmanager
def unpacked_sequences() -> Iterator[None]:
    """Tell transformers that no row holds several sequences: it would look at the positions, and wait for a GPU."""
    original = masking_utils.find_packed_sequence_indices
    masking_utils.find_packed_sequence_indices = lambda position_ids: None
    try:
        yield
    finally:
        masking_utils.find_packed_sequence_indices = original


def _alike(found: Tensor, expected: Tensor) -> bool:
    return bool((found - expected).abs().max() <= 0.05 * expected.abs().max())  # several times bfloat16's rounding


def _name(model: Any) -> str:
    return type(model.get_base_model() if isinstance(model, PeftModel) else model).__name__


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
        if files is not None and (unusable := _use_faults(files, config.base_dtype, config.tuning, use)):
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
        if not (folder / ADAPTER).is_file():
            raise UserError(f"{folder} holds no LoRA adapter: train it with `amrg stage2`")
        model = PeftModel.from_pretrained(model, str(folder), config=read_adapter_config(folder, model.config))
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
    base = model.get_base_model() if isinstance(model, PeftModel) else model
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
    if isinstance(model, PeftModel):
        return model  # goes on from an adapter, which alone is trained
    model.requires_grad_(False)
    if config.tuning == "frozen":
        return model
    return get_peft_model(model, decoder_lora_config(config, model))


def decoder_lora_config(config: DecoderConfig, model: Any) -> LoraConfig:
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
        task_type=None if model.config.model_type in NO_TASK else "CAUSAL_LM",
    )
    converted = copy.deepcopy(lora)
    convert_peft_config_for_transformers(converted, model, None)
    if converted.target_parameters and config.lora_dropout:
        lora.lora_dropout = 0.0
        print_on_rank_0("decoder: a LoRA of stacked experts has no dropout, so decoder.lora_dropout is taken as 0")
    return lora


def _is_router(module: Any) -> bool:
    return isinstance(module, torch.nn.Linear) and "Router" in type(module).__name__
