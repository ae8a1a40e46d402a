"""Inference of a run's models on one study: classification, retrieval and report writing.

Shape legend: M films of the study, K = 14 labels, H W grid of the maps, Q = 14 queries.
"""

import dataclasses
import json
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers.generation.streamers import BaseStreamer

from amrg import distributed
from amrg.banks.bank import VISUAL, MemoryBank
from amrg.data.context import NO_CONTEXT, Context
from amrg.data.film_checks import view_kinds_of_films
from amrg.data.image_ops import letterbox_to_square
from amrg.data.labels import FINDINGS, LABELS
from amrg.data.prior import Prior
from amrg.data.text.outline import positive_findings
from amrg.errors import UserError
from amrg.inference.run import open_generator, read_context_fields
from amrg.inference.run_artifacts import RunArtifacts
from amrg.models import report_generator
from amrg.models.cam import activation_maps
from amrg.models.classifier import DiseaseClassifier
from amrg.models.composed import Composed, ComposedSentence
from amrg.models.composer import ROWS
from amrg.models.cross_attention import CrossAttention
from amrg.models.hopfield import HopfieldMemory
from amrg.models.prior import PriorFilms, PriorInputs
from amrg.models.training_distance import TrainingDistance
from amrg.models.vision import films_to_tensor
from amrg.models.vision_output import VisionOutput
from amrg.precision import autocast
from amrg.training.stage2_batches import read_split_priors
from amrg.training.vision_cache import round_like_cache
from amrg.webapp.attention import Association, record_attention
from amrg.webapp.transcript import Transcript

#: Callback with the kind and the content of each event of a report.
OnEvent = Callable[[str, dict[str, Any]], None]

#: Memories by their names on the page, and their streams.
MEMORIES = {"visual": "visual memory", "report": "report memory"}
#: Name of the earlier study among the switches and the streams of the page.
PRIOR = "earlier study"
SHOWN = 5  # rows of each memory
#: Pixels per side of the shown films; smaller films are scaled up.
SHOWN_SIZE = 768


@dataclass(frozen=True)
class EarlierStudy:
    """Earlier study of a patient, as the decoder reads it.

    Attributes:
        prior: its report, and the time between.
        vision: its encoded films; None if the decoder reads none.
    """

    prior: Prior
    vision: VisionOutput | None


@dataclass(frozen=True)
class StudyAnalysis:
    """Model outputs on a study, before the report.

    Attributes:
        films: full films, padded to a square as the maps cover it, uint8 [SHOWN_SIZE, SHOWN_SIZE] each.
        group: ``group_id`` of the patient; ``NO_GROUP`` for an uploaded film.
        vision: encoded films.
        probabilities: sigmoid of stage 1's logit of all films together, by finding.
        maps_MKHW: activation maps; 1 is the peak of a typical positive train film (``amrg.models.cam``).
        association: association by memory of the generator.
        distance: entries of ``TrainingDistance.records``; empty if the run has no such distance.
        loud_Q: queries whose associations with the visual memory are reported (``VisionOutput.loud_queries``).
        context: clinical context.
        prior: earlier study.
    """

    films: list[np.ndarray]
    group: int
    vision: VisionOutput
    probabilities: dict[str, float]
    maps_MKHW: np.ndarray
    association: dict[str, Association]
    distance: dict[str, Any]
    loud_Q: Tensor
    context: Context = NO_CONTEXT
    prior: EarlierStudy | None = None

    def retrieved(self) -> dict[str, list[dict[str, Any]]]:
        """Return the heaviest rows of each memory, averaged over the same queries as in ``reports.jsonl``."""
        loud_Q = self.loud_Q.double()
        return {
            name: found.top_rows(loud_Q / loud_Q.sum() if name == VISUAL else _uniform(found), SHOWN)
            for name, found in self.association.items()
        }

    def map(self, film: int, finding: str) -> np.ndarray:
        """Return the activation map of a finding on a film, [H, W]."""
        return self.maps_MKHW[film, LABELS.index(finding)]


class PromptLengths(NamedTuple):
    """Numbers of tokens of retrieved text, clinical context and earlier report, and whether earlier films are there."""

    text: int
    context: int
    prior: int
    prior_films: bool


class ClientGone(Exception):
    """The client has disconnected."""


class InferenceSession:
    """Models of a run. Calls are serialized by a lock.

    Raises:
        UserError: an artefact is missing or damaged.
    """

    def __init__(self, chain: RunArtifacts) -> None:
        self.config = chain.config
        self.model, self._composer, self._text = open_generator(chain, 1)
        self.model.decoder.set_attn_implementation("eager")
        self.classifier = DiseaseClassifier.from_pretrained(chain.stage1.path / "model").to(distributed.local_device())
        self.thresholds = _thresholds(chain.stage1.path / "thresholds.json")
        self._distance = TrainingDistance.load(chain.stage2.path)
        about = MemoryBank.open(chain.banks.path / VISUAL).header["about"]
        self._scale_K = np.array([about.get("scales", {}).get(label, 1.0) for label in LABELS])
        # Beam search cannot stream words, so the page decodes with one beam.
        self.decoding = dataclasses.replace(self.config.generate, num_beams=1)
        self._priors = cache(lambda split: read_split_priors(self.model.settings, chain.data.path, split))
        self._lock = threading.Lock()

    @property
    def memories(self) -> dict[str, HopfieldMemory | CrossAttention]:
        """Memories of the generator, by name."""
        return self.model.memories

    @property
    def context_fields(self) -> tuple[str, ...]:
        """Fields of the clinical context that the run reads."""
        return read_context_fields(self.model.settings, self.config.generate)

    @property
    def grid(self) -> int:
        """Cells per side of the maps, and of the grid of the visual bank's boxes."""
        return self.classifier.encoder.grid

    def find_prior(self, split: str, key: str) -> Prior | None:
        """Return the earlier study that the decoder reads with a study; None if there is none."""
        with self._lock:
            return self._priors(split).get(key)

    @torch.no_grad()
    def read_prior(self, prior: Prior, films: Sequence[np.ndarray], views: Sequence[str] = ()) -> EarlierStudy:
        """Encode what the decoder reads of an earlier study.

        Args:
            prior: its report, and the time between.
            films: its films, uint8 [H, W] each.
            views: view of each film; empty: unknown.
        """
        if "films" not in self.model.settings.prior:
            return EarlierStudy(prior, None)
        images = films_to_tensor(list(films), self.classifier.image_size).to(distributed.local_device())
        with self._lock, autocast(self.config.stage2.dtype):
            encoded = self.model.encode_images(images, [len(films)], view_kinds_of_films(views, len(films)))
        return EarlierStudy(prior, round_like_cache(encoded))

    @torch.no_grad()
    def analyze(
        self,
        films: list[np.ndarray],
        group: int,
        context: Context = NO_CONTEXT,
        views: Sequence[str] = (),
        prior: EarlierStudy | None = None,
    ) -> StudyAnalysis:
        """Run the models on the films of a study, uint8 [H, W] each; only the report depends on context and prior.

        Args:
            films: of the study.
            group: as of ``StudyAnalysis``.
            context: clinical context.
            views: view of each film; empty: unknown.
            prior: earlier study; None: none is known.
        """
        kinds = view_kinds_of_films(views, len(films))
        size = self.classifier.image_size
        images = films_to_tensor(films, size).to(distributed.local_device())
        group_1 = torch.tensor([group], device=images.device)
        with self._lock:
            with autocast(self.config.stage2.dtype):
                outputs = self.classifier(images, kinds=kinds)
                vision = round_like_cache(self.model.encode_images(images, [len(films)], kinds))
            maps_MKHW = activation_maps(self.classifier.cam_head, outputs.fine_BHWC, self.config.banks.mining.method)
            association = {
                name: Association(*(part[0].cpu() for part in found))
                for name, found in self.model.associations(vision, group_1, ROWS).items()
            }
        probability_K = outputs.of_studies(outputs.scores_BK.double(), [len(films)])[0].sigmoid().tolist()
        return StudyAnalysis(
            films=[letterbox_to_square(film, SHOWN_SIZE) for film in films],
            group=group,
            vision=vision,
            probabilities={name: probability_K[LABELS.index(name)] for name in FINDINGS},
            maps_MKHW=maps_MKHW.cpu().numpy() / self._scale_K[:, None, None],
            association=association,
            distance=self._distance.records(vision)[0] if self._distance else {},
            loud_Q=vision.loud_queries(self.model.memory_config.visual_query)[0].cpu(),
            context=context,
            prior=prior,
        )

    def patches(
        self, analysis: StudyAnalysis, film: int, finding: str, threshold: float
    ) -> list[tuple[int, int, float]]:
        """Return (row, column, activation) of a map's patches above a threshold; see ``strongest_patches``."""
        return strongest_patches(analysis.map(film, finding), threshold)

    def write(self, analysis: StudyAnalysis, disabled: set[str], on_event: OnEvent) -> None:
        """Write the report of a study, and report its progress.

        Args:
            analysis: analysis of the study.
            disabled: names in ``MEMORIES``, and ``PRIOR``. The positions of a disabled memory are hidden from the
                decoder, and without the visual memory the retrieved text is empty. Without the earlier study the
                report is written as that of a first study.
            on_event: receives ``text`` (plan and sentences so far; with separate sections also ``impression``, the
                number of its first sentence or None) after each token, and ``sentence`` after each
                sentence: its findings, its attribution, and its support if it was ``recalled``
                (``ComposedSentence.to_dict``).
                Before these it receives ``unsure``, what the report leaves out (``generate.abstain``), if anything.
                It may raise ``ClientGone``.
        """
        hidden = [MEMORIES[name] for name in sorted(disabled) if name in analysis.association]
        group_1 = torch.tensor([analysis.group], device=distributed.local_device())
        with self._lock, autocast(self.config.stage2.dtype), record_attention(self.model.decoder) as steps:
            found = {
                name: report_generator.Association(*(part[None] for part in one))
                for name, one in analysis.association.items()
                if name not in disabled
            }
            earlier = None if PRIOR in disabled else analysis.prior
            given = [None if earlier is None else earlier.prior]
            composed = Composed("")
            if self._composer:
                unsaid_1 = self.model.hidden_groups(group_1)
                fitted = self._composer.fitted(analysis.vision, found)
                recall = "report" in found
                (composed,) = self._composer.compose(
                    analysis.vision, fitted, unsaid_1, recall=recall, priors=given, contexts=[analysis.context]
                )
            if composed.unsure:
                on_event("unsure", {"texts": [one.text for one in composed.unsure]})
            text_1L = None
            if self._text:
                texts = self._text.compose(analysis.vision, group_1, found) if "visual" in found else [""]
                text_1L = self._text.encode(texts)
            context_1C = self.model.encode_context([analysis.context])
            prior = PriorInputs(self.model.encode_priors(given), self._prior_films(earlier))
            text, known, report = map(_length, (text_1L, context_1C, prior.text_BR))
            read = PromptLengths(text, known, report, prior.films is not None)
            streamer = _EventStreamer(self, analysis, disabled, steps, composed.sentences, on_event, read)
            self.model.generate(
                analysis.vision, group_1, self.decoding, streamer=streamer, hidden=hidden,
                forced_prefixes=[composed.text], retrieved_BL=text_1L, context_BC=context_1C, prior=prior,
            )  # fmt: skip

    def _prior_films(self, earlier: EarlierStudy | None) -> PriorFilms | None:
        """Return the films of an earlier study as the decoder reads them; None if it reads none."""
        if "films" not in self.model.settings.prior:
            return None
        vision = None if earlier is None else earlier.vision
        given_1 = torch.tensor([vision is not None], device=distributed.local_device())
        return PriorFilms.scattered(vision, given_1, self.model.vision_output_shapes)

    def sentence_attribution(
        self, analysis: StudyAnalysis, off: set[str], attention_S: Tensor, read: PromptLengths
    ) -> dict[str, Any]:
        """Return a sentence's attention per stream, and its heaviest rows of each memory.

        Args:
            analysis: analysis of the study.
            off: disabled memories.
            attention_S: mean attention of the sentence to the decoder's first ``positions``.
            read: lengths of what the decoder reads beside the streams.
        """
        attention_P = attention_S[len(self.model.prompt.before) :]
        of = {name: attention_P[place] for name, place in self.model.stream_slices.items()}
        of["retrieved text"] = attention_S[len(attention_S) - read.text :]
        films, behind_P = attention_P[self.model.prefix_length :].tensor_split([self._film_positions(read)])
        behind_P = behind_P[len(self.model.prompt.behind) :]
        of["context"] = behind_P[: read.context]
        if analysis.prior is not None and PRIOR not in off:
            of[PRIOR] = torch.cat([films, behind_P[read.context :][: read.prior]])
        shares = {name: round(float(part.sum()), 4) for name, part in of.items() if len(part)}
        rows = {}
        for name, found in analysis.association.items():
            if name not in off:
                stream = of[MEMORIES[name]]
                rows[name] = found.top_rows(stream / stream.sum() if len(stream) else _uniform(found), SHOWN)
        return {"shares": {**shares, "words": round(1 - sum(shares.values()), 4)}, "rows": rows}

    def positions(self, read: PromptLengths) -> int:
        """Count the decoder's input positions through the last that is read: streams, earlier study, context, text."""
        prompt = self.model.prompt
        known = len(prompt.before) + self.model.prefix_length + self._film_positions(read)
        if read.text or read.context or read.prior:
            known += len(prompt.behind) + read.context + read.prior
        return known + len(prompt.between) + read.text if read.text else known

    def _film_positions(self, read: PromptLengths) -> int:
        return self.model.prior_positions * read.prior_films


class _EventStreamer(BaseStreamer):
    """Converter of the tokens that ``generate`` streams into events."""

    def __init__(
        self, reader: InferenceSession, analysis: StudyAnalysis, off: set[str], steps: deque[Tensor],
        recalled: Sequence[ComposedSentence], on_event: OnEvent, read: PromptLengths,
    ) -> None:  # fmt: skip
        self._reader, self._analysis, self._off, self._steps, self._on_event = reader, analysis, off, steps, on_event
        self._read = read
        self._recalled = {number: sentence.to_dict() for number, sentence in enumerate(recalled)}
        self._ids: list[int] = []
        self._begun = False
        self._reported = 0
        self._transcript = Transcript(
            reader.model.settings.predict_outline, separate=reader.model.settings.separate_sections
        )

    def put(self, value: Tensor) -> None:
        """Add one token, [1]. The first call passes the prompt, which is ignored."""
        if not self._begun:
            self._begun = True
            return
        attention_S, tokenizer = self._steps.popleft(), self._reader.model.tokenizer
        self._ids.append(int(value))
        if self._ids[-1] in self._reader.model.prompt.stops:
            return
        self._transcript.add(tokenizer.batch_decode([self._ids], skip_special_tokens=True)[0], attention_S)
        self._report(finished=len(self._transcript.sentences) - 1)

    def end(self) -> None:
        """Close the transcript, and report its last sentences."""
        self._transcript.close()
        self._report(finished=len(self._transcript.sentences))

    def _report(self, finished: int) -> None:
        written = self._transcript
        impression = {"impression": written.impression} if written.separate else {}
        self._on_event("text", {"plan": written.plan, "sentences": written.sentences, **impression})
        for number in range(self._reported, finished):
            attention_S = self._transcript.attention(number, self._reader.positions(self._read))
            drawn = self._reader.sentence_attribution(self._analysis, self._off, attention_S, self._read)
            findings = positive_findings(self._transcript.sentences[number])
            recalled = self._recalled.get(number)
            self._on_event("sentence", {"number": number, "recalled": recalled, "findings": findings, **drawn})
        self._reported = max(self._reported, finished)


def strongest_patches(map_HW: np.ndarray, threshold: float, most: int = 6) -> list[tuple[int, int, float]]:
    """Return (row, column, activation) of the strongest patches of a map, without those adjacent to a stronger one."""
    taken: list[tuple[int, int, float]] = []
    for cell in np.argsort(-map_HW, axis=None, kind="stable")[: int((map_HW > threshold).sum())]:
        y, x = divmod(int(cell), map_HW.shape[1])
        if len(taken) < most and not any(abs(y - v) <= 1 and abs(x - u) <= 1 for v, u, _ in taken):
            taken.append((y, x, float(map_HW[y, x])))
    return taken


def _length(ids_1L: Tensor | None) -> int:
    return 0 if ids_1L is None else ids_1L.shape[1]


def _uniform(found: Association) -> Tensor:
    queries = len(found.weights_QK)
    return torch.full((queries,), 1 / queries)


def _thresholds(path: Path) -> dict[str, float]:
    try:
        return {name: float(value) for name, value in json.loads(path.read_text()).items()}
    except (OSError, ValueError, AttributeError):
        raise UserError(f"{path} is missing or unreadable: make stage 1 again with `amrg stage1`") from None
