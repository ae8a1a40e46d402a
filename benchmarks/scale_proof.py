"""Stage 2 and a report with a language model of Llama-2-7B's shape, loaded in parts by two ranks, beside a large bank.

python -m benchmarks.scale_proof FOLDER [--layers 32] [--rows 1000000] [--tokens 20]

Everything goes the product's own way but what cannot be had here: weights and rows are random. One LoRA step and one
report under ZeRO 3, bfloat16, on CPUs; memory and seconds of each, beside what ``amrg plan`` predicts. Model, data,
stage 1 and banks that are in FOLDER are used again, stage 2 and the report are always made. docs/scaling.md has the
figures.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import torch
import yaml
from rich import box
from rich.console import Console
from rich.table import Table
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, PretrainedConfig

from amrg.artifacts import add_artifact_warning, build_artifact
from amrg.banks.bank import DTYPES, REPORTS, VISUAL
from amrg.config import Config
from amrg.config_files import config_from_dict
from amrg.data.stream import load_split_studies
from amrg.models.tokenizer import train_tokenizer
from amrg.pipeline import artifact_root, run_pipeline_step, step_recipe
from amrg.planning.architectures import PUBLISHED
from amrg.planning.devices import DEVICES
from amrg.planning.format import format_bytes, format_duration
from amrg.planning.meta_models import bank_shapes
from amrg.planning.stage_estimate import Assumptions, Plan, estimate_stage
from amrg.progress import print_on_rank_0
from benchmarks.sharded_bank import write as write_bank

RANKS, SHARD_BYTES = 2, 2**30
MODEL = "llama-2-7b"

#: ZeRO 3 with few weights gathered at a time (by default 1e9 numbers on each rank), and a bucket for a LoRA.
ZERO3 = {
    "stage": 3,
    "stage3_max_live_parameters": 100_000_000,
    "stage3_max_reuse_distance": 100_000_000,
    "stage3_prefetch_bucket_size": 10_000_000,
    "reduce_bucket_size": 20_000_000,
}

#: glibc returns freed blocks of 1 MiB and more to the system at once (else it keeps those below 32 MiB in its heaps).
MALLOC = {"MALLOC_MMAP_THRESHOLD_": str(2**20), "MALLOC_ARENA_MAX": "2"}


def settings(folder: Path, rows: int, tokens: int) -> dict[str, Any]:
    """One batch of two studies is an epoch; vision is as small as can be."""
    return {
        "name": "scale_proof",
        "runs": str(folder / "runs"),
        "data": {
            "train_studies": RANKS, "val_studies": 1, "test_studies": 1, "abnormal_fraction": 0.5, "workers": 1,
        },
        "vision": {"embed_dim": 32, "depths": [1, 1], "query_dim": 32, "qformer_layers": 1},
        "stage1": {"epochs": 1, "batch_size": RANKS, "augmented_copies": 1},
        "banks": {"dtype": "int8", "reports": {"encoder": "bio_clinicalbert", "rows": rows}},
        "sharding": {"replicate_below_bytes": 2**28},  # else a million rows of int8 would lie whole on each rank
        "decoder": {"model": str(folder / MODEL), "tuning": "lora", "base_dtype": "bfloat16"},
        "stage2": {
            "epochs": 1, "batch_size": RANKS, "max_report_tokens": 40, "activation_checkpointing": True,
            "num_sample_reports": 0, "ds_config": str(folder / "zero3.json"),
        },
        "generate": {
            "num_beams": 1, "min_new_tokens": tokens, "max_new_tokens": tokens, "batch_size": RANKS,
            "ds_config": str(folder / "zero3.json"),
        },
    }  # fmt: skip


def write_model(folder: Path, architecture: PretrainedConfig, reports: list[str]) -> None:
    """The folder of a causal LM: random bfloat16 weights, a shard at a time, and a tokenizer of as many pieces."""
    folder.mkdir(parents=True, exist_ok=True)
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(architecture, dtype=torch.bfloat16)
    torch.manual_seed(0)
    place: dict[str, str] = {}
    shard: dict[str, torch.Tensor] = {}
    numbers = count()

    def flush() -> None:
        name = f"model-{next(numbers):05d}.safetensors"
        save_file(shard, folder / name, {"format": "pt"})
        place.update(dict.fromkeys(shard, name))
        shard.clear()

    for name, weight in model.state_dict().items():
        values = torch.empty(weight.shape, dtype=torch.bfloat16)
        shard[name] = values.normal_(std=0.02) if weight.ndim > 1 else values.fill_(1.0)
        if sum(tensor.nbytes for tensor in shard.values()) >= SHARD_BYTES:
            flush()
    if shard:
        flush()
    tokenizer = train_tokenizer(reports, architecture.vocab_size)
    tokenizer.add_tokens([f"<{number}>" for number in range(len(tokenizer), architecture.vocab_size)])
    tokenizer.save_pretrained(folder)
    total = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    index = {"metadata": {"total_size": total}, "weight_map": place}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    architecture.save_pretrained(folder)  # last: with it the folder is whole


def write_banks(config: Config) -> None:
    """The banks artefact, random rows as many as the configuration allows."""
    made = step_recipe("banks", config)
    if made.path(artifact_root(config)).is_dir():
        return
    with build_artifact(artifact_root(config), made) as folder:
        for name, rows in zip((VISUAL, REPORTS), bank_shapes(config), strict=True):
            about = {"method": config.banks.mining.method, "rows": "random"}
            write_bank(folder / name, rows.rows, rows.dim, DTYPES[config.banks.dtype], about)
        add_artifact_warning(folder, "rows of the banks are random")


@dataclass
class Watched:
    """A command on two ranks: seconds, the most bytes that were seen, and the seconds its lines told.

    Attributes:
        own: of each rank, memory that no file backs; what is shared counts for each in part.
        total: the same of both at one moment.
        lately: the same since the last line that the command said.
        libraries: the same before a model was loaded.
        mapped: files mapped by both at one moment; the system takes these pages back where it needs them.
    """

    seconds: float = 0.0
    own: Counter[int] = field(default_factory=Counter)
    total: int = 0
    lately: int = 0
    libraries: int = 0
    mapped: int = 0
    loading: float = 0.0

    def sample(self, launcher: int) -> None:
        """Sample the ranks below a process."""
        own: Counter[int] = Counter()
        mapped = 0
        for process in _below(launcher):
            try:
                environment = Path(f"/proc/{process}/environ").read_bytes().split(b"\0")
                sizes = dict(
                    re.findall(r"^(Pss\w*): +(\d+) kB", Path(f"/proc/{process}/smaps_rollup").read_text(), re.M)
                )
            except OSError:  # it has just ended
                continue
            number = next((int(item[11:]) for item in environment if item.startswith(b"LOCAL_RANK=")), None)
            if number is None or not sizes:
                continue
            mapped += 1024 * int(sizes["Pss_File"])
            own[number] += 1024 * (int(sizes["Pss_Anon"]) + int(sizes["Pss_Shmem"]))
        self.own |= own
        self.lately, self.mapped = max(self.lately, sum(own.values())), max(self.mapped, mapped)
        self.total = max(self.total, self.lately)


def _below(process: int) -> Iterator[int]:
    """Process ids of all descendants."""
    try:
        children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    except OSError:
        return
    for child in map(int, children):
        yield child
        yield from _below(child)


def on_two_ranks(verb: str, configuration: Path) -> Watched:
    """Run a verb under the ``deepspeed`` command, and watch its ranks.

    Raises:
        SystemExit: it failed.
    """
    found, began = Watched(), time.perf_counter()
    command = [sys.executable, "-m", "deepspeed.launcher.runner", "--num_accelerators", str(RANKS), "--no_local_rank"]
    command += ["--module", "amrg.cli", verb, str(configuration)]
    threads = str(max((os.cpu_count() or 1) // RANKS, 1))
    environment = os.environ | {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": threads} | MALLOC
    launcher = subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, errors="replace"
    )
    ended = threading.Event()

    def sample() -> None:
        while not ended.wait(1):  # reading the maps of two large processes takes a third of a second
            found.sample(launcher.pid)

    watcher = threading.Thread(target=sample)
    watcher.start()
    try:
        for line in launcher.stderr or ():
            print(f"  {time.perf_counter() - began:6.1f} s {found.lately / 1e9:5.1f} GB  {line.rstrip()}", flush=True)
            found.lately = 0
            found.libraries = found.libraries or found.total
            if sizes := re.search(r"read in parts, ([\d.]+) s", line):
                found.loading = float(sizes[1])
        if launcher.wait():
            raise SystemExit(f"{verb} failed: exit code {launcher.returncode}")
    finally:
        ended.set()
        watcher.join()
        launcher.kill()
    found.seconds = time.perf_counter() - began
    return found


def main() -> None:
    """Make what is missing, then train a step and write a report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="receives the model (13.5 GB with 32 layers) and all artefacts")
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--hidden", type=int, default=4096, help="width of the model, 128 for each head (default 4096)")
    parser.add_argument("--rows", type=int, default=1_000_000, help="of the report bank, 768 numbers each")
    parser.add_argument("--tokens", type=int, default=20, help="of the report")
    options = parser.parse_args()
    folder = options.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    architecture = PUBLISHED[MODEL]()
    architecture.update({
        "num_hidden_layers": options.layers,
        "hidden_size": options.hidden,
        "intermediate_size": architecture.intermediate_size * options.hidden // 4096,
        "num_attention_heads": options.hidden // 128,
        "num_key_value_heads": options.hidden // 128,
    })  # fmt: skip
    content = settings(folder, options.rows, options.tokens)
    config, configuration = config_from_dict(content, "the scale proof"), folder / "scale_proof.yaml"
    configuration.write_text(yaml.safe_dump(content))
    (folder / "zero3.json").write_text(json.dumps({"train_batch_size": "auto", "zero_optimization": ZERO3}))
    data = run_pipeline_step("prepare", config).path
    seconds = {}
    if not (folder / MODEL / "config.json").exists():
        print_on_rank_0(f"writing a model of {options.layers} layers")
        began = time.perf_counter()
        write_model(folder / MODEL, architecture, [study.report for study in load_split_studies(data, "train")])
        seconds["writing the model"] = time.perf_counter() - began
    subprocess.run([sys.executable, "-m", "amrg.cli", "stage1", str(configuration)], check=True)
    began = time.perf_counter()
    write_banks(config)
    seconds["writing the bank"] = time.perf_counter() - began
    predicted = estimate_stage(config, "stage2", Assumptions(RANKS, DEVICES["h100"], 1.0, reserve=0.0, data=data))
    for left in (*artifact_root(config).glob("stage2-*"), *artifact_root(config).glob("reports-*")):
        shutil.rmtree(left)
    training, writing = (on_two_ranks(verb, configuration) for verb in ("stage2", "generate"))
    stage2, reports = (step_recipe(verb, config).path(artifact_root(config)) for verb in ("stage2", "generate"))
    step = json.loads((stage2 / "logs" / "steps.jsonl").read_text().splitlines()[0])
    seconds |= {
        "stage 2: loading in parts": training.loading,
        "stage 2: the step": step["seconds"],
        "stage 2: all": training.seconds,
        "report: loading in parts": writing.loading,
        "report: all": writing.seconds,
    }
    console = Console(soft_wrap=True)
    console.print(_table(options, predicted, training, writing, seconds))
    (line,) = (reports / "reports.jsonl").read_text().splitlines()
    console.print(
        f"loss {step['loss']:.3f}; the report: {json.loads(line)['generated']}", markup=False, highlight=False
    )


def _table(
    options: argparse.Namespace, predicted: Plan, training: Watched, writing: Watched, seconds: dict[str, float]
) -> Table:
    """Predicted beside measured. Libraries are in what is measured alone."""
    table = Table(
        box=box.SIMPLE_HEAD, pad_edge=False, title_justify="left",
        title=f"{predicted.weights.total / 1e6:,.0f} million weights in {options.layers} layers, "
        f"{options.rows:,} rows, {RANKS} ranks, ZeRO 3",
    )  # fmt: skip
    table.add_column("part", no_wrap=True)
    table.add_column("predicted", justify="right", no_wrap=True)
    table.add_column("measured", justify="right", no_wrap=True)
    table.add_row("a rank: libraries, before anything is loaded", "", format_bytes(training.libraries / RANKS))
    for name, part in predicted.parts.items():
        if name != "reserve":
            table.add_row(f"a rank: {name}", format_bytes(part.device + part.host), "")
    copies, each = predicted.host_bytes, predicted.device_bytes
    table.add_row("stage 2: first rank", format_bytes(each + copies), format_bytes(training.own[0]))
    for number in range(1, RANKS):
        table.add_row(f"stage 2: rank {number}", format_bytes(each), format_bytes(training.own[number]))
    table.add_row("stage 2: together", format_bytes(RANKS * each + copies), format_bytes(training.total))
    table.add_row("stage 2: files mapped meanwhile, at most", "", format_bytes(training.mapped))
    for number in range(RANKS):
        table.add_row(f"report: rank {number}", "", format_bytes(writing.own[number]))
    table.add_row("report: together", "", format_bytes(writing.total))
    for name, spent in seconds.items():
        table.add_row(name, "", format_duration(spent))
    return table


if __name__ == "__main__":
    main()
