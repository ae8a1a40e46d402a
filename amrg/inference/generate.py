"""Write a report for every study of a held-out split."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch

from amrg import distributed
from amrg.artifacts import atomic_path
from amrg.banks.bank import REPORTS as REPORT_BANK
from amrg.banks.bank import VISUAL, MemoryBank, group_id
from amrg.config import Config
from amrg.data.stream import num_studies
from amrg.errors import UserError, collect_errors
from amrg.models.association_shares import RowLabels, heaviest
from amrg.models.bank_sentences import no_sentences, open_sentences
from amrg.models.composer import ROWS, Composed, Composer, head_features
from amrg.models.decoder import refuse_quantised
from amrg.models.detail_heads import AttributeHeads, report_details
from amrg.models.finding_calibration import Certainty
from amrg.models.open_banks import open_banks
from amrg.models.report_generator import MEMORIES, Association, ReportGenerator, VisionOutput
from amrg.precision import autocast
from amrg.progress import track
from amrg.training import engine
from amrg.training.calibration import CALIBRATION
from amrg.training.deepspeed_config import require_zero3
from amrg.training.retrieved_text import RetrievedText, open_text
from amrg.training.stage2 import MODEL, SCRATCH, rank_batches
from amrg.training.vision_cache import VisionCache

REPORTS = "reports.jsonl"
TOP_ROWS = 5  # memory rows named for each study and bank
HEAD_STUDIES = 20_000  # that attribute heads are fitted on, at most


@engine.restore_functional_linear()
def generate(config: Config, data: Path, stage1: Path, banks: Path, stage2: Path, folder: Path) -> None:
    """Write ``reports.jsonl``: each study of ``config.generate.split`` once, in the order of their keys.

    A line is ``{key, group, reference, generated}`` and what ``generate_reports`` gives. Finished batches are kept in
    ``scratch/`` while the work goes on, so that an interrupted run goes on from there. Attribute heads that support
    details are kept beside the reports.

    Args:
        config: ``generate`` is read, and ``decoder.model`` for where the base model is.
        data, banks, stage2: artefacts (stage 2's model has its own copy of stage 1's; ``stage1`` is not read).
        folder: receives the file.

    Raises:
        UserError: the split is empty, or an artefact is not what it should be.
    """
    distributed.init_process_group()
    decoding = config.generate
    if not num_studies(data, decoding.split):
        raise UserError(f"the split `{decoding.split}` of {data} has no studies to write reports for")
    memories = open_banks(config, banks, decoding.batch_size)
    zero = None if decoding.ds_config is None else engine.zero3(decoding.ds_config, required=True)
    model = ReportGenerator.from_pretrained(stage2 / MODEL, memories, zero, config.decoder.model).to(
        distributed.device()
    )
    if zero is not None:
        engine.partition(model.decoder, zero)
    features = VisionCache(model, data, decoding.split, folder / SCRATCH, config.stage2.dtype)
    recorder = Recorder.open(model, banks)
    composer = _composer(config, model, data, banks, stage2, folder)
    text = open_text(model, banks, stage2 / CALIBRATION / decoding.split)
    parts = folder / SCRATCH / "parts"
    parts.mkdir(parents=True, exist_ok=True)
    batches = list(rank_batches(len(features), decoding.batch_size))
    done = len(list(parts.glob("*.json")))
    for number in track(range(done, len(batches)), "writing reports", len(batches), done):
        rows, counted = batches[number]
        local = _generate_lines(model, features, rows, config, recorder, composer, text)
        lines = distributed.all_gather_list([line for line, one in zip(local, counted.tolist(), strict=True) if one])
        if distributed.rank() == 0:
            _replace(parts / f"{number:06d}.json", json.dumps(lines))
        distributed.barrier()
    if distributed.rank() == 0:
        lines = sorted(
            (line for path in sorted(parts.glob("*.json")) for line in json.loads(path.read_text())),
            key=lambda line: line["key"],
        )
        assert [line["key"] for line in lines] == sorted(study.key for study in features.studies)
        _replace(folder / REPORTS, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    distributed.barrier()


def mismatched_permutation(groups: Sequence[str]) -> torch.Tensor:
    """Return for each study one of another patient, a permutation, int64 [S].

    All studies take the one at the same distance along the split, at half its length or as near to it as possible.

    Raises:
        UserError: no such distance, as where one patient has most of the studies.
    """
    names = list(groups)
    for distance in (*range(len(names) // 2, len(names)), *range(1, len(names) // 2)):
        if distance and all(a != b for a, b in zip(names, names[distance:] + names[:distance], strict=True)):
            return (torch.arange(len(names)) + distance) % len(names)
    raise UserError("generate.memory shuffled: there is no study of another patient for each study of the split")


@dataclass(frozen=True)
class Recorder:
    """What is recorded of the memories for each report; ``labels`` of the rows by memory."""

    labels: Mapping[str, RowLabels]

    @classmethod
    def open(cls, model: ReportGenerator, banks: Path) -> Self:
        """For the memories of a generator."""
        return cls(RowLabels.open(model, banks))

    def record(self, associations: Mapping[str, Association], loud_BQ: torch.Tensor, study: int) -> dict[str, Any]:
        """``memory`` and ``association`` of a line of ``reports.jsonl``; see ``ReportGenerator.loud_queries``."""
        memory: dict[str, list[dict[str, Any]]] = {name: [] for name in MEMORIES}
        association = {}
        for name, (weights_BQJ, rows_BQJ) in associations.items():
            weights_QJ, rows_QJ = weights_BQJ[study], rows_BQJ[study]
            association[name] = self.labels[name].record(weights_QJ, rows_QJ)
            recorded_Q = loud_BQ[study] if name == VISUAL else slice(None)
            memory[name] = heaviest(weights_QJ[recorded_Q], rows_QJ[recorded_Q], TOP_ROWS)
        return {"memory": memory, "association": association}


def open_composer(
    config: Config, banks: Path, calibration: Path, heads: Mapping[str, AttributeHeads] | None = None
) -> Composer | None:
    """What begins the reports; None where the decoder does.

    Args:
        config: ``generate`` is read.
        banks: a banks artefact.
        calibration: folder of the calibration.
        heads: where ``generate.support`` needs some.

    Raises:
        UserError: the report bank does not hold sentences, or the calibration is missing.
    """
    outline = config.generate.outline_source
    if outline == "decoder":
        return None
    certainty = Certainty.load(calibration)
    visual, abstain = MemoryBank.open(banks / VISUAL), config.generate.abstain
    if outline == "classifier":
        return Composer(certainty, visual, abstain=abstain)
    reports = open_sentences(banks / REPORT_BANK)
    return Composer(certainty, visual, reports, heads, config.generate.support, abstain)


def generate_faults(config: Config) -> list[str]:
    """Settings of ``generate`` that do not go together, or not with the banks."""
    settings, faults = config.generate, []
    if settings.outline_source == "retrieved" and config.banks.reports.granularity != "sentence":
        faults.append(no_sentences("banks.reports.granularity report makes whole reports"))
    if settings.abstain and settings.outline_source == "decoder":
        faults.append(
            f"generate.abstain {settings.abstain:g} needs a probability of each finding, which outline_source decoder "
            "does not give: say generate.outline_source retrieved or classifier, or abstain 0"
        )
    if settings.min_new_tokens > settings.max_new_tokens:
        faults.append(
            f"generate.min_new_tokens {settings.min_new_tokens} is above max_new_tokens {settings.max_new_tokens}"
        )
    if (name := settings.ds_config) is not None:
        faults += collect_errors(lambda: require_zero3(name), lambda: refuse_quantised(config.decoder.base_dtype))
    return faults


#: Names of the attribute heads that ``generate.support`` needs.
HEADS = {"map": ("map",), "head": ("head",), "all": ("head",)}


def _composer(
    config: Config, model: ReportGenerator, data: Path, banks: Path, stage2: Path, folder: Path
) -> Composer | None:
    """The same for the split of ``generate``; attribute heads are fitted on train, once, and kept in the folder."""
    heads = {}
    if config.generate.outline_source == "retrieved":
        for name in HEADS.get(config.generate.support, ()):
            features = VisionCache(model, data, "train", folder / SCRATCH, config.stage2.dtype)
            if distributed.rank() == 0 and not (folder / name).is_dir():
                _fit_heads(config, model, features, folder, name)
            distributed.barrier()
            heads[name] = AttributeHeads.load(folder / name)
    return open_composer(config, banks, stage2 / CALIBRATION / config.generate.split, heads)


def _fit_heads(config: Config, model: ReportGenerator, features: VisionCache, folder: Path, name: str) -> None:
    """Fit attribute heads on what train reports state, and keep them."""
    rows = torch.arange(min(len(features), HEAD_STUDIES))
    features_NFX = torch.cat([head_features(features[part])[name] for part in rows.split(1024)])
    chosen = [features.studies[row] for row in rows.tolist()]
    heads = AttributeHeads.fit(features_NFX, [report_details(s.report) for s in chosen], [s.group for s in chosen])
    with atomic_path(folder / name) as temporary:
        temporary.mkdir()
        heads.save(temporary)


def _generate_lines(
    model: ReportGenerator,
    features: VisionCache,
    rows: torch.Tensor,
    config: Config,
    recorder: Recorder,
    composer: Composer | None,
    text: RetrievedText | None,
) -> list[dict[str, Any]]:
    """The lines of some studies."""
    studies = [features.studies[row] for row in rows.tolist()]
    group_B = torch.tensor([group_id(study.group) for study in studies], device=distributed.device())
    query_vision = None
    if config.generate.memory == "shuffled":
        query_vision = features[mismatched_permutation([study.group for study in features.studies])[rows]]
    lines = generate_reports(model, features[rows], group_B, config, recorder, composer, text, query_vision)
    return [
        {"key": study.key, "group": study.group, "reference": study.report, **line}
        for study, line in zip(studies, lines, strict=True)
    ]


def generate_reports(
    model: ReportGenerator,
    vision: VisionOutput,
    group_B: torch.Tensor,
    config: Config,
    recorder: Recorder,
    composer: Composer | None,
    text: RetrievedText | None,
    query_vision: VisionOutput | None = None,
) -> list[dict[str, Any]]:
    """What ``reports.jsonl`` records of some studies beside who they are.

    A line is ``{generated, memory, association, recalled, sentences}``: ``memory`` and ``association`` as
    ``Recorder.record`` gives them, ``sentences`` those that were recalled
    (``amrg.models.composer.ComposedSentence``), and ``recalled`` their rows of the report bank; ``generated`` begins
    with them. With ``generate.abstain``, ``unsure`` lists what the report leaves out
    (``amrg.models.composer.Unsure``). Where the decoder reads retrieved text, ``retrieved_text`` is that.

    Args:
        vision, group_B, query_vision: as for ``ReportGenerator.embed_streams``; every rank needs equally many studies.
        config: ``generate`` and ``stage2.dtype`` are read.
        recorder: of the memories.
        composer: begins the reports; None leaves that to the decoder.
        text: that the decoder reads; None where it reads none.
    """
    associations = model.associations(query_vision or vision, group_B, ROWS)
    loud_BQ = model.loud_queries(query_vision or vision)
    composed = [Composed("")] * len(group_B)
    if composer is not None:
        # Where a patient's own rows may be retrieved, the sentences may be said, too.
        unsaid_B = model.masked_groups(group_B)
        composed = composer.compose(vision, associations, unsaid_B, recall="report" in associations)
    retrieved = [] if text is None else text.compose(query_vision or vision, group_B, associations)
    with torch.no_grad(), autocast(config.stage2.dtype):
        texts = model.generate(
            vision,
            group_B,
            config.generate,
            synced=distributed.world_size() > 1,
            query_vision=query_vision,
            forced_prefixes=[one.text for one in composed],
            retrieved_BL=None if text is None else text.encode(retrieved),
        )
    return [
        {
            "generated": one.without_contradictions(text) if composer else text,
            **recorder.record(associations, loud_BQ, study),
            "recalled": [sentence.row for sentence in one.sentences],
            "sentences": [sentence.to_dict() for sentence in one.sentences],
            **({"unsure": [finding.to_dict() for finding in one.unsure]} if config.generate.abstain else {}),
            **({"retrieved_text": retrieved[study]} if retrieved else {}),
        }
        for study, (text, one) in enumerate(zip(texts, composed, strict=True))
    ]


def _replace(path: Path, text: str) -> None:
    """Write a file so that it is never seen half written."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text)
    os.replace(partial, path)
