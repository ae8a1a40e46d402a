"""The wheel in an environment of its own: it holds every file, and works outside the checkout."""

import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from amrg.artifacts import open_artifact
from amrg.cli import STEPS

ROOT = Path(__file__).resolve().parent.parent
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
#: Its own code comes from the wheel alone, wherever the tests found theirs.
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}


@dataclass(frozen=True)
class Installed:
    """The wheel, the environment it is installed in, and an empty folder to work in."""

    wheel: Path
    venv: Path
    folder: Path

    def call(self, program: str, *arguments: str) -> str:
        """Standard output of a program of the environment, started in the empty folder."""
        command = [str(self.venv / "bin" / program), *arguments]
        done = subprocess.run(command, cwd=self.folder, env=ENVIRONMENT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """Built from a copy, as a build leaves files beside its sources; the dependencies are those of the tests."""
    work = tmp_path_factory.mktemp("wheel")
    for name in ("amrg", "kernels"):
        shutil.copytree(ROOT / name, work / "source" / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, work / "source")
    build = [*PIP, "wheel", "--quiet", "--no-deps", "--no-index", "--no-build-isolation", "--wheel-dir", str(work)]
    subprocess.run([*build, str(work / "source")], env=ENVIRONMENT, check=True)
    (wheel,) = work.glob("*.whl")
    venv.create(work / "venv")
    install = [*PIP, "--python", str(work / "venv" / "bin" / "python"), "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*install, str(wheel)], env=ENVIRONMENT, check=True)
    # Only now, as pip must not see the checkout's own installation. It stays unseen: of a folder that a .pth names, no
    # other .pth is read, and an editable installation is one.
    own = Path(sysconfig.get_path("purelib", vars={"base": str(work / "venv")}))
    (own / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    (work / "empty").mkdir()
    return Installed(wheel, work / "venv", work / "empty")


def test_it_holds_every_file_of_the_package_and_no_other(installed: Installed) -> None:
    names = {name for name in zipfile.ZipFile(installed.wheel).namelist() if ".dist-info/" not in name}
    there = {
        f"{package}/{path.relative_to(ROOT / folder).as_posix()}"
        for package, folder in (("amrg", "amrg"), ("amrg/kernels", "kernels"))
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert names == there
    assert {"amrg/py.typed", "amrg/configs/tiny.yaml", "amrg/kernels/hopfield/README.md"} <= names


def test_what_is_imported_is_the_wheel_with_the_version_of_pyproject(installed: Installed) -> None:
    show = "import amrg, amrg.kernels; print(amrg.__version__, amrg.__file__, amrg.kernels.__file__, sep='\\n')"
    version, *files = installed.call("python", "-c", show).splitlines()
    assert version == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert all(Path(file).is_relative_to(installed.venv) for file in files), files


def test_a_dry_run_names_every_step_and_writes_nothing(installed: Installed) -> None:
    told = installed.call("amrg", "run", "tiny", "--dry-run")
    assert [line.split(":")[0] for line in told.splitlines()] == list(STEPS[1:])
    assert not list(installed.folder.iterdir())


def test_stage_1_trains_a_step(installed: Installed) -> None:
    few = ["--data.train-studies", "8", "--data.val-studies", "2", "--data.test-studies", "2"]
    installed.call("amrg", "prepare", "tiny", *few)
    installed.call("amrg", "stage1", "tiny", *few, "--stage1.epochs", "1")
    (made,) = installed.folder.glob("runs/tiny/stage1-*")
    open_artifact(made, "stage1")
    assert len((made / "logs" / "steps.jsonl").read_text().splitlines()) == 1
