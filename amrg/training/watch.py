"""Reports written while training goes on, watched for the two failures that a loss does not show."""

from collections.abc import Sequence
from typing import Any

import torch

from amrg.config import GenerateConfig
from amrg.data.wording import generic, loops, tokenize
from amrg.models.generator import ReportGenerator, Sight
from amrg.models.parted import whole
from amrg.training import engine
from amrg.training.seen import look


def watch_reports(model: ReportGenerator, batch: dict[str, Any], count: int, max_tokens: int) -> dict[str, float]:
    """Write the reports of some studies, greedily, and tell how they fail. Every rank must call this.

    Args:
        model: in evaluation mode.
        batch: this rank's share of a validation batch, as large on every rank, with ``counts``.
        count: how many reports over all ranks; the batch bounds them, too.
        max_tokens: of a report.

    Returns:
        The same on every rank: ``watched_loops``, the share that repeats a phrase over and over, and
        ``watched_generic``, the share that is word for word the most frequent one.
    """
    mine = -(-count // engine.world_size())
    sight = look(model, batch["films"][:mine]) if "films" in batch else Sight(*(x[:mine] for x in batch["sight"]))
    decoding = GenerateConfig(num_beams=1, max_new_tokens=max_tokens)
    # All but the language model is small: whole while it is used outside a forward, where ZeRO 3 gathers nothing.
    small = [parameter for name, parameter in model.named_parameters() if not name.startswith("decoder.")]
    # And eager: to compile the decoder for writing as well would take longer than to write.
    with whole(small), torch.compiler.set_stance("force_eager"):
        written = model.generate(sight, batch["group"][:mine], decoding, synced=engine.world_size() > 1)
    counted = batch["counts"][:mine].tolist()
    return failures(engine.gather_lists([text for text, one in zip(written, counted, strict=True) if one]))


def failures(texts: Sequence[str]) -> dict[str, float]:
    """The two shares over a set of reports."""
    looping = sum(loops(tokenize(text)) for text in texts) / len(texts)
    return {"watched_loops": looping, "watched_generic": generic(texts)}
