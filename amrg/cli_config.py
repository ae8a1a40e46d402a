"""``[CONFIG] [--section.key VALUE ...]``: what every command that runs the chain is told."""

import argparse
import contextlib
import dataclasses
import io
import re
from collections.abc import Iterator
from typing import Any, NoReturn

import tyro

from amrg.config import Config
from amrg.config_aliases import rename_old_flags
from amrg.config_files import config_from_dict, config_to_dict, load_config
from amrg.errors import UserError

#: Spellings of a switch on the command line.
_TRUTH = {"true": "True", "false": "False"}


class ArgumentParser(argparse.ArgumentParser):
    """A parser of a verb's own options that raises UserError, so that a mistake is one line."""

    def error(self, message: str) -> NoReturn:
        """Raise the mistake, with where to find help."""
        raise UserError(f"{self.prog}: {message} (`{self.prog} --help`)")


def parse_config_arguments(arguments: list[str], prog: str) -> Config:
    """``[CONFIG] [--section.key VALUE ...]`` to a configuration: defaults < YAML < command line.

    Raises:
        UserError: unknown or malformed file, key, flag or value; one line.
    """
    name = "demo"
    if arguments and not arguments[0].startswith("-"):
        name, *arguments = arguments
    base, arguments = load_config(name), rename_old_flags(arguments)
    messages = io.StringIO()
    try:
        with contextlib.redirect_stderr(messages):
            config = tyro.cli(
                Config,
                default=base,
                args=_spell_out_switches(arguments),
                prog=prog,
                config=(tyro.conf.FlagConversionOff,),
            )
    except SystemExit as stop:
        if stop.code in (0, None):  # --help
            raise
        raise UserError(_one_line(messages.getvalue())) from None
    # Once more through the strict checks, now with what the command line said.
    return config_from_dict(config_to_dict(config), "command line")


def _spell_out_switches(arguments: list[str]) -> list[str]:
    """Give every boolean setting its value: ``--flag``, ``--no-flag``, ``--section.no-flag`` and ``--flag true``."""
    switches, spelled, rest = set(_booleans(Config)), [], list(arguments)
    while rest:
        flag, equals, value = rest.pop(0).partition("=")
        name = flag.removeprefix("--").replace("-", "_")
        positive = re.sub(r"(^|(?<=\.))no_", "", name)
        if not flag.startswith("--") or positive not in switches:
            spelled.append(flag + equals + value)
        elif name != positive:
            spelled += [f"--{positive}", "False"]
        elif equals:
            spelled += [flag, _TRUTH.get(value.lower(), value)]
        else:
            spelled += [flag, _TRUTH[rest.pop(0).lower()] if rest and rest[0].lower() in _TRUTH else "True"]
    return spelled


def _booleans(section: Any, prefix: str = "") -> Iterator[str]:
    """Paths of all boolean settings of a section."""
    for setting in dataclasses.fields(section):
        kind = setting.type if setting.default_factory is dataclasses.MISSING else setting.default_factory
        if dataclasses.is_dataclass(kind):
            yield from _booleans(kind, f"{prefix}{setting.name}.")
        elif isinstance(setting.default, bool):
            yield prefix + setting.name


def _one_line(message: str) -> str:
    """tyro's boxed message as one line, without the pointer to its help."""
    lines = [
        line.strip(" │╭╮╰╯─-") if set(line) <= set(" │╭╮╰╯─-") else line.strip(" │") for line in message.splitlines()
    ]
    text = " ".join(line for line in lines[1:] if line)
    return re.split(r" For full helptext| Argument helptext", text)[0]
