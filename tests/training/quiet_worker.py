"""LoRA under ZeRO 3, and reports with a repetition penalty: python quiet_worker.py RUNS BASE FOLDER."""

import dataclasses
import sys
from pathlib import Path

from amrg import distributed
from tests.training.zero3_loading_worker import configuration, train

if __name__ == "__main__":
    distributed.init_process_group()
    runs, base, folder = map(Path, sys.argv[1:])
    config = configuration(base, "lora", "zero3.json")
    train(
        dataclasses.replace(config, generate=dataclasses.replace(config.generate, repetition_penalty=1.2)), runs, folder
    )
