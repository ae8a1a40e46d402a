"""A training run that is killed again and again: python kills_run.py FOLDER KILLS SEED PAUSE EPOCHS CONFIG

Ranks are forked from a process that has imported everything, so that a start costs a second instead of ten. Each time
the whole job or one rank gets SIGKILL: some steps later, at once, or while a checkpoint is being written. Then it is
started again, and at last left alone. Prints how often each kind of kill happened, as JSON.
"""

import importlib
import json
import os
import random
import signal
import sys
import time
import uuid
from collections import Counter
from pathlib import Path

from amrg.training import checkpoint, engine
from tests.training.small_run import main as train

RANKS = 2
_flush = checkpoint._flush


def start(folder: Path, pause: float, epochs: int, config: str, slow_saves: bool) -> list[int]:
    """Process ids of the ranks."""
    os.environ["MASTER_PORT"] = uuid.uuid4().hex  # only names the rendezvous file
    ranks = []
    for rank in range(RANKS):
        child = os.fork()
        if child:
            ranks.append(child)
            continue
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank))
        if slow_saves:
            checkpoint._flush = lambda path: (time.sleep(0.03), _flush(path))  # type: ignore[assignment]
        train(folder, pause, [config], epochs)
        sys.exit(0)
    return ranks


def wait_for_kill(folder: Path, ranks: list[int], when: str, draw: random.Random, pause: float) -> None:
    """Until the moment has come."""
    if when == "start":
        time.sleep(draw.uniform(0.0, 0.5))
        return
    log, target = folder / "logs" / "steps.jsonl", 0
    if when == "step":
        target = lines(log) + draw.randint(1, 3)
    deadline = time.monotonic() + 60
    while not (lines(log) >= target if target else list((folder / "checkpoints").glob("*.partial"))):
        assert time.monotonic() < deadline
        assert os.waitpid(ranks[0], os.WNOHANG) == (0, 0), f"the run ended before it could be killed: {when}"
        time.sleep(0.001)
    time.sleep(draw.uniform(0.0, 2 * pause if when == "step" else 0.12))


def lines(log: Path) -> int:
    return log.read_bytes().count(b"\n") if log.exists() else 0


def kill(ranks: list[int], who: int | None) -> None:
    """One rank, and what a launcher does then; or all at once."""
    if who is not None:
        os.kill(ranks[who], signal.SIGKILL)
        time.sleep(0.1)
    for rank in ranks:
        os.kill(rank, signal.SIGKILL)
    for rank in ranks:
        os.waitpid(rank, 0)


def main(folder: Path, kills: int, seed: int, pause: float, epochs: int, config: str) -> None:
    engine._deepspeed()
    for lazily in ("torch._dynamo", "deepspeed.runtime.zero.muon.muon_optimizer"):
        importlib.import_module(lazily)  # what each start would import again
    os.environ.update(WORLD_SIZE=str(RANKS), LOCAL_SIZE=str(RANKS))
    draw, done = random.Random(seed), Counter[str]()
    for number in range(kills):
        when, who = ("save", "step", "save", "step", "start")[number % 5], draw.choice((0, 1, None))
        ranks = start(folder, pause, epochs, config, slow_saves=when == "save")
        wait_for_kill(folder / config, ranks, when, draw, pause)
        kill(ranks, who)
        done[f"{when}, {'all' if who is None else f'rank {who}'}"] += 1
    ranks = start(folder, 0.0, epochs, config, slow_saves=False)
    codes = [os.waitstatus_to_exitcode(os.waitpid(rank, 0)[1]) for rank in ranks]
    assert codes == [0] * RANKS, codes
    print(json.dumps(done))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]), int(sys.argv[5]), sys.argv[6])
