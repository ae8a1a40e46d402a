"""The retrieval loss against its definition, written out with explicit associations."""

import pytest
import torch
from torch import Tensor

from amrg.models.cross_attention import CrossAttention
from amrg.models.hopfield import HopfieldMemory, retrieve_in_lockstep
from amrg.models.memory_layer import LocalBank
from amrg.models.retrieval_loss import TEACHER_BETA, retrieval_loss, teacher_retrieval

ROWS, DIM, STUDIES, LABELS = 7, 5, 3, 4
GROUPS = torch.tensor([0, 0, 1, 1, 2, -1, 9])


def some(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def rows_of(values: Tensor) -> Tensor:
    """Rows as a bank holds them; their length is exactly √D, however little a row varies."""
    return torch.nn.functional.normalize(values - values.mean(-1, keepdim=True), dim=-1) * values.shape[-1] ** 0.5


def expected_teaching(own_BQD: Tensor, rows_ND: Tensor, seen_BN: Tensor) -> Tensor:
    cosines_BQN = torch.nn.functional.cosine_similarity(own_BQD[:, :, None], rows_ND, dim=3)
    return (TEACHER_BETA * cosines_BQN).masked_fill(~seen_BN[:, None], -torch.inf).softmax(2) @ rows_ND


def own_memory() -> HopfieldMemory:
    memory = HopfieldMemory(8, DIM, 8, heads=2, head_dim=4)
    memory.set_bank(LocalBank(rows_of(some(ROWS, DIM, seed=0)), None, GROUPS))
    return memory


@pytest.mark.parametrize("hide", [True, False])
def test_own_sentences_retrieve_by_cosine_what_it_may_see(hide: bool) -> None:
    rows_ND, own_BQD = rows_of(some(ROWS, DIM, seed=0)), rows_of(some(STUDIES, LABELS, DIM, seed=1))
    group_B = torch.tensor([0, 9, 4])
    found = retrieve_in_lockstep([teacher_retrieval(own_memory(), own_BQD, group_B if hide else None)])[0]
    seen_BN = GROUPS[None] != group_B[:, None] if hide else torch.ones(STUDIES, ROWS, dtype=torch.bool)
    torch.testing.assert_close(found, expected_teaching(own_BQD, rows_ND, seen_BN), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", [HopfieldMemory, CrossAttention])
def test_a_reading_tells_the_mean_of_the_rows_that_were_retrieved(
    kind: type[HopfieldMemory] | type[CrossAttention],
) -> None:
    """By hand, one query and head after the other, from the association that ``attribution`` gives."""
    torch.manual_seed(2)
    memory = kind(8, DIM, 8, heads=2, head_dim=4).eval()
    for weight in memory.parameters():  # so that the association is not uniform
        torch.nn.init.normal_(weight, std=0.7)
    rows_ND, states_BLS = rows_of(some(ROWS, DIM, seed=0)), some(STUDIES, 4, 8, seed=3)
    group_B = torch.tensor([0, 9, 4])
    memory.set_bank(LocalBank(rows_ND, None, GROUPS))
    reading = retrieve_in_lockstep([memory.forward_steps(states_BLS, query_group=group_B)])[0]
    torch.testing.assert_close(reading.out_BLO, memory(states_BLS, query_group=group_B), rtol=1e-5, atol=1e-6)
    weights_BLK, numbers_BLK = memory.attribution(states_BLS, query_group=group_B, top_k=ROWS)
    assert weights_BLK[:, :, 0].max() > 0.3
    by_hand_BLD = (weights_BLK[..., None] * rows_ND[numbers_BLK.clamp(min=0)]).sum(2)
    torch.testing.assert_close(reading.rows_BLD, by_hand_BLD, rtol=1e-4, atol=1e-5)


def test_the_loss_is_the_mean_squared_distance_over_the_labels_that_are_said() -> None:
    """Of two labels: the first study says both, the second the first alone, the third nothing."""
    retrieved = torch.tensor([[[1.0, 2.0], [0.0, 0.0]], [[0.0, 0.0], [9.0, 9.0]], [[5.0, 5.0], [5.0, 5.0]]])
    retrieved.requires_grad_()
    teacher = torch.tensor([[[1.0, 0.0], [3.0, 1.0]], [[3.0, 1.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 0.0]]])
    own = torch.tensor([[[1.0, -1.0], [-1.0, 1.0]], [[1.0, -1.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 0.0]]])
    loss_B = retrieval_loss(retrieved, teacher, own)
    assert loss_B.tolist() == [(2.0 + 5.0) / 2, 5.0, 0.0]
    loss_B.sum().backward()
    assert retrieved.grad is not None
    assert retrieved.grad.tolist() == [
        [[0.0, 1.0], [-1.5, -0.5]], [[-3.0, -1.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 0.0]],
    ]  # fmt: skip


def test_what_is_not_said_costs_and_teaches_nothing_whatever_was_retrieved() -> None:
    retrieved = torch.full((1, 2, DIM), torch.inf).requires_grad_()
    own = torch.zeros(1, 2, DIM)
    loss_B = retrieval_loss(retrieved, torch.zeros(1, 2, DIM), own)
    assert loss_B.tolist() == [0.0]
    loss_B.sum().backward()
    finite = torch.ones(1, 2, DIM, requires_grad=True)
    retrieval_loss(finite, torch.zeros(1, 2, DIM), own).sum().backward()
    assert finite.grad is not None
    assert not finite.grad.any()


def test_the_teacher_learns_nothing_and_a_study_without_sentences_has_none() -> None:
    own_BQD = some(2, LABELS, DIM, seed=1)
    own_BQD[1] = 0.0
    found = retrieve_in_lockstep([teacher_retrieval(own_memory(), own_BQD.requires_grad_(), None)])[0]
    assert not found.requires_grad
    assert not found[1].any()
    assert found[0].any(-1).all()
