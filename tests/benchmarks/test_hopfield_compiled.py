"""What the kernels use on each GPU generation, and what is predicted of it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from amrg.kernels.hopfield import launch_configs
from benchmarks import hopfield_compiled

ROOT = Path(__file__).resolve().parent.parent.parent
TRITON = Path(sys.prefix) / "triton"  # of `make`: torch brings the version that it was built with, maybe an older one


def test_configurations_keep_their_promises_with_the_triton_they_were_chosen_for():
    command = [sys.executable, "-m", "pytest", "-q", "-x", "tests/benchmarks/triton_compile_suite.py"]
    environment = {**os.environ, "PYTHONPATH": f"{TRITON}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:]


def test_a_violation_is_named():
    good = hopfield_compiled.CompiledUsage(
        "forward", "half", 90, 768, "16×64×128", 8, 200, 0, 0, 200_000, 0, 0, 10, 0, 5, 1
    )
    assert not good.violations()
    bad = hopfield_compiled.CompiledUsage(
        "forward", "half", 90, 768, "16×64×128", 8, 255, 8, 3, 240_000, 0, 10, 0, 0, 0, 0
    )
    assert len(bad.violations()) == 4


def test_roofline_by_hand():
    usage = hopfield_compiled.CompiledUsage("forward", "half", 80, 768, "", 8, 0, 0, 0, 0, 0, 1, 0, 0, 1, 1)
    model = hopfield_compiled.roofline(usage, 504, 7014)
    assert model.operations == 4 * 504 * 7014 * 768
    assert model.bytes == 2 * 7014 * 768 + 2 * 504 * 768 + 4 * 504 * 768
    assert model.microseconds == pytest.approx(model.operations / 312e6)
    assert model.bound == "compute"


def test_every_gpu_has_a_generation_or_none():
    generations = {(7, 5): None, (8, 0): 80, (8, 9): 80, (9, 0): 90, (10, 0): 100, (12, 0): 80}
    assert {capability: launch_configs.gpu_generation(capability) for capability in generations} == generations
