"""Targets of the retrieval loss: sentences of the train reports, encoded with the report bank's encoder.

Shape legend: B studies, Q = 14 labels, D width of the bank.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from amrg import distributed
from amrg.banks.bank import REPORTS, MemoryBank, normalise_rows, normalize_to_rows
from amrg.config import Config, ReportBankConfig
from amrg.data.labels import LABELS, POSITIVE
from amrg.data.shards import hash_study_key
from amrg.data.stream import load_split_studies
from amrg.data.text.cleaning import split_sentences
from amrg.data.text.labeler import label_report
from amrg.errors import UserError
from amrg.models.text_encoder import TextEncoder
from amrg.training.feature_cache import DistributedFeatureCache

_TEXTS_PER_BATCH = 256  # texts per progress update


class RetrievalTargets:
    """Sentences of each train study by label, encoded once, whether the bank holds them or not.

    The vector of a label is the mean over its sentences; No Finding has the sentences that state no finding.

    Args:
        config: settings of the report bank.
        data: a data artefact.
        bank: the report bank.
        folder: folder of the cache, which all ranks fill (``DistributedFeatureCache``).
        weight: weight of the retrieval loss.

    Raises:
        UserError: the encoder differs from the bank's.
    """

    def __init__(self, config: ReportBankConfig, data: Path, bank: MemoryBank, folder: Path, weight: float) -> None:
        self.weight, self._dim = weight, bank.dim
        train = load_split_studies(data, "train")
        texts = sorted({sentence for study in train for sentence in split_sentences(study.report)})
        row = {text: i for i, text in enumerate(texts)}
        self._rows = {
            hash_study_key(study.key): [
                [row[s] for s in labelled] for labelled in sentences_by_label(study.report).values()
            ]
            for study in train
        }
        self._cache = DistributedFeatureCache(
            folder / "own-reports", len(texts), (bank.dim,), _TEXTS_PER_BATCH, partial(_encode, texts, config, bank),
            f"encoding sentences of train reports ({_TEXTS_PER_BATCH}s)",
        )  # fmt: skip

    def vectors_for(self, keys: Sequence[str]) -> Tensor:
        """Return the vectors of studies by hashed keys, float32 [B, Q, D] on this device; 0 without sentences."""
        vectors_BQD = torch.stack([torch.stack([self._mean(rows) for rows in self._rows[key]]) for key in keys])
        return vectors_BQD.to(distributed.local_device(), non_blocking=True)

    def _mean(self, rows: list[int]) -> Tensor:
        if not rows:
            return torch.zeros(self._dim)
        return normalise_rows(self._cache[torch.tensor(rows)].float().mean(0, keepdim=True))[0]


def sentences_by_label(report: str) -> dict[str, list[str]]:
    """Sort the sentences of a report by the labels they state, in the order of ``LABELS``."""
    found: dict[str, list[str]] = {label: [] for label in LABELS}
    for sentence in split_sentences(report):
        for label, value in label_report(sentence).items():
            if value == POSITIVE:
                found[label].append(sentence)
    return found


def build_retrieval_targets(config: Config, data: Path, banks: Path, scratch: Path) -> RetrievalTargets | None:
    """Build the targets of a run's retrieval loss, cached in ``scratch``; None without such a loss."""
    weight = config.stage2.retrieval_loss_weight
    if not weight or not config.decoder.use_report_memory:
        return None
    return RetrievalTargets(config.banks.reports, data, MemoryBank.open(banks / REPORTS), scratch, weight)


def _encode(texts: list[str], config: ReportBankConfig, bank: MemoryBank, batches: list[range]) -> Iterator[Tensor]:
    encoder = TextEncoder(config.encoder, config.max_tokens, distributed.local_device(), config.pooling)
    made_with = bank.header["about"].get("weights_sha256")
    if encoder.fingerprint != made_with:
        raise UserError(
            f"{bank.folder} was made with another text encoder ({made_with[:12] if made_with else 'unknown'}) than "
            f"banks.reports.encoder {config.encoder} ({encoder.fingerprint[:12]}): "
            "stage2.retrieval_loss_weight needs the same"
        )
    for numbers in batches:
        yield normalize_to_rows(encoder.encode(texts[numbers.start : numbers.stop]), bank)
