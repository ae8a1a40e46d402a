"""Steps in processes side by side: the same artefacts, failures that stay alone, and an end that loses nothing."""

import os
import signal
import time
from dataclasses import replace

import pytest
import torch

from amrg import pipeline
from amrg.commands import experiment
from amrg.errors import UserError
from amrg.experiments.jobs import Jobs
from amrg.experiments.registry import EXPERIMENTS
from amrg.experiments.sweep import with_overrides
from tests.experiments.test_sweep import SMALL


@pytest.fixture
def config(artefacts, tmp_path, monkeypatch):
    """The random films' run in a folder of its own."""
    monkeypatch.setenv("PYTHONPATH", os.getcwd())
    return with_overrides(artefacts.linked(tmp_path).config, SMALL)


def test_side_by_side_the_same_is_made(config, tmp_path, capfd):
    """Names of artefacts hold the hashes of what they were made from."""
    retrieval = EXPERIMENTS["retrieval"]
    ours = replace(retrieval, variants=lambda c, s: [v for v in retrieval.variants(c, s) if v.name[-6:] == " steps"])
    alone = replace(config, runs=str(tmp_path / "alone"))
    (tmp_path / "alone").mkdir()
    (tmp_path / "alone" / "tiny").symlink_to(tmp_path / "alone-tiny")
    (tmp_path / "alone-tiny").mkdir()
    for path in (tmp_path / "tiny").iterdir():
        (tmp_path / "alone-tiny" / path.name).symlink_to(path)
    pages = [experiment.run_experiments(config, [ours], seeds=1, jobs=2)]
    assert "[Hopfield, 2 steps, seed 0] stage2: making" in capfd.readouterr().err
    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // 2))  # as each job: last bits depend on it
    try:
        pages.append(experiment.run_experiments(alone, [ours], seeds=1))
    finally:
        torch.set_num_threads(threads)
    assert capfd.readouterr().err.count("stage 1 looks at train") == 1  # the second training reads what the first saw
    both, one = ({path.name for path in pipeline.artifact_root(c).glob("*-*")} for c in (config, alone))
    assert len(both) == 3 + 2 + 2
    assert both == one
    assert pages[0][0].read_bytes() == pages[1][0].read_bytes()


def test_what_fails_is_one_line_and_the_next_step_is_made(config, capfd):
    with Jobs(1) as jobs:
        with pytest.raises(UserError, match=r"stage2\.batch_size 999 does not fit"):
            jobs.make("stage2", with_overrides(config, {"stage2.batch_size": 999}), "too large")
        (process,) = jobs._processes
        os.kill(process._process.pid, signal.SIGKILL)
        with pytest.raises(UserError, match="killed: the process that made stage2 ended with SIGKILL"):
            process.make("stage2", config, "killed")
        jobs.make("stage2", config, "after it")
    assert len(list(pipeline.artifact_root(config).glob("stage2-*"))) == 2  # one is the folder that could not be filled
    assert "Traceback" not in capfd.readouterr().err


def test_an_interruption_saves_what_was_done(config, capfd):
    jobs, long = Jobs(2), with_overrides(config, {"stage2.epochs": 500})
    with pytest.raises(KeyboardInterrupt):
        _interrupt_when_saved(jobs, long)
    assert "[long] stopped as asked after step" in capfd.readouterr().err
    assert all(not process.alive() for process in jobs._processes)
    assert list(pipeline.artifact_root(long).glob("stage2-*.partial/checkpoints/*"))


def _interrupt_when_saved(jobs, long):
    with jobs:
        jobs.submit(jobs.make, "stage2", long, "long")
        deadline = time.monotonic() + 120
        while not list(pipeline.artifact_root(long).glob("stage2-*.partial/checkpoints/*")):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        raise KeyboardInterrupt
