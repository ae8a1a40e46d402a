"""Twenty steps of stage 2, and generation: arguments: RUNS FOLDER WAY-STAGE... (banks held so, that ZeRO)."""

import dataclasses
import sys
from pathlib import Path

from amrg import distributed
from amrg.config import CONFIGS
from amrg.config_files import load_config
from amrg.inference.generate import generate_reports_file
from amrg.training import feature_cache
from amrg.training.stage2 import train_stage2

TINY = CONFIGS / "tiny.yaml"


def run(runs: Path, folder: Path, way: str, stage: str) -> None:
    """No dropout: what is drawn depends on who holds which rows."""
    config = load_config(str(TINY))
    config = dataclasses.replace(
        config,
        memory=dataclasses.replace(config.memory, dropout=0.0),
        decoder=dataclasses.replace(config.decoder, dropout=0.0, predict_outline=True),
        stage2=dataclasses.replace(
            config.stage2,
            ds_config=f"zero{stage}.json",
            dtype="float32",
            batch_size=4,
            epochs=5,
            num_sample_reports=2,
            retrieval_loss_weight=1.0,
        ),
        sharding=dataclasses.replace(config.sharding, strategy=way),
        generate=dataclasses.replace(
            config.generate,
            batch_size=2,
            max_new_tokens=40,
            outline_source="retrieved",
            ds_config="zero3.json" if stage == "3" else None,
        ),
    )
    data, stage1, banks = (next((runs / config.name).glob(f"{kind}-*")) for kind in ("data", "stage1", "banks"))
    train_stage2(config, data, stage1, banks, folder / "stage2")
    generate_reports_file(config, data, stage1, banks, folder / "stage2", folder)


if __name__ == "__main__":
    distributed.init_process_group()
    feature_cache.ROWS_PER_PART = 4  # so that there is something to compute for each rank
    for name in sys.argv[3:]:
        target = Path(sys.argv[2]) / name
        target.mkdir(parents=True, exist_ok=True)
        run(Path(sys.argv[1]), target, *name.split("-"))
