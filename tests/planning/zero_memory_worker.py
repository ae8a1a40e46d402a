"""What DeepSpeed holds in stage 2: arguments: RUNS OUT CASE..., a case being TUNING-ACCUMULATION-JSON.

``RUNS/decoder`` holds the decoder of the cases but full ones, ``RUNS/encoder`` says how wide the report bank is.
Writes ``OUT-RANK.json``: bytes of each case by part.
"""

import dataclasses
import gc
import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from amrg import distributed
from amrg.config import CONFIGS, Config
from amrg.config_files import load_config
from amrg.planning.meta_models import dummy_vision_output
from amrg.training import engine
from amrg.training.engine import Engine
from amrg.training.report_loss import report_token_loss
from amrg.training.stage2 import build_generator, stage2_optimizer_settings

TINY = CONFIGS / "tiny.yaml"
SAMPLES = 8


def configure(runs: Path, case: str) -> Config:
    """The tiny configuration with the tuning, the accumulation and the DeepSpeed JSON of a case."""
    tuning, accumulation, name = case.split("-")
    content = json.loads((CONFIGS / f"{name}.json").read_text()) | {"gradient_accumulation_steps": int(accumulation)}
    path = runs / f"{case}-{distributed.global_rank()}.json"
    path.write_text(json.dumps(content))
    config = load_config(str(TINY))
    decoder: dict[str, Any] = {"tuning": tuning, "lora_rank": 3}
    if tuning != "full":
        decoder["model"] = str(runs / "decoder")
    return dataclasses.replace(
        config,
        banks=dataclasses.replace(
            config.banks, reports=dataclasses.replace(config.banks.reports, encoder=str(runs / "encoder"))
        ),
        decoder=dataclasses.replace(config.decoder, **decoder),
        stage2=dataclasses.replace(config.stage2, ds_config=str(path), batch_size=SAMPLES, dtype="float32"),
    )


def size(tensors: Any) -> int:
    """Bytes of the storages of tensors, each counted once."""
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors if isinstance(t, Tensor)}
    return sum(storages.values())


def measure(config: Config, runs: Path) -> dict[str, int]:
    """One optimiser step; gradients are measured before the optimiser takes them."""
    data, stage1, banks = (next((runs / config.name).glob(f"{kind}-*")) for kind in ("data", "stage1", "banks"))
    model = build_generator(config, data, stage1, banks)
    samples = SAMPLES // distributed.world_size()
    sight = tuple(dummy_vision_output(model, samples))  # while the parameters are whole
    ours = Engine(model, report_token_loss, stage2_optimizer_settings(config), 10)
    deep = ours._engine
    report_BT = torch.randint(0, 50, (samples, 9), generator=torch.Generator().manual_seed(0))
    ones_B = torch.ones(samples)
    batch = {"vision": sight, "group": ones_B.long(), "report": report_BT, "weight": ones_B}
    gradients = 0
    for micro in engine.split_global_batch(batch, ours.accumulation):
        deep.backward(deep(micro)[0])
        gradients = max(gradients, held_gradients(model, deep.optimizer))
        deep.step()
    buffers = [b for name, b in model.named_buffers() if not name.rpartition(".")[2].startswith("memory")]
    rows = [b for name, b in model.named_buffers() if name.rpartition(".")[2].startswith("memory")]
    parameters = list(model.parameters())
    shards = [p.ds_tensor for p in parameters if hasattr(p, "ds_tensor")]
    found = {
        "weights": size([*parameters, *shards, *buffers]),
        "gradients": gradients,
        "optimiser": held_optimiser(deep.optimizer),
        "banks": size(rows),
    }
    del model, ours, deep
    gc.collect()
    return found


def held_gradients(model: torch.nn.Module, optimizer: Any) -> int:
    """Gradients before the step: on the parameters, or kept by ZeRO."""
    kept = getattr(optimizer, "averaged_gradients", {})
    flat = [t for group in kept.values() if group is not None for t in group]
    flat += [getattr(optimizer, "grad_partitions_flat_buffer", None)]
    flat += [g for p in model.parameters() for g in (p.grad, getattr(p, "grad_accum", None))]
    flat += [p.grad for p in getattr(optimizer, "single_partition_of_fp32_groups", [])]
    flat += [p.grad for p in getattr(optimizer, "fp32_partitioned_groups_flat", [])]
    return size(flat)


def held_optimiser(optimizer: Any) -> int:
    """Moments, and the master weights of ZeRO."""
    base = getattr(optimizer, "optimizer", optimizer)
    moments = [t for state in base.state.values() for t in state.values() if isinstance(t, Tensor) and t.ndim]
    masters = ("single_partition_of_fp32_groups", "fp32_partitioned_groups_flat")
    return size([*moments, *(t for name in masters for t in getattr(optimizer, name, []))])


if __name__ == "__main__":
    distributed.init_process_group()
    place, out = Path(sys.argv[1]), sys.argv[2]
    told = {case: measure(configure(place, case), place) for case in sys.argv[3:]}
    Path(f"{out}-{distributed.global_rank()}.json").write_text(json.dumps(told))
