"""Data flows one way: a room imports only from rooms below it (docs/architecture.md)."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

#: From top to bottom; the rooms of one row do not know each other.
ROWS = [
    {"amrg.cli"},
    {"amrg.commands"},
    {"amrg.cluster", "amrg.experiments", "amrg.gpu_checks"},
    {"amrg.pipeline"},
    {"amrg.preflight"},
    {"amrg.serving"},
    {"amrg.webapp"},
    {"amrg.evaluation"},
    {"amrg.pages"},
    {"amrg.memory"},
    {"amrg.inference", "amrg.mining", "amrg.planning"},
    {"amrg.training"},
    {"amrg.models"},
    {"amrg.retrieval"},
    {"amrg.banks"},
    {"amrg.kernels"},
    {"amrg.graph"},
    {"amrg.data"},
    {"amrg.cli_config", "amrg.precision"},
    {"amrg.artifacts", "amrg.config_files", "amrg.distributed", "amrg.model_files"},
    {"amrg.config"},
    {"amrg.config_aliases", "amrg.launcher"},
    {"amrg.progress", "amrg.torch_internals"},
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
        for folder in ("amrg/data", "amrg/graph", "amrg/models", "amrg/banks", "amrg/retrieval", "kernels")
        for path in (ROOT / folder).rglob("*.py")
    ]
    assert lower
    wrong = [str(path) for path in lower for module in imports(path) if module.split(".")[0] in ("deepspeed", "ray")]
    assert not wrong, wrong


def test_only_the_cluster_knows_ray():
    others = [path for path in (ROOT / "amrg").rglob("*.py") if "cluster" not in path.relative_to(ROOT).parts]
    wrong = [str(path) for path in others for module in imports(path) if module.split(".")[0] == "ray"]
    assert not wrong, wrong


#: Packages whose private names may change in any release. DeepSpeed's are in amrg/training/deepspeed_internals.py.
EXTERNAL = ("ray", "torch")


def private_names(path):
    """Private names of ``EXTERNAL`` in imports, attributes (``torch._C``) and arguments (``ray.init(_a=1)``)."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Attribute):
            names = [ast.unparse(node)]
        elif isinstance(node, ast.Call):
            names = [f"{ast.unparse(node.func)}.{keyword.arg}" for keyword in node.keywords]
        else:
            continue
        for name in names:
            first, *rest = name.split(".")
            is_path = re.fullmatch(r"[\w.]+", name)  # and no longer expression that begins with one
            if is_path and first in EXTERNAL and any(re.match("_[^_]", part) for part in rest):
                yield name


def test_private_names_of_other_packages_are_in_internals_modules(tmp_path):
    (tmp_path / "example.py").write_text("import torch\ntorch._C.f()\nray.init(_a=1)\nfrom ray._private import b\n")
    assert {"torch._C", "ray.init._a", "ray._private.b"} <= set(private_names(tmp_path / "example.py"))
    wrong = [
        f"{path.relative_to(ROOT)}: {name}"
        for folder in ("amrg", "benchmarks", "kernels", "launchers")
        for path in (ROOT / folder).rglob("*.py")
        if not path.stem.endswith("_internals")
        for name in private_names(path)
    ]
    assert not wrong, "\n".join(wrong)
