"""Which tests are run when: hooks of pytest and of its plugin xdist, for tests/conftest.py."""

from typing import Any

import pytest
from xdist.scheduler import LoadFileScheduling

RAY = "tests/cluster/"
#: Begun first, the longest before the others, so that no worker is left alone with one of them at the end.
LONGEST = (
    RAY, "tests/test_mimic_from_zero.py", "tests/test_pretended_cuda.py", "tests/test_pipeline.py",
    "tests/training/test_checkpoint.py", "tests/training/test_zero3_loading.py",
    "tests/training/test_sharding_equivalence.py", "tests/training/test_tensor_parallel.py",
    "tests/training/test_combinations.py", "tests/training/test_engine_settings.py", "tests/launchers/",
    "tests/kernels/test_triton.py", "tests/benchmarks/test_scale_proof.py", "tests/test_mixed_run.py",
    "tests/test_encoder_chain.py", "tests/evaluation/test_evaluate.py", "tests/training/test_deepspeed_modes.py",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest files first."""

    def place(item: pytest.Item) -> int:
        return next((place for place, name in enumerate(LONGEST) if item.nodeid.startswith(name)), len(LONGEST))

    items.sort(key=place)


class _FileScheduling(LoadFileScheduling):
    """A file at a time for each worker; Ray's files are one, as two of its clusters at a time have hung."""

    def _split_scope(self, nodeid: str) -> str:
        return RAY if nodeid.startswith(RAY) else super()._split_scope(nodeid)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> _FileScheduling:
    """Instead of the scheduler that `--dist` names."""
    return _FileScheduling(config, log)
