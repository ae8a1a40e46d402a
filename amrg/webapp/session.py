"""The run's models at work on one study: what they see, retrieve and write.

Shape legend: M films of the study, K = 14 labels, H W grid of the maps, Q = 14 queries.
"""

import dataclasses
import json
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.generation.streamers import BaseStreamer

from amrg import distributed
from amrg.banks.bank import VISUAL, MemoryBank
from amrg.data.image_ops import letterbox
from amrg.data.labels import FINDINGS, LABELS
from amrg.errors import UserError
from amrg.inference.run import RunArtifacts, open_generator
from amrg.models import report_generator
from amrg.models.cam import activation_maps
from amrg.models.classifier import DiseaseClassifier
from amrg.models.composer import ROWS, Composed, ComposedSentence
from amrg.models.cross_attention import CrossAttention
from amrg.models.hopfield import HopfieldMemory
from amrg.models.report_generator import VisionOutput
from amrg.models.vision import to_tensor
from amrg.precision import autocast
from amrg.training.vision_cache import round_like_cache
from amrg.webapp.attention import Association, record_attention
from amrg.webapp.transcript import Transcript

#: Is told the kind and the content of each step of a report.
OnEvent = Callable[[str, dict[str, Any]], None]

#: The memories by the names the page uses, and the streams they fill.
MEMORIES = {"visual": "visual memory", "report": "report memory"}
SHOWN = 5  # rows of each memory
#: Pixels on a side of the films shown; smaller ones are scaled up to it, as the model's own square is.
SHOWN_SIZE = 768


@dataclass(frozen=True)
class StudyAnalysis:
    """What the models see of a study.

    Attributes:
        films: the whole film in a square, uint8 [SHOWN_SIZE, SHOWN_SIZE] each, as the maps lie on it.
        group: ``group_id`` of the patient; ``NO_GROUP`` for a film that was dropped.
        probabilities: of each finding: stage 1's logits of all films together, both heads.
        maps_MKHW: activation maps, 1 being the peak of a typical positive train film (``amrg.models.cam``).
        association: with each memory that the generator has.
    """

    films: list[np.ndarray]
    group: int
    sight: VisionOutput
    probabilities: dict[str, float]
    maps_MKHW: np.ndarray
    association: dict[str, Association]

    def retrieved(self) -> dict[str, list[dict[str, Any]]]:
        """The heaviest rows of each memory for the film as a whole."""
        return {name: found.top_rows(_uniform(found), SHOWN) for name, found in self.association.items()}

    def map(self, film: int, finding: str) -> np.ndarray:
        """[H, W]"""
        return self.maps_MKHW[film, LABELS.index(finding)]


class ClientGone(Exception):
    """Nobody reads on: the writing is given up."""


class InferenceSession:
    """The models of a run. They do one thing at a time: callers wait for each other.

    Raises:
        UserError: an artefact is not what it should be.
    """

    def __init__(self, chain: RunArtifacts) -> None:
        self.config = chain.config
        self.model, self._composer, self._text = open_generator(chain, 1)
        self.model.decoder.set_attn_implementation("eager")
        self.classifier = DiseaseClassifier.from_pretrained(chain.stage1.path / "model").to(distributed.device())
        self.thresholds = _thresholds(chain.stage1.path / "thresholds.json")
        about = MemoryBank.open(chain.banks.path / VISUAL).header["about"]
        self._scale_K = np.array([about.get("scales", {}).get(label, 1.0) for label in LABELS])
        # Beams are not written word by word: the page shows what one beam writes.
        self.decoding = dataclasses.replace(self.config.generate, num_beams=1)
        self._lock = threading.Lock()

    @property
    def memories(self) -> dict[str, HopfieldMemory | CrossAttention]:
        """The memories that the generator has, by name."""
        return self.model.memories

    @property
    def grid(self) -> int:
        """Cells on a side of the maps, and of the boxes of the visual bank's rows."""
        return self.classifier.encoder.grid

    @torch.no_grad()
    def analyze(self, films: list[np.ndarray], group: int) -> StudyAnalysis:
        """Run the models on the films of a study, uint8 [H, W] each."""
        size = self.classifier.config.image_size
        images = to_tensor(films, size).to(distributed.device())
        group_1 = torch.tensor([group], device=images.device)
        with self._lock:
            with autocast(self.config.stage2.dtype):
                seen = self.classifier(images)
                sight = round_like_cache(self.model.encode_images(images, [len(films)]))
            maps_MKHW = activation_maps(self.classifier.cam_head, seen.fine_BHWC, self.config.banks.mining.method)
            association = {
                name: Association(*(part[0].cpu() for part in found))
                for name, found in self.model.associations(sight, group_1, ROWS).items()
            }
        probability_K = seen.scores_BK.double().mean(0).sigmoid().tolist()
        return StudyAnalysis(
            films=[letterbox(film, SHOWN_SIZE) for film in films],
            group=group,
            sight=sight,
            probabilities={name: probability_K[LABELS.index(name)] for name in FINDINGS},
            maps_MKHW=maps_MKHW.cpu().numpy() / self._scale_K[:, None, None],
            association=association,
        )

    def patches(self, look: StudyAnalysis, film: int, finding: str, threshold: float) -> list[tuple[int, int, float]]:
        """(row, column, activation) of the strongest patches above a threshold, none beside a stronger one."""
        return strongest(look.map(film, finding), threshold)

    def write(self, look: StudyAnalysis, disabled_memories: set[str], on_event: OnEvent) -> None:
        """Write the report of a study, and tell each step.

        Args:
            look: of the study.
            disabled_memories: memories (``MEMORIES``) that are switched off: their positions are hidden from the
                decoder, and the text that the visual memory retrieves is empty.
            on_event: receives ``text`` (plan and sentences so far) after each token, and ``sentence`` after each
                sentence: what it drew on, and what it stands on if it was ``recalled`` (``ComposedSentence.to_dict``).
                It may raise ``Stopped``.
        """
        hidden = [MEMORIES[name] for name in sorted(disabled_memories) if name in look.association]
        group_1 = torch.tensor([look.group], device=distributed.device())
        with self._lock, autocast(self.config.stage2.dtype), record_attention(self.model.decoder) as steps:
            found = {
                name: report_generator.Association(*(part[None] for part in one))
                for name, one in look.association.items()
                if name not in disabled_memories
            }
            composed = Composed("")
            if self._composer:
                unsaid_1 = self.model.masked_groups(group_1)
                (composed,) = self._composer.compose(look.sight, found, unsaid_1, recall="report" in found)
            text_1L = None
            if self._text:
                texts = self._text.compose(look.sight, group_1, found) if "visual" in found else [""]
                text_1L = self._text.encode(texts)
            pen = _EventStreamer(
                self,
                look,
                disabled_memories,
                steps,
                composed.sentences,
                on_event,
                0 if text_1L is None else text_1L.shape[1],
            )
            self.model.generate(
                look.sight, group_1, self.decoding, streamer=pen, hidden=hidden, forced_prefixes=[composed.text],
                retrieved_BL=text_1L,
            )  # fmt: skip

    def sentence_attribution(
        self, look: StudyAnalysis, off: set[str], attention_S: Tensor, text: int
    ) -> dict[str, Any]:
        """How a sentence's attention is divided among the streams, and its heaviest rows of each memory.

        Args:
            look, off: as for ``write``.
            attention_S: to the decoder's first positions (``positions``), its mean over the sentence.
            text: tokens of the retrieved text.
        """
        attention_P = attention_S[len(self.model.before) :]
        of = {name: attention_P[place] for name, place in self.model.stream_slices.items()}
        of["retrieved text"] = attention_S[len(attention_S) - text :]
        shares = {name: round(float(part.sum()), 4) for name, part in of.items() if len(part)}
        rows = {}
        for name, found in look.association.items():
            if name not in off:
                stream = of[MEMORIES[name]]
                rows[name] = found.top_rows(stream / stream.sum() if len(stream) else _uniform(found), SHOWN)
        return {"shares": {**shares, "words": round(1 - sum(shares.values()), 4)}, "rows": rows}

    def positions(self, text: int) -> int:
        """Of the decoder's input up to the last stream, or the end of a retrieved text of so many tokens."""
        streams = len(self.model.before) + self.model.prefix_length
        return streams + len(self.model.between) + text if text else streams


class _EventStreamer(BaseStreamer):
    """Turns the tokens that ``generate`` streams into what is told of them."""

    def __init__(
        self, reader: InferenceSession, look: StudyAnalysis, off: set[str], steps: deque[Tensor],
        recalled: Sequence[ComposedSentence], tell: OnEvent,
        text: int,
    ) -> None:  # fmt: skip
        self._reader, self._look, self._off, self._steps, self._tell = reader, look, off, steps, tell
        self._text = text
        self._recalled = {number: said.to_dict() for number, said in enumerate(recalled)}
        self._ids: list[int] = []
        self._begun = False
        self._told = 0
        self._transcript = Transcript(reader.model.settings.predict_outline)

    def put(self, value: Tensor) -> None:
        """One token, [1]; the first call holds the prompt, of which there are no tokens."""
        if not self._begun:
            self._begun = True
            return
        attention_S, tokenizer = self._steps.popleft(), self._reader.model.tokenizer
        self._ids.append(int(value))
        if self._ids[-1] == tokenizer.eos_token_id:
            return
        self._transcript.add(tokenizer.batch_decode([self._ids], skip_special_tokens=True)[0], attention_S)
        self._say(finished=len(self._transcript.sentences) - 1)

    def end(self) -> None:
        """The report is written."""
        self._transcript.close()
        self._say(finished=len(self._transcript.sentences))

    def _say(self, finished: int) -> None:
        self._tell("text", {"plan": self._transcript.plan, "sentences": self._transcript.sentences})
        for number in range(self._told, finished):
            attention_S = self._transcript.attention(number, self._reader.positions(self._text))
            drawn = self._reader.sentence_attribution(self._look, self._off, attention_S, self._text)
            self._tell("sentence", {"number": number, "recalled": self._recalled.get(number), **drawn})
        self._told = max(self._told, finished)


def strongest(map_HW: np.ndarray, threshold: float, most: int = 6) -> list[tuple[int, int, float]]:
    """(row, column, activation) of the strongest patches of a map, leaving out those that touch a stronger one."""
    taken: list[tuple[int, int, float]] = []
    for cell in np.argsort(-map_HW, axis=None, kind="stable")[: int((map_HW > threshold).sum())]:
        y, x = divmod(int(cell), map_HW.shape[1])
        if len(taken) < most and not any(abs(y - v) <= 1 and abs(x - u) <= 1 for v, u, _ in taken):
            taken.append((y, x, float(map_HW[y, x])))
    return taken


def _uniform(found: Association) -> Tensor:
    queries = len(found.weights_QK)
    return torch.full((queries,), 1 / queries)


def _thresholds(path: Path) -> dict[str, float]:
    try:
        return {name: float(value) for name, value in json.loads(path.read_text()).items()}
    except (OSError, ValueError, AttributeError):
        raise UserError(f"{path} is missing or unreadable: make stage 1 again with `amrg stage1`") from None
