"""How DeepSpeed trains is not what is learned: one artefact, and a training goes on under another engine."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from amrg.pipeline import STEPS, step_recipe
from amrg.training.deepspeed_config import keys_that_change_training
from amrg.training.deepspeed_json import load_ds_config
from tests.training.engine_settings_worker import ENGINES, configuration
from tests.training.test_sharding_equivalence import lines, start


def identity(verb: str, config: Any) -> str:
    return step_recipe(verb, config).identity


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_training_goes_on_under_another_engine_in_the_same_folder(artefacts: Any, tmp_path: Path, ranks: int) -> None:
    straight, changing = tmp_path / "straight", tmp_path / "changing"
    for runs in (straight, changing):
        shutil.copytree(artefacts.data.parent, runs / "tiny")
    start(ranks, straight, changing, script="engine_settings_worker")
    (one,), (other,) = (list((runs / "tiny").glob("stage2-*")) for runs in (straight, changing))
    assert one.name == other.name
    expected, found = (lines(folder / "logs" / "steps.jsonl") for folder in (one, other))
    assert [row["step"] for row in found] == [row["step"] for row in expected] == list(range(1, 13))
    assert [row["loss"] for row in found] == pytest.approx([row["loss"] for row in expected], rel=1e-5)
    for row, wanted in zip(lines(other / "curves.jsonl"), lines(one / "curves.jsonl"), strict=True):
        assert row["val_loss"] == pytest.approx(wanted["val_loss"], rel=1e-5)
    manifest = json.loads((other / "manifest.json").read_text())  # tells the engine that ended it
    assert manifest["config"]["stage2"]["ds_config"] == load_ds_config("zero1.json")
    for change, _ in ENGINES:  # whatever the flags, reports are written by this one
        assert step_recipe("generate", configuration(str(changing), change)).inputs["stage2"].path == other


@pytest.mark.parametrize("verb", ["stage1", "stage2"])
def test_only_what_is_learned_identifies_a_training(artefacts: Any, tmp_path: Path, verb: str) -> None:
    def changed(**change: Any) -> Any:
        return dataclasses.replace(
            artefacts.config, **{verb: dataclasses.replace(getattr(artefacts.config, verb), **change)}
        )

    def written(**content: Any) -> Any:
        path = tmp_path / "mine.json"
        path.write_text(json.dumps(content))
        return identity(verb, changed(ds_config=str(path)))

    plain = identity(verb, artefacts.config)
    names = (*(f"zero{stage}" for stage in range(4)), "zero3_offload", "zero3_nvme")
    assert {identity(verb, changed(ds_config=f"{name}.json")) for name in names} == {plain}
    assert written() == plain
    assert written(train_micro_batch_size_per_gpu=2, steps_per_print=7, bf16={"enabled": False}) == plain
    assert written(gradient_clipping=3.0) == plain  # `resolve` refuses one that is not ours
    others = (
        written(optimizer={"type": "SGD"}),
        written(optimizer={"type": "AdamW", "params": {"betas": [0.8, 0.9]}}),
        written(optimizer={"type": "AdamW", "params": {"adam_w_mode": False}}),
        written(scheduler={"type": "WarmupLR", "params": {"warmup_num_steps": "auto"}}),
        written(bf16={"enabled": True}),
        written(zero_optimization={"stage": 3, "zero_quantized_gradients": True}),
        written(a_key_to_come=1),
        identity(verb, changed(lr=0.5)),
        identity(verb, changed(batch_size=4)),
    )
    assert len({plain, *others}) == len(others) + 1
    if verb == "stage2":
        for change in ({"activation_checkpointing": True}, {"compile": True}, {"num_sample_reports": 0}):
            assert identity(verb, changed(**change)) == plain


@pytest.mark.parametrize(("verb", "zero"), [("stage1", 0), ("stage2", 1)])
def test_artefacts_of_the_default_engine_keep_their_names(artefacts: Any, verb: str, zero: int) -> None:
    """The identity was that of all settings, with the whole JSON."""
    assert keys_that_change_training(load_ds_config("zero3.json"), zero) == load_ds_config(f"zero{zero}.json")
    step, plan = STEPS[verb], step_recipe(verb, artefacts.config)
    assert plan.config == plan.entry == step.settings(artefacts.config)
