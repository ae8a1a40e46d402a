"""Stage 2 with language models that two ranks share, and their reports under ZeRO 3: arguments: RUNS DECODERS.

The first has the artefacts of the first three steps, the second the decoders and the JSONs (``write_decoders``).
"""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

from amrg import distributed, pipeline
from amrg.config import CONFIGS, Config
from amrg.config_files import load_config
from amrg.training import loop
from amrg.training.interruption import GracefulStop
from benchmarks.architectures import make_folder
from tests.training.engine_settings_worker import Stopping

#: Tunings with the decoder of each; a norm of Qwen 3 is whole, but sees parts of the heads, and Phi has biases.
DECODERS = {"full": "qwen3", "lora": "llama", "frozen": "phi"}
#: ZeRO stages of each tuning, one training after the other, and the step during which it is told to stop.
ENGINES: dict[str, tuple[tuple[int, int | None], ...]] = {
    "full": ((0, None),),
    "lora": ((1, 2), (2, None)),
    "frozen": ((2, None),),
}


def write_decoders(folder: Path) -> None:
    """Write the decoders, and a DeepSpeed JSON of each ZeRO stage, in which two ranks share a decoder."""
    for family in DECODERS.values():
        make_folder(family, folder / family)
    for stage in range(3):
        content = {"zero_optimization": {"stage": stage}, "tensor_parallel": {"autotp_size": 2}}
        (folder / f"zero{stage}.json").write_text(json.dumps({"train_micro_batch_size_per_gpu": 1, **content}))


def configuration(runs: Path, decoders: Path, tuning: Any, ds_config: str = "zero1.json") -> Config:
    """An epoch of four steps without dropout, of which ranks would draw their own."""
    config = load_config(str(CONFIGS / "tiny.yaml"))
    return dataclasses.replace(
        config,
        runs=str(runs),
        memory=dataclasses.replace(config.memory, dropout=0.0),
        decoder=dataclasses.replace(
            config.decoder, model=str(decoders / DECODERS[tuning]), tuning=tuning, dropout=0.0, lora_rank=3,
            lora_dropout=0.0,
        ),
        stage2=dataclasses.replace(
            config.stage2, dtype="float32", batch_size=4, epochs=1, num_sample_reports=2, max_report_tokens=20,
            max_grad_norm=0.1, ds_config=ds_config,
        ),
        generate=dataclasses.replace(config.generate, num_beams=1),
    )  # fmt: skip


def main(runs: Path, decoders: Path) -> None:
    loop.Engine = Stopping
    for tuning, engines in ENGINES.items():
        for stage, Stopping.at in engines:
            ds_config = str(decoders / f"zero{stage}.json")
            config = configuration(runs, decoders, tuning, ds_config)
            again = dataclasses.replace(
                config.stage2, activation_checkpointing=len(engines) > 1 and Stopping.at is None
            )
            try:
                pipeline.run_pipeline_step("stage2", dataclasses.replace(config, stage2=again))
            except GracefulStop:
                distributed.barrier()
            else:
                assert Stopping.at is None
        if tuning != "frozen":
            sharded = dataclasses.replace(config.generate, ds_config="zero3.json")
            pipeline.run_pipeline_step("generate", dataclasses.replace(config, generate=sharded))


if __name__ == "__main__":
    distributed.init_process_group()
    main(*map(Path, sys.argv[1:]))
