"""`amrg gpu-check` on a machine without a GPU: its dry run, and that it sees what is wrong."""

import json

import pytest
import torch

from amrg.commands import gpu_check
from amrg.errors import UserError
from amrg.gpu_checks import kernel_checks

CPU = torch.device("cpu")


def test_the_dry_run_passes_every_stage(tmp_path, capsys):
    out = tmp_path / "results" / "gpu.json"
    gpu_check.main(["--dry-run", "--out", str(out)])
    results = json.loads(out.read_text())
    assert tuple(results) == gpu_check.STAGES
    assert not any(result["failures"] for result in results.values())
    assert len(results["kernels"]["rows"]) == 3
    assert "1 of 1 runs ended well" in capsys.readouterr().out


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(tmp_path):
    with pytest.raises(UserError, match="no GPU that this torch can use"):
        gpu_check.main(["--out", str(tmp_path / "gpu.json")])


def test_a_wrong_back_end_fails_and_the_other_stages_still_run(tmp_path, monkeypatch):
    class Wrong(kernel_checks._Blockwise):
        def forward(self, top_k, return_entropy):
            o, *rest = super().forward(top_k, return_entropy)
            return (o * 1.05, *rest)

    def broken(device):
        raise RuntimeError("an illegal memory access was encountered")

    monkeypatch.setattr(kernel_checks, "_back_ends", lambda given: {"blockwise": lambda: Wrong(given)})
    monkeypatch.setattr(kernel_checks, "check_random_bits", broken)
    out = tmp_path / "gpu.json"
    with pytest.raises(SystemExit, match="1"):
        gpu_check.main(["--dry-run", "--stage", "kernels", "random_bits", "modules", "--out", str(out)])
    results = json.loads(out.read_text())
    assert len(results["kernels"]["failures"]) == 3
    assert results["random_bits"]["failures"] == ["RuntimeError: an illegal memory access was encountered"]
    assert not results["modules"]["failures"]


def test_no_stage_starts_after_the_time(tmp_path):
    out = tmp_path / "gpu.json"
    gpu_check.main(["--dry-run", "--seconds", "-1", "--out", str(out)])
    assert all(result["skipped"] for result in json.loads(out.read_text()).values())


def test_a_gradient_that_is_wrong_is_seen():
    given = kernel_checks.random_operands(9, 70, 64, torch.bfloat16, CPU, grouped=True, dropout=0.1)
    truth, grads = kernel_checks._truth(given)
    errors = kernel_checks._errors(kernel_checks._Blockwise(given), given, truth, [1.1 * grads[0], *grads[1:]])
    assert errors["output"] < kernel_checks.OUTPUT_TOLERANCE
    assert errors["gradient"] > kernel_checks.GRADIENT_TOLERANCE
