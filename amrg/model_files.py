"""Files of published models: whether they are there and whole, told from names, sizes and headers; no weight is read.

A check gives its faults as lines for the user, none where all is well.
"""

import contextlib
import json
import threading
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants
from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError

from amrg.errors import UserError

#: Seconds that the hub has to answer, the look-up of its name included.
HUB_SECONDS = 5.0
#: Why the hub did not answer: it is asked no second time.
_silent: list[str] = []

_INDEX, _SINGLE, _PICKLE = "model.safetensors.index.json", "model.safetensors", "pytorch_model.bin"
#: Any one of these sets of files makes a tokenizer.
_TOKENIZERS = (("tokenizer.json",), ("tokenizer.model",), ("vocab.txt",), ("vocab.json", "merges.txt"))


@contextlib.contextmanager
def silence_transformers() -> Iterator[None]:
    """No loading bars and no advice of transformers between our own lines."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        logging.enable_progress_bar()


def folder_faults(folder: Path, setting: str, pickles: bool = False) -> list[str]:
    """What a folder in transformers' layout lacks: ``config.json``, a tokenizer, whole weights.

    Args:
        folder: that is there.
        setting: that names it, for the messages.
        pickles: ``pytorch_model.bin`` will do where there are no safetensors.
    """
    if pointers := [path.name for path in sorted(folder.iterdir()) if is_git_lfs_pointer(path)]:
        return [f"{setting}: {folder / pointers[0]} is {_POINTER} ({len(pointers)} in all): run `git lfs pull` there"]
    return tokenizer_faults(folder, setting) + [f"{setting}: {fault}" for fault in weights_faults(folder, pickles)]


_POINTER = "a git-lfs pointer, not the file itself"


def is_git_lfs_pointer(path: Path) -> bool:
    """Whether a file holds only where git-lfs keeps its content."""
    if not path.is_file() or path.stat().st_size > 1024:
        return False
    return path.read_bytes().startswith(b"version https://git-lfs")


def tokenizer_faults(folder: Path, setting: str) -> list[str]:
    """What it lacks beside the weights: ``config.json``, a tokenizer."""
    faults = []
    try:
        known = isinstance(json.loads((folder / "config.json").read_text())["model_type"], str)
    except (OSError, ValueError, KeyError, TypeError):
        known = False
    if not known:
        faults.append(f"{setting}: {folder / 'config.json'} is missing or names no model_type: download it again")
    if not has_tokenizer(folder):
        faults.append(f"{setting}: {folder} has no tokenizer (tokenizer.json, tokenizer.model or vocab.txt)")
    return faults


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder has the files of a tokenizer."""
    return any(all((folder / name).is_file() for name in names) for names in _TOKENIZERS)


def find_weights_file(folder: Path, setting: str) -> Path:
    """The one file of a model's weights; UserError where a folder has neither safetensors nor a pickle."""
    found = [folder / name for name in (_SINGLE, _PICKLE) if (folder / name).is_file()]
    if not found:
        raise UserError(f"{setting}: {folder} is no folder with {_SINGLE} or {_PICKLE}: correct it, or download them")
    return found[0]


def weights_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder in transformers' layout without ``folder_faults``."""
    if (folder / _SINGLE).is_file():
        return [folder / _SINGLE]
    named = json.loads((folder / _INDEX).read_text())["weight_map"].values()
    return [folder / part for part in sorted(set(named))]


def weights_faults(folder: Path, pickles: bool = False) -> list[str]:
    """What the weights of a folder lack, by their names, sizes and headers."""
    complete, index, pickle = folder / _SINGLE, folder / _INDEX, folder / _PICKLE
    if complete.is_file():
        return safetensors_faults(complete)
    if index.is_file():
        try:
            parts = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return [f"{index} is not a readable index of weight files: download it again"]
        missing = [part for part in parts if not (folder / part).is_file()]
        lacking = f"{folder} lacks {len(missing)} of the {len(parts)} weight files that {_INDEX} names"
        faults = [f"{lacking} (first: {missing[0]}): download them again"] if missing else []
        return faults + [fault for part in parts if part not in missing for fault in safetensors_faults(folder / part)]
    if pickles and pickle.is_file():
        return pickle_faults(pickle)
    unread = f" ({_PICKLE} is not read: it could run code)" if pickle.is_file() else ""
    return [f"{folder} has no {_SINGLE}{unread}: download it, or convert the weights"]


def read_weight_shapes(files: Sequence[Path]) -> dict[str, Any]:
    """Tensors without values (meta device), by their names in the headers of safetensors files."""
    import torch  # a command that only downloads starts at once
    from safetensors import safe_open

    found = {}
    for file in files:
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118 (it is no dictionary)
                found[name] = torch.empty(opened.get_slice(name).get_shape(), device="meta")
    return found


def safetensors_faults(path: Path) -> list[str]:
    """Whether a safetensors file is as long as its header says."""
    if is_git_lfs_pointer(path):
        return [f"{path} is {_POINTER}: run `git lfs pull` there"]
    try:
        with path.open("rb") as file:
            header = int.from_bytes(file.read(8), "little")
            size = path.stat().st_size
            if not 0 < header <= size - 8:
                raise ValueError("no header")
            tensors = json.loads(file.read(header))
            tensors.pop("__metadata__", None)
            expected = 8 + header + max((tensor["data_offsets"][1] for tensor in tensors.values()), default=0)
    except OSError as error:
        return [f"{path} cannot be read ({error.strerror})"]
    except (ValueError, KeyError, TypeError, AttributeError):
        return [f"{path} is no safetensors file, or only the beginning of one: download it again"]
    if size != expected:
        return [f"{path} has {size:,} bytes where its header tells of {expected:,}: download it again"]
    return []


def pickle_faults(path: Path) -> list[str]:
    """Whether a file that torch saved is whole, as far as its ends tell."""
    try:
        with path.open("rb") as file:
            start = file.read(2)
        complete = zipfile.is_zipfile(path) if start == b"PK" else start[:1] == b"\x80"
    except OSError as error:
        return [f"{path} cannot be read ({error.strerror})"]
    return [] if complete else [f"{path} is no file of torch weights, or only the beginning of one: download it again"]


def error_in_one_line(error: BaseException, most: int = 300) -> str:
    """What an error says, in one line, with its class's name."""
    text = " ".join(str(error).split())
    return (
        f"{type(error).__name__}: {text if len(text) <= most else text[:most] + ' …'}" if text else type(error).__name__
    )


def find_hub_fault(repository: str) -> str:
    """Why a model cannot be had from the Hugging Face hub, empty where it can. Asks once; offline not at all."""
    if constants.is_offline_mode():
        return "HF_HUB_OFFLINE forbids to download it"
    if not _silent:
        answers: list[str] = []
        thread = threading.Thread(target=lambda: answers.append(_hub_message(repository)), daemon=True)
        thread.start()  # a thread: no timeout of the client's bounds the look-up of a name
        thread.join(HUB_SECONDS)
        if answers and answers[0] != _NO_ANSWER:
            return answers[0]
        _silent.append(_NO_ANSWER)
    return _silent[0]


_NO_ANSWER = f"the hub does not answer within {HUB_SECONDS:g} s"


def _hub_message(repository: str) -> str:
    try:
        HfApi(endpoint=constants.ENDPOINT).auth_check(repository)
    except HFValidationError:
        return "no name of a model on the hub"
    except GatedRepoError:
        return "the hub wants its licence accepted on its page, and then `hf auth login`"
    except RepositoryNotFoundError:
        return "not on the hub, or private"
    except Exception:  # whichever HTTP library the hub's client uses raises errors of its own
        return _NO_ANSWER
    return ""
