from pathlib import Path

import pytest

from amrg.artifacts import Artifact
from tests.webapp.tiny_run import make_run


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    """The artefacts of a whole run, by kind."""
    return make_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="session")
def informed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run whose decoder reads indication, age and sex."""
    return make_run(tmp_path_factory.mktemp("informed"), informed=True)["stage2"].path.parent


@pytest.fixture(scope="session")
def comparing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run whose decoder reads report and films of the earlier study."""
    made = make_run(tmp_path_factory.mktemp("comparing"), prior=("report", "films"))
    return made["stage2"].path.parent


@pytest.fixture(scope="session")
def folder(run: dict[str, Artifact]) -> Path:
    """The folder in which they lie."""
    return run["stage2"].path.parent
