"""Data flows one way: a room imports only from rooms below it (docs/architecture.md)."""

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

#: From top to bottom; the rooms of one row do not know each other.
ROWS = [
    {"amrg.cli"},
    {"amrg.commands"},
    {"amrg.cluster", "amrg.experiments"},
    {"amrg.pipeline"},
    {"amrg.preflight"},
    {"amrg.evaluation", "amrg.webapp"},
    {"amrg.pages"},
    {"amrg.inference", "amrg.mining", "amrg.planning"},
    {"amrg.training"},
    {"amrg.models"},
    {"amrg.retrieval"},
    {"amrg.banks"},
    {"amrg.kernels"},
    {"amrg.data"},
    {"amrg.cli_config", "amrg.precision"},
    {"amrg.artifacts", "amrg.config", "amrg.distributed", "amrg.model_files"},
    {"amrg.config_aliases"},
    {"amrg.progress"},
    {"amrg.errors"},
]
LEVEL = {room: level for level, row in enumerate(ROWS) for room in row}


def room(module):
    return ".".join(module.split(".")[:2])


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            # `from amrg import pipeline` names rooms, `from amrg.pipeline import x` a room
            yield from (f"amrg.{a.name}" for a in node.names) if node.module == "amrg" else (node.module,)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            yield from (name.value for name in node.args if isinstance(name, ast.Constant))


def test_no_room_imports_from_above():
    files = {
        path: "amrg." + ".".join(path.relative_to(ROOT / "amrg").with_suffix("").parts)
        for path in (ROOT / "amrg").rglob("*.py")
    }
    files |= dict.fromkeys((ROOT / "kernels").rglob("*.py"), "amrg.kernels")
    wrong = [
        f"{path.relative_to(ROOT)} imports {module}"
        for path, name in files.items()
        for module in imports(path)
        if room(module) in LEVEL
        and room(name) in LEVEL
        and room(module) != room(name)
        and LEVEL[room(module)] <= LEVEL[room(name)]
    ]
    assert not wrong, wrong
    unknown = {room(name) for name in files.values()} - LEVEL.keys() - {"amrg.__init__"}
    assert not unknown, f"rooms without a place in docs/architecture.md: {unknown}"


def test_deepspeed_and_ray_stay_out_of_the_lower_rooms():
    lower = [
        path
        for folder in ("amrg/data", "amrg/models", "amrg/banks", "amrg/retrieval", "kernels")
        for path in (ROOT / folder).rglob("*.py")
    ]
    assert lower
    wrong = [str(path) for path in lower for module in imports(path) if module.split(".")[0] in ("deepspeed", "ray")]
    assert not wrong, wrong


def test_only_the_cluster_knows_ray():
    others = [path for path in (ROOT / "amrg").rglob("*.py") if "cluster" not in path.relative_to(ROOT).parts]
    wrong = [str(path) for path in others for module in imports(path) if module.split(".")[0] == "ray"]
    assert not wrong, wrong
