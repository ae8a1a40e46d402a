"""The train reports as vectors of the report bank's encoder: the teachers of the retrieval loss.

Shape legend: B studies, D width of the bank.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from amrg.config import Config, ReportBankConfig
from amrg.data.shards import anonymous
from amrg.data.stream import studies
from amrg.errors import UserError
from amrg.memory.bank import REPORTS, MemoryBank, normalise_rows
from amrg.memory.reports import TextEncoder
from amrg.training import engine
from amrg.training.features import SharedFeatures

_TOGETHER = 256  # texts encoded between two notes of how far it is


class OwnReports:
    """Each train study's own report, encoded once, whether the bank holds it or not.

    Args:
        config: of the report bank.
        data: a data artefact.
        bank: the report bank.
        folder: of the cache, which the ranks fill between them (``SharedFeatures``).
        weight: of the retrieval loss.

    Raises:
        UserError: the encoder is not the one that made the bank.
    """

    def __init__(self, config: ReportBankConfig, data: Path, bank: MemoryBank, folder: Path, weight: float) -> None:
        self.weight = weight
        train = studies(data, "train")
        texts = sorted({study.report.strip() for study in train})
        place = {text: row for row, text in enumerate(texts)}
        self._rows = {anonymous(study.key): place[study.report.strip()] for study in train}
        self._cache = SharedFeatures(
            folder / "own-reports", len(texts), (bank.dim,), _TOGETHER, partial(_encode, texts, config, bank),
            f"encoding train reports ({_TOGETHER}s)",
        )  # fmt: skip

    def of(self, keys: Sequence[str]) -> Tensor:
        """Normalised rows of the studies with these hashed keys, float32 [B, D], on this rank's device."""
        return self._cache[torch.tensor([self._rows[key] for key in keys])].float().to(engine.device())


def own_reports_of(config: Config, data: Path, banks: Path, scratch: Path) -> OwnReports | None:
    """The teachers of a run's retrieval loss, kept in ``scratch``; None where there is no such loss."""
    weight = config.stage2.retrieval_loss
    if not weight or not config.decoder.use_report_memory:
        return None
    return OwnReports(config.banks.reports, data, MemoryBank.open(banks / REPORTS), scratch, weight)


def _encode(texts: list[str], config: ReportBankConfig, bank: MemoryBank, batches: list[range]) -> Iterator[Tensor]:
    encoder = TextEncoder(config.encoder, config.max_tokens, engine.device())
    made_with = bank.header["about"].get("weights_sha256")
    if encoder.fingerprint != made_with:
        raise UserError(
            f"{bank.folder} was made with another text encoder ({made_with[:12] if made_with else 'unknown'}) than "
            f"banks.reports.encoder {config.encoder} ({encoder.fingerprint[:12]}): stage2.retrieval_loss needs the same"
        )
    for numbers in batches:
        yield normalise_rows(encoder.encode(texts[numbers.start : numbers.stop]))
