import subprocess
import sys

import pytest

from amrg import progress

CODE = """
from amrg.progress import print_on_rank_0, track_progress
print_on_rank_0('[bold] a line')
print(list(track_progress(range(3), 'counting', done=2)))
"""


def run(**environment):
    return subprocess.run([sys.executable, "-c", CODE], env=environment, capture_output=True, text=True, check=True)


def test_a_log_gets_plain_lines_on_stderr_and_the_items_pass_through():
    done = run()
    assert done.stdout == "[0, 1, 2]\n"
    said, counted = done.stderr.splitlines()
    assert said == "[bold] a line"
    assert counted.startswith("counting: 5 done in ")


def test_only_rank_0_speaks():
    done = run(RANK="1")
    assert (done.stdout, done.stderr) == ("[0, 1, 2]\n", "")


def test_a_slow_loop_says_how_far_it_is_and_what_is_left(monkeypatch, capsys):
    clock = iter(range(0, 1000, 10))
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    said = []
    monkeypatch.setattr(progress, "print_on_rank_0", said.append)
    assert list(progress.track_progress(iter("abcd"), "slow", total=4)) == list("abcd")
    assert said[0] == "slow: 2/4, 0.1/s, 20 s left"
    assert said[-1].startswith("slow: 4 done in")


def test_a_very_slow_loop_says_how_long_a_step_takes(monkeypatch, capsys):
    clock = iter(range(0, 1000, 25))
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    said = []
    monkeypatch.setattr(progress, "print_on_rank_0", said.append)
    assert list(progress.track_progress(iter("abc"), "slow", total=3)) == list("abc")
    assert said[0] == "slow: 1/3, 25 s/step, 50 s left"


def test_an_error_inside_the_loop_is_not_swallowed():
    with pytest.raises(ZeroDivisionError):
        [1 / item for item in progress.track_progress([0], "failing")]
