"""The visual bank: disease-aware regions of the train films, each linked to sentences of its own report.

For each train film and each positive finding that the classifier detects, the region (``amrg.models.regions``) becomes
a row if the peak of its map exceeds τ. The row's text is the sentences of the study's report that state the finding,
so that the appearance of a region leads to its wording. The region of No Finding becomes a row for every film, with the
sentences that state no finding. The 14 disease queries are rows as well.

Processes find regions part by part (``amrg.mining.region_encoder``); this module selects among all regions.
"""

import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from amrg.artifacts import MapFn, atomic_path
from amrg.banks.bank import DTYPES, TRAIN
from amrg.banks.writer import BankWriter
from amrg.config import Config
from amrg.data.labels import FINDINGS, LABELS, NEGATIVE, NO_FINDING, POSITIVE
from amrg.data.stream import load_split_studies as read_studies
from amrg.data.studies import Study
from amrg.data.text.cleaning import split_sentences
from amrg.data.text.statements import Statement, find_statements
from amrg.mining.region_encoder import STUDIES_PER_PART, RegionMiner
from amrg.models.cam import activation_scales
from amrg.models.classifier import DiseaseClassifier
from amrg.progress import print_on_rank_0, track_progress

STATS = "stats.json"


@dataclass(frozen=True)
class Candidate:
    """A region of a train film.

    Attributes:
        part: number of the part.
        index: position in the file of the part.
        study: number among the selected studies.
        view: number of the film in the study.
        label: name of the label.
        peak: maximum of the unscaled map.
    """

    part: int
    index: int
    study: int
    view: int
    label: str
    peak: float


def build_visual_bank(
    config: Config,
    data: Path,
    stage1: Path,
    folder: Path,
    scratch: Path,
    each: MapFn = map,
    extended: Mapping[str, Any] | None = None,
    held: Collection[tuple[str, str]] = (),
) -> None:
    """Build the visual bank and ``stats.json`` in ``folder``; a finished bank is kept.

    The bytes do not depend on which process handles a part.

    Args:
        config: ``banks``, ``stage1.dtype`` and ``seed`` are read.
        data: data artefact; only ``banks.splits`` are read.
        stage1: stage 1 artefact.
        folder: folder of the bank.
        scratch: folder of finished parts, visible to all processes that handle them.
        each: maps a function over the parts.
        extended: header entry ``about`` of a bank that the rows will be added to. Its scales apply, and the disease
            queries, which it holds, are not written.
        held: key and patient group of the studies that it holds, which are left out.
    """
    if (folder / STATS).exists():
        return
    mining, encoder = config.banks.mining, RegionMiner(config, data, stage1, scratch)
    numbers = _study_numbers(config, data, held)
    parts = [
        (i, numbers[start : start + STUDIES_PER_PART])
        for i, start in enumerate(range(0, len(numbers), STUDIES_PER_PART))
    ]
    files = list(
        track_progress(
            each(encoder.find, parts), f"searching films for regions (parts of {STUDIES_PER_PART} studies)", len(parts)
        )
    )
    counts: dict[str, Counter[str]] = {name: Counter() for name in LABELS}
    found = _candidates(files, counts)
    scales: Mapping[str, float] = _scales(found) if extended is None else extended["scales"]
    strong = [c for c in found if c.label == NO_FINDING or c.peak > mining.threshold * scales[c.label]]
    for candidate in set(found) - set(strong):
        counts[candidate.label]["faint"] += 1
    limits = {**dict.fromkeys(FINDINGS, mining.regions_per_finding), NO_FINDING: mining.normal_regions}
    chosen = limit_per_finding(strong, limits, config.seed, counts)
    about = extended or {"method": mining.method, "threshold": mining.threshold, "scales": scales}
    places = [(numbers[candidate.study], candidate) for candidate in chosen]
    _write(config, data, stage1, folder, about, places, files, with_queries=extended is None)
    findings = {name: dict(sorted(counts[name].items())) for name in counts}
    with atomic_path(folder / STATS) as temporary:
        temporary.write_text(json.dumps({"studies": len(numbers), **about, "findings": findings}, indent=2) + "\n")
    rows, faint = (sum(counts[name][key] for name in LABELS) for key in ("rows", "faint"))
    tokens = f" and {len(LABELS)} disease tokens" if extended is None else ""
    print_on_rank_0(f"visual bank: {rows} regions{tokens}; {faint} regions were too faint ({STATS})")


def _study_numbers(config: Config, data: Path, held: Collection[tuple[str, str]]) -> list[int]:
    """Return the ascending numbers of the studies to search among those of ``banks.splits``."""
    studies = (study for split in config.banks.splits for study in read_studies(data, split))
    numbers = np.array([number for number, s in enumerate(studies) if (s.key, s.group) not in held], np.int64)
    wanted = config.banks.mining.max_studies
    if wanted is not None and wanted < len(numbers):
        numbers = np.sort(numbers[np.random.default_rng(config.seed).permutation(len(numbers))[:wanted]])
    return numbers.tolist()


def _scales(found: Sequence[Candidate]) -> dict[str, float]:
    """Return the scale of each label's maps from the peaks of all candidates."""
    peaks: dict[str, list[float]] = {name: [] for name in LABELS}
    for candidate in found:
        peaks[candidate.label].append(candidate.peak)
    return dict(zip(LABELS, activation_scales(list(peaks.values())), strict=True))


def _candidates(files: Sequence[Path], counts: dict[str, Counter[str]]) -> list[Candidate]:
    found = []
    for number, path in enumerate(files):
        with np.load(path) as part:
            columns = (part[name].tolist() for name in ("study", "view", "label", "peak"))
            for index, (study, view, label, peak) in enumerate(zip(*columns, strict=True)):
                found.append(Candidate(number, index, number * STUDIES_PER_PART + study, view, LABELS[label], peak))
            for key in ("positive", "missed"):
                for name, times in zip(LABELS, part[key].tolist(), strict=True):
                    counts[name].update({key: times} if times else {})
    return found


def limit_per_finding(
    found: Sequence[Candidate], limits: Mapping[str, int], seed: int, counts: dict[str, Counter[str]]
) -> list[Candidate]:
    """Draw at most ``limits[label]`` regions of each label; return them in the order of study, view and label."""
    kept: list[Candidate] = []
    for i, name in enumerate(LABELS):
        own = [candidate for candidate in found if candidate.label == name]
        drawn = np.random.default_rng([seed, i]).permutation(len(own))[: limits[name]]
        counts[name].update({"rows": len(drawn), "over_limit": len(own) - len(drawn)} if own else {})
        kept += [own[j] for j in drawn]
    return sorted(kept, key=lambda c: (c.study, c.view, LABELS.index(c.label)))


def _write(
    config: Config,
    data: Path,
    stage1: Path,
    folder: Path,
    about: Mapping[str, Any],
    chosen: Sequence[tuple[int, Candidate]],
    files: Sequence[Path],
    with_queries: bool,
) -> None:
    """Write the bank: chosen regions, each with the number of its study in ``banks.splits``, then disease queries."""
    banks = config.banks
    model = DiseaseClassifier.from_pretrained(stage1 / "model")
    studies = [study for split in banks.splits for study in read_studies(data, split)]
    with BankWriter(
        folder,
        model.config.query_dim,
        dtype=DTYPES[banks.dtype],
        allow_split=(*banks.splits, TRAIN),
        encoder_info=dict(about),
    ) as writer:
        for number, path in enumerate(files):
            own = [(study, candidate) for study, candidate in chosen if candidate.part == number]
            if not own:
                continue
            with np.load(path) as part:
                states, boxes = part["state"], part["box"].astype(np.int64)
            rows_ND = torch.from_numpy(states[[candidate.index for _, candidate in own]])
            scaled = [candidate.peak / about["scales"][candidate.label] for _, candidate in own]
            writer.add(
                rows_ND,
                [
                    _region_origin(studies[study], candidate, boxes[candidate.index].tolist(), score)
                    for (study, candidate), score in zip(own, scaled, strict=True)
                ],
            )
        if with_queries:
            writer.add(model.disease_queries.detach(), [_token_origin(name) for name in LABELS])


def _region_origin(study: Study, candidate: Candidate, box: list[int], score: float) -> dict[str, Any]:
    return {
        "key": study.key,
        "group": study.group,
        "split": study.split,
        "findings": [candidate.label],
        "source": "region",
        "view": candidate.view,
        "box": box,
        "text": " ".join(
            normal_sentences(study.report)
            if candidate.label == NO_FINDING
            else sentences_stating(study.report, candidate.label)
        ),
        "score": score,
        "context": study.context.known(),
    }


def sentences_stating(report: str, finding: str) -> list[str]:
    """Return the sentences of a report that state a finding."""
    return [s for s in split_sentences(report) if any(_states(one, finding) for one in find_statements(s))]


def _states(statement: Statement, finding: str) -> bool:
    return statement.finding == finding and statement.presence == POSITIVE


def normal_sentences(report: str) -> list[str]:
    """Return the sentences of a report that neither state nor suspect a finding."""
    return [s for s in split_sentences(report) if all(one.presence == NEGATIVE for one in find_statements(s))]


def _token_origin(name: str) -> dict[str, Any]:
    return {"key": "", "group": "", "split": TRAIN, "findings": [name], "source": "disease_token"}
