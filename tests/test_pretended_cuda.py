"""The whole chain on a pretended GPU: no operator meets tensors on different devices, and few wait for the device."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

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


def test_the_chain_runs_on_it_in_several_ways(tmp_path):
    """ZeRO 3 is left out: DeepSpeed compares the parameters' device with the one that it believes to have."""
    command = [sys.executable, "-m", "tests.pretended_run", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    counts = dict(re.findall(r"^([a-z0-9, ]+): (\d+) synchronizations$", done.stdout, re.M))
    assert list(counts) == ["chain", *WAYS]
    print(done.stdout)
