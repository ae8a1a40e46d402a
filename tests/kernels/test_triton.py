"""The Triton kernels, interpreted on the CPU."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent


def test_kernels_in_the_interpreter_match_the_formula():
    command = [sys.executable, "-m", "pytest", "-q", "-x", "tests/kernels/triton_interpreter_suite.py"]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:]
