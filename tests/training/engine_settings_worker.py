"""Stage 2 under one engine, and begun under one and gone on with under others: arguments: STRAIGHT CHANGING.

Both are folders of the artefacts of the first three steps.
"""

import dataclasses
import signal
import sys
from typing import Any

from amrg import distributed, pipeline
from amrg.config import CONFIGS, Config
from amrg.config_files import load_config
from amrg.training import engine, loop
from amrg.training.interruption import GracefulStop

TINY = CONFIGS / "tiny.yaml"
#: Changes to ``stage2``, one training after the other, and the step during which each is told to stop.
ENGINES: tuple[tuple[dict[str, Any], int | None], ...] = (
    ({"ds_config": "zero1.json"}, 2),
    ({"ds_config": "zero2.json"}, 4),
    ({"ds_config": "zero3.json"}, 6),
    ({"ds_config": "zero0.json", "activation_checkpointing": True}, 8),
    ({"ds_config": "zero3.json", "activation_checkpointing": True, "num_sample_reports": 0}, 10),
    ({"ds_config": "zero1.json"}, None),
)


def configuration(runs: str, change: dict[str, Any]) -> Config:
    """Three epochs of four steps without dropout, of which ranks would draw their own."""
    config = load_config(str(TINY))
    stage2 = dataclasses.replace(config.stage2, dtype="float32", batch_size=4, epochs=3)
    return dataclasses.replace(
        config,
        runs=runs,
        memory=dataclasses.replace(config.memory, dropout=0.0),
        decoder=dataclasses.replace(config.decoder, dropout=0.0),
        stage2=dataclasses.replace(stage2, **change),
    )


class Stopping(engine.Engine):
    """An engine during whose step a signal comes; the step after it is the last."""

    at: int | None = None

    def step(self, *given: Any, **named: Any) -> Any:
        if self._engine.global_steps + 1 == self.at:
            signal.raise_signal(signal.SIGTERM)
        return super().step(*given, **named)


if __name__ == "__main__":
    distributed.init_process_group()
    loop.Engine = Stopping
    pipeline.run_pipeline_step("stage2", configuration(sys.argv[1], {}))
    for settings, Stopping.at in ENGINES:
        try:
            pipeline.run_pipeline_step("stage2", configuration(sys.argv[2], settings))
        except GracefulStop:
            distributed.barrier()
        else:
            assert Stopping.at is None
