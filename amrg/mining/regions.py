"""Disease-aware regions: the rows of the visual bank.

For each train film and each finding that it has and that the classifier finds in it: the patches (16×16 pixels, one
cell of the fine grid) whose activation exceeds τ. Everything else is blackened, the layout kept, and the masked film
encoded again; its cells at the strongest patches, through stage 1's trained projection, become rows. The 14 disease
queries are rows as well.

The classifier's work is done in parts (``amrg.mining.miner``), by whoever has time; what compares films is done here.

Shape legend: K = 14 labels, H W fine grid.
"""

import json
import shutil
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from amrg.artifacts import Each, whole
from amrg.config import Config
from amrg.data.labels import FINDINGS, LABELS
from amrg.data.stream import count
from amrg.memory.bank import MemoryBank
from amrg.memory.operations import merge
from amrg.mining.cam import class_scales
from amrg.mining.miner import PART, Candidate, Miner, Regions
from amrg.progress import say, track

STATS = "stats.json"


def mine_regions(config: Config, data: Path, stage1: Path, folder: Path, scratch: Path, each: Each = map) -> None:
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
    mining, miner = config.banks.mining, Miner(config, data, stage1, scratch)
    chosen = _films(config, data)
    counts: dict[str, Counter[str]] = {name: Counter() for name in FINDINGS}
    starts = range(0, len(chosen), PART)
    parts = [(number, chosen[start : start + PART]) for number, start in enumerate(starts)]
    searched = track(each(miner.search, parts), f"searching films for regions (parts of {PART} studies)", len(parts))
    found, scales = _candidates(config, searched, counts)
    selected = select(found, mining.regions_per_finding, counts)
    about = {"method": mining.method, "threshold": mining.threshold, "scales": scales}
    regions = _regions([(chosen[candidate.study], candidate) for candidate in selected], about)
    encoded = track(each(miner.encode, regions), f"encoding regions (parts of {PART})", len(regions))
    shutil.rmtree(folder, ignore_errors=True)  # of an interrupted run
    bank = merge([MemoryBank.open(path) for path in encoded], folder)
    _count_rows(bank, selected, counts)
    findings = {name: dict(sorted(counts[name].items())) for name in counts}
    with whole(folder / STATS) as temporary:
        temporary.write_text(json.dumps({"studies": len(chosen), **about, "findings": findings}, indent=2) + "\n")
    rows, empty = (sum(counts[name][key] for name in FINDINGS) for key in ("rows", "empty"))
    say(f"visual bank: {rows} regions and {len(LABELS)} disease tokens; {empty} masks were empty ({STATS})")


def _films(config: Config, data: Path) -> list[int]:
    """Numbers of the studies to mine among those of ``banks.splits``, ascending."""
    total = sum(count(data, split) for split in config.banks.splits)
    wanted = config.banks.mining.films
    if wanted is None or wanted >= total:
        return list(range(total))
    return sorted(np.random.default_rng(config.seed).permutation(total)[:wanted].tolist())


def _candidates(
    config: Config, searched: Iterable[Path], counts: dict[str, Counter[str]]
) -> tuple[list[Candidate], dict[str, float]]:
    """Candidates on all films, and the divisor of each class's maps: what is typical of a class, all films tell."""
    ours, maps = config.banks.mining, []
    for number, path in enumerate(searched):
        with np.load(path) as part:
            place = zip(
                part["study"].tolist(), part["view"].tolist(), part["label"].tolist(), part["maps"], strict=True
            )
            maps += [(number * PART + study, view, LABELS[label], map_HW) for study, view, label, map_HW in place]
            for key in ("positive", "missed"):
                for name, times in zip(FINDINGS, part[key].tolist(), strict=True):
                    counts[name].update({key: times} if times else {})
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


def _regions(candidates: Sequence[tuple[int, Candidate]], about: dict[str, Any]) -> list[Regions]:
    """The parts of the bank; the last one has the disease tokens."""
    starts = range(0, max(len(candidates), 1), PART)
    return [
        Regions(number, list(candidates[start : start + PART]), start == starts[-1], about)
        for number, start in enumerate(starts)
    ]


def _count_rows(bank: MemoryBank, selected: Sequence[Candidate], counts: dict[str, Counter[str]]) -> None:
    """How many of the selected patches became rows, and how many were the same as another one."""
    patches: Counter[str] = Counter()
    for candidate in selected:
        patches[candidate.finding] += len(candidate.patches)
    told = bank.origins(0, len(bank), ["findings", "source"]).to_pylist()
    rows = Counter(row["findings"][0] for row in told if row["source"] == "region")
    for name, times in patches.items():
        counts[name].update(rows=rows[name], same=times - rows[name])
