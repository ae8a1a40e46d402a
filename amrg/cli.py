"""The ``amrg`` command: one verb an arrow of the chain.

amrg run CONFIG [--dry-run] [--section.key VALUE ...]
"""

import importlib
import os
import signal
import sys
from collections.abc import Callable

from amrg.cli_config import parse
from amrg.errors import UserError

USAGE = """usage: amrg VERB [CONFIG] [--dry-run] [--section.key VALUE ...]
       amrg inspect ARTEFACT [--verify] [--show-text]
       amrg doctor PATH
       amrg mirror DATA URL
       amrg bank build|merge|subset|verify|show|search ...
       amrg write RUN STUDY ... [--json] [--decoder.model FOLDER]
       amrg view RUN [--host ADDRESS] [--port NUMBER] [--decoder.model FOLDER]
       amrg compare RUN RUN ...
       amrg experiment NAME [CONFIG] [--seeds N] [--jobs N] [--dry-run] [--section.key VALUE ...]
       amrg fetch-metrics [METRIC ...] [--dry-run]
       amrg export REPORTS FILE [--onto FILE]
       amrg plan [CONFIG] --gpus N [--gpu-memory GB] [--section.key VALUE ...]
       amrg simulate [CONFIG] [--measure] [--device GPU] [--section.key VALUE ...]

verbs, each reading what the one before it made:
  run           all of the following; what is made already is kept
  prepare       studies on disk to shards
  stage1        train the 14-way classifier with its disease queries
  banks         mine disease-aware regions, encode the train reports
  stage2        train the report generator
  generate      write a report for each held-out study
  evaluate      score the reports; writes scores.json and a page
  inspect       say what an artefact is, where it came from, and show a few rows
  doctor        check a copy of a data set before it is prepared
  mirror        copy shards to object storage (s3://, gs://), to be read from there
  bank          make, join, thin out, check, describe and search memory banks
  write         reports of your own films (PNG, JPEG, DICOM), by the generator of a run
  view          look at a run in the browser: films, maps, memory, reports as they are written
  compare       paired tests between runs that wrote reports for the same studies
  experiment    one of twelve experiments, or all: variants of a run over several seeds, with a table, a plot and a page
  fetch-metrics weights of CheXbert, RadGraph and other learned metrics, to where they are looked for
  export        generated reports in the format of the ReXrank leaderboard
  plan          memory of a GPU by part, bytes moved, time and largest micro-batch of training, predicted
  simulate      throughput, bottleneck and what failures cost from 1 to 4,096 workers, on measured rates

CONFIG is a YAML file or the bare name of one in configs/ (default: demo). `amrg VERB --help` lists every setting.
An interrupted command goes on where it was when it is typed again."""

#: Verbs beside the chain: the module whose ``main`` gets the arguments.
COMMANDS = {
    "inspect": "amrg.commands.inspect",
    "doctor": "amrg.commands.doctor",
    "mirror": "amrg.commands.mirror",
    "bank": "amrg.commands.bank",
    "write": "amrg.commands.write",
    "view": "amrg.commands.view",
    "compare": "amrg.commands.compare",
    "experiment": "amrg.commands.experiment",
    "export": "amrg.commands.export",
    "fetch-metrics": "amrg.commands.fetch_metrics",
    "plan": "amrg.commands.plan",
    "simulate": "amrg.commands.simulate",
}
STEPS = ("run", "prepare", "stage1", "banks", "stage2", "generate", "evaluate")


def main(arguments: list[str] | None = None) -> None:
    """Entry point; exit code 0, 2 for what the user can put right, 130 when interrupted."""
    arguments = sys.argv[1:] if arguments is None else arguments
    run_cli(lambda: _dispatch(arguments))


def run_cli(action: Callable[[], None]) -> None:
    """Run a command; turn a UserError into its lines and exit code 2, and an interruption into a promise."""
    try:
        action()
    except UserError as error:
        sys.exit(_fail(str(error), 2))
    except KeyboardInterrupt as stop:
        sys.exit(_fail(str(stop) or "interrupted; the same command goes on from here", 130))
    except BrokenPipeError:  # whoever reads has read enough, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what Python flushes at the end goes nowhere
        sys.exit(128 + signal.SIGPIPE)


def _fail(message: str, code: int) -> int:
    for line in message.splitlines():
        print(f"amrg: {line}", file=sys.stderr)
    return code


def _dispatch(arguments: list[str]) -> None:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE)
        return
    verb, *rest = arguments
    if verb in COMMANDS:
        importlib.import_module(COMMANDS[verb]).main(rest)  # imported when it is asked for: `--help` is instant
        return
    if verb not in STEPS:
        raise UserError(f"unknown verb `{verb}`; one of {', '.join((*STEPS, *COMMANDS))}")
    dry_run = "--dry-run" in rest
    config = parse([argument for argument in rest if argument != "--dry-run"], f"amrg {verb} [CONFIG] [--dry-run]")

    from amrg import pipeline

    verbs = tuple(pipeline.STEPS) if verb == "run" else (verb,)
    if dry_run:
        for name in verbs:
            print(pipeline.describe(name, config))
        pipeline.check(verbs, config)
    elif verb == "run":
        pipeline.run_all(config)
    else:
        pipeline.check(verbs, config)
        pipeline.run_step(verb, config)


if __name__ == "__main__":
    main()
