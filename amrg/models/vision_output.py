"""Stage 1's output for studies, and the queries of the memories that are made from it.

Shape legend: B studies, N visual tokens, Q = 14 queries, D query width, P = 16 places.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from amrg.config import VisualQuery
from amrg.data.labels import LABELS, NO_FINDING
from amrg.models.regions import PLACES, Regions

#: The two memories, in the order of their banks.
MEMORIES = ("visual", "report")
NORMAL_LOUDNESS = 0.25  # length of the state of No Finding that queries the visual memory


class VisionOutput(NamedTuple):
    """Stage 1's output for studies: visual tokens, queries, logits, the region of each label, and a vector of the film.

    The vector is the mean of the fine grid (``amrg.models.training_distance``).
    """

    tokens_BND: Tensor
    queries_BQD: Tensor
    logits_BQ: Tensor
    states_BQD: Tensor
    places_BQP: Tensor
    peaks_BQ: Tensor
    boxes_BQ5: Tensor
    film_BD: Tensor

    @property
    def regions(self) -> Regions:
        """Regions of the labels."""
        return Regions(self.states_BQD, self.places_BQP, self.peaks_BQ, self.boxes_BQ5)

    def memory_states(self, visual_query: VisualQuery) -> dict[str, Tensor]:
        """Query states [B, Q, D] of each memory, by ``MEMORIES``.

        The Q-Former's queries query the report memory. The film's own regions, scaled by stage 1's probability of the
        finding, query the visual memory; the region of No Finding has a small constant scale, as many films share it.

        Args:
            visual_query: kind of the visual memory's queries (``memory.visual_query``).
        """
        visual_BQD = self.queries_BQD
        if visual_query != "queries":
            loudness_BQ = self.logits_BQ.sigmoid().clone()  # autograd keeps what sigmoid returns
            loudness_BQ[:, LABELS.index(NO_FINDING)] = NORMAL_LOUDNESS
            visual_BQD = self.states_BQD * loudness_BQ[..., None]
            if visual_query == "regions":
                visual_BQD = F.pad(visual_BQD[..., :-PLACES], (0, PLACES))
        return dict(zip(MEMORIES, (visual_BQD, self.queries_BQD), strict=True))

    def loud_queries(self, visual_query: VisualQuery) -> Tensor:
        """Select the queries whose associations with the visual memory are reported, bool [B, Q].

        These are the regions of findings with a probability above 1/2, or else the region of No Finding; all queries
        if the Q-Former's queries query the visual memory.

        Args:
            visual_query: as for ``memory_states``.
        """
        if visual_query == "queries":
            return torch.ones_like(self.logits_BQ, dtype=torch.bool)
        loud_BQ, normal = self.logits_BQ > 0, LABELS.index(NO_FINDING)
        loud_BQ[:, normal] = False
        loud_BQ[:, normal] = ~loud_BQ.any(1)
        return loud_BQ


def pool_token_grid(tokens_BND: Tensor, most: int) -> Tensor:
    """Mean-pool a square grid of tokens to the largest square grid of at most ``most`` tokens; 0 returns none."""
    if most == 0:
        return tokens_BND[:, :0]
    side = math.isqrt(tokens_BND.shape[1])
    smaller = math.isqrt(most)
    if side * side != tokens_BND.shape[1] or smaller >= side:
        return tokens_BND
    grid = tokens_BND.transpose(1, 2).unflatten(2, (side, side))
    return F.adaptive_avg_pool2d(grid, smaller).flatten(2).transpose(1, 2)
