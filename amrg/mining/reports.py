"""The report bank: train reports, or their sentences, encoded by a BERT-like encoder."""

import shutil
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from amrg import distributed
from amrg.artifacts import MapFn, atomic_path
from amrg.banks.bank import DTYPES, HEADER, MemoryBank
from amrg.banks.sampling import sample_bank_rows
from amrg.banks.transforms import merge_banks
from amrg.banks.writer import BankWriter
from amrg.config import BanksConfig
from amrg.data.labels import POSITIVE
from amrg.data.stream import load_split_studies
from amrg.data.studies import Study
from amrg.data.text.cleaning import split_sentences
from amrg.data.text.labeler import label_report
from amrg.errors import UserError
from amrg.models.text_encoder import TextEncoder
from amrg.progress import track_progress

TEXTS_PER_PART = 1000  # texts that are sorted by length and encoded together


def build_report_bank(
    banks: BanksConfig,
    data: Path,
    folder: Path,
    seed: int,
    scratch: Path,
    each: MapFn = map,
    extended: Mapping[str, Any] | None = None,
    held: Collection[tuple[str, str]] = (),
) -> None:
    """Build the report bank from the studies of ``banks.splits``; a finished bank is kept.

    A text is one candidate per patient group, however many films were rendered for it. The bytes do not depend on
    which process handles a part.

    Args:
        banks: encoder, unit, number of rows, sampling, splits and dtype.
        data: data artefact.
        folder: folder of the bank.
        seed: seed of the sampling.
        scratch: folder of finished parts, visible to all processes that handle them.
        each: maps a function over the parts.
        extended: header entry ``about`` of a bank that the rows will be added to. Its mean applies, and no bank is
            written if there are no new texts.
        held: patient group and text of its rows, which count as copies.

    Raises:
        UserError: the encoder is missing or unusable, or the splits have no texts.
    """
    if (folder / HEADER).exists():
        return
    config = banks.reports
    entries = _candidate_rows(
        [study for split in banks.splits for study in load_split_studies(data, split)], config.granularity, held
    )
    chosen = [
        entries[i] for i in sample_bank_rows([e["findings"] for e in entries], config.rows, config.sampling, seed)
    ]
    if not chosen:
        if extended is not None:
            return
        raise UserError(f"{folder}: no rows for the bank")
    parts = list(enumerate(chosen[start : start + TEXTS_PER_PART] for start in range(0, len(chosen), TEXTS_PER_PART)))
    encoded = track_progress(each(_BankPart(banks, scratch).encode, parts), "encoding texts (thousands)", len(parts))
    shutil.rmtree(folder, ignore_errors=True)  # left by an interrupted run
    finished = [MemoryBank.open(path) for path in encoded]
    if config.centered:
        _join_centered(finished, folder, banks, None if extended is None else extended["mean"])
    else:
        merge_banks(finished, folder)


def _join_centered(parts: Sequence[MemoryBank], folder: Path, banks: BanksConfig, mean: Sequence[float] | None) -> None:
    """Merge the parts and subtract the mean, of all rows if none is given, which is stored in the header."""
    sums_D = torch.stack([part.load().double().sum(0) for part in parts])
    mean_D = (sums_D.sum(0) / sum(map(len, parts))).float() if mean is None else torch.tensor(mean)
    about = {**parts[0].header["about"], "mean": mean_D.tolist()}
    dtype = DTYPES[banks.dtype]
    with BankWriter(folder, parts[0].dim, dtype=dtype, allow_split=banks.splits, encoder_info=about) as writer:
        for part in parts:
            writer.add(part.load() - mean_D, part.provenance.to_pylist())


@dataclass(frozen=True)
class _BankPart:
    """Encode a part of the texts into a bank in ``scratch``."""

    banks: BanksConfig
    scratch: Path

    @cached_property
    def _encoder(self) -> TextEncoder:
        reports = self.banks.reports
        return TextEncoder(reports.encoder, reports.max_tokens, distributed.local_device(), reports.pooling)

    def encode(self, part: tuple[int, list[dict[str, Any]]]) -> Path:
        """Encode a part (number, provenance of its texts) into a bank; return its folder. An existing bank is kept."""
        number, entries = part
        folder = self.scratch / f"texts-{number:06d}"
        if not folder.exists():
            encoder, banks = self._encoder, self.banks
            about = {
                "encoder": banks.reports.encoder, "pooling": encoder.pooling, "weights_sha256": encoder.fingerprint,
            }  # fmt: skip
            # Rows minus their mean can be small, so they are rounded only once, after centering.
            dtype = torch.float32 if banks.reports.centered else DTYPES[banks.dtype]
            with (
                atomic_path(folder) as temporary,
                BankWriter(temporary, encoder.dim, dtype=dtype, allow_split=banks.splits, encoder_info=about) as writer,
            ):
                writer.add(encoder.encode([entry["text"] for entry in entries]), entries)
        return folder


def candidate_texts(
    chosen: Sequence[Study], unit: str, held: Collection[tuple[str, str]] = ()
) -> list[tuple[Study, str]]:
    """Return the candidate texts, each with its study, in the order of the studies' keys.

    A text is one candidate per patient group. A sentence has at most two copies, of two patients, so that every query
    sees one of another patient; ``held`` are the patient groups and texts of rows that are there already.
    """
    found: dict[tuple[str, str], Study] = {}
    copies = Counter(text for _, text in held)
    for study in sorted(chosen, key=lambda study: study.key):
        for text in split_sentences(study.report) if unit == "sentence" else [study.report.strip()]:
            place = study.group, text
            if not text or place in found or place in held or (unit == "sentence" and copies[text] >= 2):
                continue
            copies[text] += 1
            found[place] = study
    return [(study, text) for (_, text), study in found.items()]


def _candidate_rows(chosen: Sequence[Study], unit: str, held: Collection[tuple[str, str]]) -> list[dict[str, Any]]:
    """Return the provenance of every candidate, with the findings of the sentence, or of the study for a report."""
    entries = []
    for study, text in candidate_texts(chosen, unit, held):
        labels = label_report(text) if unit == "sentence" else study.labels
        entries.append(
            {
                "key": study.key,
                "group": study.group,
                "split": study.split,
                "source": unit,
                "text": text,
                "context": study.context.known(),
                "findings": [name for name, v in labels.items() if v == POSITIVE],
            }
        )
    return entries
