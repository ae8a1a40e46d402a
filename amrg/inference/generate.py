"""Write a report for every study of a held-out split."""

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from amrg import distributed
from amrg.artifacts import add_artifact_failure, atomic_path, open_artifact
from amrg.banks.bank import REPORTS as REPORT_BANK
from amrg.banks.bank import VISUAL, MemoryBank, patient_group_id
from amrg.config import Config, DecoderConfig, GenerateConfig
from amrg.data.prior import Prior
from amrg.data.stream import load_split_studies, num_split_studies
from amrg.errors import UserError, collect_errors
from amrg.inference.report_writer import Recorder, ReportWriter
from amrg.models.bank_sentences import no_sentences_error, open_sentences
from amrg.models.composer import Composer, head_features
from amrg.models.context import refuse_lacking_context
from amrg.models.decoder_loading import refuse_quantised
from amrg.models.detail_heads import AttributeHeads, report_details
from amrg.models.finding_calibration import Certainty
from amrg.models.graph_guide import GraphGuide, save_graph_guide
from amrg.models.open_banks import open_memory_banks
from amrg.models.report_generator import ReportGenerator
from amrg.progress import track_progress
from amrg.training import engine
from amrg.training.calibration import CALIBRATION
from amrg.training.deepspeed_config import require_zero3
from amrg.training.retrieved_text import open_retrieved_text
from amrg.training.stage2 import MODEL
from amrg.training.stage2_batches import SCRATCH, iter_rank_batches, read_split_priors
from amrg.training.vision_cache import VisionCache

REPORTS = "reports.jsonl"
FEWEST_REPORTS = 20  # fewer do not show that reports have collapsed, ...
FEWEST_EQUAL = 3  # ... unless all are one text, and there are at least so many
HEAD_STUDIES = 20_000  # most studies that attribute heads are fitted on


@engine.restore_functional_linear()
def generate_reports_file(
    config: Config, data: Path, stage1: Path, banks: Path, stage2: Path, folder: Path, graph: Path | None = None
) -> None:
    """Write ``reports.jsonl``: one line per study of ``config.generate.split``, in the order of the keys.

    A line is ``{key, group, reference}`` with the entries of ``ReportWriter.write``. Finished batches are kept in
    ``scratch/`` during the run, so that an interrupted run resumes from there. Attribute heads that support details are
    stored beside the reports.

    Args:
        config: ``generate`` and ``decoder.model``, the place of the base model, are read.
        data, banks, stage2: artefacts (stage 2's model has its own copy of stage 1's; ``stage1`` is not read).
        folder: receives the file.
        graph: graph artefact, if ``config.graph`` uses it for reports; its counts are stored beside the reports.

    Raises:
        UserError: the split is empty, or an artefact is missing or damaged.
    """
    distributed.init_process_group()
    decoding = config.generate
    if not num_split_studies(data, decoding.split):
        raise UserError(f"the split `{decoding.split}` of {data} has no studies to write reports for")
    memories = open_memory_banks(config, banks, decoding.batch_size)
    zero = None if decoding.ds_config is None else engine.zero3_section(decoding.ds_config, required=True)
    model = ReportGenerator.from_pretrained(stage2 / MODEL, memories, zero, config.decoder.model).to(
        distributed.local_device()
    )
    if zero is not None:
        engine.partition_weights(model.decoder, zero)
    features = VisionCache(model, data, decoding.split, folder / SCRATCH, config.stage2.dtype)
    if distributed.global_rank() == 0:
        save_graph_guide(config.graph, graph, folder)
    distributed.barrier()
    guide = GraphGuide.open(config.graph, folder)
    composer = _composer(config, model, data, banks, stage2, folder, guide)
    text = open_retrieved_text(model, banks, stage2 / CALIBRATION / decoding.split)
    writer = ReportWriter(model, config, Recorder.open(model, banks, stage2), composer, text, guide)
    parts = folder / SCRATCH / "parts"
    parts.mkdir(parents=True, exist_ok=True)
    priors = choose_prior_studies(config, model.settings, data)
    batches = list(iter_rank_batches(len(features), decoding.batch_size))
    done = len(list(parts.glob("*.json")))
    for number in track_progress(range(done, len(batches)), "writing reports", len(batches), done):
        rows, counted = batches[number]
        local = _generate_lines(writer, features, rows, priors)
        lines = distributed.all_gather_list([line for line, one in zip(local, counted.tolist(), strict=True) if one])
        if distributed.global_rank() == 0:
            _replace(parts / f"{number:06d}.json", json.dumps(lines))
        distributed.barrier()
    if distributed.global_rank() == 0:
        lines = sorted(
            (line for path in sorted(parts.glob("*.json")) for line in json.loads(path.read_text())),
            key=lambda line: line["key"],
        )
        assert [line["key"] for line in lines] == sorted(study.key for study in features.studies)
        _replace(folder / REPORTS, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
        if failure := collapsed_reports([line["generated"] for line in lines], [line["reference"] for line in lines]):
            add_artifact_failure(folder, failure)
    distributed.barrier()


def collapsed_reports(generated: Sequence[str], references: Sequence[str]) -> str | None:
    """Return what failed if one text is more than half of at least ``FEWEST_REPORTS`` reports, else None.

    Of fewer reports, but at least ``FEWEST_EQUAL``, all must be one text. References that are as uniform are no failure
    of the generator.
    """
    if len(generated) < FEWEST_EQUAL:
        return None
    share, natural = (max(Counter(texts).values()) / len(texts) for texts in (generated, references))
    if share <= max(0.5, natural) or (share < 1 and len(generated) < FEWEST_REPORTS):
        return None
    return (
        f"the reports have collapsed: {share:.0%} of {len(generated)} are one text, and {len(set(generated))} texts "
        f"differ (of the references {natural:.0%} and {len(set(references))}); see the curves of stage 2, or give it "
        "more epochs or studies"
    )


def mismatched_permutation(groups: Sequence[str]) -> torch.Tensor:
    """Return a permutation, int64 [S], that gives each study one of another patient.

    The distance along the split is the same for all studies: half its length, or as near to it as possible.

    Raises:
        UserError: there is no such distance, for example because one patient has most of the studies.
    """
    names = list(groups)
    for distance in (*range(len(names) // 2, len(names)), *range(1, len(names) // 2)):
        if distance and all(a != b for a, b in zip(names, names[distance:] + names[:distance], strict=True)):
            return (torch.arange(len(names)) + distance) % len(names)
    raise UserError(
        "generate.memory, context or prior shuffled: there is no study of another patient for each study of the split"
    )


def choose_prior_studies(config: Config, settings: DecoderConfig, data: Path) -> dict[str, Prior]:
    """Choose the earlier study that the decoder reads with each study of the split (``generate.prior``), by its key.

    ``shuffled`` gives each study that has a prior that of another patient's study.
    """
    priors = {} if config.generate.prior == "none" else read_split_priors(settings, data, config.generate.split)
    if config.generate.prior == "own" or not priors:
        return priors
    group = {study.key: study.group for study in load_split_studies(data, config.generate.split, with_wordless=True)}
    keys = sorted(priors)
    others = mismatched_permutation([group[key] for key in keys]).tolist()
    return {key: priors[keys[other]] for key, other in zip(keys, others, strict=True)}


def open_composer(
    config: Config,
    banks: Path,
    calibration: Path,
    heads: Mapping[str, AttributeHeads] | None = None,
    guide: GraphGuide | None = None,
    comparing: bool = False,
) -> Composer | None:
    """Build the composer of the beginning of reports; None if the decoder writes it.

    Args:
        config: ``generate`` is read.
        banks: a banks artefact.
        calibration: folder of the calibration.
        heads: attribute heads, if ``generate.support`` needs any.
        guide: knowledge graph, if it guides reports.
        comparing: the decoder reads earlier studies.

    Raises:
        UserError: the report bank does not hold sentences, or the calibration is missing.
    """
    settings = config.generate
    if settings.outline_source == "decoder":
        return None
    certainty = Certainty.load(calibration)
    visual = MemoryBank.open(banks / VISUAL)
    if settings.outline_source == "classifier":
        return Composer(certainty, visual, abstain=settings.abstain, guide=guide)
    return Composer(
        certainty,
        visual,
        open_sentences(banks / REPORT_BANK),
        heads,
        settings.support,
        settings.abstain,
        guide,
        comparing,
        settings.recall_context,
        settings.context_sharpness,
    )


def generate_faults(config: Config) -> list[str]:
    """Return the contradictions in the settings of ``generate``, and between them and the banks."""
    settings, faults = config.generate, []
    if settings.banks is not None:
        faults += collect_errors(lambda: open_artifact(Path(settings.banks or ""), "banks"))
    if settings.outline_source == "retrieved" and config.banks.reports.granularity != "sentence":
        faults.append(no_sentences_error("banks.reports.granularity report makes whole reports"))
    if settings.abstain and settings.outline_source == "decoder":
        faults.append(
            f"generate.abstain {settings.abstain:g} needs a probability of each finding, which outline_source decoder "
            "does not give: say generate.outline_source retrieved or classifier, or abstain 0"
        )
    if config.graph.retrieval != "none" and settings.outline_source == "decoder":
        faults.append(
            f"graph.retrieval {config.graph.retrieval} acts on composed reports, and outline_source decoder composes "
            "none: say generate.outline_source retrieved or classifier, or graph.retrieval none"
        )
    if settings.memory == "uniform" and settings.outline_source != "retrieved":
        faults.append("generate.memory uniform is a control of composed reports: say generate.outline_source retrieved")
    if len(set(settings.query_context)) < len(settings.query_context):
        faults.append(f"generate.recall_context {' '.join(settings.query_context)} names a field twice")
    if settings.context != "own" and not (config.decoder.context or settings.query_context):
        faults.append(
            f"generate.context {settings.context} changes the context, which neither this decoder reads "
            "(decoder.context) nor the memories (generate.recall_context)"
        )
    if settings.prior != "own" and not config.decoder.prior:
        faults.append(f"generate.prior {settings.prior} changes the earlier study, of which this decoder reads nothing")
    if settings.min_new_tokens > settings.max_new_tokens:
        faults.append(
            f"generate.min_new_tokens {settings.min_new_tokens} is above max_new_tokens {settings.max_new_tokens}"
        )
    if settings.compile:
        faults += _compile_faults(settings)
    if (name := settings.ds_config) is not None:
        faults += collect_errors(lambda: require_zero3(name), lambda: refuse_quantised(config.decoder.base_dtype))
    return faults


def _compile_faults(settings: GenerateConfig) -> list[str]:
    """Return why transformers would not compile the writing."""
    reasons = {
        "needs a GPU": distributed.local_device().type == "cpu",
        f"is for writing without beams, and generate.num_beams is {settings.num_beams}": settings.num_beams > 1,
        "does not go with generate.ds_config, under which weights come and go": settings.ds_config is not None,
    }
    return [f"generate.compile {reason}: say --generate.compile false" for reason, holds in reasons.items() if holds]


#: Names of the attribute heads that ``generate.support`` needs.
HEADS = {"map": ("map",), "head": ("head",), "all": ("head",)}


def _composer(
    config: Config,
    model: ReportGenerator,
    data: Path,
    banks: Path,
    stage2: Path,
    folder: Path,
    guide: GraphGuide | None,
) -> Composer | None:
    """Build the composer for the split of ``generate``; attribute heads are fitted on train once, then stored."""
    heads = {}
    if config.generate.outline_source == "retrieved":
        if recalled := config.generate.recall_context:
            refuse_lacking_context("generate.recall_context", recalled, load_split_studies(data, "train"))
        for name in HEADS.get(config.generate.support, ()):
            features = VisionCache(model, data, "train", folder / SCRATCH, config.stage2.dtype)
            if distributed.global_rank() == 0 and not (folder / name).is_dir():
                _fit_heads(config, model, features, folder, name)
            distributed.barrier()
            heads[name] = AttributeHeads.load(folder / name)
    calibration = stage2 / CALIBRATION / config.generate.split
    return open_composer(config, banks, calibration, heads, guide, bool(model.settings.prior))


def _fit_heads(config: Config, model: ReportGenerator, features: VisionCache, folder: Path, name: str) -> None:
    """Fit attribute heads on the details that train reports state, and store them."""
    rows = torch.arange(min(len(features), HEAD_STUDIES))
    features_NFX = torch.cat([head_features(features[part])[name] for part in rows.split(1024)])
    chosen = [features.studies[row] for row in rows.tolist()]
    heads = AttributeHeads.fit(features_NFX, [report_details(s.report) for s in chosen], [s.group for s in chosen])
    with atomic_path(folder / name) as temporary:
        temporary.mkdir()
        heads.save(temporary)


def _generate_lines(
    writer: ReportWriter, features: VisionCache, rows: torch.Tensor, priors: Mapping[str, Prior]
) -> list[dict[str, Any]]:
    """Generate the lines of some studies."""
    settings = writer.model.settings
    studies = [features.studies[row] for row in rows.tolist()]
    group_B = torch.tensor([patient_group_id(study.group) for study in studies], device=distributed.local_device())
    query_vision, whose = None, writer.config.generate
    informed = queried = studies
    if "shuffled" in (whose.memory, whose.context):
        others = mismatched_permutation([study.group for study in features.studies])[rows]
        queried = [features.studies[row] for row in others.tolist()]
        if whose.memory == "shuffled":
            query_vision = features[others]
        if whose.context == "shuffled":
            informed = queried
    contexts = None if whose.context == "none" else [study.context for study in informed]
    query_contexts = None if whose.context == "none" else [study.context for study in queried]
    given = None
    if settings.prior:
        own = [priors.get(study.key) for study in studies]
        given = own, features.prior_films(own) if "films" in settings.prior else None
    blind = whose.memory == "uniform"
    lines = writer.write(features[rows], group_B, query_vision, contexts, given, query_contexts, blind)
    return [
        {
            "key": study.key,
            "group": study.group,
            "reference": study.report,
            **({"reference_sections": study.sections} if settings.separate_sections else {}),
            **line,
        }
        for study, line in zip(studies, lines, strict=True)
    ]


def _replace(path: Path, text: str) -> None:
    """Write a file atomically."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text)
    os.replace(partial, path)
