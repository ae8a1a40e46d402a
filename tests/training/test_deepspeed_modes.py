"""Optimizers, schedulers, offloading and bf16 of DeepSpeed JSONs, trained by DeepSpeed: stopped, and gone on with."""

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

from amrg.training import engine, loop
from amrg.training.checkpoint import find_latest_valid
from amrg.training.interruption import GracefulStop
from amrg.training.stage2 import train_stage2
from tests.processes import finish, start_ranks
from tests.training.engine_settings_worker import Stopping
from tests.training.test_loop import steps
from tests.training.toy_training_worker import run

LR, STEPS, WARMUP = 0.05, 9, 2  # of the toy training
PARAMS = {"lr": "auto", "betas": "auto", "eps": "auto", "weight_decay": "auto"}
ADAMS = {"exp_avg", "exp_avg_sq"}
ADAMW = {"optimizer": {"type": "AdamW", "params": PARAMS}}


def zero(stage: int, **more: Any) -> dict[str, Any]:
    return {"zero_optimization": {"stage": stage, **more}}


def same_stopped(
    content: dict[str, Any], folder: Path, monkeypatch: pytest.MonkeyPatch,
    dtype: Literal["float32", "bfloat16", "float16"] = "float32",
) -> tuple[list[dict[str, float]], Any]:  # fmt: skip
    """Train at once, and stopped after four steps: all must be the same. Return the log and the model."""
    file = folder / "mine.json"
    file.write_text(json.dumps(content))
    monkeypatch.setattr(loop, "Engine", Stopping)
    Stopping.at = None
    whole = run(folder / "whole", str(file), dtype=dtype)
    monkeypatch.setattr(Stopping, "at", 3)
    with pytest.raises(GracefulStop):
        run(folder / "stopped", str(file), dtype=dtype)
    saved = find_latest_valid(folder / "stopped" / "checkpoints")
    assert saved is not None
    assert saved.state["step"] < STEPS
    monkeypatch.setattr(Stopping, "at", None)
    again = run(folder / "stopped", str(file), dtype=dtype)
    one, other = (
        [(row["step"], row["lr"], row["loss"], row.get("gradient_norm")) for row in steps(folder / name)]
        for name in ("whole", "stopped")
    )
    assert one == other
    assert all(torch.equal(left, right) for left, right in zip(whole.parameters(), again.parameters(), strict=True))
    ends = [find_latest_valid(folder / name / "checkpoints") for name in ("whole", "stopped")]
    moments = [end.optimizer() for end in ends if end is not None]
    assert moments[0].keys() == moments[1].keys()
    assert all(torch.equal(moments[0][name], moments[1][name]) for name in moments[0])
    return steps(folder / "whole"), whole


def warmed(step: int) -> float:
    """DeepSpeed counts from 0 and sets the first rate at its construction."""
    return min(1.0, max(step - 1, 0) / WARMUP)


SCHEDULERS: dict[str, tuple[int, dict[str, Any], Callable[[int], float]]] = {
    "WarmupLR": (2, {"warmup_max_lr": "auto", "warmup_type": "linear"}, lambda step: LR * warmed(step)),
    "WarmupDecayLR": (
        3, {"warmup_max_lr": "auto", "total_num_steps": "auto", "warmup_type": "linear"},
        lambda step: LR * (warmed(step) if step <= WARMUP else (STEPS - step + 1) / (STEPS - WARMUP)),
    ),
    "WarmupCosineLR": (
        0, {"total_num_steps": "auto", "warmup_type": "linear", "cos_min_ratio": 0.1},
        lambda step: LR * (warmed(step) if step <= WARMUP else
                           0.1 + 0.9 * (1 + math.cos(math.pi * min(1, (step - WARMUP) / (STEPS - WARMUP)))) / 2),
    ),
    "OneCycle": (
        1, {"cycle_min_lr": 0.01, "cycle_max_lr": 0.05, "cycle_first_step_size": 4},
        lambda step: 0.01 + 0.01 * (min(step - 1, 9 - step)),
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", SCHEDULERS)
def test_a_scheduler_goes_on_with_the_rate_that_it_would_have_had(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage, params, rate = SCHEDULERS[kind]
    warmup = {} if kind == "OneCycle" else {"warmup_num_steps": "auto"}
    content = {**ADAMW, "scheduler": {"type": kind, "params": {**params, **warmup}}, **zero(stage)}
    log, _ = same_stopped(content, tmp_path, monkeypatch)
    told = [row["lr"] for row in log]
    # The construction and the first step of the others both give the rate of count 0.
    late = 0 if kind == "OneCycle" else 1
    expected = [rate(max(step - late, 1)) for step in range(1, STEPS + 1)]
    assert told == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize(
    ("content", "moments"),
    [
        ({"optimizer": {"type": "sgd", "params": {"lr": "auto", "momentum": 0.9}}, **zero(2)}, {"momentum_buffer"}),
        ({"optimizer": {"type": "SGD", "params": {"lr": "auto"}}, **zero(0)}, set()),
        ({"optimizer": {"type": "Adam", "params": PARAMS | {"adam_w_mode": False}}, **zero(1)}, ADAMS),
        (zero(2, offload_optimizer={"device": "cpu", "pin_memory": True}), ADAMS),
        (zero(3, offload_optimizer={"device": "cpu"}, offload_param={"device": "cpu"}), ADAMS),
    ],
    ids=["sgd with momentum", "sgd", "adam", "offload 2", "offload 3"],
)  # fmt: skip
def test_optimizers_and_offloading_train_and_go_on(
    content: dict[str, Any], moments: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, _ = same_stopped(content, tmp_path, monkeypatch)
    assert log[-1]["loss"] < log[0]["loss"]
    saved = find_latest_valid(tmp_path / "whole" / "checkpoints")
    assert saved is not None
    assert {name.rpartition(".")[2] for name in saved.optimizer()} == moments


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_bf16_mode_keeps_float32_in_its_checkpoints(
    stage: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, model = same_stopped({"bf16": {"enabled": True}, **zero(stage)}, tmp_path, monkeypatch, "bfloat16")
    assert log[-1]["loss"] < log[0]["loss"]
    assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}
    saved = find_latest_valid(tmp_path / "whole" / "checkpoints")
    assert saved is not None
    weights = saved.weights()
    assert {value.dtype for value in weights.values()} == {torch.float32}
    assert any(not torch.equal(value, value.bfloat16().float()) for value in weights.values())  # not rounded


TWO_RANKS: dict[str, tuple[dict[str, Any], Literal["float32", "bfloat16"]]] = {
    "bf16-0": ({"bf16": {"enabled": True}, **zero(0)}, "bfloat16"),
    "bf16-3": ({"bf16": {"enabled": True}, **zero(3)}, "bfloat16"),
    "scheduler-2": (
        {**ADAMW, "scheduler": {"type": "WarmupLR", "params": {"warmup_num_steps": "auto"}}, **zero(2)}, "float32"
    ),
    "sgd-3": ({"optimizer": {"type": "SGD", "params": {"lr": "auto", "momentum": 0.9}}, **zero(3)}, "float32"),
    "offload-2": (zero(2, offload_optimizer={"device": "cpu"}), "float32"),
}  # fmt: skip


def test_two_ranks_train_as_one_does(tmp_path: Path) -> None:
    trained = {}
    for ranks in (1, 2):
        folder = tmp_path / str(ranks)
        folder.mkdir()
        for name, (content, _) in TWO_RANKS.items():
            (folder / f"{name}.json").write_text(json.dumps(content))
        modes = [f"{name}:{dtype}" for name, (_, dtype) in TWO_RANKS.items()]
        finish(start_ranks(ranks, "tests.training.deepspeed_modes_worker", folder, *modes))
        trained[ranks] = {name: [(row["lr"], row["loss"]) for row in steps(folder / name)] for name in TWO_RANKS}
    for name, (_, dtype) in TWO_RANKS.items():
        one, two = trained[1][name], trained[2][name]
        assert [lr for lr, _ in one] == [lr for lr, _ in two]
        tolerance = 2e-2 if dtype == "bfloat16" else 1e-5
        assert [loss for _, loss in two] == pytest.approx([loss for _, loss in one], rel=tolerance), name


@pytest.mark.parametrize("stage", [0, 1])
def test_fp16_goes_on_with_its_loss_scale_and_without_the_steps_that_it_skipped(
    stage: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the CPU, where it is refused otherwise; the scale begins so high that the first gradients overflow."""
    from deepspeed.accelerator import get_accelerator

    monkeypatch.setattr(engine, "refuse_half_without_gpu", lambda settings: None)
    monkeypatch.setattr(get_accelerator(), "is_fp16_supported", lambda: True)
    fp16 = {"enabled": True, "initial_scale_power": 18, "loss_scale_window": 3, "hysteresis": 1}
    same_stopped({"fp16": fp16, **zero(stage)}, tmp_path, monkeypatch, "float16")
    saved = find_latest_valid(tmp_path / "stopped" / "checkpoints")
    assert saved is not None
    state = saved.state["loss_scale"]
    assert 0 < state["skipped_steps"] < STEPS
    assert state["cur_iter"] == STEPS
    assert state["cur_scale"] != 2**18


def test_stage_2_trains_in_bf16_mode_and_leaves_stage_1_as_it_was(artefacts: Any, tmp_path: Path) -> None:
    """The memories' norms meet float32 rows of the banks, the decoder's norms what autocast makes."""
    file = tmp_path / "mine.json"
    file.write_text(json.dumps({"bfloat16": {"enabled": True}, **zero(3)}))
    change = {"dtype": "bfloat16", "ds_config": str(file), "epochs": 1, "batch_size": 8}
    config = dataclasses.replace(artefacts.config, stage2=dataclasses.replace(artefacts.config.stage2, **change))
    train_stage2(config, artefacts.data, artefacts.stage1, artefacts.banks, tmp_path / "made")
    (row,) = [json.loads(line) for line in (tmp_path / "made" / "curves.jsonl").read_text().splitlines()]
    assert math.isfinite(row["val_loss"])
    mine, theirs = (folder / "model.safetensors" for folder in (
        tmp_path / "made" / "model" / "stage1", artefacts.stage1 / "model"
    ))  # fmt: skip
    assert mine.read_bytes() == theirs.read_bytes()
