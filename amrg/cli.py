"""The ``amrg`` command: a verb for each step of the pipeline, and the commands of ``amrg.commands``."""

import argparse
import ast
import atexit
import gc
import importlib
import logging
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from amrg.cli_config import parse_config_arguments
from amrg.config import CONFIGS
from amrg.errors import UserError
from amrg.progress import print_on_rank_0

#: Verbs of the pipeline. ``amrg.pipeline.STEPS`` has all but the first; importing it here would make `--help` slow.
STEPS = ("run", "prepare", "stage1", "banks", "stage2", "generate", "evaluate")
#: Other verbs: the module whose ``main`` gets the arguments.
COMMANDS = {
    verb: f"amrg.commands.{verb.replace('-', '_')}"
    for verb in (
        "doctor",
        "inspect",
        "view",
        "write",
        "serve",
        "compare",
        "export",
        "bank",
        "graph",
        "mirror",
        "experiment",
        "fetch-metrics",
        "gpu-check",
        "plan",
        "simulate",
    )
}


def format_usage() -> str:
    """Text of `amrg --help`, from the docstrings of the steps and the commands, whose modules are not imported."""
    package = Path(__file__).parent
    functions = {
        node.name: ast.get_docstring(node) or ""
        for node in ast.parse((package / "pipeline.py").read_text()).body
        if isinstance(node, ast.FunctionDef)
    }
    steps = {verb: functions["run_pipeline" if verb == "run" else f"_{verb}"] for verb in STEPS}
    commands = {}
    for module in COMMANDS.values():
        docstring = ast.get_docstring(ast.parse((package / "commands" / f"{module.split('.')[-1]}.py").read_text()))
        call, _, summary = (docstring or "").partition("``: ")
        commands[call.removeprefix("``amrg ")] = summary
    return f"""usage: amrg VERB ...

steps, each with [CONFIG] [--dry-run] [--strict] [--section.key VALUE ...]:
{_table(steps)}

commands:
{_table(commands)}

CONFIG is a YAML file, or the name of a configuration in the package (default: demo):
  {", ".join(sorted(path.stem for path in CONFIGS.glob("*.yaml")))}
`amrg VERB --help` lists every option and setting. An interrupted command resumes when it is typed again."""


def _table(docstrings: dict[str, str]) -> str:
    """One line for each verb and the first line of its docstring."""
    width = max(map(len, docstrings))
    summaries = {call: text.partition("\n")[0].rstrip(".") for call, text in docstrings.items()}
    return "\n".join(f"  {call:{width}}  {text[:1].upper()}{text[1:]}" for call, text in summaries.items())


def main(arguments: list[str] | None = None) -> None:
    """Entry point; exit code 0, 2 for a UserError, 3 for a failed training with --strict, 130 when interrupted."""
    arguments = sys.argv[1:] if arguments is None else arguments
    run_command_line(lambda: _dispatch(arguments))


def run_command_line(action: Callable[[], None]) -> None:
    """Run a command; turn a UserError into its lines and exit code 2, and an interruption into a promise."""
    atexit.register(gc.freeze)  # else Python looks through a million objects of the imports once more when it ends
    _show_log()
    try:
        action()
    except UserError as error:
        sys.exit(_fail(str(error), error.exit_code))
    except KeyboardInterrupt as stop:
        sys.exit(_fail(str(stop) or "interrupted; the same command goes on from here", 130))
    except BrokenPipeError:  # whoever reads has read enough, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what Python flushes at the end goes nowhere
        sys.exit(128 + signal.SIGPIPE)


class _EchoHandler(logging.Handler):
    """Prints records as the other lines of a command, on rank 0."""

    def emit(self, record: logging.LogRecord) -> None:
        print_on_rank_0(record.getMessage())


def _show_log() -> None:
    """Show which back end retrieves on a GPU; the kernels know no terminal, so they log it."""
    logger = logging.getLogger("amrg.kernels")
    if not logger.handlers:
        logger.addHandler(_EchoHandler())
        logger.setLevel(logging.INFO)


def launch_training_stage(stage: str) -> None:
    """Run the pipeline up to a training stage, on one of the ranks that a launcher starts (launchers/).

    The arguments are those of `amrg STAGE`, ``--ds_config`` for its DeepSpeed JSON, and ``--local_rank``, which some
    launchers add; the rank itself is read from the environment.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--local_rank", "--local-rank")
    parser.add_argument("--ds_config", "--ds-config")
    parser.add_argument("--strict", action="store_true")
    options, arguments = parser.parse_known_args()
    if options.ds_config:
        arguments += [f"--{stage}.ds_config", options.ds_config]

    def action() -> None:
        config = parse_config_arguments(arguments, f"launchers/{stage}.py")

        from amrg.pipeline import run_pipeline

        run_pipeline(config, stage, options.strict)

    run_command_line(action)


def _fail(message: str, code: int) -> int:
    for line in message.splitlines():
        print(f"amrg: {line}", file=sys.stderr)
    return code


def _dispatch(arguments: list[str]) -> None:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(format_usage())
        return
    verb, *rest = arguments
    if verb in COMMANDS:
        gc.disable()  # an import makes a million objects, none of which is garbage
        command = importlib.import_module(COMMANDS[verb])  # when it is asked for: `--help` is instant
        gc.enable()
        command.main(rest)
        return
    if verb not in STEPS:
        raise UserError(f"unknown verb `{verb}`; one of {', '.join((*STEPS, *COMMANDS))}")
    dry_run, strict = "--dry-run" in rest, "--strict" in rest
    settings = [argument for argument in rest if argument not in ("--dry-run", "--strict")]
    config = parse_config_arguments(settings, f"amrg {verb} [CONFIG] [--dry-run] [--strict]")

    from amrg import pipeline

    verbs = pipeline.verbs_up_to(config) if verb == "run" else [verb]
    if dry_run:
        for name in verbs:
            print(pipeline.describe_step(name, config))
        pipeline.check_before_start(verbs, config)
    elif verb == "run":
        pipeline.run_pipeline(config, strict=strict)
    else:
        pipeline.check_before_start(verbs, config)
        pipeline.run_pipeline_step(verb, config, strict=strict)


if __name__ == "__main__":
    main()
