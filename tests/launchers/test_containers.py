"""Dockerfile and compose.yaml name what there is: extras, files, commands, ports. No engine builds them here."""

import argparse
import importlib
import re
import tomllib
from pathlib import Path

import pytest
import yaml

from amrg.cli import COMMANDS, STEPS
from amrg.commands.serve import PORT as SERVE
from amrg.commands.view import PORT as VIEW
from amrg.config import CONFIGS

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
COMPOSE = yaml.safe_load((ROOT / "compose.yaml").read_text())
DOCUMENTED = "".join((ROOT / "docs" / page).read_text() for page in ("serving.md", "cluster.md"))


class Parsed(Exception):
    """The arguments were understood."""


def test_extras_exist():
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = re.findall(r"EXTRAS=([\w,-]+)", DOCKERFILE + DOCUMENTED)
    assert len(named) == 3
    for extras in named:
        assert set(extras.split(",")) <= set(known), extras


def test_copied_files_exist_and_are_sent_to_the_engine():
    sent = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE, re.MULTILINE)
    names = [name for line in copied for name in line.split()]
    assert len(names) == 8
    for name in names:
        assert (ROOT / name).exists(), name
        assert name.split("/")[0] in sent, name


def test_the_image_is_not_run_by_root():
    assert re.findall(r"^USER (.+)$", DOCKERFILE, re.MULTILINE)[-1] == "1000"


@pytest.mark.parametrize("name", sorted(COMPOSE["services"]))
def test_commands_are_understood(name, monkeypatch):
    verb, *arguments = COMPOSE["services"][name]["command"]
    if verb in STEPS:
        assert (CONFIGS / f"{arguments[0]}.yaml").is_file()
        return
    original = argparse.ArgumentParser.parse_args

    def parse_args(self, *given, **named):
        original(self, *given, **named)
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_args)
    with pytest.raises(Parsed):
        importlib.import_module(COMMANDS[verb]).main(arguments)


def test_only_this_machine_reaches_the_ports():
    ports = {name: service.get("ports") for name, service in COMPOSE["services"].items()}
    assert ports == {"demo": None, "view": [f"127.0.0.1:{VIEW}:{VIEW}"], "serve": [f"127.0.0.1:{SERVE}:{SERVE}"]}


def test_compose_has_known_keys_and_names_what_it_declares():
    """Docker Compose refuses other keys, volumes and services."""
    known = {"build", "image", "command", "volumes", "depends_on", "ports", "restart", "profiles"}
    assert {key for key in COMPOSE if not key.startswith("x-")} == {"services", "volumes"}
    for name, service in COMPOSE["services"].items():
        assert set(service) <= known, name
        assert {volume.partition(":")[0] for volume in service["volumes"]} <= set(COMPOSE["volumes"]), name
        for other, awaited in service.get("depends_on", {}).items():
            assert other in COMPOSE["services"], name
            assert awaited == {"condition": "service_completed_successfully"}, name
        assert service.get("restart", "no") in ("no", "always", "on-failure", "unless-stopped"), name
