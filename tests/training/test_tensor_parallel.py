"""A language model that ranks share learns what it learns on one, and is saved whole."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from amrg.cluster import pipeline as cluster
from amrg.distributed import TensorGroups
from amrg.errors import UserError
from amrg.models.tensor_parallel import split_decoder
from amrg.pipeline import run_pipeline_step
from amrg.planning.meta_models import stage2_skeleton
from amrg.planning.zero_memory import count_parameters
from amrg.preflight import Run, examine_steps
from benchmarks.architectures import make_folder
from tests.training.tensor_parallel_worker import DECODERS, configuration, write_decoders
from tests.training.test_sharding_equivalence import lines, start

RANKS = int(os.environ.get("AMRG_TENSOR_RANKS", "2"))  # 4: two that share a model, and two such pairs


def test_ranks_that_share_a_model_learn_and_save_what_one_does(artefacts: Any, tmp_path: Path) -> None:
    """Also with gradients that are accumulated and clipped, and gone on with from a checkpoint under another ZeRO."""
    shared, alone, decoders = (tmp_path / name for name in ("shared", "alone", "decoders"))
    for runs in (shared, alone):
        shutil.copytree(artefacts.data.parent, runs / "tiny")
    write_decoders(decoders)
    start(RANKS, shared, decoders, script="tensor_parallel_worker")
    for tuning in DECODERS:
        expected = run_pipeline_step("stage2", configuration(alone, decoders, tuning)).path
        found = shared / "tiny" / expected.name
        for file, keys in (("logs/steps.jsonl", ("loss", "gradient_norm")), ("curves.jsonl", ("val_loss",))):
            rows, wanted = (lines(folder / file) for folder in (found, expected))
            assert len(rows) == len(wanted) > 0
            for key in keys:
                if key in rows[0]:
                    near = pytest.approx([row[key] for row in wanted], rel=1e-5)
                    assert [row[key] for row in rows] == near, (tuning, key)
        files = sorted(path.relative_to(expected) for path in (expected / "model").rglob("*.safetensors"))
        assert [path.relative_to(found) for path in sorted((found / "model").rglob("*.safetensors"))] == files
        assert len(files) == (2 if tuning == "frozen" else 3)
        for file in files:
            weights, truth = load_file(found / file), load_file(expected / file)
            assert weights.keys() == truth.keys()
            for key, value in weights.items():
                torch.testing.assert_close(value, truth[key], rtol=1e-3, atol=2e-5, msg=f"{tuning} {file} {key}")
        config = Path("model", "config.json")
        assert (found / config).read_text() == (expected / config).read_text()  # with the fingerprint of the base
        # Frozen, one process reads what was saved; else the ranks have read it in parts.
        reports, wanted = (
            lines(run_pipeline_step("generate", configuration(runs, decoders, tuning)).path / "reports.jsonl")
            for runs in (shared, alone)
        )
        assert len(reports) == 5
        assert [line["generated"] for line in reports] == [line["generated"] for line in wanted]


@pytest.mark.parametrize(
    ("family", "changes", "content", "line"),
    [
        ("llama", {}, {"zero_optimization": {"stage": 3}}, "does not go with ZeRO 3"),
        ("llama", {}, {"zero_optimization": {"stage": 1, "offload_optimizer": {"device": "cpu"}}}, "offload_optimizer"),
        ("llama", {}, {"bf16": {"enabled": True}}, "bf16 and fp16 modes"),
        ("llama", {"base_dtype": "nf4"}, {}, "base_dtype nf4: take bfloat16"),
        ("llama", {}, {"tensor_parallel": {"autotp_size": 3}}, "does not divide 4 ranks"),
        ("llama", {}, {"tensor_parallel": {"autotp_size": 4}}, "has 2 key value heads"),
        ("gpt2", {}, {}, "`gpt2` is not split over ranks (transformers has no plan for it)"),
        ("qwen3_moe", {}, {}, "the plan of transformers says moe_tp_experts"),
        ("llama", {}, {"tensor_parallel": {"autotp_size": "2"}}, "the number of ranks that share a model"),
        (
            "llama",
            {},
            {"tensor_parallel": {"autotp_size": 2, "preset_model": "llama"}},
            "preset_model` is not supported",
        ),
    ],
)
def test_what_ranks_cannot_share_is_refused_in_a_line(
    artefacts: Any, tmp_path: Path, family: str, changes: Any, content: Any, line: str
) -> None:
    make_folder(family, tmp_path / family)
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"tensor_parallel": {"autotp_size": 2}, **content}))
    config = artefacts.config
    dtype = "bfloat16" if "bf16" in content else "float32"
    config = replace(
        config,
        decoder=replace(config.decoder, model=str(tmp_path / family), tuning="lora", **changes),
        stage2=replace(config.stage2, ds_config=str(path), dtype=dtype),
    )
    faults, _ = examine_steps(["stage2"], Run(config, artefacts.data, 4, None))
    assert any(line in fault for fault in faults)
    assert all("\n" not in fault for fault in faults)


def test_stage_1_compilation_and_ray_are_refused_in_a_line(artefacts: Any, tmp_path: Path) -> None:
    write_decoders(tmp_path)
    shared = str(tmp_path / "zero1.json")
    config = configuration(tmp_path, tmp_path, "lora", shared)
    compiled = replace(config, stage2=replace(config.stage2, compile=True))
    classifier = replace(config, stage1=replace(config.stage1, ds_config=shared))
    for verb, changed, line in (
        ("stage2", compiled, "does not go with stage2.compile"),
        ("stage1", classifier, "stage1 has none: take another"),
    ):
        faults, _ = examine_steps([verb], Run(changed, artefacts.data, 2, None))
        assert len(faults) == 1, faults
        assert line in faults[0]
    with pytest.raises(UserError, match="workers of a Ray cluster do not share a language model"):
        cluster.run_on_ray(config)


def test_a_dora_is_refused_where_a_lora_is_split(tmp_path: Path) -> None:
    make_folder("llama", tmp_path)
    for dora in (False, True):
        model = AutoModelForCausalLM.from_pretrained(tmp_path)
        tuned = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear", use_dora=dora))
        if dora:
            with pytest.raises(UserError, match="_proj has a DoRA, which is not split"):
                split_decoder(tuned, TensorGroups(2))
        else:
            split_decoder(tuned, TensorGroups(2))


def test_a_plan_counts_the_part_of_a_rank(artefacts: Any, tmp_path: Path) -> None:
    """Of a Llama with 2 layers of 32 × 32 (two of 16 × 32) and three of 32 × 48; the rest is whole."""
    write_decoders(tmp_path)
    counts = []
    for ds_config in ("zero1.json", str(tmp_path / "zero1.json")):
        config = configuration(tmp_path, tmp_path, "lora", ds_config)
        weights = count_parameters(stage2_skeleton(config).model, "float32")
        counts.append((sum(weights.frozen), weights.trainable, weights.saved))
    (whole, trained, saved), (part, trained_part, saved_part) = counts
    split = 2 * (2 * 32 * 32 + 2 * 16 * 32 + 3 * 32 * 48)
    assert whole - part == split / 2
    # Rank 3: of a column layer the second matrix is split, of a row layer the first.
    assert trained - trained_part == 2 * 3 * (32 + 2 * 16 + 2 * 48 + 32 + 48) / 2
    assert saved_part == saved == trained
