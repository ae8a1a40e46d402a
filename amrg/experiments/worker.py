"""Worker process of a sweep, which runs its parent's steps one after the other.

Each line of JSON on stdin requests a step, and a line on stdout holds its result. Output of the step goes to stderr.
When stdin ends, also by the parent's death, the running step is interrupted as by Ctrl-C and saves its state.
"""

import json
import os
import signal
import sys
import threading
import traceback
from queue import SimpleQueue

from amrg import progress
from amrg.config_files import config_from_dict
from amrg.errors import UserError
from amrg.experiments.cached_steps import run_step_with_vision_cache

#: Seconds between progress lines; several jobs share one log.
LOG_EVERY = 60.0


def main() -> None:
    """Run requested steps until stdin ends."""
    progress.LOG_EVERY = LOG_EVERY
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell ignores SIGINT for background processes
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # output of libraries must not mix with answers
    requests: SimpleQueue[str] = SimpleQueue()
    threading.Thread(target=_listen, args=(requests,), daemon=True).start()
    try:
        while True:
            answers.write(json.dumps({"error": _make(**json.loads(requests.get()))}) + "\n")
            answers.flush()
    except KeyboardInterrupt as stop:
        if str(stop):
            progress.print_on_rank_0(str(stop))


def _listen(requests: "SimpleQueue[str]") -> None:
    for line in sys.stdin:
        requests.put(line)
    os.kill(os.getpid(), signal.SIGINT)


def _make(verb: str, config: dict[str, object]) -> str | None:
    """Run a step; returns an error message, or None."""
    try:
        run_step_with_vision_cache(verb, config_from_dict(config, "experiment"))
    except UserError as error:
        return str(error)
    except Exception as error:
        traceback.print_exc()
        return f"{verb} failed with {type(error).__name__}: the lines before this one say where"
    return None


if __name__ == "__main__":
    main()
