import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import pytest

from amrg import cli, commands, config, config_files, pipeline
from amrg.config import Config
from amrg.errors import UserError


def write(tmp_path, text):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    return str(path)


def test_defaults_then_yaml_then_command_line(tmp_path):
    path = write(tmp_path, "seed: 3\nmemory: {beta: 2, heads: 8}\n")
    read = cli.parse_config_arguments([path, "--memory.beta", "0.5"], "amrg")
    assert (read.seed, read.memory.heads, read.memory.beta, read.memory.head_dim) == (
        3,
        8,
        0.5,
        Config().memory.head_dim,
    )


@pytest.mark.parametrize(
    ("flags", "value"),
    [
        ("--stage2.train_vision", True), ("--stage2.train-vision", True), ("--stage2.train_vision true", True),
        ("--stage2.train-vision=True", True), ("--stage2.train_vision false", False),
        ("--no-stage2.train_vision", False), ("--stage2.no-train-vision", False), ("--stage2.no_train_vision", False),
        ("--stage2.train_vision --seed 3", True), ("--stage2.train_vision false --seed 3", False),
    ],
)  # fmt: skip
def test_a_switch_takes_every_spelling(tmp_path, flags, value):
    path = write(tmp_path, f"stage2: {{train_vision: {str(not value).lower()}}}\n")
    assert cli.parse_config_arguments([path, *flags.split()], "amrg").stage2.train_vision is value


def test_a_switch_takes_no_other_value():
    for flags in ("--stage2.train_vision=maybe", "--stage2.train_vision maybe"):
        with pytest.raises(UserError, match="maybe"):
            cli.parse_config_arguments(["demo", *flags.split()], "amrg")


def test_a_configuration_survives_its_dictionary():
    changed = dataclasses.replace(Config(), vision=dataclasses.replace(Config().vision, depths=(1, 2, 3)))
    assert config_files.config_from_dict(config_files.config_to_dict(changed), "x") == changed


@pytest.mark.parametrize("path", sorted(config.CONFIGS.glob("*.yaml")), ids=lambda path: path.name)
def test_shipped_configurations_load(path):
    loaded = config_files.load_config(path.name)
    assert loaded.runs == "runs"
    if loaded.decoder.tuning == "lora" and loaded.data.source != "openi_drr":  # for GPUs: what their kernels read
        assert loaded.banks.dtype == loaded.decoder.base_dtype == "bfloat16"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("memory: {bta: 1}", r"mine.yaml: unknown key `memory.bta`; known there: .*beta"),
        ("banks: {mining: {tau: 1}}", r"unknown key `banks.mining.tau`"),
        ("memory: {beta: hot}", r"mine.yaml: `memory.beta`.*hot"),
        ("vision: 3", r"mine.yaml: `vision`"),
        ("stage1: {dtype: fp8}", r"`stage1.dtype`"),
        ("stage2: {batch_size: 0}", r"`stage2.batch_size`.*greater than 0"),
        ("a: [", r"not readable YAML"),
        ("- 1", r"the top level"),
    ],
)
def test_a_bad_file_is_one_line_with_the_path_of_the_key(tmp_path, text, message):
    with pytest.raises(UserError, match=message) as caught:
        config_files.load_config(write(tmp_path, text))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--memory.bta", "1"], "--memory.bta"),
        (["--memory.beta", "hot"], "--memory.beta.*hot"),
        (["--stage2.batch-size", "-4"], "`stage2.batch_size`"),
        (["nowhere.yaml"], "no configuration file nowhere.yaml.*demo.yaml"),
    ],
)
def test_a_bad_command_line_is_one_line(arguments, message):
    with pytest.raises(UserError, match=message) as caught:
        cli.parse_config_arguments(arguments, "amrg")
    assert "\n" not in str(caught.value)


def amrg(*arguments, cwd):
    return subprocess.run([sys.executable, "-m", "amrg.cli", *arguments], cwd=cwd, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fly"], "unknown verb `fly`"),
        (["stage1"], "no data artefact at .*: make it with `amrg prepare"),
        (["run", "demo", "--stage2.ds-config", "zero9.json"], "no configuration file zero9.json"),
        (["inspect", "nowhere"], "nowhere is not an artefact"),
    ],
)
def test_the_command_exits_with_2_and_one_line(arguments, message, tmp_path):
    done = amrg(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1
    assert re.search(message, lines[0])
    assert list(tmp_path.iterdir()) == []


def test_help_explains_every_verb_and_imports_no_torch(tmp_path):
    code = "import sys; from amrg.cli import main; main(['--help']); assert not {'torch', 'numpy'} & sys.modules.keys()"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert max(map(len, done.stdout.splitlines())) <= 120
    explained = dict(re.findall(r"^  ([a-z0-9-]+).*  ([A-Z].*)$", done.stdout, re.MULTILINE))
    assert list(explained) == [*cli.STEPS, *cli.COMMANDS]
    assert explained["stage2"] == "Train the report generator"
    assert "  write RUN STUDY ...  " in done.stdout
    assert "smollm2, tiny\n" in done.stdout


def test_every_module_of_commands_and_every_step_is_a_verb():
    modules = {f"amrg.commands.{path.stem}" for path in Path(commands.__file__).parent.glob("[!_]*.py")}
    assert set(cli.COMMANDS.values()) == modules
    assert list(cli.STEPS) == ["run", *pipeline.STEPS]


def test_dry_run_writes_nothing_and_names_every_step(tmp_path):
    done = amrg("run", "demo", "--dry-run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert [line.split(":")[0] for line in done.stdout.splitlines()] == list(cli.STEPS[1:])
    assert list(tmp_path.iterdir()) == []


def test_a_reader_that_has_read_enough_is_no_error():
    command = [sys.executable, "-c", "from amrg.cli import main; main(['stage2', '--help'])"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 141
