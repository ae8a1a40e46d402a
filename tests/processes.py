"""Processes that start in a second, as they are forked from a server that has imported torch and all the rest.

But for that, each is what ``python -m MODULE ARGUMENT...`` is. Tests of launchers, and of what libraries say when they
are imported, start Python itself.
"""

import atexit
import multiprocessing
import os
import runpy
import sys
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import pytest

from amrg.launcher import local_rank_variables

ROOT = Path(__file__).resolve().parents[1]
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["tests.preloaded"])
#: Read by what the server imports; the second lets forked processes use a GPU.
_ON_IMPORT = {"OMP_NUM_THREADS": "1", "PYTORCH_NVML_BASED_CUDA_CHECK": "1"}


def start(
    module: str, *arguments: object, environment: dict[str, str] | None = None, output: Path | None = None,
    folder: Path | None = None,
) -> ForkServerProcess:  # fmt: skip
    """Start a module of this checkout in a folder; what it says can go to a file."""
    given = os.environ | _ON_IMPORT | (environment or {})
    words = [str(argument) for argument in arguments]
    process = _CONTEXT.Process(target=_run, args=(module, words, given, folder or Path.cwd(), output))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)  # where the server looks for modules
        for name, value in _ON_IMPORT.items():
            patch.setenv(name, value)
        process.start()
    return process


def start_ranks(ranks: int, module: str, *arguments: object) -> list[ForkServerProcess]:
    """Start a module as the ranks of one job on the loopback."""
    shared = local_rank_variables(ranks)
    return [
        start(module, *arguments, environment=shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(ranks)
    ]


def finish(processes: list[ForkServerProcess]) -> None:
    """Wait until all have ended without an error."""
    for process in processes:
        process.join(400)
    assert [process.exitcode for process in processes] == [0] * len(processes)


def _run(module: str, arguments: list[str], environment: dict[str, str], folder: Path, output: Path | None) -> None:
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    if output is not None:
        with output.open("w") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
    sys.argv[1:] = arguments
    sys.modules.pop(module, None)  # runpy would warn that it is preloaded
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    finally:
        atexit._run_exitfuncs()  # Python does so at its end, multiprocessing does not


@atexit.register
def _kill_the_rest() -> None:
    """Multiprocessing would wait for what a failed test has left."""
    for process in multiprocessing.active_children():
        process.kill()
