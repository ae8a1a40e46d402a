"""Stage 1 on the made-up films as one rank of a job; arguments: DATA FOLDER DS_CONFIG QFORMER_NORM"""

import dataclasses
import sys
from pathlib import Path

from amrg.training.stage1 import train_stage1
from tests.synthetic_dataset import CONFIG

if __name__ == "__main__":
    stage1 = dataclasses.replace(CONFIG.stage1, dtype="float32", ds_config=sys.argv[3])
    vision = dataclasses.replace(CONFIG.vision, qformer_norm=sys.argv[4])
    train_stage1(dataclasses.replace(CONFIG, stage1=stage1, vision=vision), Path(sys.argv[1]), Path(sys.argv[2]))
