"""What the shipped kernels compile to: a change that spills registers or loses the tensor cores fails here.

Started by ``test_resources.py`` with the Triton that the configurations were chosen for.
"""

import pytest

from amrg.kernels.hopfield import triton_backend
from amrg.kernels.hopfield.launch_configs import ALL_CONFIGS
from benchmarks import hopfield_compiled

CASES = [(key, "all") for key in ALL_CONFIGS]
CASES += [(key, "mask") for key in ALL_CONFIGS if key[0] in ("forward", "backward_queries") and key[3] == 768]


@pytest.mark.parametrize(("key", "options"), CASES, ids=str)
def test_configurations_keep_their_promises(key, options):
    assert triton_backend.TRITON_SUPPORTED
    usage = hopfield_compiled.measure(*key, options)
    assert not usage.violations(), usage
    assert usage.blocks_per_sm >= 1
