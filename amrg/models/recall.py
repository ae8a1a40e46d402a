"""A loss for what the report memory retrieves: what the study's own report would retrieve.

Without it nothing in training asks that what is retrieved resemble the report to be written, and on small data
retrieval collapses to a few rows, whatever the film (docs/results.md). Here the report is a teacher: as a query it
retrieves rows like itself, with the same operator and the same rows hidden; what the film's queries retrieve is drawn
towards that.

Shape legend: B studies, D width of the bank.
"""

from torch import Tensor
from torch.nn import functional as F

from amrg.models.association import FrozenMemory
from amrg.models.hopfield import Ask, Steps

#: The teacher's β, of the cosine between two reports: at 40 it spreads over some forty of a thousand reports.
SHARPNESS = 40.0


def taught(memory: FrozenMemory, own_BD: Tensor, group_B: Tensor | None) -> Steps[Tensor]:
    """What reports themselves retrieve from the bank, [B, D], as steps of ``associate_together``.

    Args:
        memory: holds the report bank.
        own_BD: the reports as normalised rows of that bank; no rows of it.
        group_B: whose rows are hidden from each, as from the film's queries; None hides nothing.
    """
    bank = memory.held
    # Normalised rows have length √D: their product is D times the cosine.
    result = yield Ask(own_BD * (SHARPNESS / own_BD.shape[1]), bank, None if bank.group is None else group_B)
    return result.retrieved_MD.detach()


def retrieval_loss(retrieved_BD: Tensor, taught_BD: Tensor) -> Tensor:
    """Mean squared distance over D of each study, [B]; least where what the film lets expect is retrieved."""
    return F.mse_loss(retrieved_BD.float(), taught_BD.float(), reduction="none").mean(1)
