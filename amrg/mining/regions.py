"""Disease-aware regions: the rows of the visual bank.

For each train film and each finding that it has and that the classifier finds in it: the patches (16×16 pixels, one
cell of the fine grid) whose activation exceeds τ. Everything else is blackened, the layout kept, and the masked film
encoded again; its cells at the strongest patches, through stage 1's trained projection, become rows. The 14 disease
queries are rows as well.

Shape legend: K = 14 labels, H W fine grid, D row length.
"""

import itertools
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from amrg.config import Config
from amrg.data.labels import FINDINGS, LABELS, POSITIVE
from amrg.data.stream import Sample, read, studies
from amrg.memory.bank import DTYPES, HEADER, TRAIN
from amrg.memory.writer import BankWriter
from amrg.mining.cam import activation_maps, class_scales
from amrg.models.stage1 import DiseaseClassifier, per_study
from amrg.models.vision import to_images
from amrg.progress import say, track
from amrg.training import engine
from amrg.training.packing import stack_films

STATS = "stats.json"
#: Two rows of one film and finding with at least this cosine are the same region twice.
SAME = 0.98
_BATCH = 32


@dataclass(frozen=True)
class Candidate:
    """A film with one finding, and where its activation exceeds τ.

    Attributes:
        study: position among the mined studies.
        view: number of the film among the study's.
        finding: its name.
        shown_HW: all patches above τ, bool: what the masked film keeps.
        patches: (row, column, activation) of the strongest, none beside a stronger one.
    """

    study: int
    view: int
    finding: str
    shown_HW: np.ndarray
    patches: list[tuple[int, int, float]]


def mine_regions(config: Config, data: Path, stage1: Path, folder: Path) -> None:
    """Build the visual bank in ``folder``, with ``stats.json`` beside it; a finished one is kept.

    Args:
        config: ``banks.mining``, ``stage1.dtype`` and ``seed`` are read.
        data: a data artefact; only ``banks.splits`` are read.
        stage1: a stage 1 artefact.
        folder: of the bank.
    """
    if (folder / HEADER).exists():
        return
    model = DiseaseClassifier.from_pretrained(stage1 / "model").to(engine.device())
    thresholds = json.loads((stage1 / "thresholds.json").read_text())
    chosen = _films(config, data)
    counts: dict[str, Counter[str]] = {name: Counter() for name in FINDINGS}
    found, scales = _search(config, data, model, thresholds, chosen, counts)
    selected = select(found, config.banks.mining.regions_per_finding, counts)
    about = {"method": config.banks.mining.method, "threshold": config.banks.mining.threshold, "scales": scales}
    (folder / STATS).unlink(missing_ok=True)
    banks = config.banks
    with BankWriter(
        folder, model.config.query_dim, dtype=DTYPES[banks.dtype], allow_split=(*banks.splits, TRAIN), about=about
    ) as writer:
        for rows_ND, provenance in _encode(config, data, model, chosen, selected, counts):
            writer.add(rows_ND, provenance)
        writer.add(model.disease_queries.detach(), [_token(name) for name in LABELS])
        stats = {
            "studies": len(chosen),
            **about,
            "findings": {name: dict(sorted(counts[name].items())) for name in counts},
        }
        (folder / STATS).write_text(json.dumps(stats, indent=2) + "\n")
    regions, empty = (sum(counts[name][key] for name in FINDINGS) for key in ("rows", "empty"))
    say(f"visual bank: {regions} regions and {len(LABELS)} disease tokens; {empty} masks were empty ({STATS})")


def _films(config: Config, data: Path) -> list[int]:
    """Numbers of the films to mine among those of ``banks.splits``, ascending."""
    total = sum(len(studies(data, split)) for split in config.banks.splits)
    wanted = config.banks.mining.films
    if wanted is None or wanted >= total:
        return list(range(total))
    return sorted(np.random.default_rng(config.seed).permutation(total)[:wanted].tolist())


def _search(
    config: Config,
    data: Path,
    model: DiseaseClassifier,
    thresholds: dict[str, float],
    chosen: list[int],
    counts: dict[str, Counter[str]],
) -> tuple[list[Candidate], dict[str, float]]:
    """Candidates on all films, and the divisor of each class's maps."""
    ours, columns = config.banks.mining, {name: LABELS.index(name) for name in FINDINGS}
    maps: list[tuple[int, int, str, np.ndarray]] = []
    number = 0
    for samples in _batches(_read(config, data, chosen, "searching films for regions")):
        films = stack_films(samples, model.config.image_size)
        with torch.no_grad(), engine.precision(config.stage1.dtype):
            out = model(films.images(engine.device()))
        probabilities_BK = per_study(out.scores_BK, films.views).double().sigmoid().cpu()
        maps_MKHW = activation_maps(model.cam_head, out.fine_BHWC, ours.method).cpu()
        for b, (sample, maps_VKHW) in enumerate(zip(samples, maps_MKHW.split(list(films.views)), strict=True)):
            for name, k in columns.items():
                if sample.study.labels[name] == POSITIVE:
                    counts[name]["positive"] += len(maps_VKHW)
                    if probabilities_BK[b, k] >= thresholds[name]:
                        maps += [(number, view, name, m.numpy().copy()) for view, m in enumerate(maps_VKHW[:, k])]
                    else:
                        counts[name]["missed"] += len(maps_VKHW)
            number += 1
    peaks: dict[str, list[float]] = {name: [] for name in FINDINGS}
    for _, _, name, map_HW in maps:
        peaks[name].append(float(map_HW.max()))
    scales = dict(zip(FINDINGS, class_scales(list(peaks.values())), strict=True))
    found = []
    for study, view, name, map_HW in maps:
        shown_HW, patches, touching = strongest(map_HW / scales[name], ours.threshold, ours.patches_per_finding)
        counts[name]["touching"] += touching
        counts[name]["empty"] += not patches
        if patches:
            found.append(Candidate(study, view, name, shown_HW, patches))
    return found, scales


def strongest(map_HW: np.ndarray, threshold: float, most: int) -> tuple[np.ndarray, list[tuple[int, int, float]], int]:
    """The patches of a scaled map above a threshold.

    Returns:
        all of them, bool [H, W]; the strongest, at most ``most``, as (row, column, activation), leaving out patches
        that touch a stronger one (also by a corner); and how many were left out so before the last was taken.
    """
    shown_HW = map_HW > threshold
    taken: list[tuple[int, int, float]] = []
    touching = 0
    for cell in np.argsort(-map_HW, axis=None, kind="stable")[: int(shown_HW.sum())]:
        y, x = divmod(int(cell), map_HW.shape[1])
        if len(taken) == most:
            break
        if any(abs(y - v) <= 1 and abs(x - u) <= 1 for v, u, _ in taken):
            touching += 1
        else:
            taken.append((y, x, float(map_HW[y, x])))
    return shown_HW, taken, touching


def select(found: list[Candidate], most: int, counts: dict[str, Counter[str]]) -> list[Candidate]:
    """At most ``most`` patches of each finding: every film's strongest first, then every film's second, and so on."""
    kept: list[Candidate] = []
    for name in FINDINGS:
        own = [candidate for candidate in found if candidate.finding == name]
        turns = sorted((rank, i) for i, candidate in enumerate(own) for rank in range(len(candidate.patches)))
        taken = Counter(i for _, i in turns[:most])
        counts[name]["over_limit"] += len(turns) - min(most, len(turns))
        kept += [replace(c, patches=c.patches[: taken[i]]) for i, c in enumerate(own) if taken[i]]
    return sorted(kept, key=lambda candidate: (candidate.study, candidate.view, LABELS.index(candidate.finding)))


def _encode(
    config: Config,
    data: Path,
    model: DiseaseClassifier,
    chosen: list[int],
    selected: list[Candidate],
    counts: dict[str, Counter[str]],
) -> Iterator[tuple[Tensor, list[dict[str, Any]]]]:
    """Rows and provenance of the selected regions, film by film."""
    of_study: dict[int, list[Candidate]] = {}
    for candidate in selected:
        of_study.setdefault(candidate.study, []).append(candidate)
    samples = _read(config, data, [chosen[study] for study in of_study], "encoding regions")
    pairs = ((sample, candidate) for sample, own in zip(samples, of_study.values(), strict=True) for candidate in own)
    for batch in _batches(pairs):
        images = to_images([sample.views[candidate.view] for sample, candidate in batch], model.config.image_size)
        shown = torch.from_numpy(np.stack([candidate.shown_HW for _, candidate in batch])).float()
        masked = images * F.interpolate(shown[:, None], images.shape[-2:], mode="nearest")
        with torch.no_grad(), engine.precision(config.stage1.dtype):
            regions_BHWD = model.regions(model(masked.to(engine.device())).fine_BHWC).float().cpu()
        for (sample, candidate), regions_HWD in zip(batch, regions_BHWD, strict=True):
            rows_ND = torch.stack([regions_HWD[y, x] for y, x, _ in candidate.patches])
            fresh = distinct(rows_ND)
            counts[candidate.finding]["same"] += len(rows_ND) - len(fresh)
            counts[candidate.finding]["rows"] += len(fresh)
            yield rows_ND[fresh], [_region(sample, candidate, i) for i in fresh]


def distinct(rows_ND: Tensor) -> list[int]:
    """Positions of the rows that are not the same (``SAME``) as an earlier kept one."""
    unit_ND = F.normalize(rows_ND, dim=-1)
    kept: list[int] = []
    for i in range(len(unit_ND)):
        if not kept or float((unit_ND[kept] @ unit_ND[i]).max()) < SAME:
            kept.append(i)
    return kept


def _region(sample: Sample, candidate: Candidate, i: int) -> dict[str, Any]:
    y, x, score = candidate.patches[i]
    study = sample.study
    return {
        "key": study.key,
        "group": study.group,
        "split": study.split,
        "findings": [candidate.finding],
        "source": "region",
        "view": candidate.view,
        "box": [x, y, x + 1, y + 1],
        "score": score,
    }


def _token(name: str) -> dict[str, Any]:
    return {"key": "", "group": "", "split": TRAIN, "findings": [name], "source": "disease_token"}


def _read(config: Config, data: Path, films: list[int], label: str) -> Iterator[Sample]:
    """The samples with these ascending numbers among those of ``banks.splits``."""
    wanted = set(films)
    everything = itertools.chain.from_iterable(read(data, split) for split in config.banks.splits)
    samples = (sample for number, sample in enumerate(everything) if number in wanted)
    return track(samples, label, len(films))


def _batches(items: Iterable[Any]) -> Iterator[list[Any]]:
    iterator = iter(items)
    while batch := list(islice(iterator, _BATCH)):
        yield batch
