"""Plans as they are asked for."""

import dataclasses
import json
from pathlib import Path

import pytest

from amrg import cli
from amrg.config import load
from amrg.errors import UserError
from amrg.planning.devices import DEVICES
from amrg.planning.memory import Held
from amrg.planning.plan import Assumptions, largest, plan
from tests.conftest import TINY

GIVEN = Assumptions(2, DEVICES["h100"], 80e9)


def test_largest_micro_batch_is_the_last_that_fits() -> None:
    def parts(micro: int) -> dict[str, Held]:
        return {"weights": Held(100.0, 10_000.0), "activations": Held(7.0 * micro)}

    assert [largest(parts, memory) for memory in (106, 107, 120, 121, 1000)] == [0, 1, 2, 3, 128]


def test_command_tells_both_stages_and_writes_them(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    arguments = ["--gpus", "2", "--gpu-memory", "24", "--json", str(file), "--stage2.batch-size", "12"]
    cli.main(["plan", str(TINY), *arguments])
    said = capsys.readouterr().out
    assert "batch 12 = 6 a GPU × 1 accumulated × 2 GPUs: fits" in said
    assert "24 studies, 2 steps an epoch, 2 epochs" in said
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
    config = load(str(TINY))
    here, away = (
        plan(
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
    config = load(str(TINY))
    unknown = dataclasses.replace(config, data=dataclasses.replace(config.data, source="openi", train_studies=None))
    with pytest.raises(UserError, match="give --studies"):
        plan(unknown, "stage2", GIVEN)
