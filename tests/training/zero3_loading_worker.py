"""One of the ranks that load and train a language model in parts: arguments: RUNS BASE LARGE FOLDER

BASE and LARGE are folders of causal LMs. What this rank has seen goes to FOLDER/seen-RANK.json.
"""

import contextlib
import ctypes
import dataclasses
import json
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from amrg import distributed
from amrg.banks.bank import VISUAL, MemoryBank
from amrg.config import CONFIGS, Config
from amrg.config_files import load_config
from amrg.inference.generate import generate_reports_file
from amrg.models.decoder_loading import load_pretrained
from amrg.models.zero3 import hash_of_weights
from amrg.training import engine
from amrg.training.stage2 import build_generator, train_stage2

TINY = CONFIGS / "tiny.yaml"
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h
#: Of each: the dtype of its base, and under which ZeRO two ranks train it.
TUNINGS = {
    "full": ("float32", "zero3.json"),
    "lora": ("float32", "zero3.json"),
    "lora-bfloat16": ("bfloat16", "zero3.json"),
    "lora-nf4": ("nf4", "zero1.json"),
    "lora-int8": ("int8", "zero1.json"),
}


def configuration(base: Path, name: str, ds_config: str) -> Config:
    """A few steps without dropout, of which ranks would draw their own."""
    config = load_config(str(TINY))
    return dataclasses.replace(
        config,
        memory=dataclasses.replace(config.memory, dropout=0.0),
        decoder=dataclasses.replace(
            config.decoder, model=str(base), tuning=name.split("-")[0], base_dtype=TUNINGS[name][0], dropout=0.0,
            lora_rank=3, lora_dropout=0.0,
        ),
        stage2=dataclasses.replace(
            config.stage2, ds_config=ds_config, dtype="float32", batch_size=4, epochs=1, num_sample_reports=2
        ),
        generate=dataclasses.replace(config.generate, ds_config=ds_config if "zero3" in ds_config else None),
    )  # fmt: skip


def artefact(runs: Path, kind: str) -> Path:
    return next((runs / "tiny").glob(f"{kind}-*"))


def train(config: Config, runs: Path, folder: Path) -> None:
    data, stage1, banks = (artefact(runs, kind) for kind in ("data", "stage1", "banks"))
    folder.mkdir(parents=True, exist_ok=True)
    train_stage2(config, data, stage1, banks, folder / "stage2")
    generate_reports_file(config, data, stage1, banks, folder / "stage2", folder)


@contextlib.contextmanager
def peak_of_memory() -> Iterator[dict[str, int]]:
    """Bytes of anonymous memory (files that are mapped do not count) at the highest, above those before."""

    def now() -> int:
        status = Path("/proc/self/status").read_text()
        return int(status.split("RssAnon:")[1].split()[0]) * 1024

    before, told, ended = now(), {"peak": 0}, threading.Event()

    def watch() -> None:
        while not ended.wait(0.001):
            told["peak"] = max(told["peak"], now() - before)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield told
    finally:
        ended.set()
        thread.join()


def load_large(small: Path, folder: Path, ds_config: str) -> dict[str, int]:
    """Loads a small model first, so that what is set up once does not count."""
    for threshold in (M_MMAP_THRESHOLD, M_TRIM_THRESHOLD):
        ctypes.CDLL(None).mallopt(threshold, 65536)  # what is freed goes back at once, and is not counted
    load_pretrained(str(small), zero=engine.zero3_section(ds_config))
    with peak_of_memory() as told:
        model, _ = load_pretrained(str(folder), zero=engine.zero3_section(ds_config))
    whole = sum(parameter.ds_numel for parameter in model.parameters())
    held = sum(parameter.ds_tensor.numel() for parameter in model.parameters())
    return {"elements": whole, "held": held, **told}


def as_built(runs: Path, base: Path, ds_config: str) -> dict[str, Any]:
    """Hashes of a generator as training starts with it, and what of it lies apart."""
    config = configuration(base, "lora", ds_config)
    banks = artefact(runs, "banks")
    model = build_generator(config, artefact(runs, "data"), artefact(runs, "stage1"), banks)
    assert model.visual_memory is not None
    rows = model.visual_memory.memory
    return {
        "hashes": {
            name: hash_of_weights([(name, weight)]) for name, weight in model.state_dict(keep_vars=True).items()
        },
        "apart": [name for name, weight in model.named_parameters() if hasattr(weight, "ds_id")],
        "bank": (list(rows.shape), hasattr(rows, "ds_id"), len(MemoryBank.open(banks / VISUAL))),
    }


def main(runs: Path, base: Path, large: Path, folder: Path) -> None:
    seen = {"large": load_large(base, large, "zero3.json")}
    seen |= {ds_config: as_built(runs, base, ds_config) for ds_config in ("zero0.json", "zero3.json")}
    for name, (_, ds_config) in TUNINGS.items():
        train(configuration(base, name, ds_config), runs, folder / name)
    (folder / f"seen-{distributed.global_rank()}.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    distributed.init_process_group()
    main(*map(Path, sys.argv[1:]))
