"""The visual bank: disease-aware regions of the train films, each linked to what its own report says of it.

For each train film and each finding that it has and that the classifier finds in it, the region
(``amrg.models.regions``) becomes a row if its map's peak exceeds τ. The row's text are the sentences of the study's
report that state the finding: from what a region looks like to the words that were used for it. The region that speaks
for No Finding becomes a row of any film; its text are the sentences that state no finding. The 14 disease queries are
rows as well.

The classifier's work is done in parts (``amrg.mining.region_encoder``), by whoever has time; what compares films is
done here.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
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
from amrg.data.stream import load_studies as read_studies
from amrg.data.stream import num_studies
from amrg.data.studies import Study
from amrg.data.text.cleaning import sentences
from amrg.data.text.statements import statements
from amrg.mining.region_encoder import STUDIES_PER_PART, RegionMiner
from amrg.models.cam import class_scales
from amrg.models.classifier import DiseaseClassifier
from amrg.progress import echo, track

STATS = "stats.json"


@dataclass(frozen=True)
class Candidate:
    """A region of a train film.

    Attributes:
        part, index: of the file that the miner wrote, and its place in it.
        study: number among the mined studies.
        view: number of the film among the study's.
        label: its name.
        peak: maximum of the unscaled map.
    """

    part: int
    index: int
    study: int
    view: int
    label: str
    peak: float


def mine_regions(config: Config, data: Path, stage1: Path, folder: Path, scratch: Path, each: MapFn = map) -> None:
    """Build the visual bank in ``folder``, with ``stats.json`` beside it; a finished one is kept.

    The bytes do not depend on who does the parts.

    Args:
        config: ``banks``, ``stage1.dtype`` and ``seed`` are read.
        data: a data artefact; only ``banks.splits`` are read.
        stage1: a stage 1 artefact.
        folder: of the bank.
        scratch: for finished parts; to be seen by all who do them.
        each: does the parts.
    """
    if (folder / STATS).exists():
        return
    mining, miner = config.banks.mining, RegionMiner(config, data, stage1, scratch)
    numbers = _numbers(config, data)
    parts = [
        (i, numbers[start : start + STUDIES_PER_PART])
        for i, start in enumerate(range(0, len(numbers), STUDIES_PER_PART))
    ]
    files = list(
        track(each(miner.find, parts), f"searching films for regions (parts of {STUDIES_PER_PART} studies)", len(parts))
    )
    counts: dict[str, Counter[str]] = {name: Counter() for name in LABELS}
    found = _candidates(files, counts)
    peaks: dict[str, list[float]] = {name: [] for name in LABELS}
    for one in found:
        peaks[one.label].append(one.peak)
    scales = dict(zip(LABELS, class_scales(list(peaks.values())), strict=True))
    loud = [one for one in found if one.label == NO_FINDING or one.peak > mining.threshold * scales[one.label]]
    for one in set(found) - set(loud):
        counts[one.label]["faint"] += 1
    most = {**dict.fromkeys(FINDINGS, mining.regions_per_finding), NO_FINDING: mining.normal_regions}
    chosen = limit_per_finding(loud, most, config.seed, counts)
    about = {"method": mining.method, "threshold": mining.threshold, "scales": scales}
    _write(config, data, stage1, folder, about, [(numbers[one.study], one) for one in chosen], files)
    findings = {name: dict(sorted(counts[name].items())) for name in counts}
    with atomic_path(folder / STATS) as temporary:
        temporary.write_text(json.dumps({"studies": len(numbers), **about, "findings": findings}, indent=2) + "\n")
    rows, faint = (sum(counts[name][key] for name in LABELS) for key in ("rows", "faint"))
    echo(f"visual bank: {rows} regions and {len(LABELS)} disease tokens; {faint} regions were too faint ({STATS})")


def _numbers(config: Config, data: Path) -> list[int]:
    """Numbers of the studies to mine among those of ``banks.splits``, ascending."""
    total = sum(num_studies(data, split) for split in config.banks.splits)
    wanted = config.banks.mining.max_studies
    if wanted is None or wanted >= total:
        return list(range(total))
    return sorted(np.random.default_rng(config.seed).permutation(total)[:wanted].tolist())


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
    found: Sequence[Candidate], most: Mapping[str, int], seed: int, counts: dict[str, Counter[str]]
) -> list[Candidate]:
    """At most ``most`` regions of each label, drawn by the seed, in the order of study, view and label."""
    kept: list[Candidate] = []
    for i, name in enumerate(LABELS):
        own = [one for one in found if one.label == name]
        drawn = np.random.default_rng([seed, i]).permutation(len(own))[: most[name]]
        counts[name].update({"rows": len(drawn), "over_limit": len(own) - len(drawn)} if own else {})
        kept += [own[j] for j in drawn]
    return sorted(kept, key=lambda one: (one.study, one.view, LABELS.index(one.label)))


def _write(
    config: Config,
    data: Path,
    stage1: Path,
    folder: Path,
    about: dict[str, Any],
    chosen: Sequence[tuple[int, Candidate]],
    files: Sequence[Path],
) -> None:
    """The bank: chosen regions with the number of their study among those of ``banks.splits``, then disease queries."""
    banks = config.banks
    model = DiseaseClassifier.from_pretrained(stage1 / "model")
    studies = [study for split in banks.splits for study in read_studies(data, split)]
    with BankWriter(
        folder,
        model.config.query_dim,
        dtype=DTYPES[banks.dtype],
        allow_split=(*banks.splits, TRAIN),
        encoder_info=about,
    ) as writer:
        for number, path in enumerate(files):
            own = [(study, one) for study, one in chosen if one.part == number]
            if not own:
                continue
            with np.load(path) as part:
                states, boxes = part["state"], part["box"].astype(np.int64)
            rows_ND = torch.from_numpy(states[[one.index for _, one in own]])
            scaled = [one.peak / about["scales"][one.label] for _, one in own]
            writer.add(
                rows_ND,
                [
                    _region(studies[study], one, boxes[one.index].tolist(), score)
                    for (study, one), score in zip(own, scaled, strict=True)
                ],
            )
        writer.add(model.disease_queries.detach(), [_token(name) for name in LABELS])


def _region(study: Study, one: Candidate, box: list[int], score: float) -> dict[str, Any]:
    return {
        "key": study.key,
        "group": study.group,
        "split": study.split,
        "findings": [one.label],
        "source": "region",
        "view": one.view,
        "box": box,
        "text": " ".join(
            normal_sentences(study.report) if one.label == NO_FINDING else stating(study.report, one.label)
        ),
        "score": score,
    }


def stating(report: str, finding: str) -> list[str]:
    """The sentences of a report that state a finding."""
    said = sentences(report)
    return [s for s in said if any(one.finding == finding and one.presence == POSITIVE for one in statements(s))]


def normal_sentences(report: str) -> list[str]:
    """The sentences of a report that neither state nor suspect a finding."""
    return [s for s in sentences(report) if all(one.presence == NEGATIVE for one in statements(s))]


def _token(name: str) -> dict[str, Any]:
    return {"key": "", "group": "", "split": TRAIN, "findings": [name], "source": "disease_token"}
