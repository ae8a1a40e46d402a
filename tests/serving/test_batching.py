"""The queue and its worker, with models that are functions of the films."""

import threading
from concurrent.futures import wait
from contextlib import contextmanager

import numpy as np
import pytest

from amrg.errors import UserError
from amrg.serving import batching
from amrg.serving.batching import Batcher, OpenModel, WorkerFailed


def film(value):
    return [np.full((2, 2), value, np.uint8)]


class Model:
    """Writes the value of each film; raises what it is told to, holds until it may go on."""

    def __init__(self):
        self.batches, self.opened, self.closed = [], 0, 0
        self.failures, self.cannot_open = [], []
        self.may_write = threading.Event()
        self.may_write.set()
        self.writing = threading.Event()

    @contextmanager
    def open(self):
        if self.cannot_open:
            raise self.cannot_open.pop(0)
        self.opened += 1
        try:
            yield OpenModel(self.write, 7)
        finally:
            self.closed += 1

    def write(self, studies):
        self.writing.set()
        assert self.may_write.wait(30)
        if self.failures:
            raise self.failures.pop(0)
        self.batches.append([int(study[0][0, 0]) for study in studies])
        return [{"generated": str(value)} for value in self.batches[-1]]


@pytest.fixture
def model():
    return Model()


@pytest.fixture
def batcher(model):
    sizes = []
    batcher = Batcher(model.open, 3, lambda size, seconds: sizes.append(size))
    batcher.sizes = sizes
    yield batcher
    model.may_write.set()
    batcher.close()


def hold(batcher, model, value=0):
    """A study that is being written until ``may_write`` is set."""
    model.may_write.clear()
    model.writing.clear()
    first = batcher.submit(film(value))
    assert model.writing.wait(30)
    return first


def test_what_waits_is_written_together_in_order(batcher, model):
    first = hold(batcher, model)
    later = [batcher.submit(film(value)) for value in range(1, 6)]
    assert (len(batcher), batcher.image_size, batcher.ready) == (5, 7, True)
    model.may_write.set()
    assert [future.result(30)["generated"] for future in [first, *later]] == list("012345")
    assert model.batches == [[0], [1, 2, 3], [4, 5]]
    assert batcher.sizes == [1, 3, 2]


def test_a_study_that_is_no_longer_wanted_is_not_written(batcher, model):
    first = hold(batcher, model)
    dropped, kept = batcher.submit(film(1)), batcher.submit(film(2))
    batcher.cancel(dropped)
    assert len(batcher) == 1
    batcher.cancel(first)  # too late: it is being written
    model.may_write.set()
    assert kept.result(30) == {"generated": "2"}
    assert first.result(30) == {"generated": "0"}
    assert model.batches == [[0], [2]]


@pytest.mark.parametrize("error", [RuntimeError("the patient's name"), EOFError(), TimeoutError(), SystemExit(1)])
def test_a_worker_that_fails_is_started_again(batcher, model, capfd, error):
    """What is written and what waits fails; what comes later is written by a model that was opened anew."""
    first = hold(batcher, model)
    waiting = [batcher.submit(film(value)) for value in (1, 2, 3, 4)]
    model.failures = [error]
    model.may_write.set()
    wait([first, *waiting], 30)
    for future in (first, *waiting):
        assert isinstance(future.exception(0), WorkerFailed)
    assert batcher.submit(film(9)).result(30) == {"generated": "9"}
    assert (batcher.failures, model.opened, model.closed) == (1, 2, 1)
    said = capfd.readouterr().err
    assert f"the worker failed ({type(error).__name__} in test_batching.py" in said
    assert "patient" not in said


def test_a_model_that_cannot_be_opened_again_is_tried_until_it_can(batcher, model, monkeypatch):
    monkeypatch.setattr(batching, "FIRST_PAUSE", 0.01)
    model.cannot_open = [UserError("a file is missing"), OSError()]
    model.failures = [RuntimeError()]
    with pytest.raises(WorkerFailed):
        batcher.submit(film(0)).result(30)
    answers = []
    while not answers:  # studies that wait while it cannot be opened fail, and are sent again
        try:
            answers.append(batcher.submit(film(1)).result(30))
        except WorkerFailed:
            continue
    assert (batcher.failures, model.opened) == (3, 2)


def test_a_model_that_cannot_be_opened_at_first_is_an_error(model):
    model.cannot_open = [UserError("no such run")]
    with pytest.raises(UserError, match="no such run"):
        Batcher(model.open, 3)
    assert not any(thread.name == "amrg-batches" for thread in threading.enumerate())


def test_what_waits_when_the_server_ends_fails(model):
    batcher = Batcher(model.open, 3)
    first = hold(batcher, model)
    waiting = [batcher.submit(film(value)) for value in range(4)]
    closing = threading.Thread(target=batcher.close)
    closing.start()
    while not batcher._closed:
        pass
    model.may_write.set()
    closing.join(30)
    assert first.result(0) == {"generated": "0"}
    assert all(isinstance(future.exception(0), WorkerFailed) for future in waiting)
    assert (model.opened, model.closed) == (1, 1)
