"""Loss of stage 2: cross-entropy of the reports, and what the memories are trained with besides."""

from typing import Any

from torch import Tensor

from amrg.models.context import drop_context_fields
from amrg.models.prior import PriorInputs
from amrg.models.report_generator import ReportGenerator
from amrg.models.vision_output import VisionOutput
from amrg.training.association_targets import WantedRows
from amrg.training.retrieval_targets import RetrievalTargets
from amrg.training.vision_cache import encode_study_films


def report_token_loss(
    model: ReportGenerator,
    batch: dict[str, Any],
    own_reports: RetrievalTargets | None = None,
    wanted_rows: WantedRows | None = None,
    context_dropout: float = 0.0,
) -> tuple[Tensor, dict[str, Tensor | float]]:
    """Cross-entropy per report token of the global batch, as a mean over samples that ranks can average.

    ``own_reports`` and ``wanted_rows`` add the losses of the memories (``amrg.models.retrieval_loss``).
    ``context_dropout`` is the share of the fields of the context that are left out.
    """
    vision = encode_study_films(model, batch["films"]) if "films" in batch else VisionOutput(*batch["vision"])
    own_BQD = None if own_reports is None else own_reports.vectors_for(batch["study"])
    wanted = None if wanted_rows is None else wanted_rows.of(batch["study"])
    context_BC = batch.get("context")
    if context_BC is not None and context_dropout:
        context_BC = drop_context_fields(context_BC, batch["context_field"], context_dropout)
    predicted = model(
        vision,
        batch["group"],
        batch["report"],
        own_BQD,
        wanted,
        batch.get("retrieved"),
        context_BC,
        PriorInputs.of_batch(batch),
    )
    total, recorded = (predicted.loss_B * batch["weight"]).mean(), {}
    for name, teacher, loss_B in (
        ("retrieval_loss", own_reports, predicted.retrieval_B),
        ("association_loss", wanted_rows, predicted.association_B),
    ):
        if teacher is not None and loss_B is not None:
            total = total + teacher.weight * loss_B.mean()
            recorded[name] = loss_B.mean().detach()
    return total, recorded


def association_metrics(model: ReportGenerator) -> dict[str, float]:
    """Perplexities of the memories' last associations; every rank must call this."""
    recorded: dict[str, float] = {}
    for name, memory in model.streamed.items():
        metrics = memory.metrics()
        recorded |= {f"{name}_{key}": metrics[key] for key in ("perplexity", "missed_bound") if key in metrics}
    return recorded
