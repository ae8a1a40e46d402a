"""The retrieval loss against its definition, written out with explicit associations."""

import pytest
import torch
from torch import Tensor

from amrg.memory.bank import normalise_rows
from amrg.models.association import Bank
from amrg.models.cross_attention import CrossAttention
from amrg.models.hopfield import HopfieldMemory, associate_together
from amrg.models.recall import SHARPNESS, retrieval_loss, taught

ROWS, DIM, STUDIES = 7, 5, 3
GROUPS = torch.tensor([0, 0, 1, 1, 2, -1, 9])


def some(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def expected_teaching(own_BD: Tensor, rows_ND: Tensor, seen_BN: Tensor) -> Tensor:
    cosines_BN = torch.nn.functional.cosine_similarity(own_BD[:, None], rows_ND[None], dim=2)
    return (SHARPNESS * cosines_BN).masked_fill(~seen_BN, -torch.inf).softmax(1) @ rows_ND


def own_memory() -> HopfieldMemory:
    memory = HopfieldMemory(8, DIM, 8, heads=2, head_dim=4)
    memory.set_bank(Bank(normalise_rows(some(ROWS, DIM, seed=0)), None, GROUPS))
    return memory


@pytest.mark.parametrize("hide", [True, False])
def test_a_report_retrieves_by_cosine_what_it_may_see(hide: bool) -> None:
    rows_ND, own_BD = normalise_rows(some(ROWS, DIM, seed=0)), normalise_rows(some(STUDIES, DIM, seed=1))
    group_B = torch.tensor([0, 9, 4])
    found = associate_together([taught(own_memory(), own_BD, group_B if hide else None)])[0]
    seen_BN = GROUPS[None] != group_B[:, None] if hide else torch.ones(STUDIES, ROWS, dtype=torch.bool)
    torch.testing.assert_close(found, expected_teaching(own_BD, rows_ND, seen_BN), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", [HopfieldMemory, CrossAttention])
def test_a_reading_tells_the_mean_of_the_rows_that_were_retrieved(
    kind: type[HopfieldMemory] | type[CrossAttention],
) -> None:
    """By hand, one query and head after the other, from the association that ``attribution`` gives."""
    torch.manual_seed(2)
    memory = kind(8, DIM, 8, heads=2, head_dim=4).eval()
    for weight in memory.parameters():  # so that the association is not uniform
        torch.nn.init.normal_(weight, std=0.7)
    rows_ND, states_BLS = normalise_rows(some(ROWS, DIM, seed=0)), some(STUDIES, 4, 8, seed=3)
    group_B = torch.tensor([0, 9, 4])
    memory.set_bank(Bank(rows_ND, None, GROUPS))
    reading = associate_together([memory.associating(states_BLS, query_group=group_B)])[0]
    torch.testing.assert_close(reading.out_BLO, memory(states_BLS, query_group=group_B), rtol=1e-5, atol=1e-6)
    weights_BLK, numbers_BLK = memory.attribution(states_BLS, query_group=group_B, top_k=ROWS)
    assert weights_BLK[:, :, 0].max() > 0.3
    by_hand_BD = (weights_BLK[..., None] * rows_ND[numbers_BLK.clamp(min=0)]).sum(2).mean(1)
    torch.testing.assert_close(reading.rows_BD, by_hand_BD, rtol=1e-4, atol=1e-5)


def test_the_loss_is_the_mean_squared_distance_and_the_teacher_learns_nothing() -> None:
    retrieved = torch.tensor([[1.0, 2.0], [0.0, 0.0]], requires_grad=True)
    loss_B = retrieval_loss(retrieved, torch.tensor([[1.0, 0.0], [3.0, 1.0]]))
    assert loss_B.tolist() == [2.0, 5.0]
    loss_B.sum().backward()
    assert retrieved.grad is not None
    assert retrieved.grad.tolist() == [[0.0, 2.0], [-3.0, -1.0]]
    assert not associate_together([taught(own_memory(), some(2, DIM, seed=1).requires_grad_(), None)])[0].requires_grad
