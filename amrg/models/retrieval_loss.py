"""Losses on the rows that the memories retrieve.

**Report memory**: distance to the retrieval of the target report's own sentences.
Without this loss, retrieval on small data collapses to a few rows for all films (docs/results.md). For each label, the
sentences of the report that state it (for No Finding, those that state no finding) are a teacher query. It retrieves
with the same operator and the same mask. The loss is the distance between this retrieval and that of the film's query.

**Visual memory**: −log of the share of a finding's association on its wanted rows: those of the same finding and, if
the report names a side, of the same side. All other rows are negatives; the hardest are those of the same finding on
the other side (InfoNCE with many positives: Khosla et al. 2020, arXiv:2004.11362).

Shape legend: B studies, Q = 14 queries, D width of the bank, N rows, S sets of wanted rows, P pairs of a study and a
finding that it states, H heads.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from amrg.kernels.hopfield.reference import same_group_mask
from amrg.models.hopfield import HopfieldMemory, RetrievalCall, RetrievalSteps
from amrg.models.memory_layer import MemoryLayer

#: β of the teacher, on the cosine between two sentences.
TEACHER_BETA = 40.0


def teacher_retrieval(memory: MemoryLayer, own_BQD: Tensor, group_B: Tensor | None) -> RetrievalSteps[Tensor]:
    """Retrieve from the bank with a study's own sentences, [B, Q, D], as steps of ``retrieve_in_lockstep``.

    Args:
        memory: holds the report bank.
        own_BQD: the sentences of each label as a normalised row of that bank; 0 for a label without sentences.
        group_B: patient group whose rows are masked, as for the film's queries; None masks nothing.
    """
    bank, (_, labels, dim) = memory.bank, own_BQD.shape
    # All labels ask, as the host would wait for a GPU to count those with sentences.
    group = None if bank.group is None or group_B is None else group_B.repeat_interleave(labels)
    # Normalised rows have length √D, so their product is D times the cosine.
    result = yield RetrievalCall(own_BQD.flatten(0, 1) * (TEACHER_BETA / dim), bank, group)
    return result.retrieved_MD.detach().view_as(own_BQD).masked_fill(~own_BQD.any(-1, keepdim=True), 0.0)


def retrieval_loss(retrieved_BQD: Tensor, target_BQD: Tensor, own_BQD: Tensor) -> Tensor:
    """Mean squared distance over D and over the labels with sentences, [B]."""
    present_BQ = own_BQD.any(-1)
    distance_BQ = (retrieved_BQD.float() - target_BQD.float()).square().mean(-1)
    return torch.where(present_BQ, distance_BQ, 0.0).sum(-1) / present_BQ.sum(-1).clamp_min(1)


class Wanted(NamedTuple):
    """Rows of the visual bank that the regions of a batch of studies should retrieve.

    Attributes:
        rows_ND, group_N: the complete bank, even if a rank's memory holds only a part.
        sets_SN: sets of rows, bool.
        set_BQ: number of the set that each finding of each study should retrieve; −1 for a finding not stated. On the
            CPU, as it decides the shapes of tensors, for which the host would wait for a GPU.
    """

    rows_ND: Tensor
    group_N: Tensor
    sets_SN: Tensor
    set_BQ: Tensor


def association_loss(memory: HopfieldMemory, states_BQD: Tensor, group_B: Tensor | None, wanted: Wanted) -> Tensor:
    """Mean of −log share over the stated findings of each study and over heads, [B]; 0 for a study that states none.

    Scores are computed for the stated findings only, [H, P, N]. Rows of the study's own patient are masked.
    """
    stated_BQ = wanted.set_BQ >= 0
    loss_B = states_BQD.new_zeros(len(states_BQD), dtype=torch.float32)
    if not stated_BQ.any():
        return loss_B
    on_host = *stated_BQ.nonzero(as_tuple=True), wanted.set_BQ[stated_BQ], stated_BQ.sum(1).clamp_min(1)
    study_P, query_P, set_P, stated_B = (numbers.to(states_BQD.device, non_blocking=True) for numbers in on_host)
    score_HPN = (memory.row_queries(states_BQD[study_P, query_P]) @ wanted.rows_ND.T).float()
    visible_PN = torch.ones_like(score_HPN[0], dtype=torch.bool)
    if group_B is not None:
        visible_PN = ~same_group_mask(group_B[study_P], wanted.group_N)
    right_PN = visible_PN & wanted.sets_SN[set_P]
    # If all wanted rows are the patient's own, every row counts as right: the loss and its gradient are 0.
    right_PN = torch.where(right_PN.any(-1, keepdim=True), right_PN, visible_PN)
    all_HP, right_HP = (score_HPN.masked_fill(~mask, -torch.inf).logsumexp(-1) for mask in (visible_PN, right_PN))
    loss_P = (all_HP - right_HP).mean(0)
    return loss_B.index_add(0, study_P, loss_P) / stated_B
