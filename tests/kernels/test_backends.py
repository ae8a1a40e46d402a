"""The rule that chooses a back end, and how the fused kernels split the memory."""

from types import SimpleNamespace

import pytest
import torch

from amrg.kernels.hopfield import backends, blockwise, launch_configs
from amrg.kernels.hopfield.launch_configs import CARDS
from amrg.kernels.hopfield.reference import Operands
from amrg.kernels.hopfield.triton_backend import split_count


def operands(queries, rows, width, dtype=torch.bfloat16):
    memory = torch.empty(rows, width, dtype=dtype, device="meta")
    return Operands(torch.empty(queries, width, dtype=torch.bfloat16, device="meta"), memory)


@pytest.mark.parametrize(
    ("shape", "dtype", "capability", "triton", "expected"),
    [
        ((672, 7014, 768), torch.bfloat16, (9, 0), (3, 8), "two_products"),  # a training step of the paper's size
        ((64, 1_000_000, 768), torch.bfloat16, (9, 0), (3, 5), "fused"),
        ((64, 1_000_000, 768), torch.int8, (8, 6), (3, 6), "fused"),
        ((65, 1_000_000, 768), torch.bfloat16, (9, 0), (3, 8), "two_products"),
        ((64, 99_999, 768), torch.bfloat16, (9, 0), (3, 8), "two_products"),
        ((64, 1_000_000, 1024), torch.bfloat16, (9, 0), (3, 8), "two_products"),  # Swin-L's own width
        ((64, 1_000_000, 768), torch.bfloat16, (10, 0), (3, 6), "two_products"),
        ((64, 1_000_000, 768), torch.bfloat16, (10, 3), (3, 7), "fused"),
        ((672, 7014, 768), torch.bfloat16, (10, 3), (3, 6), "two_products"),
        ((672, 7014, 768), torch.bfloat16, (10, 3), (3, 5), "blockwise"),  # its ptxas does not know sm_103
        ((64, 1_000_000, 768), torch.bfloat16, (7, 5), (3, 8), "blockwise"),
        ((672, 7014, 768), torch.float16, (8, 0), (3, 4), "blockwise"),
        ((672, 7014, 768), torch.float32, (9, 0), (3, 8), "blockwise"),
        ((0, 7014, 768), torch.bfloat16, (9, 0), (3, 8), "blockwise"),
    ],
)
def test_the_rule(shape, dtype, capability, triton, expected):
    name, why = backends.choose_backend(operands(*shape, dtype), capability, triton)
    assert name == expected
    assert why


def test_every_card_has_a_generation_or_none():
    generations = {(7, 5): None, (8, 0): 80, (8, 9): 80, (9, 0): 90, (10, 0): 100, (10, 3): 100, (12, 0): 80}
    assert {capability: launch_configs.gpu_generation(capability) for capability in generations} == generations
    assert {card: launch_configs.gpu_generation(divmod(card, 10)) for card in CARDS} == {
        card: entry.generation for card, entry in CARDS.items()
    }


def test_an_unknown_override_is_refused(monkeypatch):
    monkeypatch.setenv(backends.OVERRIDE, "cublas")
    with pytest.raises(ValueError, match="AMRG_RETRIEVAL is one of fused, two_products, blockwise, got `cublas`"):
        backends.back_end(operands(1, 1, 16))


@pytest.mark.parametrize(("queries", "tiles"), [(672, 1), (5376, 2)])
def test_blockwise_takes_few_tiles_on_a_gpu(queries, tiles):
    """A training step of the paper's size, and of 64 studies: each tile costs launches."""
    q = SimpleNamespace(device=torch.device("cuda"), shape=(queries, 768))
    assert -(-7014 // blockwise.tile_width(q)) == tiles


@pytest.mark.parametrize(
    ("queries", "fill"), [(84, 0.83), (336, 0.9), (672, 0.9), (1176, 0.8), (1344, 0.8), (2184, 0.8), (2688, 0.8)]
)
def test_splits_fill_an_h100(queries, fill):
    """At least ``fill`` of the time that the multiprocessors are held is work (7,014 rows, blocks of 16 × 64)."""
    blocks, tiles, processors = -(-queries // 16), -(-7014 // 64), 132
    splits = split_count(blocks, tiles, processors)
    waves, span = -(-blocks * splits // processors), -(-tiles // splits)
    assert blocks * tiles / (waves * span * processors) > fill


def test_a_small_memory_is_not_split():
    assert split_count(1, 3, 132) == 1
