"""Names: words that the project no longer uses, and docstrings that name the parameters that exist."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("amrg", "benchmarks", "kernels", "launchers")

#: Words of an identifier → what to say instead (docs/glossary.md).
RETIRED = {
    "apart": "separate, partitioned",
    "ask": "query, request",
    "asked": "query, requested",
    "asking": "query",
    "asks": "queries, requests",
    "beside": "next to, concurrent",
    "look": "encode, profile, analysis",
    "looks": "encode, profile, analysis",
    "mine": "local",
    "ours": "settings, config",
    "parted": "partitioned",
    "said": "predicted, messages",
    "seen": "visible, encoded",
    "sight": "vision",
    "strangers": "other patients",
    "taught": "target",
    "tell": "log, report",
    "theirs": "remote, other",
    "together": "batched, total",
    "told": "recorded, reported, given",
    "trip": "route",
    "visitors": "remote queries",
    "whole": "full, complete, gathered",
}


def modules() -> Iterator[tuple[Path, ast.Module]]:
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*.py")):
            if "kernels" not in path.relative_to(ROOT).parts[1:]:  # a developer's link to kernels/
                yield path, ast.parse(path.read_text())


def identifiers(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """Every name that a module defines: functions, classes, arguments, variables, attributes."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name, node.lineno
        elif isinstance(node, ast.arg):
            yield node.arg, node.lineno
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id, node.lineno
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr, node.lineno


def test_public_functions_have_names_to_search_for():
    """A short name such as ``load`` finds hundreds of lines; on average a name has more than 12 characters."""
    names = [
        node.name
        for _, tree in modules()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith("_")
    ]
    assert sum(map(len, names)) / len(names) > 12


def test_no_identifier_uses_a_retired_word():
    found = [
        f"{path.relative_to(ROOT)}:{line}: {name} ({word}: say {RETIRED[word]})"
        for path, tree in modules()
        for name, line in identifiers(tree)
        for word in {part.lower() for part in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", name)} & RETIRED.keys()
    ]
    assert not found, "\n".join(found)


def documented(docstring: str) -> Iterator[str]:
    """Names at the head of the entries under ``Args:`` and ``Attributes:``."""
    for section in re.findall(r"(?:Args|Attributes):\n((?:[ ]{4}.*\n|\n)+)", docstring + "\n"):
        for entry in re.finditer(r"^ {4}([a-z_]\w*(?:, [a-z_]\w*)*):", section, re.MULTILINE):
            yield from entry[1].split(", ")


def test_docstrings_name_what_exists():
    wrong = []
    for path, tree in modules():
        for node in ast.walk(tree):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                continue
            names = {name for name, _ in identifiers(node)}  # type: ignore[arg-type]
            names |= {child.attr for child in ast.walk(node) if isinstance(child, ast.Attribute)}
            stale = [name for name in documented(ast.get_docstring(node) or "") if name not in names]
            wrong += [f"{path.relative_to(ROOT)}:{node.lineno}: {node.name}: {name}" for name in stale]
    assert not wrong, "\n".join(wrong)
