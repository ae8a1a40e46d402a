"""Stage 2 under Ray Train; arguments: RUNS WORKERS-WAY-STAGE... (of banks, of ZeRO); makes RUNS/NAME."""

import dataclasses
import sys
from pathlib import Path

from amrg.cluster.pipeline import open_ray_session
from amrg.cluster.workers import train_with_ray
from amrg.config import CONFIGS, ClusterConfig, Config
from amrg.config_files import load_config
from amrg.pipeline import artifact_root, step_recipe

TINY = CONFIGS / "tiny.yaml"


def configuration(runs: str, workers: int, way: str, stage: str) -> Config:
    """No dropout: what is drawn depends on who holds which rows."""
    config = load_config(str(TINY))
    return dataclasses.replace(
        config,
        runs=runs,
        memory=dataclasses.replace(config.memory, dropout=0.0),
        decoder=dataclasses.replace(config.decoder, dropout=0.0),
        stage2=dataclasses.replace(
            config.stage2, ds_config=f"zero{stage}.json", dtype="float32", batch_size=4, epochs=3, num_sample_reports=2
        ),
        sharding=dataclasses.replace(config.sharding, strategy=way),
        cluster=ClusterConfig(workers=workers, min_workers=workers),
    )


def main(runs: str, *names: str) -> None:
    with open_ray_session(configuration(runs, 2, "auto", "1")):
        for name in names:
            workers, way, stage = name.split("-")
            config = configuration(runs, int(workers), way, stage)
            train_with_ray("stage2", config, config.stage2.batch_size, [])
            step_recipe("stage2", config).path(artifact_root(config)).rename(Path(runs) / name)


if __name__ == "__main__":
    main(*sys.argv[1:])
