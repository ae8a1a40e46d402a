"""What the shipped kernels compile to: a change that spills registers or loses the tensor cores fails here."""

from dataclasses import replace

import pytest

from amrg.kernels.hopfield.launch_configs import ALL_CONFIGS, CARDS, MIN_TRITON, WIDTHS, compiles_for
from amrg.kernels.hopfield.triton_backend import TRITON_VERSION
from benchmarks import hopfield_compiled

# sm_86 has the least shared memory of those that share its configurations and instructions (80, 89), sm_103 is sm_100:
# of those cards the wider banks are compiled here, and all by ``benchmarks.triton_versions``.
COMPILED = (86, 90, 100, 120)
CASES = [(key, "all") for key in ALL_CONFIGS if key[2] in COMPILED or key[3] == max(WIDTHS)]
CASES += [
    (key, "mask")
    for key in ALL_CONFIGS
    if key[0] in ("forward", "backward_queries") and key[2:] in ((86, 768), (90, 768))
]


@pytest.mark.parametrize(("key", "options"), CASES, ids=str)
def test_configurations_keep_their_promises(key, options):
    if MIN_TRITON[CARDS[key[2]].generation] > TRITON_VERSION:
        pytest.skip("this Triton does not serve the card, so the rule does not take the kernel")
    usage = hopfield_compiled.measure(*key, options)
    assert not usage.violations(), usage
    assert usage.blocks_per_sm >= 1


@pytest.mark.parametrize("storage", ["half", "int8"])
@pytest.mark.parametrize("kernel", ["softmax_tile", "score_gradient"])
@pytest.mark.parametrize("card", CARDS)
def test_what_lies_between_two_products_compiles_without_spills(card, kernel, storage):
    if not compiles_for(card, TRITON_VERSION):
        pytest.skip("this Triton does not know the card, so the rule takes no kernel")
    usage = hopfield_compiled.measure_between(kernel, storage, card)
    assert not usage.violations(), usage
    assert usage.spills == usage.stack == 0


def test_a_violation_is_named():
    good = hopfield_compiled.CompiledUsage(
        "forward", "half", 90, 768, "16×64×128", 8, 200, 0, 0, 200_000, 0, 0, 10, 0, 5, 1
    )
    assert not good.violations()
    bad = hopfield_compiled.CompiledUsage(
        "forward", "half", 90, 768, "16×64×128", 8, 255, 8, 3, 240_000, 0, 10, 0, 0, 0, 0
    )
    assert len(bad.violations()) == 4
    failed = replace(good, error="OutOfResources: shared memory")
    assert failed.violations() == ["does not compile: OutOfResources: shared memory"]
    between = replace(good, kernel="softmax_tile", wgmma=0, async_copies=0)
    assert not between.violations()
    assert replace(between, spills=1).violations() == ["registers spill to local memory"]


def test_intensity_by_hand():
    usage = hopfield_compiled.CompiledUsage("forward", "half", 90, 768, "", 8, 0, 0, 0, 0, 0, 1, 0, 0, 1, 1)
    assert hopfield_compiled.l2_intensity(usage) == 32  # 16 queries, 4 operations for each of 2 bytes of a row
