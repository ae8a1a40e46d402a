"""The model card says what a model is, and of whom it does not tell."""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard

from amrg.banks.bank import REPORTS, VISUAL, MemoryBank
from amrg.config import Config
from amrg.training.model_card import write_model_card
from amrg.training.stage2 import build_generator, train_stage2

ROWS = [
    {"epoch": 1, "step": 4, "train_loss": 3.5, "val_loss": 2.25, "best": True},
    {"epoch": 2, "step": 8, "train_loss": 2.0, "val_loss": 2.75, "best": False},
]


def test_training_leaves_a_card_with_what_is_known(artefacts: Any, tmp_path: Path) -> None:
    config = dataclasses.replace(
        artefacts.config, stage2=dataclasses.replace(artefacts.config.stage2, epochs=1, num_sample_reports=0)
    )
    train_stage2(config, artefacts.data, artefacts.stage1, artefacts.banks, tmp_path)
    card = ModelCard.load(tmp_path / "model" / "README.md")
    assert (card.data.library_name, card.data.pipeline_tag) == ("amrg", "image-to-text")
    assert "Not for clinical use" in card.text
    for row in ("| train | 16 | 16 | 22 |", "| val | 3 | 3 | 4 |", "| test | 5 | 5 | 7 |"):
        assert row in card.text
    for name in (VISUAL, REPORTS):
        bank = MemoryBank.open(artefacts.banks / name)
        assert f"| {name} | {len(bank)} of train | `{bank.content_hash}` |" in card.text
    assert "language model: `small_llama`, tuning `full`" in card.text
    assert (card.data.base_model, card.data.license) == (None, None)
    for told in ("hidden_size: 32", "augmented_copies: 1", "encoder: minilm", "num_beams: 2"):
        assert told in card.text
    assert "banks hold the texts of train reports" in card.text
    assert "PhysioNet" not in card.text
    assert "rows of" not in card.text  # of other splits
    for private in (str(artefacts.data.parent), "patient-", "train-0"):
        assert private not in card.text


def write(artefacts: Any, folder: Path, config: Config) -> str:
    model = build_generator(config, artefacts.data, artefacts.stage1, artefacts.banks)
    model.save_pretrained(folder)
    write_model_card(folder, model, config, artefacts.data, artefacts.banks, ROWS)
    return (folder / "README.md").read_text()


def test_a_base_model_is_named_without_its_path_and_the_best_epoch_told(artefacts: Any, tmp_path: Path) -> None:
    base = build_generator(artefacts.config, artefacts.data, artefacts.stage1, artefacts.banks)
    for part in (base.decoder, base.tokenizer):
        part.save_pretrained(tmp_path / "my-base")
    decoder = dataclasses.replace(artefacts.config.decoder, model=str(tmp_path / "my-base"), tuning="lora")
    config = dataclasses.replace(artefacts.config, decoder=decoder)
    text = write(artefacts, tmp_path / "model", config)
    assert "language model: `my-base`, tuning `lora`, base weights in `float32`, SHA-256 of these `" in text
    assert "The weights are those of epoch 1 (val 2.2500)" in text
    assert "| 2 | 8 | 2.0000 | 2.7500 |" in text
    assert str(tmp_path) not in text
    assert not (tmp_path / "model" / "decoder" / "README.md").exists()  # peft's template
    assert write(artefacts, tmp_path / "again", config) == text
    (tmp_path / "my-base" / "README.md").write_text("---\nlicense: llama2\n---\n")
    physionet = dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, source="mimic_cxr"),
        banks=dataclasses.replace(
            config.banks, reports=dataclasses.replace(config.banks.reports, encoder=str(tmp_path / "bert"))
        ),
    )
    text = write(artefacts, tmp_path / "licensed", physionet)
    assert ModelCard(text).data.license == "llama2"
    assert "has the licence `llama2`" in text
    assert "PhysioNet's data use agreement" in text
    assert "encoder: bert" in text
    assert str(tmp_path) not in text


def test_banks_that_leak_are_told(artefacts: Any, tmp_path: Path) -> None:
    banks = shutil.copytree(artefacts.banks, tmp_path / "banks")
    header, rows = banks / REPORTS / "bank.json", len(MemoryBank.open(banks / REPORTS))
    header.write_text(header.read_text().replace(f'"train": {rows}', f'"train": {rows - 4}, "test": 4'))
    text = write(dataclasses.replace(artefacts, banks=banks), tmp_path / "model", artefacts.config)
    assert f"{rows - 4} of train, 4 of test" in text
    assert "**The banks hold rows of test: scores on these splits are not fair.**" in text


def test_what_failed_in_training_stands_in_the_card(artefacts: Any, tmp_path: Path) -> None:
    model = build_generator(artefacts.config, artefacts.data, artefacts.stage1, artefacts.banks)
    model.save_pretrained(tmp_path)
    write_model_card(tmp_path, model, artefacts.config, artefacts.data, artefacts.banks, ROWS, ["stage 1 is at chance"])
    assert "## Failures\n\n- **stage 1 is at chance**" in (tmp_path / "README.md").read_text()
