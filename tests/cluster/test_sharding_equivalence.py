"""Two workers of Ray Train learn what one learns, however they hold weights and banks."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.cluster import linux_namespaces
from tests.conftest import make_artefacts

SCRIPT = Path(__file__).with_name("sharding_equivalence_worker.py")
ALONE, *TOGETHER = "1-auto-1", "2-gather-1", "2-ring-3"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ways")
    make_artefacts(folder / "runs")
    done = linux_namespaces.run(folder, str(SCRIPT), str(folder / "runs"), ALONE, *TOGETHER)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "runs"


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("name", TOGETHER)
def test_two_workers_learn_what_one_learns(runs: Path, name: str) -> None:
    """Tolerances as in ``tests/training/test_sharding_equivalence.py``."""
    steps, expected = (lines(runs / run / "logs" / "steps.jsonl") for run in (name, ALONE))
    assert len(expected) == 12
    assert [row["loss"] for row in steps] == pytest.approx([row["loss"] for row in expected], rel=1e-5)
    curves, expected = (lines(runs / run / "curves.jsonl") for run in (name, ALONE))
    for key in ("val_loss", "visual_perplexity", "report_perplexity"):
        assert [row[key] for row in curves] == pytest.approx([row[key] for row in expected], rel=1e-4), key
    for file in ("model.safetensors", "decoder/model.safetensors"):
        found, truth = (load_file(runs / run / "model" / file) for run in (name, ALONE))
        assert found.keys() == truth.keys()
        for key, value in found.items():
            torch.testing.assert_close(value, truth[key], rtol=1e-3, atol=2e-5, msg=key)
