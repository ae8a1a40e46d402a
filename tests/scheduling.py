"""Hooks of pytest, for tests/conftest.py: which tests are run when, and what is no garbage."""

import gc
from typing import Any

import pytest
from xdist.scheduler import LoadFileScheduling

#: Begun first, the longest before the others, so that no worker is left alone with one of them at the end.
LONGEST = (
    "tests/cluster/", "tests/test_mimic_from_zero.py", "tests/test_pretended_cuda.py", "tests/test_pipeline.py",
    "tests/training/test_checkpoint.py", "tests/training/test_zero3_loading.py",
    "tests/training/test_sharding_equivalence.py", "tests/training/test_tensor_parallel.py",
    "tests/training/test_combinations.py", "tests/training/test_engine_settings.py", "tests/launchers/",
    "tests/kernels/test_triton.py", "tests/benchmarks/test_hopfield_compiled.py",
    "tests/benchmarks/test_scale_proof.py", "tests/test_mixed_run.py",
    "tests/test_encoder_chain.py", "tests/evaluation/test_evaluate.py", "tests/training/test_deepspeed_modes.py",
)  # fmt: skip


class _FileScheduling(LoadFileScheduling):
    """Scheduling by file, with all of Ray's files for one worker of pytest-xdist: two clusters at a time have hung."""

    def _split_scope(self, nodeid: str) -> str:
        return "tests/cluster" if nodeid.startswith("tests/cluster/") else super()._split_scope(nodeid)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> _FileScheduling:
    """Return what gives tests to the workers."""
    return _FileScheduling(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest files first."""

    def place(item: pytest.Item) -> int:
        return next((place for place, name in enumerate(LONGEST) if item.nodeid.startswith(name)), len(LONGEST))

    items.sort(key=place)


def pytest_collection_finish() -> None:
    """Keep the garbage collector from what was imported: a twentieth of the time of all tests."""
    gc.freeze()
