"""LoRA under ZeRO 3, and reports with a repetition penalty: python quiet_run.py RUNS BASE FOLDER."""

import dataclasses
import sys
from pathlib import Path

from amrg.training import engine
from tests.training.parted_run import configuration, train

if __name__ == "__main__":
    engine.start()
    runs, base, folder = map(Path, sys.argv[1:])
    config = configuration(base, "lora", "zero3.json")
    train(
        dataclasses.replace(config, generate=dataclasses.replace(config.generate, repetition_penalty=1.2)), runs, folder
    )
