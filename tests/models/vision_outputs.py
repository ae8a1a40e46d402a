"""Sights of made-up studies, for tests of what reads them."""

from collections.abc import Mapping

import torch

from amrg.data.labels import LABELS
from amrg.models.regions import PLACES
from amrg.models.vision_output import VisionOutput

WIDTH = 24  # of a state


def sight_of(*studies: Mapping[str, float], peak: float = 1.0, seed: int = 0) -> VisionOutput:
    """Studies by the logit of each label, −9 unless given; their regions are random."""
    generator = torch.Generator().manual_seed(seed)
    count = len(studies)
    logits_BQ = torch.tensor([[study.get(label, -9.0) for label in LABELS] for study in studies])
    places_BQP = torch.randn(count, len(LABELS), PLACES, generator=generator).softmax(-1)
    looks = torch.randn(count, len(LABELS), WIDTH - PLACES, generator=generator)
    boxes = torch.arange(count * len(LABELS)).view(count, len(LABELS), 1) * torch.tensor([0, 1, 1, 1, 1])
    return VisionOutput(
        tokens_BND=torch.zeros(count, 4, WIDTH),
        queries_BQD=torch.zeros(count, len(LABELS), WIDTH),
        logits_BQ=logits_BQ,
        states_BQD=torch.cat([looks, places_BQP.sqrt()], dim=-1),
        places_BQP=places_BQP,
        peaks_BQ=torch.full((count, len(LABELS)), peak),
        boxes_BQ5=(boxes + torch.tensor([0, 0, 0, 1, 1])).float(),
        film_BD=torch.zeros(count, WIDTH),
    )
