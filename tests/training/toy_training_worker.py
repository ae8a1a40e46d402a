"""A training run small enough to be killed: started by the tests as real processes.

python toy_training_worker.py FOLDER SECONDS_PER_STEP DS_CONFIG...      one run for each DS_CONFIG, in FOLDER/DS_CONFIG
"""

import dataclasses
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from amrg import distributed
from amrg.config import CheckpointConfig, TelemetryConfig
from amrg.models.zero3 import gathered_parameters
from amrg.training.deepspeed_config import OptimizerSettings
from amrg.training.engine import restore_functional_linear
from amrg.training.loop import TrainingTask, fit_task

FEATURES, SAMPLES, STEPS = 5, 24, 3
EPOCHS = 3


def build(dropout: float = 0.2) -> nn.Module:
    """Odd sizes (nothing divides by two), dropout, and a frozen layer."""
    torch.manual_seed(1)
    model = nn.Sequential(
        nn.Linear(FEATURES, 7),
        nn.LayerNorm(7),
        nn.Tanh(),
        nn.Dropout(dropout),
        nn.Linear(7, 3, bias=False),
        nn.Linear(3, 1),
    )
    model[4].requires_grad_(False)
    return model


def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    inputs = torch.randn(SAMPLES, FEATURES, generator=generator)
    return inputs, inputs.sum(1, keepdim=True).sin()


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, dict[str, float]]:
    inputs, targets = batch
    error = nn.functional.mse_loss(model(inputs), targets)
    return error, {"absolute": error.detach().sqrt().item()}


def optimisation(ds_config: str, batch_size: int = SAMPLES, clip: float = 1.0) -> OptimizerSettings:
    return OptimizerSettings(
        section="stage2",
        epochs=EPOCHS,
        batch_size=batch_size,
        lr=0.05,
        weight_decay=0.01,
        warmup_fraction=0.2,
        max_grad_norm=clip,
        dtype="float32",
        ds_config=ds_config,
    )


@restore_functional_linear()
def run(
    folder: Path, ds_config: str, batch_size: int = SAMPLES // STEPS, pause: float = 0.0, epochs: int = EPOCHS,
    dropout: float = 0.2, dtype: Literal["float32", "bfloat16", "float16"] = "float32",
) -> nn.Module:  # fmt: skip
    inputs, targets = data()
    model = build(dropout)

    def batches(epoch: int, start: int) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.randperm(SAMPLES, generator=torch.Generator().manual_seed(100 + epoch))
        for step in range(start, STEPS):
            time.sleep(pause)
            rows = order[step * batch_size : (step + 1) * batch_size][
                distributed.global_rank() :: distributed.world_size()
            ]
            yield inputs[rows], targets[rows]

    def validate(model: nn.Module) -> dict[str, float]:
        return {"val_loss": nn.functional.mse_loss(model(inputs), targets).item()}

    task = TrainingTask(model, loss, batches, STEPS, validate, selection_metric=("val_loss", False), input_hashes={})
    optimizer = dataclasses.replace(optimisation(ds_config, batch_size=batch_size), epochs=epochs, dtype=dtype)
    telemetry, checkpointing = TelemetryConfig(tensorboard=False), CheckpointConfig(interval=2)
    fit_task(task, optimizer, folder=folder, seed=3, telemetry=telemetry, checkpointing=checkpointing)
    return model


def main(folder: Path, pause: float, configs: list[str], epochs: int = EPOCHS, dropout: float = 0.2) -> None:
    for config in configs:
        trained = run(folder / config, config, pause=pause, epochs=epochs, dropout=dropout)
        with gathered_parameters(trained.parameters()):
            if distributed.global_rank() == 0:
                save_file(trained.state_dict(), folder / config / "model.safetensors")
        distributed.barrier()


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]), sys.argv[3:])
