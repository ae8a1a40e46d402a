"""Groups of the optimizer: what decays, and learning rates of their own, against torch's AdamW by hand."""

import dataclasses

import pytest
import torch
from torch import nn

from amrg.training import engine
from amrg.training.deepspeed_config import OptimizerSettings
from amrg.training.engine import Engine

OURS = OptimizerSettings("stage2", 1, 4, 0.05, 0.1, 0.0, 1e9, "float32", ds_config="zero1.json")
MODULES = ("decoder", "qformer")  # that may have a rate of their own


def build() -> nn.ModuleDict:
    torch.manual_seed(0)
    parts = {"projection": nn.Linear(3, 4), "qformer": nn.Linear(4, 4), "decoder": nn.Linear(4, 1)}
    return nn.ModuleDict(parts)


def loss(model: nn.ModuleDict, batch: torch.Tensor) -> tuple[torch.Tensor, dict[str, float]]:
    return (model["decoder"](model["qformer"](model["projection"](batch).tanh())) - 1).square().mean(), {}


@pytest.mark.parametrize("ds_config", ["zero0.json", "zero1.json", "zero2.json", "zero3.json"])
@pytest.mark.parametrize("own", [{"decoder": 0.002}, {"qformer": 0.2}, {"decoder": 0.002, "qformer": 0.2}, {}])
def test_decoder_and_q_former_learn_at_their_own_rates(ds_config: str, own: dict[str, float]) -> None:
    reference, trained = build(), build()
    rates = {"projection": 0.05, "qformer": 0.05, "decoder": 0.05, **own}
    groups = [
        {"params": [parameter], "lr": rates[name.split(".")[0]], "weight_decay": 0.1 * (parameter.dim() > 1)}
        for name, parameter in reference.named_parameters()
    ]
    optimizer = torch.optim.AdamW(groups)
    with engine.restore_functional_linear():
        ours = dataclasses.replace(OURS, ds_config=ds_config, **{f"{name}_lr": own.get(name) for name in MODULES})
        under_test = Engine(trained, loss, ours, 3)
        for step, share in enumerate((1.0, 0.5, 0.25)):  # a schedule
            batch = torch.randn(4, 3, generator=torch.Generator().manual_seed(step))
            under_test.step(batch, 0.05 * share)
            for group, name in zip(optimizer.param_groups, (n for n, _ in reference.named_parameters()), strict=True):
                group["lr"] = rates[name.split(".")[0]] * share
            optimizer.zero_grad()
            loss(reference, batch)[0].backward()
            optimizer.step()
        found = under_test.weights()
    for name, parameter in reference.named_parameters():
        torch.testing.assert_close(found[name], parameter.detach(), rtol=1e-4, atol=1e-6)
