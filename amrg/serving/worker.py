"""Process that holds the model, so that whatever ends it does not end the server."""

import multiprocessing
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path

from amrg.errors import UserError
from amrg.inference.run import load_run
from amrg.progress import print_on_rank_0
from amrg.serving.batching import OpenModel, Record, Study, error_place


@contextmanager
def worker_process(run: Path, base_model: str | None, seconds: float, banks: Path | None = None) -> Iterator[OpenModel]:
    """Start a process that opens a run and writes batches; it is killed in the end.

    ``write`` raises EOFError or OSError if the process has died, TimeoutError if it takes too long.

    Args:
        run: as of ``load_run``; the artefact that a server has chosen, so that every process writes with the same.
        base_model, banks: as of ``load_run``.
        seconds: most of one batch.

    Raises:
        UserError: the run cannot be opened.
    """
    context = multiprocessing.get_context("spawn")  # a fork would share the locks of threads, and cannot use CUDA
    here, there = context.Pipe()
    process = context.Process(target=_work, args=(run, base_model, banks, there), name="amrg-worker", daemon=True)
    process.start()
    there.close()  # so that the end of the process ends the pipe
    try:
        opened = here.recv()
        if isinstance(opened, str):
            raise UserError(opened)

        def write(studies: list[Study]) -> list[Record]:
            here.send(studies)
            if not here.poll(seconds):
                raise TimeoutError
            records: list[Record] = here.recv()
            return records

        yield OpenModel(write, opened)
    finally:
        process.kill()
        process.join()
        here.close()


def _work(run: Path, base_model: str | None, banks: Path | None, pipe: Connection) -> None:
    """Send the model's image size, or why it cannot be opened; then answer batches until the pipe is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the server, which ends this process
    try:
        loaded = load_run(run, base_model, banks)
    except UserError as error:
        pipe.send(str(error))
        return
    pipe.send(loaded.image_size)
    while True:
        try:
            studies = pipe.recv()
        except EOFError:  # the server has ended
            return
        try:
            films, contexts, priors, views = zip(*studies, strict=True)
            pipe.send(loaded.generate_records(films, contexts, [loaded.read_prior(one) for one in priors], views))
        except Exception as error:
            print_on_rank_0(f"a batch failed: {error_place(error)}")
            os._exit(1)  # a GPU is of no more use to this process after some errors
