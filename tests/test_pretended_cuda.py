"""The whole chain on a pretended GPU: no operator meets tensors on different devices, and few wait for the device."""

import dataclasses
import re
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers.generation.streamers import BaseStreamer

from amrg import distributed
from amrg.models.classifier import DiseaseClassifier
from amrg.models.retrieval_loss import Wanted
from amrg.training import engine
from amrg.training.deepspeed_config import OptimizerSettings
from amrg.training.report_loss import report_token_loss
from amrg.training.stage2_batches import BatchSource
from tests.models import test_report_generator as small
from tests.pretended_cuda import CUDA, MixedDevicesError, PretendedCuda
from tests.pretended_run import WAYS

ROOT = Path(__file__).resolve().parent.parent


def test_the_pretended_device_refuses_what_a_gpu_refuses():
    with PretendedCuda() as pretended:
        here, there = torch.ones(3), torch.ones(3, device=CUDA)
        assert there.is_cuda
        assert (2 * there).device == CUDA
        with pytest.raises(MixedDevicesError, match=r"aten::add: cpu\[3\], cuda:0\[3\]"):
            here + there
        with pytest.raises(TypeError, match="can't convert cuda:0"):
            there.numpy()
        with pytest.raises(RuntimeError, match="generator"):
            torch.rand(3, device=CUDA, generator=torch.Generator())
        assert not pretended.syncs
        assert float((here.to(CUDA) + there).sum()) == 6
        assert sum(pretended.syncs.values()) == 1


@pytest.mark.parametrize(("seen", "expected"), [(8, 3), (1, 0)])
def test_a_rank_that_a_launcher_shows_its_own_gpu_alone_takes_it(seen, expected, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: seen)
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert distributed.local_device() == torch.device("cuda", expected)


@pytest.fixture
def model(monkeypatch):
    monkeypatch.setenv("AMRG_RETRIEVAL", "blockwise")  # Triton would ask the driver
    distributed.init_process_group()
    torch.manual_seed(0)
    classifier = DiseaseClassifier(small.VISION, pretrained=False).requires_grad_(False).eval()
    return small.build(classifier, dataclasses.replace(small.MEMORY, dropout=0.1))


@pytest.mark.parametrize("ds_config", ["zero0.json", "zero1.json", "zero2.json", "zero3.json"])
def test_a_training_step_reads_from_the_gpu_at_most_twice(model, ds_config):
    """With dropout and the losses of both memories; what DeepSpeed uploads and waits for is its own."""
    seen, groups, report_BT = small.inputs(model)
    set_BQ = torch.full((3, 14), -1)
    set_BQ[0, 2] = 0
    settings = OptimizerSettings("stage2", 1, 3, 1e-3, 0.05, 0.0, 1.0, "bfloat16", ds_config=ds_config)
    with PretendedCuda() as pretended, engine.restore_functional_linear():
        model.to(CUDA).train()
        rows_ND, sets_SN = model.visual_memory.memory, torch.ones(1, 7, dtype=torch.bool).to(CUDA)
        wanted = Wanted(rows_ND, model.visual_memory.memory_group, sets_SN, set_BQ)
        loss = partial(
            report_token_loss,
            own_reports=SimpleNamespace(
                weight=1.0, vectors_for=lambda keys: small.own_reports().to(CUDA, non_blocking=True)
            ),
            wanted_rows=SimpleNamespace(weight=1.0, of=lambda keys: wanted),
        )
        training = engine.Engine(model, loss, settings, 10)
        packed = {"group": groups, "report": report_BT, "counts": torch.ones(3), "study": ["a", "b", "c"]}
        for _ in range(3):  # ZeRO 3 learns the order of the modules in the first steps
            pretended.syncs.clear()
            pretended.uploads.clear()
            vision = tuple(part.to(CUDA, non_blocking=True) for part in seen)
            batch = BatchSource.with_token_weights(None, {**packed, "vision": vision})
            numbers, _ = training.step(batch, 1e-3)
    print(f"{ds_config}: synchronizations of a step: {dict(pretended.syncs)}")
    assert numbers.keys() == {"loss", "retrieval_loss", "association_loss"}
    assert sum(pretended.syncs.values()) <= 2, pretended.syncs
    own = [
        place for place in pretended.uploads if not re.match(r"amrg/training/(engine|deepspeed_internals).py", place)
    ]
    assert not own


class _Streamed(BaseStreamer):
    """Takes tokens to the host, as ``amrg view`` does."""

    def put(self, value):
        value.tolist()

    def end(self):
        """Nothing is left to tell."""


@pytest.mark.parametrize(("beams", "streamed", "most"), [(1, False, 1), (3, False, 1), (1, True, 2)])
def test_a_written_token_waits_for_the_gpu_at_most_twice(model, beams, streamed, most):
    seen, groups, _ = small.inputs(model)
    counts = []
    with PretendedCuda() as pretended:
        model.to(CUDA).eval()
        vision = type(seen)(*(part[:1].to(CUDA) for part in seen))
        group_B = groups[:1].to(CUDA)
        for tokens in (6, 16):
            decoding = dataclasses.replace(
                small.DECODING, num_beams=beams, min_new_tokens=tokens, max_new_tokens=tokens, repetition_penalty=1.3
            )
            pretended.syncs.clear()
            pretended.uploads.clear()
            streamer = _Streamed() if streamed else None
            model.generate(vision, group_B, decoding, streamer=streamer, forced_prefixes=["The heart"])
            counts.append(sum((pretended.syncs + pretended.uploads).values()))
    print(f"{beams} beams, {streamed=}: {(counts[1] - counts[0]) / 10:g} synchronizations of a token")
    assert counts[1] - counts[0] == 10 * most


def test_the_chain_runs_on_it_in_several_ways(tmp_path):
    command = [sys.executable, "-m", "tests.pretended_run", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    print(done.stdout)
    counts = dict(re.findall(r"^(\w.*): (\d+) synchronizations$", done.stdout, re.M))
    assert list(counts) == ["chain", *WAYS]
