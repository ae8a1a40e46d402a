"""What is watched of a validation split on as many ranks: arguments: FOLDER WAY...; writes WAY.json each.

``whole``: every rank holds the whole banks; else ``amrg.config.ShardingStrategy``.
"""

import json
import sys
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from amrg import distributed
from amrg.banks.bank import REPORTS, VISUAL, MemoryBank
from amrg.banks.writer import BankWriter
from amrg.config import DecoderConfig, MemoryConfig, ShardingStrategy, VisionConfig
from amrg.data.labels import FINDINGS
from amrg.models.association_shares import RowLabels
from amrg.models.classifier import DiseaseClassifier
from amrg.models.decoder import build_decoder
from amrg.models.memory_layer import AnyBank, LocalBank
from amrg.models.report_generator import ReportGenerator
from amrg.models.tokenizer import IGNORE_INDEX
from amrg.models.vision_output import VisionOutput
from amrg.retrieval.layout import ShardLayout
from amrg.retrieval.sharded_bank import ShardedBank
from amrg.training.sample_reports import MemoryWatch
from amrg.training.stage2_batches import iter_rank_batches

VISION = VisionConfig(embed_dim=32, depths=(1, 1), query_dim=24, qformer_layers=1, qformer_heads=2, image_size=64)
DECODER = DecoderConfig(hidden_size=16, layers=1, heads=2, vocab_size=60, max_visual_tokens=4)
STUDIES, BATCH = 7, 4
DIMS = {VISUAL: 24, REPORTS: 5}


def write_banks(folder: Path) -> None:
    """Eleven rows each, of the findings in turn, each of a patient of its own."""
    for bank, dim in DIMS.items():
        origins = [
            {"key": f"s{i}", "group": f"p{i}", "split": "train", "source": "region", "findings": [FINDINGS[i % 5]],
             "box": None} for i in range(11)
        ]  # fmt: skip
        with BankWriter(folder / bank, dim) as writer:
            writer.add(torch.randn(11, dim, generator=torch.Generator().manual_seed(dim)), origins)


def build(banks: Path, way: str, memory: MemoryConfig | None = None, **changes: bool | str) -> ReportGenerator:
    """A generator of random weights over the banks."""
    torch.manual_seed(0)
    classifier = DiseaseClassifier(VISION, pretrained=False)
    settings = DecoderConfig(**{**vars(DECODER), **changes})
    parts = build_decoder(settings, ["Small left effusion.", "Normal."], 0)
    opened: list[AnyBank] = []
    layout = None if way == "whole" else ShardLayout()
    for folder in (banks / VISUAL, banks / REPORTS):
        bank = MemoryBank.open(folder)
        if layout is None:
            opened.append(LocalBank(bank.load(), bank.scale(0, len(bank)), bank.groups))
        else:
            opened.append(ShardedBank.open(bank, layout, strategy=cast(ShardingStrategy, way)))
    memory = memory or MemoryConfig(heads=2, head_dim=16, beta=8.0, sharpness=8.0)
    return ReportGenerator(classifier, *parts, opened, memory, settings).eval()


def sight(studies: int) -> VisionOutput:
    """Random, with regions as long as rows."""
    generator = torch.Generator().manual_seed(4)
    shapes = ((4, 24), (14, 24), (14,), (14, 24), (14, 16), (14,), (14, 5), (24,))
    return VisionOutput(*(torch.randn((studies, *shape), generator=generator) for shape in shapes))


def key(study: int) -> str:
    return f"study-{study}"


def stated() -> dict[str, Tensor]:
    """Study i states findings i and i + 2; the last one nothing."""
    which = {i: {i, i + 2} for i in range(STUDIES - 1)}
    return {key(i): torch.tensor([k in which.get(i, ()) for k in range(len(FINDINGS))]) for i in range(STUDIES)}


def validate(model: ReportGenerator, watch: MemoryWatch) -> dict[str, float]:
    """As stage 2 does, without a loss."""
    seen = sight(STUDIES)
    with torch.no_grad():
        for rows, counts in iter_rank_batches(STUDIES, BATCH):
            batch = {
                "vision": VisionOutput(*(part[rows] for part in seen)),
                "group": rows,
                "counts": counts,
                "study": [key(row) for row in rows.tolist()],
            }
            model(batch["vision"], batch["group"], torch.full((len(rows), 2), IGNORE_INDEX))
            watch.add(model, batch)
    return watch.result()


if __name__ == "__main__":
    distributed.init_process_group()
    for name in sys.argv[2:]:
        generator = build(Path(sys.argv[1]), name)
        found = validate(generator, MemoryWatch(RowLabels.open(generator, Path(sys.argv[1])), stated()))
        every = distributed.all_gather_list([found])
        assert all(one == found for one in every)
        if distributed.global_rank() == 0:
            (Path(sys.argv[1]) / f"{distributed.world_size()}-{name}.json").write_text(json.dumps(found))
