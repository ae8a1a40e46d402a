"""The tiny chain on a pretended GPU from stage 1 on, then stage 2 and writing in other ways; argument: RUNS.

Prints what each way synchronizes with the host.
"""

import os
import sys
from contextlib import suppress
from pathlib import Path

from amrg import distributed, pipeline
from amrg.cli_config import parse_config_arguments
from amrg.retrieval.indexed_bank import IndexedBank
from amrg.training import engine
from amrg.training.deepspeed_internals import import_deepspeed
from amrg.training.interruption import GracefulStop, stopping_when
from benchmarks.architectures import make_folder
from tests.conftest import ChestSource, make_data
from tests.pretended_cuda import PretendedCuda

RESUMED, LORA = "stopped and resumed", "--decoder.model {runs}/llama --decoder.tuning lora"
#: Settings of stage 2 and of writing, several at once, because each way costs a training.
WAYS = {
    f"zero0, retrieval losses, retrieved outline, {RESUMED}": "--stage2.ds_config zero0.json "
    "--stage2.retrieval_loss_weight 3 --stage2.association_loss_weight 1 "
    "--decoder.predict_outline true --generate.outline_source retrieved",
    "zero2, int8 bank, index, grouped by length": "--stage2.ds_config zero2.json "
    "--banks.dtype int8 --memory.index ivf --stage2.group_by_length true",
    "zero3, LoRA": f"--stage2.ds_config zero3.json {LORA}",
    f"float16, LoRA, {RESUMED}": f"--stage2.dtype float16 {LORA}",
    "trained vision, cross-attention": "--stage2.train_vision true --memory.retrieval cross_attention",
    "shuffled memory": "--stage2.epochs 2 --generate.memory shuffled",  # of the chain's own training
}


def main(runs: str) -> None:
    """Run all ways."""
    os.environ["AMRG_RETRIEVAL"] = "blockwise"  # Triton would ask the driver
    distributed.init_process_group()
    pipeline.check_before_start = lambda *_: None  # it counts the memory of meta tensors
    engine.refuse_half_without_gpu = lambda settings: None
    import_deepspeed().get_accelerator().is_fp16_supported = lambda: True  # the CPU, on which it really runs
    IndexedBank.__init__.__kwdefaults__["exact_below"] = 0
    make_folder("llama", Path(runs) / "llama")
    make_data(Path(runs), ChestSource())
    for name, options in {"chain": "--stage2.epochs 2", **WAYS}.items():
        given = ["--stage2.epochs", "1", *options.format(runs=runs).split()]
        config = parse_config_arguments(["tiny", "--runs", runs, *given], "tests.pretended_run")
        with PretendedCuda() as pretended:
            if RESUMED in name:
                with suppress(GracefulStop), stopping_when(lambda: True):
                    pipeline.run_pipeline(config, last="stage2")
            pipeline.run_pipeline(config, last="evaluate" if name == "chain" else "generate")
        print(f"{name}: {sum(pretended.syncs.values())} synchronizations")
        for place, count in pretended.syncs.most_common(12):
            print(f"{count:7} {place}")


if __name__ == "__main__":
    main(sys.argv[1])
