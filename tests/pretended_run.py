"""The tiny chain on a pretended GPU, then stage 2 and writing again in other ways: python -m tests.pretended_run RUNS.

Prints what each way synchronizes with the host.
"""

import os
import sys

from amrg import distributed, pipeline
from amrg.cli_config import parse
from amrg.training import engine  # noqa: F401  # DeepSpeed must find the CPU that it really runs on
from tests.pretended_cuda import PretendedCuda

#: Settings of stage 2 and of writing; each has a learning rate of its own, as ZeRO stages share an artefact.
WAYS = {
    "zero0": "--stage2.ds_config zero0.json --stage2.lr 1.1e-3",
    "zero2, int8 bank": "--stage2.ds_config zero2.json --stage2.lr 1.2e-3 --banks.dtype int8",
    "zero2, grouped by length": "--stage2.ds_config zero2.json --stage2.lr 1.3e-3 --stage2.group_by_length true",
    "zero3": "--stage2.ds_config zero3.json --stage2.lr 1.6e-3",
    "trained vision, no retrieval loss": "--stage2.train_vision true --stage2.retrieval_loss_weight 0",
    "shuffled memory": "--generate.memory shuffled",
}


def main(runs: str) -> None:
    """Run all ways."""
    os.environ["AMRG_RETRIEVAL"] = "blockwise"  # Triton would ask the driver
    distributed.init_process_group()
    pipeline.check = lambda *_: None  # it counts the memory of meta tensors
    for name, options in {"chain": "", **WAYS}.items():
        config = parse(["tiny", "--runs", runs, "--data.workers", "1", *options.split()], "tests.pretended_run")
        with PretendedCuda() as pretended:
            pipeline.run_all(config, last="evaluate" if name == "chain" else "generate")
        print(f"{name}: {sum(pretended.syncs.values())} synchronizations")
        for place, count in pretended.syncs.most_common(12):
            print(f"{count:7} {place}")


if __name__ == "__main__":
    main(sys.argv[1])
