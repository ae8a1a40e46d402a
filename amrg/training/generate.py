"""Write a report for every study of a held-out split."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from amrg.config import Config
from amrg.data.labels import FINDINGS
from amrg.data.outline import stated
from amrg.data.stream import count
from amrg.errors import UserError
from amrg.memory.bank import REPORTS as REPORT_BANK
from amrg.memory.bank import MemoryBank, group_id
from amrg.models.generator import ReportGenerator, Sight
from amrg.models.outliner import Begun, Certainty, Outliner
from amrg.progress import track
from amrg.training import engine
from amrg.training.seen import Seen
from amrg.training.stage2 import MODEL, SCRATCH, open_banks, shares

REPORTS = "reports.jsonl"
TOP_ROWS = 5  # memory rows named for each study and bank


@engine.linear_restored()
def generate(config: Config, data: Path, stage1: Path, banks: Path, stage2: Path, folder: Path) -> None:
    """Write ``reports.jsonl``: each study of ``config.generate.split`` once, in the order of their keys.

    A line is ``{key, group, reference, generated, memory: {visual: [{row, weight}, …], report: […]}, recalled: […]}``;
    the first sentences of ``generated`` are those of the recalled rows of the report bank, one of each. Finished
    batches are kept in ``scratch/`` while the work goes on, so that an interrupted run goes on from there. Where
    stage 1 decides the outlines, its calibration is kept beside (``Certainty.save``).

    Args:
        config: ``generate`` is read.
        data, banks, stage2: artefacts (stage 2's model has its own copy of stage 1's; ``stage1`` is not read).
        folder: receives the file.

    Raises:
        UserError: the split is empty, or an artefact is not what it should be.
    """
    engine.start()
    decoding = config.generate
    if not count(data, decoding.split):
        raise UserError(f"the split `{decoding.split}` of {data} has no studies to write reports for")
    memories = open_banks(config, banks, decoding.batch_size)
    zero = None if decoding.ds_config is None else engine.zero3(decoding.ds_config, required=True)
    model = ReportGenerator.from_pretrained(stage2 / MODEL, memories, zero).to(engine.device())
    if zero is not None:
        engine.partition(model.decoder, zero)
    seen = Seen(model, data, decoding.split, folder / SCRATCH, config.stage2.dtype)
    outliner = _outliner(config, model, data, banks, folder)
    parts = folder / SCRATCH / "parts"
    parts.mkdir(parents=True, exist_ok=True)
    batches = list(shares(len(seen), decoding.batch_size))
    done = len(list(parts.glob("*.json")))
    for number in track(range(done, len(batches)), "writing reports", len(batches), done):
        rows, counted = batches[number]
        mine = _write(model, seen, rows, config, outliner)
        lines = engine.gather_lists([line for line, one in zip(mine, counted.tolist(), strict=True) if one])
        if engine.rank() == 0:
            _replace(parts / f"{number:06d}.json", json.dumps(lines))
        engine.barrier()
    if engine.rank() == 0:
        lines = sorted(
            (line for path in sorted(parts.glob("*.json")) for line in json.loads(path.read_text())),
            key=lambda line: line["key"],
        )
        assert [line["key"] for line in lines] == sorted(study.key for study in seen.studies)
        _replace(folder / REPORTS, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    engine.barrier()


def strangers(groups: Sequence[str]) -> torch.Tensor:
    """For each study another patient's, a permutation, int64 [S]: the same distance along the split for all, from half
    its length on.

    Raises:
        UserError: no such distance, as where one patient has most of the studies.
    """
    names = list(groups)
    for distance in (*range(len(names) // 2, len(names)), *range(1, len(names) // 2)):
        if distance and all(a != b for a, b in zip(names, names[distance:] + names[:distance], strict=True)):
            return (torch.arange(len(names)) + distance) % len(names)
    raise UserError("generate.memory mismatched: there is no study of another patient for each study of the split")


def _outliner(config: Config, model: ReportGenerator, data: Path, banks: Path, folder: Path) -> Outliner | None:
    """What begins the reports, calibrated on validation (on train, where those of validation are written)."""
    if config.generate.outline == "written":
        return None
    split = "val" if config.generate.split == "test" else "train"
    if not count(data, split):
        raise UserError(f"generate.outline {config.generate.outline} is calibrated on `{split}`: that split is empty")
    seen = Seen(model, data, split, folder / SCRATCH, config.stage2.dtype)
    logits_NQ = torch.cat([seen[rows].logits_BQ.cpu() for rows in torch.arange(len(seen)).split(1024)])
    found = [stated(study.report) for study in seen.studies]
    truth_NF = torch.tensor([[finding in some for finding in FINDINGS] for some in found])
    certainty = Certainty.fit(logits_NQ[:, : len(FINDINGS)], truth_NF)
    if engine.rank() == 0:
        certainty.save(folder)
    recalled = config.generate.outline == "recalled"
    return Outliner(certainty, MemoryBank.open(banks / REPORT_BANK) if recalled else None)


def _write(
    model: ReportGenerator, seen: Seen, rows: torch.Tensor, config: Config, outliner: Outliner | None
) -> list[dict[str, Any]]:
    """The lines of some studies."""
    studies = [seen.studies[row] for row in rows.tolist()]
    group_B = torch.tensor([group_id(study.group) for study in studies], device=engine.device())
    asking_BQD = None
    if config.generate.memory == "mismatched":
        asking_BQD = seen[strangers([study.group for study in seen.studies])[rows]].queries_BQD
    lines = write_reports(model, seen[rows], group_B, config, outliner, asking_BQD)
    return [
        {"key": study.key, "group": study.group, "reference": study.report, **line}
        for study, line in zip(studies, lines, strict=True)
    ]


def write_reports(
    model: ReportGenerator,
    sight: Sight,
    group_B: torch.Tensor,
    config: Config,
    outliner: Outliner | None,
    asking_BQD: torch.Tensor | None = None,
) -> list[dict[str, Any]]:
    """What ``reports.jsonl`` tells of some studies beside who they are: ``generated``, ``memory``, ``recalled``.

    Args:
        sight, group_B, asking_BQD: as for ``ReportGenerator.streams``; every rank needs equally many studies.
        config: ``generate`` and ``stage2.dtype`` are read.
        outliner: begins the reports; None leaves that to the decoder.
    """
    begun = [Begun("")] * len(group_B)
    if outliner is not None:
        begun = outliner.begin(model, sight, group_B, asking_BQD)
    with torch.no_grad(), engine.precision(config.stage2.dtype):
        texts = model.generate(
            sight,
            group_B,
            config.generate,
            synced=engine.world_size() > 1,
            asking_BQD=asking_BQD,
            begin=[one.text for one in begun],
        )
    memory = model.retrieved(sight.queries_BQD if asking_BQD is None else asking_BQD, group_B, TOP_ROWS)
    return [
        {"generated": text, "memory": top, "recalled": one.rows}
        for text, top, one in zip(texts, memory, begun, strict=True)
    ]


def _replace(path: Path, text: str) -> None:
    """Write a file so that it is never seen half written."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text)
    os.replace(partial, path)
