"""Diagnostics of each validation of stage 2: failure rates of sample reports, and collapse of the memories.

Shape legend: B studies, Q = 14 queries, F = 13 findings, D query width.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from amrg import distributed
from amrg.config import GenerateConfig
from amrg.data.labels import FINDINGS, POSITIVE
from amrg.data.shards import hash_study_key
from amrg.data.stream import load_split_studies
from amrg.data.text.outline import positive_findings
from amrg.data.text.repetition import is_repetitive, most_common_share, tokenize_words
from amrg.data.text.sections import join_sections, split_at_mark
from amrg.models.association_shares import RowLabels, heaviest_rows
from amrg.models.classifier import query_cosines
from amrg.models.composer import ROWS
from amrg.models.prior import PriorInputs
from amrg.models.report_generator import ReportGenerator
from amrg.models.vision_output import VisionOutput
from amrg.models.zero3 import gathered_parameters

#: Studies per validation, over all ranks, after which no further batch is analysed (sorting retrievals is expensive).
STUDIES = 256

#: A memory has collapsed if one row leads for more than this share of the films …
ALIKE = 0.5
#: … and the lowest perplexity among a film's queries is below this, on average. (The mean over all queries is not
#: informative: queries of absent findings may spread over the whole bank.)
NARROW = 2.0
#: The queries have become one vector if their mean cosine is above this.
ONE_VECTOR = 0.95


class MemoryWatch:
    """Accumulator of retrieval metrics over a validation; ``result`` resets it.

    Args:
        rows: labels of the rows of each memory in use, by ``amrg.models.vision_output.MEMORIES``.
        stated: findings that each validation study states, by its hashed key, bool [F].
    """

    def __init__(self, rows: Mapping[str, RowLabels], stated: Mapping[str, Tensor]) -> None:
        self._rows, self._stated = rows, stated
        self._forget()

    @classmethod
    def open(cls, model: ReportGenerator, data: Path, banks: Path) -> Self:
        """Build from a generator, the validation split of a data artefact, and the generator's banks."""
        stated = {
            hash_study_key(study.key): torch.tensor([study.labels[finding] == POSITIVE for finding in FINDINGS])
            for study in load_split_studies(data, "val")
        }
        return cls(RowLabels.open(model, banks), stated)

    def add(self, model: ReportGenerator, batch: Mapping[str, Any]) -> None:
        """Add the studies of the last ``model.forward``. Every rank must call this.

        Args:
            model: in evaluation mode.
            batch: this rank's share of a validation batch, of equal size on every rank: ``vision``, ``group``,
                ``study`` (hashed keys) and ``counts`` (0 for a study that only pads the batch).
        """
        if self._watched >= STUDIES:
            return
        count, counted_B = len(batch["study"]), batch["counts"].cpu().bool()
        self._watched += count * distributed.data_parallel_size()
        vision = VisionOutput(*batch["vision"])
        self._sum("query_cosine", query_cosines(vision.queries_BQD).mean(1).cpu(), counted_B)
        stated_BF = torch.stack([self._stated[key] for key in batch["study"]]) & counted_B[:, None]
        # Outside a forward, ZeRO 3 does not gather parameters.
        with gathered_parameters([weight for memory in model.memories.values() for weight in memory.parameters()]):
            queries = {name: memory.of_queries(count) for name, memory in model.streamed.items()}
            associations = model.associations(vision, batch["group"], ROWS)
        for name, (weights_BQJ, rows_BQJ) in associations.items():
            for measure, values_BQ in queries.get(name, {}).items():
                self._sum(f"{name}_{measure}", values_BQ.mean(1).cpu(), counted_B)
            if name in queries:  # a memory that gives text alone computes no perplexity
                self._sum(f"{name}_least_perplexity", queries[name]["perplexity"].amin(1).cpu(), counted_B)
            self._sum(f"{name}_relevance", self._rows[name].share(weights_BQJ, rows_BQJ), stated_BF)
            weights, rows = weights_BQJ.cpu()[counted_B], rows_BQJ.cpu()[counted_B]
            self._first.setdefault(name, []).extend(_first(*study) for study in zip(weights, rows, strict=True))

    def result(self) -> dict[str, float]:
        """Reduce the metrics over all ranks since the last call, and reset. Every rank must call this.

        Returns:
            ``query_cosine``, the mean of ``query_cosines`` over pairs and films; and for each memory
            (``visual_…``, ``report_…``)
            ``relevance``, the share of a stated finding's own association on rows of that finding, mean over pairs of a
            study and a finding that it states (absent if there is none); ``alike``, the share of films whose heaviest
            row over all queries is the most frequent one; ``perplexity``, the mean over queries; ``least_perplexity``,
            the lowest perplexity among a film's queries, mean over films; and with an index ``missed_bound``.
        """
        parts = distributed.all_gather_list([(self._sums, self._first)])
        self._forget()
        metrics: dict[str, float] = {}
        for name in dict.fromkeys(name for sums, _ in parts for name in sums):
            total, number = (sum(sums[name][i] for sums, _ in parts if name in sums) for i in range(2))
            if number and math.isfinite(total):
                metrics[name] = total / number
        for name in self._rows:
            rows = [row for _, first in parts for row in first.get(name, [])]
            if rows:
                metrics[f"{name}_alike"] = share_of_most_frequent(rows)
        return metrics

    def _sum(self, name: str, values: Tensor, among: Tensor) -> None:
        total, number = self._sums.get(name, (0.0, 0))
        self._sums[name] = total + float(values.double()[among].sum()), number + int(among.sum())

    def _forget(self) -> None:
        self._watched = 0
        self._sums: dict[str, tuple[float, int]] = {}
        self._first: dict[str, list[int]] = {}


def share_of_most_frequent(rows: Sequence[int]) -> float:
    """Share of films whose heaviest row is the most frequent one; −1 is no row."""
    counts = Counter(row for row in rows if row >= 0)
    return max(counts.values(), default=0) / len(rows)


def _first(weights_QJ: Tensor, rows_QJ: Tensor) -> int:
    """Heaviest row of a film over all its queries, −1 for none."""
    return next((int(row["row"]) for row in heaviest_rows(weights_QJ, rows_QJ, 1)), -1)


#: Advice for a collapsed memory.
_HELP = {
    "visual": "lower memory.sharpness (memory.beta where Q-Former queries ask), raise stage2.association_loss_weight",
    "report": "lower memory.beta, raise stage2.retrieval_loss_weight",
}


def detect_collapses(validation: Mapping[str, float]) -> dict[str, str]:
    """Detect collapses in the metrics of a validation (``MemoryWatch.result``).

    Returns:
        One line by name: ``visual`` and ``report`` for a memory that retrieves one row for most films, ``queries`` if
        those of different findings have become one vector; empty without a collapse.
    """
    found = {}
    for name, help_ in _HELP.items():
        led, narrow = validation.get(f"{name}_alike", 0.0), validation.get(f"{name}_least_perplexity", math.inf)
        if led > ALIKE and narrow < NARROW:
            found[name] = (
                f"the {name} memory has collapsed: one row leads for {led:.0%} of the validation films, and the "
                f"narrowest query of a film spreads over {narrow:.1f} rows; {help_}, or give stage 1 more epochs"
            )
    if (cosine := validation.get("query_cosine", 0.0)) > ONE_VECTOR:
        found["queries"] = (
            f"the queries of different findings have become one vector (mean cosine {cosine:.2f}), so the memories "
            "cannot tell findings apart; say stage1.query_diversity_weight 1, or give stage 1 more epochs or studies"
        )
    return found


def greedy_reports(
    model: ReportGenerator, batch: Mapping[str, Any], count: int, max_tokens: int
) -> list[tuple[str, str]]:
    """Generate reports of some studies greedily. Every rank must call this.

    Args:
        model: in evaluation mode.
        batch: this rank's share of a validation batch, of equal size on every rank, with ``vision`` and ``counts``, and
            ``retrieved``, ``context`` and the entries of ``PriorInputs`` if the decoder reads these.
        count: number of reports over all ranks; at most those of the batch.
        max_tokens: most tokens of a report.

    Returns:
        (hashed key, report) of each study, the same on every rank; padding is left out.
    """
    local_count = -(-count // distributed.data_parallel_size())
    vision = VisionOutput(*(x[:local_count] for x in batch["vision"]))
    decoding = GenerateConfig(num_beams=1, max_new_tokens=max_tokens)
    # Outside a forward, ZeRO 3 does not gather parameters; all but the language model's are small enough to gather.
    small = [parameter for name, parameter in model.named_parameters() if not name.startswith("decoder.")]
    # Eager, because compiling the decoder for generation would take longer than the generation.
    with gathered_parameters(small), torch.compiler.set_stance("force_eager"):
        text_BL, context_BC = (
            batch[name][:local_count] if name in batch else None for name in ("retrieved", "context")
        )
        written = model.generate(
            vision,
            batch["group"][:local_count],
            decoding,
            synced=distributed.world_size() > 1,
            retrieved_BL=text_BL,
            context_BC=context_BC,
            prior=PriorInputs.of_batch(batch, local_count),
        )
    if model.settings.separate_sections:
        written = [join_sections(*split_at_mark(text)) for text in written]
    studies, counted = batch["study"][:local_count], batch["counts"][:local_count].tolist()
    local_reports = [(key, text) for key, text, one in zip(studies, written, counted, strict=True) if one]
    # Ranks that share a model have written the same.
    return distributed.all_gather_list(local_reports if distributed.current_groups().part == 0 else [])


def failure_rates(texts: Sequence[str]) -> dict[str, float]:
    """Compute ``watched_loops``, the share of reports that repeat a phrase, and ``watched_generic``.

    The latter is the share of reports that equal the most frequent one.
    """
    looping = sum(is_repetitive(tokenize_words(text)) for text in texts) / len(texts)
    return {"watched_loops": looping, "watched_generic": most_common_share(texts)}


def clinical_micro_f1(generated: Sequence[str], references: Sequence[str]) -> float:
    """Micro-F1 of the findings that the reports state (13 findings, the rules of ``amrg.data.text.labeler``)."""
    both = zip(generated, references, strict=True)
    stated = [(set(positive_findings(report)), set(positive_findings(reference))) for report, reference in both]
    hits = sum(len(found & true) for found, true in stated)
    total = sum(len(found) + len(true) for found, true in stated)
    return 2 * hits / total if total else 1.0
