"""The proof at scale, at the smallest scale."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

from amrg.banks.bank import REPORTS, MemoryBank
from benchmarks import scale_proof
from tests.conftest import report


def test_a_model_is_written_a_shard_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 64 pieces, 16 wide: embeddings and head 1,024 numbers each, a layer 4 × 256 + 3 × 512 and two norms of 16."""
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}
    monkeypatch.setattr(scale_proof, "SHARD_BYTES", 4000)
    scale_proof.write_model(tmp_path, LlamaConfig(vocab_size=64, **shape), [report(number) for number in range(6)])
    shards = sorted(tmp_path.glob("*.safetensors"))
    assert len(shards) > 3
    assert all(path.stat().st_size < 4000 + 2 * 1024 + 2000 for path in shards)  # one tensor and a header above it
    place = json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]
    for path in shards:
        with safe_open(path, "pt") as file:
            assert file.keys()
            assert sorted(file.keys()) == sorted(name for name, shard in place.items() if shard == path.name)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype="auto")
    assert sum(weight.numel() for weight in model.parameters()) == 2 * 1024 + 3 * (4 * 256 + 3 * 512 + 2 * 16) + 16
    assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}
    assert float(model.lm_head.weight.detach().float().std()) == pytest.approx(0.02, rel=0.1)
    assert len(AutoTokenizer.from_pretrained(tmp_path)) == 64


def test_a_step_and_a_report_on_two_ranks(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.scale_proof", str(tmp_path)]
    command += ["--layers", "1", "--hidden", "128", "--rows", "500", "--tokens", "3"]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stdout + done.stderr
    for part in ("a rank: weights", "stage 2: together", "report: together", "stage 2: loading in parts", "the step"):
        assert part in done.stdout
    runs = tmp_path / "runs" / "scale_proof"
    bank = MemoryBank.open(next(runs.glob("banks-*")) / REPORTS)
    assert (len(bank), bank.dim, bank.dtype) == (500, 768, torch.int8)
    (reports,) = runs.glob("reports-*")
    (line,) = (reports / "reports.jsonl").read_text().splitlines()
    assert json.loads(line)["generated"]
    assert "random" in json.loads((reports / "manifest.json").read_text())["mark"]
    (stage2,) = runs.glob("stage2-*")
    assert len((stage2 / "logs" / "steps.jsonl").read_text().splitlines()) == 1
