"""``[CONFIG] [--section.key VALUE ...]``: what every command that runs the chain is told."""

import contextlib
import io
import re

import tyro

from amrg import config as configuration
from amrg.config import Config
from amrg.errors import UserError


def parse(arguments: list[str], prog: str) -> Config:
    """``[CONFIG] [--section.key VALUE ...]`` to a configuration: defaults < YAML < command line.

    Raises:
        UserError: unknown or malformed file, key, flag or value; one line.
    """
    name = "demo"
    if arguments and not arguments[0].startswith("-"):
        name, *arguments = arguments
    base = configuration.load(name)
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            config = tyro.cli(Config, default=base, args=arguments, prog=prog)
    except SystemExit as stop:
        if stop.code in (0, None):  # --help
            raise
        raise UserError(_one_line(said.getvalue())) from None
    # Once more through the strict checks, now with what the command line said.
    return configuration.from_dict(configuration.to_dict(config), "command line")


def _one_line(message: str) -> str:
    """tyro's boxed message as one line, without the pointer to its help."""
    lines = [
        line.strip(" │╭╮╰╯─-") if set(line) <= set(" │╭╮╰╯─-") else line.strip(" │") for line in message.splitlines()
    ]
    text = " ".join(line for line in lines[1:] if line)
    return re.split(r" For full helptext| Argument helptext", text)[0]
