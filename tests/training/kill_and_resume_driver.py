"""Runs of toy_training_worker.py that are killed, stopped and started on other ranks: its argument is a folder.

Ranks are forked from this process, which has imported everything.
FOLDER gets ``outcome.json``; tests/training/test_checkpoint.py compares what the runs have left.
"""

import json
import os
import random
import signal
import sys
import time
from collections import Counter
from pathlib import Path

from amrg.cli import run_command_line
from amrg.launcher import local_rank_variables
from amrg.training import checkpoint
from tests import preloaded  # noqa: F401  # so that no rank imports it
from tests.training.toy_training_worker import main as train

KILLS = {"zero1.json": 1, "zero3.json": 2}  # ten of each, drawn by this seed
EPOCHS, PAUSE = 12, 0.02
STOPPED, RESIZED = "zero2.json", "zero3.json"
_flush = checkpoint._flush


def start(
    folder: Path, config: str, ranks: int = 2, pause: float = 0.0, slow_saves: bool = False, epochs: int = 3,
    dropout: float = 0.2,
) -> list[int]:  # fmt: skip
    """Process ids of the ranks."""
    os.environ.update(local_rank_variables(ranks))
    started = []
    for rank in range(ranks):
        child = os.fork()
        if child:
            started.append(child)
            continue
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank))
        if slow_saves:
            checkpoint._flush = lambda path: (time.sleep(0.03), _flush(path))  # type: ignore[assignment]
        run_command_line(lambda: train(folder, pause, [config], epochs, dropout))
        sys.exit(0)
    return started


def end(ranks: list[int]) -> list[int]:
    """Exit codes, once all have ended by themselves."""
    return [os.waitstatus_to_exitcode(os.waitpid(rank, 0)[1]) for rank in ranks]


def finish(ranks: list[int]) -> None:
    codes = end(ranks)
    assert codes == [0] * len(ranks), codes


def wait_for(condition, ranks: list[int]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        assert os.waitpid(ranks[0], os.WNOHANG) == (0, 0), "the run ended too early"
        time.sleep(0.001)


def lines(folder: Path) -> int:
    log = folder / "logs" / "steps.jsonl"
    return log.read_bytes().count(b"\n") if log.exists() else 0


def wait_to_kill(folder: Path, ranks: list[int], when: str, draw: random.Random) -> None:
    if when == "start":
        time.sleep(draw.uniform(0.0, 0.5))
    elif when == "step":
        target = lines(folder) + draw.randint(1, 3)
        wait_for(lambda: lines(folder) >= target, ranks)
        time.sleep(draw.uniform(0.0, 2 * PAUSE))
    else:
        wait_for(lambda: list((folder / "checkpoints").glob("*.partial")), ranks)
        time.sleep(draw.uniform(0.0, 0.12))


def kill(ranks: list[int], who: int | None) -> None:
    """One rank, and what a launcher does then; or all at once."""
    if who is not None:
        os.kill(ranks[who], signal.SIGKILL)
        time.sleep(0.1)
    for rank in ranks:
        os.kill(rank, signal.SIGKILL)
    end(ranks)


def kills(root: Path, config: str, seed: int) -> Counter[str]:
    """The same run twice: undisturbed, and killed ten times, at steps, on starting, and while it saves."""
    finish(start(root / "straight", config, epochs=EPOCHS))
    draw, done = random.Random(seed), Counter[str]()
    for number in range(10):
        when, who = ("save", "step", "save", "step", "start")[number % 5], draw.choice((0, 1, None))
        ranks = start(root / "killed", config, pause=PAUSE, slow_saves=when == "save", epochs=EPOCHS)
        wait_to_kill(root / "killed" / config, ranks, when, draw)
        kill(ranks, who)
        done[f"{when}, {'all' if who is None else f'rank {who}'}"] += 1
    finish(start(root / "killed", config, epochs=EPOCHS))
    return done


def stop(folder: Path, config: str, dropout: float) -> dict[str, object]:
    """SIGTERM for the second of two ranks, after four steps."""
    ranks = start(folder, config, pause=0.1, dropout=dropout)
    wait_for(lambda: lines(folder / config) >= 4, ranks)
    os.kill(ranks[1], signal.SIGTERM)
    codes, done = end(ranks), lines(folder / config)
    found = checkpoint.find_latest_valid(folder / config / "checkpoints")
    assert found is not None
    return {"codes": codes, "steps": done, "saved": found.state["step"]}


def main(root: Path) -> None:
    outcome: dict[str, object] = {config: kills(root, config, seed) for config, seed in KILLS.items()}
    finish(start(root / "straight", STOPPED))
    outcome["stopped"] = stop(root / "stopped", STOPPED, dropout=0.2)
    finish(start(root / "stopped", STOPPED))
    # What is dropped depends on the rank, so there is no dropout where their number changes.
    finish(start(root / "whole", RESIZED, dropout=0.0))
    outcome["resized"] = stop(root / "resized", RESIZED, dropout=0.0)
    finish(start(root / "resized", RESIZED, ranks=1, dropout=0.0))
    (root / "outcome.json").write_text(json.dumps(outcome))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
