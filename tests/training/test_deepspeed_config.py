"""What becomes of a DeepSpeed JSON."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from amrg.errors import UserError
from amrg.training.deepspeed_config import OptimizerSettings, resolve_ds_config
from amrg.training.deepspeed_json import load_ds_config

OURS = OptimizerSettings("stage2", 3, 32, 1e-3, 0.05, 0.1, 1.0, "bfloat16", ds_config="mine.json")


@pytest.mark.parametrize(
    "name", ["zero0.json", "zero1.json", "zero2.json", "zero3.json", "zero3_offload.json", "zero3_nvme.json"]
)
def test_shipped_files_resolve(name: str) -> None:
    resolved = resolve_ds_config(load_ds_config(name), OURS, world_size=2, total_steps=30)
    assert resolved["train_batch_size"] == 32
    assert resolved["train_micro_batch_size_per_gpu"] == 16
    assert resolved["gradient_clipping"] == 1.0
    assert "auto" not in json.dumps(resolved)


def test_unknown_keys_pass_untouched_and_the_input_is_not_changed() -> None:
    content = {"wall_clock_breakdown": True, "zero_optimization": {"stage": 3, "reduce_bucket_size": "auto"}}
    resolved = resolve_ds_config(content, OURS, 1, 30)
    assert resolved["wall_clock_breakdown"] is True
    assert resolved["zero_optimization"] == {"stage": 3}
    assert content["zero_optimization"] == {"stage": 3, "reduce_bucket_size": "auto"}


def test_auto_optimizer_and_scheduler() -> None:
    content: dict[str, Any] = {
        "optimizer": {
            "type": "AdamW",
            "params": {"lr": "auto", "betas": "auto", "eps": "auto", "weight_decay": "auto"},
        },
        "scheduler": {"type": "WarmupLR", "params": {"warmup_max_lr": "auto", "warmup_num_steps": "auto"}},
    }
    resolved = resolve_ds_config(content, OURS, 1, 30)
    assert resolved["optimizer"]["params"] == {"lr": 1e-3, "betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0.05}
    assert resolved["scheduler"]["params"] == {"warmup_max_lr": 1e-3, "warmup_num_steps": 3}


def test_micro_batch_gives_accumulation() -> None:
    resolved = resolve_ds_config({"train_micro_batch_size_per_gpu": 4}, OURS, 2, 30)
    assert resolved["gradient_accumulation_steps"] == 4


@pytest.mark.parametrize(
    ("content", "both"),
    [
        ({"train_batch_size": 64}, ("64", "32")),
        ({"gradient_clipping": 0.5}, ("0.5", "1.0")),
        ({"optimizer": {"type": "AdamW", "params": {"lr": 5e-5}}}, ("5e-05", "0.001")),
        ({"fp16": {"enabled": True}}, ("fp16.enabled", "bfloat16")),
        ({"train_micro_batch_size_per_gpu": 5}, ("5", "32")),
    ],
)
def test_a_conflict_names_both_values(content: dict[str, Any], both: tuple[str, str]) -> None:
    with pytest.raises(UserError) as error:
        resolve_ds_config(content, OURS, 2, 30)
    assert all(value in str(error.value) for value in both)
    assert "\n" not in str(error.value)


def test_a_rate_of_the_decoder_and_a_scheduler_of_the_file_exclude_each_other() -> None:
    apart = dataclasses.replace(OURS, decoder_lr=1e-4)
    scheduled = {"scheduler": {"type": "WarmupLR", "params": {"warmup_max_lr": "auto"}}}
    with pytest.raises(UserError, match=r"mine\.json brings a scheduler.* but stage2\.decoder_lr is 0\.0001") as error:
        resolve_ds_config(scheduled, apart, 1, 30)
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match=r"but \w+\.qformer_lr is 5e-05"):
        resolve_ds_config(scheduled, dataclasses.replace(OURS, qformer_lr=5e-5), 1, 30)
    assert resolve_ds_config({}, apart, 1, 30)
    assert resolve_ds_config(scheduled, dataclasses.replace(apart, decoder_lr=OURS.lr), 1, 30)["scheduler"]


def test_bf16_of_the_file_must_fit_ours() -> None:
    assert resolve_ds_config({"bf16": {"enabled": True}}, OURS, 1, 30)["bf16"]["enabled"] is True
    with pytest.raises(UserError, match="float32"):
        resolve_ds_config({"bf16": {"enabled": True}}, dataclasses.replace(OURS, dtype="float32"), 1, 30)


def test_an_auto_that_nothing_fills_is_named() -> None:
    with pytest.raises(UserError, match=r"aio\.block_size"):
        resolve_ds_config({"aio": {"block_size": "auto"}}, OURS, 1, 30)


@pytest.mark.parametrize("text", ["{", "[]"])
def test_a_broken_file(tmp_path: Path, text: str) -> None:
    path = tmp_path / "broken.json"
    path.write_text(text)
    with pytest.raises(UserError, match="JSON"):
        load_ds_config(str(path))
