"""What a checkpoint holds, and what becomes of a run that is killed, told to stop, or cannot save."""

import errno
import json
import random
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from amrg import distributed
from amrg.config import CheckpointConfig, TelemetryConfig
from amrg.errors import UserError
from amrg.training import checkpoint, loop
from amrg.training.interruption import LossGuard, exhaustion_as_user_errors
from tests.cluster import linux_namespaces
from tests.processes import finish, start
from tests.training.test_loop import steps
from tests.training.toy_training_worker import optimisation

QUIET = TelemetryConfig(tensorboard=False)


def write(folder, step, value=1.0, keep=2, is_best=True):
    tensors = {"a": torch.full((3,), value)}
    checkpoint.save_checkpoint(folder, tensors, {"a.exp_avg": torch.zeros(3)}, {"step": step}, is_best, keep)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_the_last_k_stay_and_the_best_goes_along(tmp_path):
    for step in range(1, 6):
        write(tmp_path, step, value=step, keep=3, is_best=step == 2)
    assert names(tmp_path) == [f"step-0000000{n}" for n in (3, 4, 5)]
    newest = checkpoint.find_latest_valid(tmp_path)
    assert (newest.state["step"], newest.weights()["a"][0], newest.best()["a"][0]) == (5, 5, 2)


def test_damage_is_named_and_the_checkpoint_before_is_used(tmp_path, capsys):
    for step in (1, 2):
        write(tmp_path, step)
    path = tmp_path / "step-00000002" / "optimizer.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x07")
    assert checkpoint.find_latest_valid(tmp_path).state["step"] == 1
    assert "optimizer.safetensors is damaged" in capsys.readouterr().err
    write(tmp_path, 2)  # trained again
    assert checkpoint.find_latest_valid(tmp_path).state["step"] == 2
    for step in (1, 2):
        (tmp_path / f"step-0000000{step}" / "state.json").write_text("{")
    with pytest.raises(UserError, match=r"all checkpoints in .* are damaged"):
        checkpoint.find_latest_valid(tmp_path)


def test_a_full_disk_is_one_line_and_what_was_written_stays(tmp_path):
    """A limit on the size of files stands for the disk: the write fails in the middle."""
    write(tmp_path, 1)
    script = (
        "import resource, torch; from amrg.training.checkpoint import AsyncCheckpointWriter; from pathlib import Path\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))\n"
        f"writer = AsyncCheckpointWriter(Path({str(tmp_path)!r}), 2)\n"
        "writer.save({'a': torch.zeros(9000)}, {}, {'step': 2}, True); writer.wait(); print(writer.error)\n"
        "writer.save({'a': torch.zeros(1)}, {}, {'step': 3}, True); writer.wait()"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.startswith("cannot write the checkpoint of step 2 to "), done.stderr
    assert done.stdout.count("\n") == 1
    assert names(tmp_path) == ["step-00000001"]
    assert checkpoint.find_latest_valid(tmp_path).state["step"] == 1


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

    task = loop.TrainingTask(
        model=model,
        loss=loss or error,
        batches=batches or same,
        steps_per_epoch=3,
        validate=lambda model: {"val_loss": 0.0},
        selection_metric=("val_loss", False),
        input_hashes=made_from or {"data": "d" * 64},
    )
    checkpointing = safety or CheckpointConfig()
    return loop.fit_task(
        task, optimisation("zero1.json", 8), folder=folder, seed=3, telemetry=QUIET, checkpointing=checkpointing
    )


def test_size_is_that_of_trained_weights_and_their_moments(tmp_path):
    model = Adapted()
    fit(tmp_path, model)
    newest = checkpoint.find_latest_valid(tmp_path / "checkpoints").path
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
    distributed.barrier()
    time.sleep(0.5)  # the checkpoint of the first epoch is written while training went on
    assert checkpoint.find_latest_valid(tmp_path / "checkpoints").state["step"] == 3


def test_an_explosion_is_told_from_noise():
    guard = LossGuard("stage2", 20.0)
    noise = random.Random(0)
    assert all(guard.check(noise.uniform(0.5, 5)) is None for _ in range(300))
    assert guard.check(30.0) is None
    assert "times the median of the last 100 steps" in guard.check(90.0)
    assert LossGuard("stage2", 20.0).check(1e9) is None  # nothing to compare with yet
    learned_by_heart = LossGuard("stage2", 20.0)
    assert {learned_by_heart.check(loss) for loss in [0.004] * 100 + [0.25, 0.99]} == {None}
    assert learned_by_heart.check(1.01) == "is 1.01, 252 times the median of the last 100 steps"
    assert guard.check(float("inf")) == "is inf"


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("x"), RuntimeError("DefaultCPUAllocator: can't allocate memory")]
)
def test_no_memory_left_says_what_helps(error, tmp_path):
    with (
        pytest.raises(UserError, match="train_micro_batch_size_per_gpu") as caught,
        exhaustion_as_user_errors("stage2", tmp_path),
    ):
        raise error
    assert "\n" not in str(caught.value)
    with pytest.raises(RuntimeError, match="something else"), exhaustion_as_user_errors("stage2", tmp_path):
        raise RuntimeError("something else")


def test_a_small_dev_shm_is_one_line(tmp_path):
    """A megabyte, as containers have 64: readers cannot hand a batch on."""
    script = (
        "import pathlib, torch; from torch.utils.data import DataLoader; from amrg.cli import run_command_line\n"
        "from amrg.training.interruption import exhaustion_as_user_errors\n"
        "def read():\n"
        "    with exhaustion_as_user_errors('stage1', pathlib.Path('.')):\n"
        "        for batch in DataLoader([torch.zeros(2**20)], num_workers=1): pass\n"
        "run_command_line(read)"
    )
    small = "mount -t tmpfs -o size=1m none /dev/shm"
    done = linux_namespaces.run(tmp_path, "-c", script, before=small)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("amrg: stage1: the shared memory of this machine is used up: give /dev/shm more room")
    assert done.stderr.count("\n") == 1


def weights(folder):
    return (folder / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def forked(tmp_path_factory):
    """The folder of the runs of kill_and_resume_driver.py, and what they told."""
    folder = tmp_path_factory.mktemp("forked")
    finish([start("tests.training.kill_and_resume_driver", folder)])
    return folder, json.loads((folder / "outcome.json").read_text())


def test_twenty_kills_change_not_one_bit(forked):
    folder, outcome = forked
    assert sum(sum(outcome[config].values()) for config in ("zero1.json", "zero3.json")) == 20
    for config in ("zero1.json", "zero3.json"):
        straight, killed = folder / "straight" / config, folder / "killed" / config
        assert weights(killed) == weights(straight)
        assert (killed / "curves.jsonl").read_bytes() == (straight / "curves.jsonl").read_bytes()
        told = ([(row["step"], row["loss"]) for row in steps(folder)] for folder in (straight, killed))
        assert next(told) == next(told)  # each step once, though some were done again


def test_a_signal_to_one_rank_ends_all_with_everything_saved(forked):
    folder, outcome = forked
    assert outcome["stopped"]["codes"] == [130, 130]
    assert 4 <= outcome["stopped"]["saved"] == outcome["stopped"]["steps"] < 9
    assert [row["step"] for row in steps(folder / "stopped" / "zero2.json")] == list(range(1, 10))  # none twice
    assert weights(folder / "stopped" / "zero2.json") == weights(folder / "straight" / "zero2.json")


def test_a_run_goes_on_alike_on_fewer_ranks(forked):
    folder, outcome = forked
    assert outcome["resized"]["saved"] < 9
    whole, resized = (steps(folder / name / "zero3.json") for name in ("whole", "resized"))
    assert [row["step"] for row in resized] == list(range(1, 10))
    assert [row["loss"] for row in resized] == pytest.approx([row["loss"] for row in whole], rel=1e-4)


def test_values_that_are_not_finite_are_never_written(tmp_path):
    write(tmp_path, 1)
    writer = checkpoint.AsyncCheckpointWriter(tmp_path, 2)
    writer.save({"a": torch.tensor([1.0, float("nan")])}, {}, {"step": 2}, True)
    writer.wait()
    assert "a has values that are not finite" in writer.error
    assert names(tmp_path) == ["step-00000001"]


def test_what_is_gone_on_from_is_the_newest(tmp_path):
    for step in (1, 2, 3):
        write(tmp_path, step, keep=3)
    (tmp_path / "step-00000003" / "weights.safetensors").unlink()
    found = checkpoint.find_latest_valid(tmp_path)
    checkpoint.remove_newer_than(found)
    assert names(tmp_path) == ["step-00000001", "step-00000002"]
    state = tmp_path / "step-00000002" / "state.json"
    state.write_text(state.read_text().replace('"step": 2', '"step": 5'))
    assert checkpoint.find_latest_valid(tmp_path).state["step"] == 1


class Counting(nn.Module):
    """With a buffer that training changes, and one that it does not."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(300, 2)
        self.norm = nn.BatchNorm1d(2)
        self.register_buffer("table", torch.arange(5000.0))

    def forward(self, x):
        return self.norm(self.linear(x)) + self.table[3]


def test_only_buffers_that_training_changes_are_kept(tmp_path):
    fit(tmp_path, Counting())
    kept = checkpoint.find_latest_valid(tmp_path / "checkpoints").weights()
    assert "norm.running_mean" in kept
    assert "table" not in kept


def test_a_full_disk_ends_the_run_in_one_line(tmp_path, monkeypatch):
    """Three checkpoints fit, the next does not: the step after it tells."""
    whole = checkpoint.save_file

    def full(tensors, path):
        if "step-00000004" in str(path):
            raise OSError(errno.ENOSPC, "No space left on device")
        whole(tensors, path)

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(UserError, match=r"cannot write the checkpoint of step 4 .* No space left on device") as caught:
        fit(tmp_path, Adapted(), safety=CheckpointConfig(interval=1))
    assert "\n" not in str(caught.value)
    assert names(tmp_path / "checkpoints") == ["step-00000002", "step-00000003"]
    monkeypatch.undo()
    fit(tmp_path, Adapted())
    fit(tmp_path / "straight", Adapted())
    ours, theirs = (
        checkpoint.find_latest_valid(f / "checkpoints").weights() for f in (tmp_path, tmp_path / "straight")
    )
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
