"""The commands of docs/mimic-from-zero.md are commands that this version takes: verbs, options, settings, files."""

import argparse
import importlib
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from amrg.cli import COMMANDS, STEPS
from amrg.cli_config import parse_config_arguments
from amrg.commands import plan
from amrg.config_files import config_from_dict

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "mimic-from-zero.md"
#: What else the page calls.
OTHERS = {"wget", "ln", "mv", "mkdir", "hf", "git", "cd", "python3", "source", "pip", "export", "scancel"}


class Parsed(Exception):
    """The arguments were understood."""


def commands(page: str) -> list[str]:
    """The lines of the page's code blocks without comments, continuations joined and ``$SET`` put in."""
    blocks = re.findall(r"^```\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    lines = [re.sub(r"\s+#.*", "", line) for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    (given,) = (line.removeprefix("SET=").strip('"') for line in lines if line.startswith("SET="))
    return [line.replace("$SET", given) for line in lines if line and not line.startswith("SET=")]


def check(command: str) -> None:
    """Fails where the command line, or the launcher that it calls, does not understand the arguments."""
    words = shlex.split(command)
    script = next((word for word in words if word.startswith("launchers/") and word.endswith(".py")), None)
    for word in words:
        assert not word.startswith("launchers/") or (ROOT / word).is_file(), word
    if script:
        stage, rest = Path(script).stem, [word for word in words[words.index(script) + 1 :] if word != "--"]
        if "--ds_config" in rest:
            rest[rest.index("--ds_config")] = f"--{stage}.ds_config"
        parse_config_arguments(rest, script)
        return
    start = next((number for number, word in enumerate(words) if word in ("amrg", "amrg.cli")), None)
    if start is None:
        assert words[0] in OTHERS, command
        return
    verb, *rest = words[start + 1 :]
    if verb in STEPS:
        parse_config_arguments([word for word in rest if word != "--dry-run"], verb)
    elif verb == "plan":
        _, settings = plan._parser().parse_known_args(rest)
        parse_config_arguments(settings, verb)
    else:
        with pytest.raises(Parsed):
            importlib.import_module(COMMANDS[verb]).main(rest)


@pytest.fixture(autouse=True)
def only_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Verbs beside the chain end where their arguments were understood."""
    original: Callable[..., Any] = argparse.ArgumentParser.parse_args

    def parse_args(self: argparse.ArgumentParser, *arguments: Any, **named: Any) -> Any:
        original(self, *arguments, **named)
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_args)


@pytest.mark.parametrize("command", commands(PAGE.read_text()))
def test_a_command_of_the_page_is_understood(command: str) -> None:
    check(command)


def test_every_way_of_the_page_is_among_them() -> None:
    """Else what finds the commands finds nothing, and the test above tests nothing."""
    found = "\n".join(commands(PAGE.read_text()))
    for part in (
        "amrg doctor", "amrg plan", "amrg run", "deepspeed launchers/stage2.py", "launchers/slurm.sh", "ray submit",
        "hf download", "wget", "amrg write", "amrg evaluate",
    ):  # fmt: skip
        assert part in found


@pytest.mark.parametrize(
    "command",
    [
        "amrg stage9 mimic_cxr", "amrg run mimic_cxr --memory.gamma 1", "amrg write runs/a film.png --jsn",
        "amrg plan mimic_cxr --gpu 8", "deepspeed launchers/stage2.py --ds_conf zero3.json", "python launchers/nope.py",
    ],
)  # fmt: skip
def test_what_is_not_there_is_found(command: str) -> None:
    with pytest.raises((Exception, SystemExit)):
        check(command)


def test_the_configuration_with_another_encoder_is_understood() -> None:
    """The indented block, which changes sections of mimic_cxr."""
    (block,) = re.findall(r"^    name: mimic_rad_dino\n(?:    .*\n)+", PAGE.read_text(), re.MULTILINE)
    vision = config_from_dict(yaml.safe_load(block), "page").vision
    assert (vision.folder, vision.input_size, vision.tuning) == (Path("models/rad-dino"), None, "frozen")
    assert f"--vision.encoder {vision.folder}" in PAGE.read_text()
