"""Runs command lines one after the other, as a shell would; arguments: COMMANDS RESULTS

COMMANDS is a JSON list of lines; RESULTS receives {line: what it said}. A command of ours is a process of its own,
forked from this one, where all that it imports is imported; names of files with * are expanded. All other commands are
bash's. The first that fails is the last.
"""

import glob
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

from amrg import cli
from tests import preloaded  # noqa: F401  # so that no command imports it


def run(line: str, said: Path) -> int:
    """The exit code of a command line; what it says goes to a file."""
    words = [name for word in shlex.split(line) for name in (sorted(glob.glob(word)) or [word])]
    with said.open("w") as file:
        if words[0] == "export":
            os.environ.update([words[1].split("=", 1)])
            return 0
        if words[0] != "amrg":
            return subprocess.run(["bash", "-c", line], stdout=file, stderr=file).returncode
        child = os.fork()
        if child:
            return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        cli.main(words[1:])
        sys.exit(0)


if __name__ == "__main__":
    commands, results = map(Path, sys.argv[1:])
    told: dict[str, str] = {}
    for line in json.loads(commands.read_text()):
        code = run(line, results.with_suffix(".said"))
        told[line] = results.with_suffix(".said").read_text()
        results.write_text(json.dumps(told))
        if code:
            sys.exit(f"{line}: exit code {code}\n{told[line]}")
