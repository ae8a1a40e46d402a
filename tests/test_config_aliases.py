"""Settings under their former names are read, said, and never mixed with new ones."""

import dataclasses
from functools import reduce

import pytest

from amrg.cli_config import parse_config_arguments
from amrg.config import Config, DecoderConfig
from amrg.config_aliases import KEYS, VALUES, rename_old_flags, rename_old_keys
from amrg.config_files import config_from_dict, config_to_dict, read_config_section
from amrg.errors import UserError


def setting(config: Config, path: str) -> object:
    return reduce(getattr, path.split("."), config)


def nested(path: str, value: object) -> dict:
    return reduce(lambda inner, name: {name: inner}, reversed(path.split(".")), value)


@pytest.mark.parametrize(("old", "new"), KEYS.items())
def test_a_former_key_sets_what_it_set(old: str, new: str, capsys: pytest.CaptureFixture[str]) -> None:
    given = setting(config_from_dict(nested(new, setting(Config(), new)), "x"), new)
    read = config_from_dict(nested(old, given if not isinstance(given, tuple) else list(given)), "mine.yaml")
    assert setting(read, new) == given
    assert f"mine.yaml: {old} is now {new}" in capsys.readouterr().err
    with pytest.raises(AttributeError):
        setting(Config(), old)


@pytest.mark.parametrize(
    ("path", "old", "new"), [(path, *pair) for path, pairs in VALUES.items() for pair in pairs.items()]
)
def test_a_former_value_means_the_new_one(path: str, old: str, new: str) -> None:
    assert setting(config_from_dict(nested(path, old), "x"), path) == new
    assert setting(parse_config_arguments(["demo", f"--{path}", old], "amrg"), path) == new
    assert setting(parse_config_arguments(["demo", f"--{path}={old}"], "amrg"), path) == new


def test_on_the_command_line() -> None:
    flags = [
        "--memory.search",
        "ivf",
        "--safety.keep=3",
        "--decoder.use-visual",
        "False",
        "--generate.outline",
        "recalled",
    ]
    config = parse_config_arguments(["demo", *flags], "amrg run")
    assert (config.memory.index, config.checkpoint.keep_last) == ("ivf", 3)
    assert (config.decoder.use_visual_tokens, config.generate.outline_source) == (False, "retrieved")
    unchanged = ["--data.source", "recalled", "--stage2.lr", "1"]
    assert rename_old_flags(unchanged) == unchanged


def test_a_setting_given_under_both_names_is_refused() -> None:
    with pytest.raises(UserError, match=r"mine: `memory\.index` is given twice, once as `memory\.search`"):
        config_from_dict({"memory": {"index": "ivf", "search": "hnsw"}}, "mine")


def test_settings_of_now_are_left_as_they_are() -> None:
    content = config_to_dict(Config())
    assert rename_old_keys(content) == content
    assert config_from_dict(content, "x") == Config()


def test_a_section_that_a_saved_model_keeps_is_read_under_former_names() -> None:
    kept = config_to_dict(DecoderConfig()) | {"stream_dropout": 0.25, "outline": True}
    del kept["prefix_dropout"], kept["predict_outline"]
    expected = dataclasses.replace(DecoderConfig(), prefix_dropout=0.25, predict_outline=True)
    assert read_config_section(DecoderConfig, kept, "decoder") == expected
