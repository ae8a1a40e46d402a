"""Which tests are run when: a hook of pytest, for tests/conftest.py."""

import pytest

#: Begun first, the longest before the others, so that no worker is left alone with one of them at the end.
LONGEST = (
    "tests/test_mimic_from_zero.py", "tests/test_pretended_cuda.py", "tests/test_pipeline.py",
    "tests/training/test_checkpoint.py", "tests/training/test_zero3_loading.py",
    "tests/training/test_sharding_equivalence.py", "tests/training/test_tensor_parallel.py",
    "tests/training/test_combinations.py", "tests/training/test_engine_settings.py", "tests/launchers/",
    "tests/kernels/test_triton.py", "tests/benchmarks/test_hopfield_compiled.py",
    "tests/benchmarks/test_scale_proof.py", "tests/test_mixed_run.py",
    "tests/test_encoder_chain.py", "tests/evaluation/test_evaluate.py", "tests/training/test_deepspeed_modes.py",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest files first."""

    def place(item: pytest.Item) -> int:
        return next((place for place, name in enumerate(LONGEST) if item.nodeid.startswith(name)), len(LONGEST))

    items.sort(key=place)
