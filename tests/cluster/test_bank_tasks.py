"""Banks whose parts are Ray tasks are, byte for byte, those of one process."""

import json
from pathlib import Path

import pytest
import torch

from amrg.artifacts import folder_content_hash
from amrg.banks.bank import MemoryBank
from amrg.data.labels import LABELS
from amrg.mining.build_banks import build_memory_banks
from amrg.models.classifier import DiseaseClassifier
from tests import synthetic_dataset
from tests.cluster import linux_namespaces
from tests.cluster.bank_tasks_worker import BANKS

SCRIPT = Path(__file__).with_name("bank_tasks_worker.py")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("inputs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(synthetic_dataset, "SIZES", {"train": 88, "val": 2, "test": 2})
        data = synthetic_dataset.prepare_squares(root / "data")
    torch.manual_seed(0)
    DiseaseClassifier(synthetic_dataset.CONFIG.vision).save_pretrained(root / "stage1" / "model")
    (root / "stage1" / "thresholds.json").write_text(json.dumps(dict.fromkeys(LABELS, 0.0)))
    return data, root / "stage1"


def test_parts_and_a_killed_task_change_no_byte(inputs: tuple[Path, Path], tmp_path: Path) -> None:
    done = linux_namespaces.run(tmp_path, str(SCRIPT), *map(str, inputs), str(tmp_path))
    assert done.returncode == 0, done.stderr
    scratch = [len(list((tmp_path / name / "scratch").glob("*-*"))) for name in ("whole", "parts")]
    assert scratch == [2, 3 + 2]  # of studies, of sentences
    hashes = set()
    for name in ("whole", "parts", "tasks"):
        for path in sorted((tmp_path / name / "scratch").rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()  # as sealing does
        hashes.add(folder_content_hash(tmp_path / name))
    assert len(hashes) == 1
    assert len(MemoryBank.open(tmp_path / "whole" / "visual")) > 32 + len(LABELS)


def test_finished_parts_are_kept(inputs: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("amrg.mining.regions.STUDIES_PER_PART", 32)

    def one_and_no_more(function, items):
        yield function(items[0])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_memory_banks(BANKS, *inputs, tmp_path, one_and_no_more)
    (first,) = (tmp_path / "scratch").iterdir()
    before = first.stat().st_mtime_ns
    build_memory_banks(BANKS, *inputs, tmp_path)
    assert first.stat().st_mtime_ns == before
