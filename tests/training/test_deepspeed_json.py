"""What people write into DeepSpeed JSONs: files like those that others publish, and values that are wrong."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from amrg.errors import UserError
from amrg.training.deepspeed_config import OptimizerSettings, engine_faults, resolve_ds_config
from amrg.training.deepspeed_internals import uses_torch_adam
from amrg.training.deepspeed_json import load_ds_config

AUTOS = dict.fromkeys(("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps"), "auto")
PARAMS = {"lr": "auto", "betas": "auto", "eps": "auto", "weight_decay": "auto"}
WARMUP = {"warmup_min_lr": "auto", "warmup_max_lr": "auto", "warmup_num_steps": "auto"}
FP16 = {"enabled": "auto", "loss_scale": 0, "loss_scale_window": 1000, "initial_scale_power": 16, "hysteresis": 2}
STAGE_3 = {
    "stage": 3, "overlap_comm": True, "contiguous_gradients": True, "sub_group_size": 1e9, "reduce_bucket_size": "auto",
    "stage3_prefetch_bucket_size": "auto", "stage3_param_persistence_threshold": "auto",
    "stage3_max_live_parameters": 1e9, "stage3_max_reuse_distance": 1e9,
    "stage3_gather_16bit_weights_on_model_save": True,
}  # fmt: skip
CPU = {"device": "cpu", "pin_memory": True}

#: The shapes of files in the documentation of transformers, in LLaMA-Factory, LLaVA and Axolotl.
PUBLISHED: dict[str, dict[str, Any]] = {
    "transformers, stage 2": AUTOS | {
        "fp16": FP16, "optimizer": {"type": "AdamW", "params": PARAMS},
        "scheduler": {"type": "WarmupLR", "params": WARMUP}, "gradient_clipping": "auto", "steps_per_print": 2000,
        "zero_optimization": {"stage": 2, "offload_optimizer": CPU, "allgather_partitions": True,
                              "reduce_scatter": True, "allgather_bucket_size": 2e8, "reduce_bucket_size": 2e8,
                              "overlap_comm": True},
    },
    "transformers, stage 3": AUTOS | {
        "bf16": {"enabled": "auto"}, "amp": {"enabled": "auto", "opt_level": "auto"}, "zero_optimization": STAGE_3,
        "scheduler": {"type": "WarmupDecayLR", "params": {**WARMUP, "total_num_steps": "auto"}},
    },
    "LLaMA-Factory, stage 2": AUTOS | {
        "gradient_clipping": "auto", "zero_allow_untested_optimizer": True, "fp16": FP16, "bf16": {"enabled": "auto"},
        "zero_optimization": {"stage": 2, "offload_optimizer": CPU, "allgather_partitions": True,
                              "allgather_bucket_size": 5e8, "overlap_comm": False, "reduce_scatter": True,
                              "reduce_bucket_size": 5e8, "contiguous_gradients": True, "round_robin_gradients": True},
    },
    "LLaVA, stage 3": AUTOS | {
        "fp16": FP16, "bf16": {"enabled": "auto"}, "gradient_clipping": "auto", "wall_clock_breakdown": False,
        "zero_optimization": STAGE_3 | {"offload_optimizer": CPU, "offload_param": CPU}, "steps_per_print": 1e5,
    },
    "Axolotl, stage 1": AUTOS | {
        "bf16": {"enabled": True}, "fp16": {**FP16, "enabled": "auto"}, "gradient_clipping": "auto",
        "zero_optimization": {"stage": 1, "overlap_comm": True},
    },
}  # fmt: skip


def settings(path: Path) -> OptimizerSettings:
    return OptimizerSettings("stage2", 3, 32, 1e-3, 0.05, 0.1, 1.0, "bfloat16", ds_config=str(path))


def written(folder: Path, content: Any) -> OptimizerSettings:
    path = folder / "mine.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return settings(path)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_files_are_filled_in_and_deepspeed_takes_them(name: str, tmp_path: Path) -> None:
    ours = written(tmp_path, PUBLISHED[name])
    assert engine_faults(ours, 2) == []
    resolved = resolve_ds_config(load_ds_config(ours.ds_config), ours, 2, 30)
    assert "auto" not in json.dumps(resolved)
    assert "amp" not in resolved
    if "scheduler" in resolved:
        filled = {"warmup_min_lr": 0.0, "warmup_max_lr": 1e-3, "warmup_num_steps": 3}
        assert resolved["scheduler"]["params"].items() >= filled.items()
    assert resolved.get("fp16", {}).get("enabled", False) is False


@pytest.mark.parametrize(
    ("content", "named"),
    [
        *(({"train_micro_batch_size_per_gpu": value}, "whole number") for value in (0, "4", 4.0, -4, True, [4], {})),
        ({"gradient_accumulation_steps": 0}, "`gradient_accumulation_steps` is 0"),
        ({"train_batch_size": "32"}, '`train_batch_size` is "32"'),
        ({"gradient_clipping": "1.0"}, "`gradient_clipping` is"),
        ({"steps_per_print": "10"}, "`steps_per_print` is"),
        ({"zero_optimization": True}, '"stage": 2'),
        ({"zero_optimization": [1]}, '"stage": 2'),
        *(({"zero_optimization": {"stage": value}}, "0, 1, 2 or 3") for value in (4, -1, True, "two", [3])),
        ({"zero_optimization": {"stage": 2, "offload_optimizer": "cpu"}}, "offload_optimizer"),
        ({"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "gpu"}}}, "device"),
        ({"zero_optimization": {"stage": 2, "reduce_buckets": 5}}, "reduce_buckets"),
        ({"bf16": True}, '"enabled": true'),
        ({"bf16": {"enabled": "yes"}}, "bf16.enabled"),
        ({"amp": {"enabled": True}}, "Apex"),
        ({"optimizer": "AdamW"}, "optimizer"),
        *(({"optimizer": {"type": name}}, "AdamW") for name in ("Lion", "Adafactor", "Lamb", "OneBitAdam", "Nope", 3)),
        ({"optimizer": {"params": {}}}, "`optimizer.type` is missing"),
        ({"optimizer": {"type": "AdamW", "params": {"lr": "1e-3"}}}, "optimizer.params.lr"),
        ({"optimizer": {"type": "AdamW", "params": {"betas": 0.9}}}, "betas"),
        ({"optimizer": {"type": "AdamW", "params": {"beta": 0.9}}}, "beta"),
        ({"scheduler": {"type": "Cosine"}}, "WarmupLR"),
        ({"scheduler": {"type": "WarmupLR", "params": {"warmup_steps": 3}}}, "warmup_steps"),
        ({"scheduler": {"type": "WarmupLR", "params": {"warmup_num_steps": "3"}}}, "warmup_num_steps"),
        ({"scheduler": {"type": "OneCycle", "params": {}}}, "cycle_min_lr"),
        ({"compile": {"disable": False, "backend": "inductor"}}, "backend"),
        ({"data_types": {"grad_accum_dtype": "float99"}}, "float99"),
        ('{"fp16": {"enabled": false}, "fp16": {}}', "`fp16` is there twice"),
        ('{"gradient_clipping": NaN}', "NaN"),
        ('{"gradient_clipping": 1.0,\n}', "line 2 column 1"),
        ("", "line 1 column 1"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_one_line_that_names_it(content: Any, named: str, tmp_path: Path) -> None:
    (fault,) = engine_faults(written(tmp_path, content), 2)
    assert "mine.json" in fault
    assert named in fault
    assert "\n" not in fault


def test_null_is_absent_and_encodings_of_windows_are_read(tmp_path: Path) -> None:
    content = {"zero_optimization": None, "optimizer": {"type": "adamw", "params": {"lr": None}}, "bf16": None}
    ours = written(tmp_path, content)
    assert load_ds_config(ours.ds_config) == {"optimizer": {"type": "AdamW", "params": {}}}
    for encoding in ("utf-8-sig", "utf-16"):
        Path(ours.ds_config).write_text(json.dumps({"zero_optimization": {"stage": "2"}}), encoding=encoding)
        assert load_ds_config(ours.ds_config) == {"zero_optimization": {"stage": 2}}


@pytest.mark.parametrize(
    ("gpu", "toolkit", "expected"), [(True, "/usr/local/cuda", False), (True, None, True), (False, None, True)]
)
def test_adam_is_torchs_where_deepspeed_could_not_compile_its_own(
    gpu: bool, toolkit: str | None, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr("torch.utils.cpp_extension.CUDA_HOME", toolkit)
    assert uses_torch_adam() == expected


def test_half_precision_of_deepspeed_is_never_of_stage_0() -> None:
    """Stage 0 keeps float32 copies of which checkpoints know nothing; stage 1 computes the same."""
    ours = settings(Path("mine.json"))
    assert resolve_ds_config({"bf16": {"enabled": True}}, ours, 2, 30)["zero_optimization"]["stage"] == 1
    assert resolve_ds_config({"bf16": {"enabled": True}, "zero_optimization": {"stage": 3}}, ours, 2, 30)[
        "zero_optimization"
    ] == {"stage": 3}
    assert "zero_optimization" not in resolve_ds_config({}, ours, 2, 30)
    with pytest.raises(UserError, match="float32"):
        resolve_ds_config({"bf16": {"enabled": True}}, OptimizerSettings(**{**vars(ours), "dtype": "float32"}), 2, 30)
