"""Write the reports of a batch of studies: associations, composed beginning, decoder, checks and what is recorded."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch

from amrg import distributed
from amrg.banks.bank import VISUAL
from amrg.config import Config
from amrg.data.context import Context
from amrg.data.prior import Prior
from amrg.data.text.sections import join_sections, split_at_mark
from amrg.models.association_shares import RowLabels, heaviest_rows
from amrg.models.composed import Composed
from amrg.models.composer import ROWS, Composer
from amrg.models.graph_guide import GraphGuide
from amrg.models.prior import PriorFilms, PriorInputs
from amrg.models.report_generator import Association, ReportGenerator
from amrg.models.training_distance import TrainingDistance
from amrg.models.vision_output import MEMORIES, VisionOutput
from amrg.precision import autocast
from amrg.training.retrieved_text import RetrievedText

TOP_ROWS = 5  # memory rows named for each study and bank


@dataclass(frozen=True)
class Recorder:
    """Recorder of the memories' associations, and of the distance from the training films, for each report.

    Attributes:
        labels: labels of the rows by memory.
        distance: distance from the training films; None for a stage 2 that was made by a version without it.
    """

    labels: Mapping[str, RowLabels]
    distance: TrainingDistance | None

    @classmethod
    def open(cls, model: ReportGenerator, banks: Path, stage2: Path) -> Self:
        """Build from a generator, and the artefacts of its banks and of stage 2."""
        return cls(RowLabels.open(model, banks), TrainingDistance.load(stage2))

    def record(self, associations: Mapping[str, Association], loud_BQ: torch.Tensor, study: int) -> dict[str, Any]:
        """Return ``memory`` and ``association`` of a line of ``reports.jsonl``; see ``VisionOutput.loud_queries``."""
        memory: dict[str, list[dict[str, Any]]] = {name: [] for name in MEMORIES}
        association = {}
        for name, (weights_BQJ, rows_BQJ) in associations.items():
            weights_QJ, rows_QJ = weights_BQJ[study], rows_BQJ[study]
            association[name] = self.labels[name].record(weights_QJ, rows_QJ)
            recorded_Q = loud_BQ[study] if name == VISUAL else slice(None)
            memory[name] = heaviest_rows(weights_QJ[recorded_Q], rows_QJ[recorded_Q], TOP_ROWS)
        return {"memory": memory, "association": association}


@dataclass(frozen=True)
class ReportWriter:
    """Report generator with what begins, informs, checks and records its reports.

    Attributes:
        model: report generator.
        config: ``generate`` and ``stage2.dtype`` are read.
        recorder: recorder of the memories.
        composer: composes the beginning of the reports; None leaves it to the decoder.
        text: composer of the text that the decoder reads; None: no text.
        guide: knowledge graph that reports are checked against; None: no graph.
    """

    model: ReportGenerator
    config: Config
    recorder: Recorder
    composer: Composer | None
    text: RetrievedText | None
    guide: GraphGuide | None

    def write(
        self,
        vision: VisionOutput,
        group_B: torch.Tensor,
        query_vision: VisionOutput | None = None,
        contexts: Sequence[Context] | None = None,
        priors: tuple[Sequence[Prior | None], PriorFilms | None] | None = None,
        query_contexts: Sequence[Context] | None = None,
        blind: bool = False,
    ) -> list[dict[str, Any]]:
        """Generate the reports of some studies, with the entries of their lines of ``reports.jsonl``.

        A line is ``{generated, memory, association, recalled, sentences}``: ``memory`` and ``association`` are those
        of ``Recorder.record``, ``sentences`` are the recalled ones (``amrg.models.composed.ComposedSentence``), with
        which ``generated`` begins, and ``recalled`` their rows of the report bank. If the decoder reads earlier
        studies, ``prior`` is whether one was given. The line also has the entries of ``TrainingDistance.records``;
        with ``generate.abstain``, ``unsure``, the findings that the report leaves out
        (``amrg.models.composed.Unsure``); if the decoder reads retrieved text, ``retrieved_text``; if the sections are
        separate, ``sections``: the ``findings`` and the ``impression`` of which ``generated`` consists; and, with a
        knowledge graph, the entries of ``GraphGuide.record``.

        Args:
            vision, group_B, query_vision: as for ``ReportGenerator.embed_streams``; every rank needs equally many
                studies.
            contexts: clinical context of each study, of which the decoder reads what it knows; None: no context.
            priors: earlier study of each study and its films, if the decoder reads them; None: no earlier study.
            query_contexts: clinical context that asks the memories; None: ``contexts``.
            blind: as for ``Composer.compose``.
        """
        model, query = self.model, query_vision or vision
        given, films = ([None] * len(group_B), None) if priors is None else priors
        associations = model.associations(query, group_B, ROWS)
        composed = [Composed("")] * len(group_B)
        if self.composer is not None:
            associations = self.composer.fitted(vision, associations)
            composed = self.composer.compose(
                vision,
                associations,
                model.hidden_groups(group_B),  # if a patient's own rows may be retrieved, so may their sentences
                recall="report" in associations,
                priors=given,
                contexts=contexts if query_contexts is None else query_contexts,
                blind=blind,
            )
        retrieved = [] if self.text is None else self.text.compose(query, group_B, associations)
        with torch.no_grad(), autocast(self.config.stage2.dtype):
            texts = model.generate(
                vision,
                group_B,
                self.config.generate,
                synced=distributed.world_size() > 1,
                query_vision=query_vision,
                forced_prefixes=[one.text for one in composed],
                retrieved_BL=None if self.text is None else self.text.encode(retrieved),
                context_BC=None if contexts is None else model.encode_context(contexts),
                prior=PriorInputs() if priors is None else PriorInputs(model.encode_priors(given), films),
            )
        memories = self._recorded(associations, query.loud_queries(model.memory_config.visual_query))
        distance = self.recorder.distance
        distances: list[dict[str, Any]] = [{}] * len(texts) if distance is None else distance.records(vision)
        checked = [self._checked(text, one) for text, one in zip(texts, composed, strict=True)]
        return [
            {
                "generated": join_sections(findings, impression),
                **({"sections": {"findings": findings, "impression": impression}} if self._separate else {}),
                **memories[study],
                "recalled": [sentence.row for sentence in one.sentences],
                "sentences": [sentence.to_dict() for sentence in one.sentences],
                **distances[study],
                **({"unsure": [finding.to_dict() for finding in one.unsure]} if self.config.generate.abstain else {}),
                **({"retrieved_text": retrieved[study]} if retrieved else {}),
                **({"prior": given[study] is not None} if priors is not None else {}),
                **graph,
            }
            for study, (one, ((findings, impression), graph)) in enumerate(zip(composed, checked, strict=True))
        ]

    @property
    def _separate(self) -> bool:
        return self.model.settings.separate_sections

    def _recorded(self, associations: Mapping[str, Association], loud_BQ: torch.Tensor) -> list[dict[str, Any]]:
        """Return what the recorder keeps of the memories, for each study."""
        # copied once, not once for each study and finding
        loud_BQ = loud_BQ.cpu()
        associations = {
            name: Association(found.weights_BQJ.cpu(), found.rows_BQJ.cpu()) for name, found in associations.items()
        }
        return [self.recorder.record(associations, loud_BQ, study) for study in range(len(loud_BQ))]

    def _checked(self, text: str, composed: Composed) -> tuple[tuple[str, str], dict[str, Any]]:
        """Return findings and impression of a text from the decoder, checked, and the entries of the graph."""
        sections = _agreeing_sections(text, composed if self.composer else None, self._separate)
        if self.guide is None:
            return sections, {}
        (findings, impression), implausible = self.guide.check(sections, len(composed.sentences))
        return (findings, impression), self.guide.record(join_sections(findings, impression), implausible)


def _agreeing_sections(text: str, composed: Composed | None, separate: bool) -> tuple[str, str]:
    """Return findings and impression of a text; all of it is findings unless the sections are separate.

    Args:
        text: from the decoder.
        composed: beginning of the report, with which the rest must agree; None: the decoder's own.
        separate: whether the text has the mark of the impression.
    """
    findings, impression = split_at_mark(text) if separate else (text, "")
    if composed is None:
        return findings, impression
    return composed.without_contradictions(findings), composed.agreeing_impression(impression)
