"""The loop under real DeepSpeed processes: killed and resumed, over ranks and ZeRO stages."""

import contextlib
import json
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from amrg import distributed
from amrg.errors import UserError
from amrg.precision import matmul_precision
from amrg.training import checkpoint, engine
from amrg.training.deepspeed_config import OptimizerSettings
from tests.processes import finish, start_ranks

TOY = "tests.training.toy_training_worker"
STEPS = 9


def steps(folder: Path) -> list[dict[str, float]]:
    log = folder / "logs" / "steps.jsonl"
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


def saved_and_told(folder: Path) -> tuple[int, list[dict[str, float]]]:
    """The step of the last checkpoint, and the steps that are logged."""
    found = checkpoint.find_latest_valid(folder / "checkpoints")
    return (found.state["step"] if found else 0), steps(folder)


def losses(folder: Path) -> list[float]:
    return [row["loss"] for row in steps(folder)]


@pytest.mark.parametrize(("ranks", "config", "killed_after"), [(1, "zero1.json", 5), (2, "zero3.json", 7)])
def test_killed_and_resumed_run_ends_in_the_same_bits(
    tmp_path: Path, ranks: int, config: str, killed_after: int
) -> None:
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    finish(start_ranks(ranks, TOY, straight, 0.0, config))
    processes = start_ranks(ranks, TOY, broken, 0.3, config)
    deadline = time.monotonic() + 60
    while len(steps(broken / config)) < killed_after and time.monotonic() < deadline:
        time.sleep(0.02)
    for process in processes:
        process.kill()
        process.join()
    assert killed_after <= len(steps(broken / config)) < STEPS
    saved, before = saved_and_told(broken / config)
    assert saved > 0
    finish(start_ranks(ranks, TOY, broken, 0.0, config))

    rows = steps(broken / config)
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))  # each told once
    assert rows[:saved] == before[:saved]  # their times, too: none was done again
    assert (broken / config / "curves.jsonl").read_bytes() == (straight / config / "curves.jsonl").read_bytes()
    assert (broken / config / "model.safetensors").read_bytes() == (
        straight / config / "model.safetensors"
    ).read_bytes()
    mine, theirs = (checkpoint.find_latest_valid(folder / config / "checkpoints") for folder in (broken, straight))
    assert mine is not None
    assert theirs is not None
    for left, right in ((mine.weights(), theirs.weights()), (mine.optimizer(), theirs.optimizer())):
        assert left.keys() == right.keys()
        assert all(torch.equal(left[key], right[key]) for key in left)


def test_zero_stages_agree_on_two_ranks(tmp_path: Path) -> None:
    configs = [f"zero{stage}.json" for stage in range(4)]
    finish(start_ranks(2, TOY, tmp_path, 0.0, *configs))
    reference = load_file(tmp_path / configs[0] / "model.safetensors")
    for config in configs[1:]:
        assert losses(tmp_path / config) == pytest.approx(losses(tmp_path / configs[0]), rel=1e-5)
        found = load_file(tmp_path / config / "model.safetensors")
        for name, value in reference.items():
            torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-6)


def test_resume_under_another_world_size_and_stage(tmp_path: Path) -> None:
    """A ZeRO-3 checkpoint of two ranks goes on with one rank and no ZeRO from the same weights."""
    processes = start_ranks(2, TOY, tmp_path, 0.3, "zero3.json")
    deadline = time.monotonic() + 60
    while len(steps(tmp_path / "zero3.json")) < 4 and time.monotonic() < deadline:
        time.sleep(0.02)
    for process in processes:
        process.kill()
        process.join()
    saved, before = saved_and_told(tmp_path / "zero3.json")
    (tmp_path / "zero3.json").rename(tmp_path / "zero0.json")
    finish(start_ranks(1, TOY, tmp_path, 0.0, "zero0.json"))
    rows = steps(tmp_path / "zero0.json")
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    assert rows[:saved] == before[:saved]  # their times, too: none was done again
    assert (tmp_path / "zero0.json" / "model.safetensors").exists()


def test_a_partitioned_module_computes_what_it_did(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.nn.functional, "linear", torch._C._nn.linear)  # also after others' ZeRO 3
    distributed.init_process_group()
    torch.manual_seed(0)
    module, inputs = (
        torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.Tanh(), torch.nn.Linear(7, 3)),
        torch.randn(4, 5),
    )
    expected = module(inputs)
    with pytest.raises(UserError, match="stage 1: only stage 3"):
        engine.zero3_section("zero1.json", required=True)
    assert engine.zero3_section("zero1.json") is None
    zero = engine.zero3_section("zero3.json", required=True)
    assert zero is not None
    before = torch.nn.functional.linear
    with engine.restore_functional_linear():
        engine.partition_weights(module, zero)
        assert all(parameter.numel() == 0 for parameter in module.parameters())  # apart until a layer is computed
        for _ in range(2):
            torch.testing.assert_close(module(inputs), expected)
        assert torch.nn.functional.linear is not before
    assert torch.nn.functional.linear is before


@pytest.mark.parametrize(("dtype", "inside"), [("bfloat16", "medium"), ("float32", "high"), ("float16", "high")])
def test_rounded_products_end_with_the_step(dtype: str, inside: str) -> None:
    """What a float32 run may round stays as the user set it, also after an error."""
    torch.set_float32_matmul_precision("high")
    try:
        with contextlib.suppress(ZeroDivisionError), matmul_precision(dtype):
            assert torch.get_float32_matmul_precision() == inside
            raise ZeroDivisionError
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize(
    ("dtype", "capabilities", "noted"),
    [
        ("bfloat16", {"avx512_bf16": False, "amx_bf16": False}, True),
        ("bfloat16", {"avx512_bf16": True, "amx_bf16": False}, False),
        ("bfloat16", {"neon": True, "bf16": True}, False),
        ("float32", {"avx512_bf16": False}, False),
    ],
)
def test_a_cpu_without_bfloat16_is_named_before_the_training(
    dtype: str,
    capabilities: dict[str, bool],
    noted: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    settings = OptimizerSettings("stage1", 1, 4, 0.05, 0.1, 0.0, 1e9, dtype, ds_config="zero1.json")
    engine.note_emulated_bfloat16(settings)
    expected = "stage1.dtype bfloat16 is emulated by this CPU: float32 is usually faster\n"
    assert capsys.readouterr().err == (expected if noted else "")
