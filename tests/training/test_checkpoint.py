"""What a checkpoint holds, and what becomes of a run that is killed, told to stop, or cannot save."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from amrg.config import SafetyConfig, TelemetryConfig
from amrg.errors import UserError
from amrg.training import checkpoint, engine, loop
from amrg.training.guards import LossGuard, memory_advice
from tests.training.small_run import optimisation
from tests.training.test_loop import finish, start, steps

QUIET = TelemetryConfig(tensorboard=False)


def write(folder, step, value=1.0, keep=2, is_best=True):
    tensors = {"a": torch.full((3,), value)}
    checkpoint.save(folder, tensors, {"a.exp_avg": torch.zeros(3)}, {"step": step}, is_best, keep)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_the_last_k_stay_and_the_best_goes_along(tmp_path):
    for step in range(1, 6):
        write(tmp_path, step, value=step, keep=3, is_best=step == 2)
    assert names(tmp_path) == [f"step-0000000{n}" for n in (3, 4, 5)]
    newest = checkpoint.latest(tmp_path)
    assert (newest.state["step"], newest.weights()["a"][0], newest.best()["a"][0]) == (5, 5, 2)


def test_damage_is_named_and_the_checkpoint_before_is_used(tmp_path, capsys):
    for step in (1, 2):
        write(tmp_path, step)
    path = tmp_path / "step-00000002" / "optimizer.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x07")
    assert checkpoint.latest(tmp_path).state["step"] == 1
    assert "optimizer.safetensors is damaged" in capsys.readouterr().err
    write(tmp_path, 2)  # trained again
    assert checkpoint.latest(tmp_path).state["step"] == 2
    for step in (1, 2):
        (tmp_path / f"step-0000000{step}" / "state.json").write_text("{")
    with pytest.raises(UserError, match=r"all checkpoints in .* are damaged"):
        checkpoint.latest(tmp_path)


def test_a_full_disk_is_one_line_and_what_was_written_stays(tmp_path):
    """A limit on the size of files stands for the disk: the write fails in the middle."""
    write(tmp_path, 1)
    script = (
        "import resource, torch; from amrg.training.checkpoint import Writer; from pathlib import Path\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)); writer = Writer(Path({str(tmp_path)!r}), 2)\n"
        "writer.save({'a': torch.zeros(9000)}, {}, {'step': 2}, True)\n"
        "try: writer.wait()\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.startswith("UserError cannot write a checkpoint to "), done.stderr
    assert done.stdout.count("\n") == 1
    assert names(tmp_path) == ["step-00000001"]
    assert checkpoint.latest(tmp_path).state["step"] == 1


class Adapted(nn.Module):
    """A large frozen part and a small trained one, as LoRA has it."""

    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.base = nn.Linear(300, 300).requires_grad_(False)
        torch.manual_seed(1)
        self.small = nn.Linear(300, 40)

    def forward(self, x):
        return self.small(self.base(x))


def fit(folder, model, loss=None, batches=None, safety=None, made_from=None):
    inputs = torch.randn(8, 300, generator=torch.Generator().manual_seed(0))

    def error(model, batch):
        return model(batch["x"]).square().mean(), {}

    def same(epoch, begin):
        for _ in range(begin, 3):
            yield {"x": inputs, "study": ["aa", "bb"]}

    return loop.fit(
        model, loss or error, batches or same, 3, optimisation("zero1.json", 8), lambda model: {"val_loss": 0.0},
        ("val_loss", False), folder, 3, QUIET, safety or SafetyConfig(), made_from or {"data": "d" * 64},
    )  # fmt: skip


def test_size_is_that_of_trained_weights_and_their_moments(tmp_path):
    model = Adapted()
    fit(tmp_path, model)
    newest = checkpoint.latest(tmp_path / "checkpoints").path
    trained = sum(parameter.numel() for parameter in model.small.parameters()) * 4
    size = sum(path.stat().st_size for path in newest.iterdir() if path.name != checkpoint.BEST)  # of another epoch
    assert size == pytest.approx(3 * trained, rel=0.1)
    assert not any(name.startswith("base") for name in load_file(newest / "weights.safetensors"))


def test_another_base_bank_or_stream_is_refused(tmp_path):
    fit(tmp_path, Adapted())
    fit(tmp_path, Adapted())  # the same goes on (here: is done)
    with pytest.raises(UserError, match="made from other frozen weights"):
        fit(tmp_path, Adapted(seed=5))
    with pytest.raises(UserError, match=r"made from other data \(dddddddddddd, now eeeeeeeeeeee\)") as caught:
        fit(tmp_path, Adapted(), made_from={"data": "e" * 64})
    assert "\n" not in str(caught.value)


def test_a_loss_that_is_no_number_names_step_rank_and_studies(tmp_path):
    count = iter(range(1, 100))

    def poisoned(model, batch):
        error = model(batch["x"]).square().mean()
        return (error * float("nan") if next(count) == 5 else error), {}

    with pytest.raises(UserError, match=r"the loss is nan at step 5 \(rank 0, studies aa, bb; hashed keys\)"):
        fit(tmp_path, Adapted(), poisoned)
    engine.barrier()
    time.sleep(0.5)  # the checkpoint of the first epoch is written while training went on
    assert checkpoint.latest(tmp_path / "checkpoints").state["step"] == 3


def test_an_explosion_is_told_from_noise():
    guard = LossGuard("stage2", 20.0)
    noise = random.Random(0)
    assert all(guard.wrong_with(noise.uniform(0.5, 5)) is None for _ in range(300))
    assert guard.wrong_with(30.0) is None
    assert "times the median of the last 100 steps" in guard.wrong_with(90.0)
    assert LossGuard("stage2", 20.0).wrong_with(1e9) is None  # nothing to compare with yet
    assert guard.wrong_with(float("inf")) == "is inf"


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("x"), RuntimeError("DefaultCPUAllocator: can't allocate memory")]
)
def test_no_memory_left_says_what_helps(error):
    with pytest.raises(UserError, match="gradient_accumulation_steps") as caught, memory_advice("stage2"):
        raise error
    assert "\n" not in str(caught.value)
    with pytest.raises(RuntimeError, match="something else"), memory_advice("stage2"):
        raise RuntimeError("something else")


def weights(folder):
    return (folder / "model.safetensors").read_bytes()


def wait_for(condition, processes, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline and all(p.poll() is None for p in processes):
        time.sleep(0.001)


def test_a_signal_to_one_rank_ends_all_with_everything_saved(tmp_path):
    straight, told = tmp_path / "straight", tmp_path / "told"
    finish(start(2, straight, 0.0, "zero2.json"))
    processes = start(2, told, 0.3, "zero2.json")
    wait_for(lambda: len(steps(told / "zero2.json")) >= 4, processes)
    processes[1].send_signal(signal.SIGTERM)
    assert [process.wait(timeout=60) for process in processes] == [-signal.SIGINT] * 2  # of `amrg`: 130
    done = steps(told / "zero2.json")[-1]["step"]
    assert checkpoint.latest(told / "zero2.json" / "checkpoints").state["step"] == done < 9
    finish(start(2, told, 0.0, "zero2.json"))
    assert steps(told / "zero2.json")[-1]["step"] == 9
    assert len(steps(told / "zero2.json")) == 9  # not one step was done twice
    assert weights(told / "zero2.json") == weights(straight / "zero2.json")


def test_twenty_kills_change_not_one_bit(tmp_path, monkeypatch):
    monkeypatch.setenv("SMALL_RUN_EPOCHS", "22")
    chance = random.Random(0)
    config = "zero2.json"
    finish(start(2, tmp_path / "straight", 0.0, config))
    folder, kills = tmp_path / "killed" / config, 0
    while kills < 20:
        processes = start(2, tmp_path / "killed", 0.02, config)
        wanted = len(steps(folder)) + chance.randint(1, 4)
        wait_for(lambda wanted=wanted: len(steps(folder)) >= wanted, processes)
        if kills % 3 == 0:  # in the middle of a save
            wait_for(lambda: any((folder / "checkpoints").glob("*.partial")), processes, seconds=2)
        assert any(process.poll() is None for process in processes), "it ended before it was killed"
        for process in processes if kills % 2 else [chance.choice(processes)]:
            process.kill()
        kills += 1
        for process in processes:  # what a launcher does when one rank is gone
            process.kill()
            process.wait()
    finish(start(2, tmp_path / "killed", 0.0, config))
    assert weights(folder) == weights(tmp_path / "straight" / config)
    assert (folder / "curves.jsonl").read_bytes() == (tmp_path / "straight" / config / "curves.jsonl").read_bytes()
    losses = {row["step"]: row["loss"] for row in steps(tmp_path / "straight" / config)}
    assert all(losses[row["step"]] == row["loss"] for row in steps(folder))
    print(json.dumps({"kills": kills, "steps done": len(steps(folder)), "of": len(losses), "pid": os.getpid()}))
