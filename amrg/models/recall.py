"""A loss for what the report memory retrieves: what the study's own sentences would retrieve.

Without it nothing in training asks that what is retrieved resemble the report to be written, and on small data
retrieval collapses to a few rows, whatever the film (docs/results.md). Here the report is a teacher, label by label:
the sentences that state a finding (and those that state none, for No Finding), as a query, retrieve rows like
themselves, with the same operator and the same rows hidden; what the film's query of that label retrieves is drawn
towards that.

Shape legend: B studies, Q = 14 queries, D width of the bank.
"""

import torch
from torch import Tensor

from amrg.models.association import FrozenMemory
from amrg.models.hopfield import Ask, Steps

#: The teacher's β, of the cosine between two sentences.
SHARPNESS = 40.0


def taught(memory: FrozenMemory, own_BQD: Tensor, group_B: Tensor | None) -> Steps[Tensor]:
    """What a study's own sentences retrieve from the bank, [B, Q, D], as steps of ``associate_together``.

    Args:
        memory: holds the report bank.
        own_BQD: of each label, the sentences as a normalised row of that bank; 0 where the report has none.
        group_B: whose rows are hidden from each, as from the film's queries; None hides nothing.
    """
    bank, (batch, labels, dim) = memory.held, own_BQD.shape
    group = None if bank.group is None or group_B is None else group_B.repeat_interleave(labels)
    # Normalised rows have length √D: their product is D times the cosine.
    result = yield Ask(own_BQD.flatten(0, 1) * (SHARPNESS / dim), bank, group)
    return result.retrieved_MD.detach().view(batch, labels, dim)


def retrieval_loss(retrieved_BQD: Tensor, taught_BQD: Tensor, own_BQD: Tensor) -> Tensor:
    """Mean squared distance over D and the labels that a study has sentences of, [B]."""
    present_BQ = own_BQD.any(-1)
    distance_BQ = (retrieved_BQD.float() - taught_BQD.float()).square().mean(-1)
    return torch.where(present_BQ, distance_BQ, 0.0).sum(-1) / present_BQ.sum(-1).clamp_min(1)
