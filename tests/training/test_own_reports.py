"""The teachers of the retrieval loss, and stage 2 that is taught by them."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from amrg.artifacts import file_hash
from amrg.data.shards import anonymous
from amrg.data.stream import studies
from amrg.errors import UserError
from amrg.memory.bank import REPORTS, MemoryBank, normalise_rows
from amrg.memory.reports import TextEncoder
from amrg.training.own_reports import OwnReports
from amrg.training.stage2 import train_stage2


def test_each_study_gets_the_vector_of_its_own_report(artefacts: Any, tmp_path: Path) -> None:
    settings, bank = artefacts.config.banks.reports, MemoryBank.open(artefacts.banks / REPORTS)
    own = OwnReports(settings, artefacts.data, bank, tmp_path, 1.0)
    chosen = studies(artefacts.data, "train")[::-3]
    encoder = TextEncoder(settings.encoder, settings.max_tokens)
    expected = normalise_rows(torch.cat([encoder.encode([study.report.strip()]) for study in chosen]))
    found = own.of([anonymous(study.key) for study in chosen])
    torch.testing.assert_close(found, expected, rtol=0.01, atol=0.01)  # kept in bfloat16
    written = {path: file_hash(path) for path in (tmp_path / "own-reports").iterdir()}
    OwnReports(settings, artefacts.data, bank, tmp_path, 1.0)
    assert {path: file_hash(path) for path in (tmp_path / "own-reports").iterdir()} == written


def test_another_encoder_than_that_of_the_bank_is_refused(artefacts: Any, tmp_path: Path) -> None:
    bank = MemoryBank.open(artefacts.banks / REPORTS)
    bank.header["about"]["weights_sha256"] = "0" * 64
    with pytest.raises(UserError, match=r"another text encoder \(0{12}\).*stage2.retrieval_loss needs the same"):
        OwnReports(artefacts.config.banks.reports, artefacts.data, bank, tmp_path, 1.0)


def test_what_is_retrieved_comes_closer_to_the_own_report(artefacts: Any, tmp_path: Path) -> None:
    def retrieval_losses(name: str, weight: float) -> list[float]:
        changes = {"epochs": 12, "batch_size": 4, "lr": 2e-2, "watch_reports": 0, "retrieval_loss": weight}
        config = dataclasses.replace(
            artefacts.config,
            stage2=dataclasses.replace(artefacts.config.stage2, **changes),
            memory=dataclasses.replace(artefacts.config.memory, dropout=0.0),
        )
        train_stage2(config, artefacts.data, artefacts.stage1, artefacts.banks, tmp_path / name)
        rows = [json.loads(line) for line in (tmp_path / name / "curves.jsonl").read_text().splitlines()]
        return [row.get("train_retrieval_loss") for row in rows]

    taught = retrieval_losses("taught", 100.0)
    assert taught[-1] < 0.9 * taught[0]
    assert taught[-1] < retrieval_losses("hardly", 1e-9)[-1]
    assert retrieval_losses("untaught", 0.0) == [None] * 12
