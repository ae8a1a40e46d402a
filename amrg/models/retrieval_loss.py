"""Losses for what the memories retrieve.

**Report memory**: what the study's own sentences would retrieve.
Without it nothing in training asks that what is retrieved resemble the report to be written, and on small data
retrieval collapses to a few rows, whatever the film (docs/results.md). Here the report is a teacher, label by label:
the sentences that state a finding (and those that state none, for No Finding), as a query, retrieve rows like
themselves, with the same operator and the same rows hidden; what the film's query of that label retrieves is drawn
towards that.

**Visual memory**: −log of the share of a finding's association that falls on the rows wanted of it, those of the same
finding and, where the report names a side, of that side. All other rows are negatives, the hardest those of the same
finding on the other side (InfoNCE with many positives: Khosla et al. 2020, arXiv:2004.11362).

Shape legend: B studies, Q = 14 queries, D width of the bank, N rows, S sets of wanted rows, P pairs of a study and a
finding that it states, H heads.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from amrg.kernels.hopfield.reference import same_group_mask
from amrg.models.hopfield import HopfieldMemory, RetrievalCall, RetrievalSteps
from amrg.models.memory_layer import MemoryLayer

#: The teacher's β, of the cosine between two sentences.
TEACHER_BETA = 40.0


def teacher_retrieval(memory: MemoryLayer, own_BQD: Tensor, group_B: Tensor | None) -> RetrievalSteps[Tensor]:
    """What a study's own sentences retrieve from the bank, [B, Q, D], as steps of ``run_batched``.

    Args:
        memory: holds the report bank.
        own_BQD: of each label, the sentences as a normalised row of that bank; 0 where the report has none.
        group_B: whose rows are hidden from each, as from the film's queries; None hides nothing.
    """
    bank, present_BQ = memory.bank, own_BQD.any(-1)
    group = None if bank.group is None or group_B is None else group_B[present_BQ.nonzero()[:, 0]]
    # Normalised rows have length √D: their product is D times the cosine.
    result = yield RetrievalCall(own_BQD[present_BQ] * (TEACHER_BETA / own_BQD.shape[-1]), bank, group)
    taught_BQD = torch.zeros_like(own_BQD)
    taught_BQD[present_BQ] = result.retrieved_MD.detach().to(taught_BQD.dtype)
    return taught_BQD


def retrieval_loss(retrieved_BQD: Tensor, taught_BQD: Tensor, own_BQD: Tensor) -> Tensor:
    """Mean squared distance over D and the labels that a study has sentences of, [B]."""
    present_BQ = own_BQD.any(-1)
    distance_BQ = (retrieved_BQD.float() - taught_BQD.float()).square().mean(-1)
    return torch.where(present_BQ, distance_BQ, 0.0).sum(-1) / present_BQ.sum(-1).clamp_min(1)


class Wanted(NamedTuple):
    """Which rows of the visual bank the regions of some studies should retrieve.

    Attributes:
        rows_ND, group_N: the whole bank, whatever a rank holds of it.
        sets_SN: bool.
        set_BQ: number of the set that each finding of each study should retrieve; −1 for one that is not stated.
    """

    rows_ND: Tensor
    group_N: Tensor
    sets_SN: Tensor
    set_BQ: Tensor


def association_loss(memory: HopfieldMemory, states_BQD: Tensor, group_B: Tensor | None, wanted: Wanted) -> Tensor:
    """Mean of −log share over the stated findings of each study and over heads, [B]; 0 for a study that states none.

    Scores are held for the stated findings only, [H, P, N]. Rows of the study's own patient count neither way.
    """
    study_P, query_P = (wanted.set_BQ >= 0).nonzero(as_tuple=True)
    loss_B = states_BQD.new_zeros(len(states_BQD), dtype=torch.float32)
    if not len(study_P):
        return loss_B
    score_HPN = (memory.row_queries(states_BQD[study_P, query_P]) @ wanted.rows_ND.T).float()
    seen_PN = torch.ones_like(score_HPN[0], dtype=torch.bool)
    if group_B is not None:
        seen_PN = ~same_group_mask(group_B[study_P], wanted.group_N)
    right_PN = seen_PN & wanted.sets_SN[wanted.set_BQ[study_P, query_P]]
    # Where all wanted rows are the patient's own, any row is right: the loss and its gradient are 0.
    right_PN = torch.where(right_PN.any(-1, keepdim=True), right_PN, seen_PN)
    all_HP, right_HP = (score_HPN.masked_fill(~mask, -torch.inf).logsumexp(-1) for mask in (seen_PN, right_PN))
    loss_P = (all_HP - right_HP).mean(0)
    stated_B = torch.bincount(study_P, minlength=len(loss_B)).clamp_min(1)
    return loss_B.index_add(0, study_P, loss_P) / stated_B
