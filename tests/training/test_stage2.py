"""Stage 2 and generation on random films: what they write, and that they go on where they stopped."""

import dataclasses
import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from amrg.banks.bank import REPORTS as REPORT_BANK
from amrg.banks.bank import MemoryBank
from amrg.config import Config
from amrg.data.labels import FINDINGS
from amrg.data.stream import load_split_studies
from amrg.data.text.outline import positive_findings
from amrg.errors import UserError
from amrg.inference import generate as generation
from amrg.inference.generate import generate_reports_file, mismatched_permutation, open_composer
from amrg.inference.report_writer import TOP_ROWS
from amrg.mining.reports import build_report_bank
from amrg.models.finding_calibration import Certainty
from amrg.models.open_banks import open_memory_banks
from amrg.models.report_generator import GeneratorOutput, ReportGenerator
from amrg.models.vision_output import VisionOutput
from amrg.pipeline import STEPS
from amrg.training.calibration import CALIBRATION
from amrg.training.report_loss import report_token_loss
from amrg.training.stage2 import train_stage2
from amrg.training.stage2_batches import iter_rank_batches


def trained(artefacts: Any, folder: Path, **changes: Any) -> Config:
    """Stage 2 in ``folder``; returns the configuration used."""
    config = artefacts.config
    config = dataclasses.replace(config, stage2=dataclasses.replace(config.stage2, epochs=2, batch_size=4, **changes))
    train_stage2(config, artefacts.data, artefacts.stage1, artefacts.banks, folder)
    return config


@pytest.fixture(scope="module")
def stage2(artefacts: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, Path]:
    folder = tmp_path_factory.mktemp("stage2")
    return trained(artefacts, folder), folder


def test_training_writes_curves_and_a_model_that_loads(artefacts: Any, stage2: tuple[Config, Path]) -> None:
    _, folder = stage2
    rows = [json.loads(line) for line in (folder / "curves.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1, 2]
    assert rows[1]["val_loss"] < rows[0]["val_loss"]
    assert rows[0]["train_loss"] == pytest.approx(math.log(200), abs=0.6)  # about uniform at first
    assert all(row["watched_generic"] in (1 / 3, 2 / 3, 1.0) for row in rows)  # of three validation studies
    model = ReportGenerator.from_pretrained(folder / "model", open_memory_banks(artefacts.config, artefacts.banks, 8))
    assert model.decoder.config.hidden_size == 32


def test_the_best_epoch_can_be_the_one_whose_validation_reports_state_the_findings(
    artefacts: Any, stage2: tuple[Config, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    trained(artefacts, tmp_path, selection_metric="val_f1", selection_reports=2, num_sample_reports=1)
    rows = [json.loads(line) for line in (tmp_path / "curves.jsonl").read_text().splitlines()]
    of_loss = [json.loads(line) for line in (stage2[1] / "curves.jsonl").read_text().splitlines()]
    assert [row["val_loss"] for row in rows] == [row["val_loss"] for row in of_loss]  # training is the same
    assert rows[1]["best"] is (rows[1]["val_f1"] > rows[0]["val_f1"])
    assert capfd.readouterr().err.count("stage2: val_f1 of 2 validation reports, written in ") == 2


def test_again_with_the_same_seed_it_is_the_same(artefacts: Any, stage2: tuple[Config, Path], tmp_path: Path) -> None:
    _, folder = stage2
    trained(artefacts, tmp_path)
    for name in ("curves.jsonl", "model/model.safetensors", "model/decoder/model.safetensors"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()


def test_vision_trains_too_when_asked(artefacts: Any, tmp_path: Path) -> None:
    trained(artefacts, tmp_path, train_vision=True, dtype="float32")
    model = ReportGenerator.from_pretrained(tmp_path / "model", open_memory_banks(artefacts.config, artefacts.banks, 8))
    before = type(model.stage1).from_pretrained(artefacts.stage1 / "model").state_dict()
    changed = {name for name, value in model.stage1.state_dict().items() if not torch.equal(value, before[name])}
    assert "disease_queries" in changed
    assert not any(name.startswith(("cam_head", "query_weight", "encoder.frozen")) for name in changed)


@pytest.mark.parametrize(
    "change",
    [
        {"activation_checkpointing": True},
        {"compile": True},
        {"ds_config": "accumulate.json"},
        {"group_by_length": True},
    ],
    ids=lambda change: next(iter(change)),
)
def test_ways_to_save_time_or_memory_learn_the_same(artefacts: Any, tmp_path: Path, change: dict[str, Any]) -> None:
    if "ds_config" in change:
        change = {"ds_config": str(tmp_path / change["ds_config"])}
        content = {"gradient_accumulation_steps": 2, "zero_optimization": {"stage": 1}, "train_batch_size": "auto"}
        Path(change["ds_config"]).write_text(json.dumps(content))
    still = dataclasses.replace(
        artefacts.config,
        memory=dataclasses.replace(artefacts.config.memory, dropout=0.0),
        decoder=dataclasses.replace(artefacts.config.decoder, dropout=0.0),
    )
    plain, changed = (
        trained(dataclasses.replace(artefacts, config=still), tmp_path / name, dtype="float32", **more)
        and [json.loads(line) for line in (tmp_path / name / "curves.jsonl").read_text().splitlines()]
        for name, more in (("plain", {}), ("changed", change))
    )
    grouped = "group_by_length" in change  # other batches, the same task
    for row, expected in zip(changed, plain, strict=True):
        assert row["val_loss"] == pytest.approx(expected["val_loss"], rel=0.05 if grouped else 1e-5)
        assert row["train_loss"] != expected["train_loss"] or not grouped


def test_reports_cover_the_split_once_in_order(artefacts: Any, stage2: tuple[Config, Path], tmp_path: Path) -> None:
    config, folder = stage2
    generate_reports_file(config, artefacts.data, artefacts.stage1, artefacts.banks, folder, tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "reports.jsonl").read_text().splitlines()]
    expected = sorted(load_split_studies(artefacts.data, "test"), key=lambda study: study.key)
    assert [(row["key"], row["group"], row["reference"]) for row in rows] == [
        (s.key, s.group, s.report) for s in expected
    ]
    for row in rows:
        assert len(row["memory"]["visual"]) == len(row["memory"]["report"]) == TOP_ROWS
        assert all(0 <= top["row"] < 16 for top in row["memory"]["visual"])
        assert row["recalled"] == row["sentences"] == []
        assert set(row["association"]) == {"visual", "report"}
        for of in row["association"].values():
            assert {name: len(values) for name, values in of.items()} == {"share": 13, "top_row": 13, "side": 13}
        shares = dict(zip(FINDINGS, row["association"]["visual"]["share"], strict=True))
        assert shares.pop("Edema") == pytest.approx(1.0, abs=1e-4)  # all rows of this bank are of edema
        assert not any(shares.values())


def test_interrupted_generation_goes_on(
    artefacts: Any, stage2: tuple[Config, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, folder = stage2
    inputs = (config, artefacts.data, artefacts.stage1, artefacts.banks, folder)
    (tmp_path / "whole").mkdir()
    generate_reports_file(*inputs, tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "broken")
    (tmp_path / "broken" / "reports.jsonl").unlink()
    (tmp_path / "broken" / "scratch" / "parts" / "000001.json").unlink()
    written = []
    write = generation._generate_lines
    monkeypatch.setattr(generation, "_generate_lines", lambda *arguments: written.append(1) or write(*arguments))
    generate_reports_file(*inputs, tmp_path / "broken")
    assert len(written) == 1  # of two batches
    whole, broken = (tmp_path / name / "reports.jsonl" for name in ("whole", "broken"))
    assert broken.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize("split", ["val", "test"])
def test_reports_begin_in_the_words_of_memory(artefacts: Any, tmp_path: Path, split: str) -> None:
    """Random films, and most studies have something: naming a finding in all of them is the best that can be done."""
    changes = {"outline_source": "retrieved", "split": split, "max_new_tokens": 60}
    config = dataclasses.replace(
        artefacts.config,
        decoder=dataclasses.replace(artefacts.config.decoder, predict_outline=True),
        generate=dataclasses.replace(artefacts.config.generate, **changes),
    )
    trained(dataclasses.replace(artefacts, config=config), tmp_path / "stage2")
    generate_reports_file(config, artefacts.data, artefacts.stage1, artefacts.banks, tmp_path / "stage2", tmp_path)
    assert 0 < Certainty.load(tmp_path / "stage2" / CALIBRATION / split).threshold < 1
    texts = MemoryBank.open(artefacts.banks / REPORT_BANK).provenance["text"].to_pylist()
    rows = [json.loads(line) for line in (tmp_path / "reports.jsonl").read_text().splitlines()]
    assert len(rows) == len(load_split_studies(artefacts.data, split))
    for row in rows:
        assert row["recalled"] == [said["row"] for said in row["sentences"]] != []
        left = row["generated"]
        for said in row["sentences"]:
            assert texts[said["row"]] == said["text"]
            assert set(said["labels"]) == set(positive_findings(said["text"]))
            threshold = Certainty.load(tmp_path / "stage2" / CALIBRATION / split).threshold
            assert said["probabilities"].keys() == set(said["labels"]) - {"No Finding"}
            assert all(probability >= threshold - 1e-4 for probability in said["probabilities"].values())
            assert said["box"][0] in (0, 1)
            assert left.startswith(said["text"])
            left = left.removeprefix(said["text"]).lstrip()


def test_sentences_can_be_recalled_from_a_bank_of_sentences_only(artefacts: Any, tmp_path: Path) -> None:
    banks = shutil.copytree(artefacts.banks, tmp_path / "banks")
    unit = dataclasses.replace(artefacts.config.banks.reports, granularity="report")
    shutil.rmtree(banks / REPORT_BANK)
    build_report_bank(
        dataclasses.replace(artefacts.config.banks, reports=unit),
        artefacts.data,
        banks / REPORT_BANK,
        0,
        tmp_path / "scratch",
    )
    Certainty(((1.0, 1.0, 0.0),) * len(FINDINGS), (0.0,) * len(FINDINGS), 0.5).save(tmp_path)

    def opened(outline: str) -> Any:
        generated = dataclasses.replace(artefacts.config.generate, outline_source=outline)
        return open_composer(dataclasses.replace(artefacts.config, generate=generated), banks, tmp_path)

    assert opened("decoder") is None
    assert opened("classifier") is not None
    with pytest.raises(UserError, match=r"holds whole reports: build it with banks\.reports\.granularity sentence"):
        opened("retrieved")


def test_an_outline_needs_a_decoder_that_plans(artefacts: Any) -> None:
    config = dataclasses.replace(
        artefacts.config, generate=dataclasses.replace(artefacts.config.generate, outline_source="classifier")
    )
    with pytest.raises(UserError, match=r"generate\.outline_source classifier .* decoder\.predict_outline true"):
        STEPS["generate"].settings(config)


def test_a_split_of_less_than_a_batch_is_refused(artefacts: Any, stage2: tuple[Config, Path], tmp_path: Path) -> None:
    config, _ = stage2
    config = dataclasses.replace(config, stage2=dataclasses.replace(config.stage2, batch_size=17))
    with pytest.raises(UserError, match="batch_size 17"):
        train_stage2(config, artefacts.data, artefacts.stage1, artefacts.banks, tmp_path)


def test_parts_of_a_batch_add_up_to_its_loss() -> None:
    """Mean over samples with weights = mean over the tokens of the whole batch, however it is cut."""

    class Fake:
        def __call__(self, sight: Any, group: Any, report: torch.Tensor, *rest: None) -> GeneratorOutput:
            return GeneratorOutput(report.sum(1))

    report = torch.tensor([[1.0, 2.0], [3.0, 0.0], [5.0, 6.0], [2.0, 0.0]])
    lengths = torch.tensor([2.0, 1.0, 2.0, 1.0])
    batch = {
        "vision": (None,) * len(VisionOutput._fields),
        "group": None,
        "report": report,
        "weight": torch.full((4,), 4 / lengths.sum()),
    }
    whole, _ = report_token_loss(Fake(), batch)  # type: ignore[arg-type]
    assert whole == pytest.approx(report.sum() / lengths.sum())
    halves = [
        report_token_loss(Fake(), {**batch, "report": report[rows], "weight": batch["weight"][rows]})[0]  # type: ignore[arg-type, index]
        for rows in (slice(0, 2), slice(2, 4))
    ]
    assert sum(halves) / 2 == pytest.approx(whole)


def test_shares_alone() -> None:
    found = [(rows.tolist(), counts.tolist()) for rows, counts in iter_rank_batches(5, 3)]
    assert found == [([0, 1, 2], [1.0, 1.0, 1.0]), ([3, 4], [1.0, 1.0])]


def test_strangers_are_a_permutation_over_other_patients() -> None:
    groups = ["a", "a", "b", "c", "c"]
    order = mismatched_permutation(groups)
    assert sorted(order.tolist()) == list(range(5))
    assert all(groups[i] != groups[j] for i, j in enumerate(order.tolist()))
    with pytest.raises(UserError, match="shuffled"):
        mismatched_permutation(["a", "a", "a", "b"])
