"""One job of a sweep: a process that makes steps as its parent asks, one after the other.

A line of JSON on stdin is a step to make, a line on stdout says how it went; all that the step prints goes to stderr.
When stdin ends, also because the parent died, the step that is being made is interrupted as Ctrl-C does it: what it
can save is saved.
"""

import json
import os
import signal
import sys
import threading
import traceback
from queue import SimpleQueue

from amrg import progress
from amrg.config import from_dict
from amrg.errors import UserError
from amrg.experiments.cached_steps import run_step_with_vision_cache

#: Seconds between two progress lines: several jobs share one log.
LOG_EVERY = 60.0


def main() -> None:
    """Make what is asked until stdin ends."""
    progress.LOG_EVERY = LOG_EVERY
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell that put us in the background ignores it
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    asked: SimpleQueue[str] = SimpleQueue()
    threading.Thread(target=_listen, args=(asked,), daemon=True).start()
    try:
        while True:
            answers.write(json.dumps({"error": _make(**json.loads(asked.get()))}) + "\n")
            answers.flush()
    except KeyboardInterrupt as stop:
        if str(stop):
            progress.echo(str(stop))


def _listen(asked: "SimpleQueue[str]") -> None:
    for line in sys.stdin:
        asked.put(line)
    os.kill(os.getpid(), signal.SIGINT)


def _make(verb: str, config: dict[str, object]) -> str | None:
    """Make a step; returns what went wrong."""
    try:
        run_step_with_vision_cache(verb, from_dict(config, "experiment"))
    except UserError as error:
        return str(error)
    except Exception as error:
        traceback.print_exc()
        return f"{verb} failed with {type(error).__name__}: the lines before this one say where"
    return None


if __name__ == "__main__":
    main()
