"""The teachers of the retrieval loss, and stage 2 that is taught by them."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from amrg.artifacts import sha256_of_file
from amrg.banks.bank import REPORTS, MemoryBank, normalise_rows
from amrg.data.labels import LABELS, POSITIVE
from amrg.data.shards import hash_study_key
from amrg.data.stream import load_split_studies
from amrg.data.text.cleaning import split_sentences
from amrg.data.text.labeler import label_report
from amrg.errors import UserError
from amrg.models.text_encoder import TextEncoder
from amrg.training.retrieval_targets import RetrievalTargets, sentences_by_label
from amrg.training.stage2 import train_stage2


def test_sentences_are_divided_by_the_labels_they_state() -> None:
    text = "Cardiomegaly and edema. Possible pneumonia. Clear lungs. Mild edema. A pacemaker is in place."
    said = sentences_by_label(text)
    assert list(said) == list(LABELS)
    assert {label: of for label, of in said.items() if of} == {
        "Cardiomegaly": ["Cardiomegaly and edema."],
        "Edema": ["Cardiomegaly and edema.", "Mild edema."],
        "Support Devices": ["A pacemaker is in place."],
        "No Finding": ["Clear lungs.", "A pacemaker is in place."],
    }


def test_each_study_gets_the_mean_vector_of_its_sentences_by_label(artefacts: Any, tmp_path: Path) -> None:
    settings, bank = artefacts.config.banks.reports, MemoryBank.open(artefacts.banks / REPORTS)
    own = RetrievalTargets(settings, artefacts.data, bank, tmp_path, 1.0)
    chosen = load_split_studies(artefacts.data, "train")[::-3]
    encoder = TextEncoder(settings.encoder, settings.max_tokens)
    expected = torch.zeros(len(chosen), len(LABELS), bank.dim)
    for number, study in enumerate(chosen):
        for sentence in split_sentences(study.report):
            for label in (label for label, value in label_report(sentence).items() if value == POSITIVE):
                expected[number, LABELS.index(label)] += normalise_rows(encoder.encode([sentence]))[0]
    said = expected.any(-1)
    expected[said] = normalise_rows(expected[said])
    found = own.vectors_for([hash_study_key(study.key) for study in chosen])
    assert torch.equal(found.any(-1), said)
    assert 0 < said.float().mean() < 1
    torch.testing.assert_close(found, expected, rtol=0.01, atol=0.01)  # kept in bfloat16
    written = {path: sha256_of_file(path) for path in (tmp_path / "own-reports").iterdir()}
    RetrievalTargets(settings, artefacts.data, bank, tmp_path, 1.0)
    assert {path: sha256_of_file(path) for path in (tmp_path / "own-reports").iterdir()} == written


def test_another_encoder_than_that_of_the_bank_is_refused(artefacts: Any, tmp_path: Path) -> None:
    bank = MemoryBank.open(artefacts.banks / REPORTS)
    bank.header["about"]["weights_sha256"] = "0" * 64
    with pytest.raises(UserError, match=r"another text encoder \(0{12}\).*stage2.retrieval_loss_weight needs the same"):
        RetrievalTargets(artefacts.config.banks.reports, artefacts.data, bank, tmp_path, 1.0)


def test_what_is_retrieved_comes_closer_to_the_own_report(artefacts: Any, tmp_path: Path) -> None:
    def retrieval_losses(name: str, weight: float) -> list[float]:
        changes = {"epochs": 12, "batch_size": 4, "lr": 2e-2, "num_sample_reports": 0, "retrieval_loss_weight": weight}
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
