import dataclasses
import json
import statistics
import sys
import time
import types

import pytest
import torch
from torch import nn
from torch.autograd import DeviceType

from amrg.config import TelemetryConfig
from amrg.errors import UserError
from amrg.models.profiling import REGION_PREFIX, profile_region
from amrg.training.engine import Engine
from amrg.training.stage2 import train_stage2
from amrg.training.telemetry import Telemetry, profile_training_step, telemetry_faults, time_by_region
from tests.training.toy_training_worker import build, data, loss, optimisation


class TwoParts(nn.Module):
    """A heavy part with a light one inside, a light one beside it, and something that no part owns."""

    def __init__(self) -> None:
        super().__init__()
        self.heavy = nn.Parameter(torch.randn(700, 700) / 30)
        self.light = nn.Parameter(torch.randn(700, 70) / 30)

    def forward(self, x):
        with profile_region("heavy"):
            x = x @ self.heavy @ self.heavy @ self.heavy @ self.heavy
            with profile_region("inner"):
                x = x @ self.light
        with profile_region("light"):
            x = (x @ self.light[:70]).relu()
        time.sleep(0.02)
        return x.sum()


def test_time_is_told_by_part_forward_and_backward():
    torch.manual_seed(0)
    model, x = TwoParts(), torch.randn(600, 700, requires_grad=True)
    model(x).backward()  # warm
    looks = []
    for _ in range(7):
        with profile_training_step(True) as whole:
            model(x).backward()
        looks.append(whole.values)
    with profile_training_step(True) as forward, torch.no_grad():
        model(x)
    # Whatever else the machine does, it rarely meets the same part again: the median is of the work.
    shares = {name: statistics.median(values[name] for values in looks) for name in looks[0]}
    assert set(shares) == {"share/heavy", "share/inner", "share/light"}
    assert all(value > 0 for value in shares.values())
    assert sum(shares.values()) < 1.0  # the sleep belongs to nobody
    assert shares["share/heavy"] > 3 * (shares["share/inner"] + shares["share/light"])
    # A backward of matrix products costs twice its forward: it is counted where it belongs.
    assert shares["share/heavy"] > forward.values["share/heavy"]
    with profile_training_step(False) as nothing:
        model(x)
    assert nothing.values == {}


def test_what_a_gpu_tells_twice_is_counted_once(monkeypatch):
    """Events as torch gives them there: regions also as ranges of the device, and collectives inside each other."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)

    def event(name, milliseconds, parent=None, device=DeviceType.CPU):
        return types.SimpleNamespace(
            name=name, device_time_total=1e3 * milliseconds, cpu_parent=parent, device_type=device, sequence_nr=-1
        )

    part = event(f"{REGION_PREFIX}memory", 100)
    outer = event("record_param_comms", 5)
    events = [part, event(part.name, 100, device=DeviceType.CUDA), outer, event("nccl:all_reduce", 5, outer)]
    found = time_by_region(types.SimpleNamespace(events=lambda: events))
    assert found == pytest.approx({"memory": 0.1, "exchange": 0.005})


def test_gradient_norms_are_those_of_autograd():
    inputs, targets = data()
    model, truth = build().eval(), build().eval()
    error, _ = loss(truth, (inputs, targets))
    error.backward()
    engine = Engine(model, loss, optimisation("zero1.json", clip=1e-3), 9)
    _, told = engine.step((inputs, targets), 0.0, with_norms=True)
    total = 0.0
    for name, module in truth.named_children():
        squares = sum(float(p.grad.square().sum()) for p in module.parameters() if p.grad is not None)
        total += squares
        if squares:
            assert told[f"gradient_norm/{name}"] == pytest.approx(squares**0.5, rel=1e-5)
    assert told["gradient_norm"] == pytest.approx(total**0.5, rel=1e-5)
    assert engine.step((inputs, targets), 0.0)[1].keys() == {"gradient_norm"}


def test_lines_and_tensorboard_hold_what_was_told(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = Telemetry(tmp_path, TelemetryConfig(profile_interval=4), "stage2", batch_size=8)
    assert [step for step in range(12) if log.should_profile(step)] == [3, 7, 11]
    for step in range(1, 4):
        log.log_step(step, {"loss": 1 / step}, seconds=0.5, data_wait=0.125)
    log.close()
    rows = [json.loads(line) for line in (tmp_path / "logs" / "steps.jsonl").read_text().splitlines()]
    assert rows[1] == {"step": 2, "loss": 0.5, "samples_per_second": 16.0, "share/data": 0.25, "seconds": 0.5}
    events = EventAccumulator(str(tmp_path / "logs" / "tensorboard"))
    events.Reload()
    assert [(e.step, round(e.value, 6)) for e in events.Scalars("loss")] == [(1, 1.0), (2, 0.5), (3, 0.333333)]


def test_what_was_logged_after_the_checkpoint_is_told_once(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def train(steps, begun):
        log = Telemetry(tmp_path, TelemetryConfig(), "stage2", 8, begun)
        for step in steps:
            log.log_step(step, {"loss": float(step + 10 * begun)}, seconds=0.5, data_wait=0.0)
            if step % 3 == 0:
                log.log_epoch(step, {"val_loss": float(step)})
        log.close()

    train(range(1, 7), 0)  # killed in step 7, and the checkpoint of step 4 is the last
    with (tmp_path / "logs" / "steps.jsonl").open("a") as log:
        log.write('{"step": 7, "lo')
    train(range(5, 8), 4)
    rows = [json.loads(line) for line in (tmp_path / "logs" / "steps.jsonl").read_text().splitlines()]
    told = [(1, 1.0), (2, 2.0), (3, 3.0), (4, 4.0), (5, 45.0), (6, 46.0), (7, 47.0)]
    assert [(row["step"], row["loss"]) for row in rows] == told
    epochs = [json.loads(line)["step"] for line in (tmp_path / "logs" / "epochs.jsonl").read_text().splitlines()]
    assert epochs == [3, 6]
    events = EventAccumulator(str(tmp_path / "logs" / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == told


class UsageError(Exception):
    """Weights & Biases' own, which is not installed here."""


def refuse(**settings):
    raise UsageError("api_key not configured (no-tty). call wandb.login(key=[your_api_key])\nmore")


def test_weights_and_biases_without_a_key_is_one_line(tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    wanted = TelemetryConfig(wandb_project="x")
    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=refuse))
    with pytest.raises(UserError, match=r"api_key not configured .* `wandb login`, or set WANDB_MODE=offline") as error:
        Telemetry(tmp_path, wanted, "stage2", 8)
    assert "\n" not in str(error.value)
    with_key = types.SimpleNamespace(init=refuse, api=types.SimpleNamespace(api_key="k"))
    monkeypatch.setitem(sys.modules, "wandb", with_key)
    assert telemetry_faults(wanted) == []
    with_key.api.api_key = None
    (fault,) = telemetry_faults(wanted)
    assert "no key of yours: run `wandb login`" in fault
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert telemetry_faults(wanted) == []


def test_a_resumed_training_goes_on_in_its_run_of_weights_and_biases(tmp_path, monkeypatch):
    begun = []

    def begin(**settings):
        begun.append(settings)
        return types.SimpleNamespace(log=lambda *given, **named: None, finish=lambda: None)

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=begin))
    for folder in ("one", "one", "two"):
        Telemetry(tmp_path / folder, TelemetryConfig(wandb_project="x"), "stage2", 8).close()
    assert {one["resume"] for one in begun} == {"allow"}
    assert begun[0]["id"] == begun[1]["id"] != begun[2]["id"]


def test_stage_2_tells_where_its_time_goes(artefacts, tmp_path):
    config = artefacts.config
    config = dataclasses.replace(
        config,
        stage2=dataclasses.replace(config.stage2, epochs=2, batch_size=4, train_vision=True),
        telemetry=TelemetryConfig(tensorboard=False, profile_interval=4),
    )
    train_stage2(config, artefacts.data, artefacts.stage1, artefacts.banks, tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "logs" / "steps.jsonl").read_text().splitlines()]
    watched = [row for row in rows if "share/decoder" in row]
    assert [row["step"] for row in watched] == [4, 8]
    for row in watched:
        shares = {name: value for name, value in row.items() if name.startswith("share/")}
        known = {"vision", "qformer", "memory", "decoder", "optimiser", "data"}
        assert known <= {n.split("/")[1] for n in shares} <= known | {"exchange"}
        assert all(0 < value < 1 for value in shares.values())
        assert row["visual_perplexity"] >= 1
        assert {"gradient_norm/decoder", "gradient_norm/visual_memory", "gradient_norm/stage1"} <= row.keys()
