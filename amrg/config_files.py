"""Configurations as files and mappings: found by name, read over the defaults, nothing unknown accepted."""

import dataclasses
from functools import cache
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import TypeAdapter, ValidationError

from amrg.config import CONFIGS, Config
from amrg.config_aliases import rename_old_keys
from amrg.errors import UserError


def find_config_file(name: str) -> Path:
    """A configuration file by path, or by bare name among those shipped in ``amrg/configs/``."""
    for candidate in (Path(name), CONFIGS / name, CONFIGS / f"{name}.yaml"):
        if candidate.is_file():
            return candidate
    shipped = ", ".join(sorted(path.name for path in CONFIGS.glob("*.yaml")))
    raise UserError(f"no configuration file {name}: give a path, or one of {shipped}")


def load_config(name: str) -> Config:
    """Read a YAML file over the defaults; unknown keys and wrong types are refused with their path in the file."""
    path = find_config_file(name)
    try:
        content = yaml.safe_load(path.read_text()) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not readable YAML: {' '.join(str(error).split())}") from None
    return config_from_dict(content, str(path))


def config_from_dict(content: Any, where: str) -> Config:
    """Check a mapping against ``Config``; ``where`` names its origin in the error."""
    content = rename_old_keys(content, where)
    unknown = _unknown_keys(content, Config)
    if unknown:
        key, known = unknown
        raise UserError(f"{where}: unknown key `{key}`; known there: {', '.join(known)}")
    try:
        return _adapter(Config).validate_python(content)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or "the top level"
        raise UserError(f"{where}: `{key}`: {first['msg']} (found {first['input']!r})") from None


def _unknown_keys(content: Any, section: type, prefix: str = "") -> tuple[str, list[str]] | None:
    """The first key of ``content`` that ``section`` has no field for, with the fields it has."""
    if not isinstance(content, dict):
        return None
    fields = {f.name: f for f in dataclasses.fields(section)}
    for key, value in content.items():
        if key not in fields:
            return f"{prefix}{key}", list(fields)
        part = _section_of(fields[key].type)
        for number, inner in enumerate(value if isinstance(value, list | tuple) else [value]):
            place = f"{prefix}{key}.{number}." if isinstance(value, list | tuple) else f"{prefix}{key}."
            found = _unknown_keys(inner, part, place) if part else None
            if found:
                return found
    return None


def _section_of(kind: Any) -> type | None:
    """Return the dataclass that a field is, or of which it is a tuple; else None."""
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        return kind
    return next((found for part in get_args(kind) if (found := _section_of(part))), None)


def read_config_section(kind: Any, content: Any, path: str) -> Any:
    """The section at ``path`` of a configuration that an artefact or a saved model keeps.

    Raises:
        ValueError: it is not such a section (pydantic's ``ValidationError``).
    """
    return _adapter(kind).validate_python(rename_old_keys(content, section=path))


@cache  # building one takes longer than using it
def _adapter(section: Any) -> TypeAdapter[Any]:
    return TypeAdapter(section)


def config_to_dict(section: Any) -> dict[str, Any]:
    """A configuration section as plain JSON-able values."""
    kind: Any = type(section)
    return _adapter(kind).dump_python(section, mode="json")
