"""Retrieved sentences as text in the decoder's prompt (``decoder.use_retrieved_text``).

Only the visual memory retrieves them. Its queries are not trained, so the text of a study is composed once.

Shape legend: N studies of a split, B studies, L tokens of the longest text.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from amrg import distributed
from amrg.banks.bank import REPORTS, VISUAL, MemoryBank, patient_group_id
from amrg.config import Config
from amrg.errors import UserError
from amrg.models.bank_sentences import open_sentences
from amrg.models.composer import ROWS, Composer
from amrg.models.finding_calibration import Certainty
from amrg.models.report_generator import Association, ReportGenerator
from amrg.models.tokenizer import IGNORE_INDEX
from amrg.models.vision_output import MEMORIES, VisionOutput
from amrg.progress import track_progress
from amrg.training.calibration import CALIBRATION, calibrate_reports
from amrg.training.feature_cache import FeatureCache
from amrg.training.vision_cache import VisionCache

_BATCH = 32  # studies per progress update


class RetrievedText:
    """Composer and tokenizer of the texts.

    Args:
        model: the generator with the visual memory.
        banks: a banks artefact; its report bank holds sentences.
        calibration: folder of ``Certainty``, which selects the named findings.

    Raises:
        UserError: the report bank holds whole reports, or the calibration is missing.
    """

    def __init__(self, model: ReportGenerator, banks: Path, calibration: Path) -> None:
        self.model = model
        visual, reports = MemoryBank.open(banks / VISUAL), open_sentences(banks / REPORTS)
        self._composer = Composer(Certainty.load(calibration), visual, reports)

    def compose(self, vision: VisionOutput, group_B: Tensor, associations: Mapping[str, Association]) -> list[str]:
        """Compose the text of each study: sentences of findings, then of normal anatomy.

        Args:
            vision: stage 1's output for the studies.
            group_B: ``patient_group_id`` of each study's patient.
            associations: associations of the studies, including those with the visual memory.
        """
        visual = {MEMORIES[0]: associations[MEMORIES[0]]}
        composed = self._composer.compose(vision, visual, self.model.hidden_groups(group_B))
        return [" ".join(sentence.text for sentence in one.sentences) for one in composed]

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Token ids [B, L], ``IGNORE_INDEX`` on the left of a shorter text, on the model's device."""
        most = self.model.settings.retrieved_tokens
        ids = [self.model.tokenizer(text, add_special_tokens=False).input_ids[:most] for text in texts]
        rows = [torch.tensor(one, dtype=torch.long) for one in ids]
        padded = pad_sequence(rows, batch_first=True, padding_value=IGNORE_INDEX, padding_side="left")
        return padded.to(distributed.local_device(), non_blocking=True)


def open_retrieved_text(model: ReportGenerator, banks: Path, calibration: Path) -> RetrievedText | None:
    """Build ``RetrievedText``; None if the decoder reads no text."""
    return RetrievedText(model, banks, calibration) if model.settings.use_retrieved_text else None


class RetrievedTokens:
    """Token ids of the texts of a split, composed once by all ranks; an interrupted run resumes.

    Args:
        text: composer and tokenizer.
        cache: vision cache of the split.
        path: file of the token ids.
    """

    def __init__(self, text: RetrievedText, cache: VisionCache, path: Path) -> None:
        most = text.model.settings.retrieved_tokens
        self._cache = FeatureCache(path, len(cache), (most,), torch.int32)
        starts = range(0, len(cache), _BATCH)
        done = self._cache.done // _BATCH if self._cache.done < len(cache) else len(starts)
        distributed.barrier()  # all ranks have counted before one writes
        for start in track_progress(starts[done:], "composing retrieved text", len(starts), done):
            # A sharded bank needs equally many queries on every rank.
            rows = torch.arange(start, min(start + _BATCH, len(cache)))
            filled = torch.cat([rows, rows[:1].expand(-len(rows) % distributed.world_size())])
            local_rows = filled[distributed.global_rank() :: distributed.world_size()]
            group_B = torch.tensor(
                [patient_group_id(cache.studies[row].group) for row in local_rows.tolist()],
                device=distributed.local_device(),
            )
            vision = cache[local_rows]
            texts = text.compose(vision, group_B, text.model.associations(vision, group_B, ROWS))
            ids_BL = text.encode(texts).cpu()
            ids_BL = F.pad(ids_BL, (most - ids_BL.shape[1], 0), value=IGNORE_INDEX)
            gathered = dict(distributed.all_gather_list(list(zip(local_rows.tolist(), ids_BL, strict=True))))
            if distributed.global_rank() == 0:
                self._cache.append(torch.stack([gathered[row] for row in rows.tolist()]))
        distributed.barrier()

    def __getitem__(self, rows: Tensor) -> Tensor:
        """Token ids of rows [B], int64 [B, L], ``IGNORE_INDEX`` on the left of a shorter text."""
        ids_BL = self._cache[rows].long()
        used = (ids_BL != IGNORE_INDEX).any(0)
        return ids_BL[:, int((~used).sum()) :]


def retrieved_tokens_of(
    config: Config, model: ReportGenerator, data: Path, banks: Path, caches: Mapping[str, VisionCache], scratch: Path
) -> dict[str, RetrievedTokens] | None:
    """Compose the texts of each split of ``caches``, stored in ``scratch``; None if the decoder reads no text.

    Both splits use the calibration for validation, which is not fitted on validation reports.
    """
    if not config.decoder.use_retrieved_text:
        return None
    calibrate_reports(config, model, data, scratch, scratch)
    text = RetrievedText(model, banks, scratch / CALIBRATION / "val")
    return {split: RetrievedTokens(text, one, scratch / f"text-{split}") for split, one in caches.items()}


def refuse_changing_text(config: Config) -> None:
    """Raise UserError if the decoder reads retrieved text and training would change the retrieval."""
    changing = {
        "stage2.train_vision": config.stage2.train_vision,
        "stage2.association_loss_weight": config.stage2.association_loss_weight > 0,
        "memory.learn_beta": config.memory.learn_beta,
        "memory.visual_query queries": config.memory.visual_query == "queries",
        "memory.retrieval cross_attention": config.memory.retrieval != "hopfield",
    }
    if config.decoder.use_retrieved_text and any(changing.values()):
        raise UserError(
            "decoder.use_retrieved_text composes each study's text once, before training, so what asks the visual "
            f"memory must stay as it is: leave out {' and '.join(name for name, on in changing.items() if on)}"
        )
