"""Plans as they are asked for."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from amrg import cli
from amrg.cli_config import parse_config_arguments
from amrg.config import MixPart
from amrg.config_files import load_config
from amrg.data.shards import INDEX, OPTIONAL
from amrg.errors import UserError
from amrg.pipeline import artifact_root, step_recipe
from amrg.planning.devices import DEVICES
from amrg.planning.stage_estimate import Assumptions, estimate_split_size, estimate_stage, max_micro_batch
from amrg.planning.zero_memory import MemoryUse
from tests.conftest import TINY
from tests.data.dataset_fixtures import make_iu_xray, make_mimic

GIVEN = Assumptions(2, DEVICES["h100"], 80e9)


def prepared(folder: Path, **studies: list[tuple[int, str]]) -> Path:
    """An index alone: of each split the films and the text of its studies."""
    blank = {"shard": "", "group": "", "offset": 0, "size": 0, "sha256": "", "labels": None, "projections": []}
    rows = [
        blank | {"split": split, "key": f"{split}-{number}", "views": films, "report": text, "prior": ""}
        for split, found in studies.items()
        for number, (films, text) in enumerate(found)
    ]
    folder.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=INDEX), folder / "index.parquet")
    return folder


def test_studies_that_are_really_there_are_counted(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Stage 1 learns from 11 labelled studies, 19 films; 9 studies of 13 films have a text; 2 reports are written."""
    arguments = ["--data.source", "iu_xray", "--runs", str(tmp_path)]
    config = parse_config_arguments([str(TINY), *arguments], "test")
    text = "The lungs are clear."
    train = [(1, text)] * 5 + [(2, text)] * 4 + [(3, "")] * 2
    prepared(
        step_recipe("prepare", config).path(artifact_root(config)), train=train, test=[(1, text), (2, text), (1, "")]
    )
    file = tmp_path / "plan.json"
    cli.main(["plan", str(TINY), *arguments, "--json", str(file)])
    told = json.loads(file.read_text())
    assert told["stage1"]["size"] == [11, 19, "of the prepared data"]
    assert told["stage2"]["size"] == [9, 13, "of the prepared data"]
    banks, seen, *_ = (step["what"] for step in told["chain"][1:])
    assert (banks, seen) == ("13 films", "13 films seen")
    said = capsys.readouterr().out
    assert "2 reports of 12 tokens: of the prepared data" in said
    assert "11 studies (of the prepared data), 1 steps an epoch" in said
    assert list((tmp_path / "tiny").iterdir()) == [
        step_recipe("prepare", config).path(artifact_root(config))
    ]  # nothing was made


def test_renders_of_the_embedded_data_are_samples_of_one_study(tmp_path: Path) -> None:
    config = load_config(str(TINY))
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, renders_per_study=2))
    given = dataclasses.replace(GIVEN, data=prepared(tmp_path / "data", train=[(1, "Clear.")] * 6))
    assert estimate_split_size(config, given)[:2] == (3, 6)
    assert estimate_split_size(config, GIVEN)[:2] == (24, 48)


def test_studies_of_a_mix_are_seen_by_their_weights(tmp_path: Path) -> None:
    """Six studies at 2.5 and four at 1 are 19 samples of an epoch; by the tables two at 4 and two at 1 are 10."""
    folder = prepared(tmp_path / "data", train=[(1, "Clear.")] * 10)
    table = pq.read_table(folder / "index.parquet")
    names = pa.array(["a"] * 6 + ["b"] * 4, OPTIONAL.field("dataset").type)
    pq.write_table(table.append_column("dataset", names), folder / "index.parquet")

    def found(given: Assumptions, *parts: MixPart) -> tuple[int, int]:
        config = load_config(str(TINY))
        data = dataclasses.replace(config.data, source="mix", splits="official", train_studies=None, mix=parts)
        settings = dataclasses.replace(config.stage1, batch_size=2)
        plan = estimate_stage(dataclasses.replace(config, data=data, stage1=settings), "stage1", given)
        return plan.size.studies, plan.steps

    ready = dataclasses.replace(GIVEN, data=folder)
    assert found(ready, MixPart("table", "x", "a", weight=2.5), MixPart("table", "y", "b")) == (10, 9)
    assert found(ready, MixPart("table", "x", "a"), MixPart("table", "y", "b")) == (10, 5)
    mimic, iu_xray = str(make_mimic(tmp_path / "mimic")), str(make_iu_xray(tmp_path / "iu"))
    assert found(GIVEN, MixPart("mimic_cxr", mimic, weight=4.0), MixPart("iu_xray", iu_xray)) == (4, 5)


def test_who_says_how_many_studies_there_are(tmp_path: Path) -> None:
    """``make_mimic``: two train studies of three films together, one of val, two of test; one has no findings."""

    def size(given: Assumptions = GIVEN, split: str = "train", **data: Any) -> tuple[int, int, str]:
        config = load_config("mimic_cxr")
        return estimate_split_size(
            dataclasses.replace(config, data=dataclasses.replace(config.data, **data)), given, split
        )

    copy = str(make_mimic(tmp_path / "copy"))
    tables = "at most, by the tables of data.path"
    assert size(path=copy) == (2, 3, tables)
    assert size(path=copy, split="val") == (1, 2, tables)
    assert size(path=copy, split="test") == (2, 2, tables)
    assert size(path=copy, train_studies=5) == (2, 3, tables)
    assert size(path=copy, train_studies=1) == (1, 2, "data.train_studies")
    assert size(dataclasses.replace(GIVEN, studies=10), path=copy) == (10, 15, "--studies")
    assert size(dataclasses.replace(GIVEN, held_out=7), split="test", path=copy) == (7, 7, "--held-out")
    published = "published size of the data set, with or without text"
    assert size(path="nowhere") == size(path=copy, splits="patient") == (222_758, 368_960, published)
    ready = dataclasses.replace(GIVEN, data=prepared(tmp_path / "data", train=[(1, "Clear."), (4, "Clear.")]))
    assert size(ready, path=copy, train_studies=1) == (2, 5, "of the prepared data")


def test_checkpoints_are_copied_to_the_host_and_memory_is_told_as_given(capsys: pytest.CaptureFixture[str]) -> None:
    """12 bytes of each trained number: its float32 value and two moments."""
    for stage in ("stage1", "stage2"):
        found = estimate_stage(load_config(str(TINY)), stage, GIVEN)
        assert found.parts["copies for checkpoints"] == MemoryUse(0, 12 * found.weights.trainable)
    cli.main(["plan", str(TINY), "--stage", "stage1", "--gpu-memory", "16"])
    assert "1 × H100 SXM of 16 GB" in capsys.readouterr().out


def test_largest_micro_batch_is_the_last_that_fits() -> None:
    def parts(micro: int) -> dict[str, MemoryUse]:
        return {"weights": MemoryUse(100.0, 10_000.0), "activations": MemoryUse(7.0 * micro)}

    assert [max_micro_batch(parts, memory) for memory in (106, 107, 120, 121, 1000)] == [0, 1, 2, 3, 128]


def test_command_tells_both_stages_and_writes_them(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    arguments = ["--gpus", "2", "--gpu-memory", "24", "--json", str(file), "--stage2.batch-size", "12"]
    cli.main(["plan", str(TINY), *arguments])
    said = capsys.readouterr().out
    assert "batch 12 = 6 a GPU × 1 accumulated × 2 GPUs: fits" in said
    assert "24 studies (data.train_studies), 2 steps an epoch, 2 epochs" in said
    told = json.loads(file.read_text())
    assert set(told) == {"stage1", "stage2", "chain"}
    stage2 = told["stage2"]
    assert stage2["device_bytes"] == pytest.approx(sum(part["device"] for part in stage2["parts"].values()))
    assert stage2["total_seconds"] == pytest.approx(stage2["step_seconds"] * 2 * 2)
    steps = told["chain"]
    assert [step["verb"] for step in steps] == ["stage1", "banks", "stage2", "stage2", "generate"]
    assert [step["seconds"] for step in steps if step["what"] == "2 epochs"] == [
        told[stage]["total_seconds"] for stage in ("stage1", "stage2")
    ]
    assert all(step["gpu_hours"] == pytest.approx(step["seconds"] * 2 / 3600) for step in steps)
    assert all(step["what"] in said for step in steps)


def test_command_plans_one_stage_without_the_chain(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    cli.main(["plan", str(TINY), "--stage", "stage1", "--json", str(file)])
    assert set(json.loads(file.read_text())) == {"stage1"}
    assert "the whole chain" not in capsys.readouterr().out


def test_offloading_moves_weights_and_optimiser_to_the_host() -> None:
    config = load_config(str(TINY))
    here, away = (
        estimate_stage(
            dataclasses.replace(config, stage2=dataclasses.replace(config.stage2, ds_config=f"{name}.json")),
            "stage2",
            GIVEN,
        )
        for name in ("zero3", "zero3_offload")
    )
    for name, copies in (("weights", 1), ("gradients", 2), ("optimiser", 1)):
        assert here.parts[name].host == 0
        assert away.parts[name].device < here.parts[name].device
        assert away.parts[name].device + away.parts[name].host == copies * here.parts[name].device
    assert away.moved.host > here.moved.host == 0
    assert away.seconds.step > here.seconds.step


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--gpus", "3"], "3 ranks"),
        (["--gpus", "0"], "--gpus 0: more than 0"),
        (["--stage", "stage2", "--decoder.base-dtype", "nf4"], "decoder.base_dtype nf4"),
        (["--held-out", "-1"], "--held-out -1: more than 0"),
        (["--efficiency", "1.5"], "--efficiency 1.5"),
        (["--stage", "stage2", "--decoder.model", "nowhere/x-3b"], "decoder.model nowhere/x-3b"),
        (["--data.source", "iu_xray", "--banks.reports.encoder", "nowhere"], "banks.reports.encoder nowhere"),
    ],
)
def test_mistakes_are_told_in_one_line(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["plan", str(TINY), *arguments])
    told = capsys.readouterr().err.splitlines()[-1]
    assert stop.value.code == 2
    assert told.startswith("amrg: ")
    assert said in told


def test_unknown_size_of_a_data_set_is_asked_for() -> None:
    config = load_config(str(TINY))
    unknown = dataclasses.replace(config, data=dataclasses.replace(config.data, source="openi", train_studies=None))
    with pytest.raises(UserError, match="give --studies"):
        estimate_stage(unknown, "stage2", GIVEN)
