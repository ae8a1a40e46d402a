"""Readers on real Ray: the batches are those of the stream, and what is lost is read again or told."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.cluster import linux_namespaces
from tests.cluster.readers_worker import COUNTERS, SIZES

SCRIPT = Path(__file__).with_name("readers_worker.py")


@pytest.fixture(scope="module")
def found(artefacts: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("readers")
    done = linux_namespaces.run(folder, str(SCRIPT), str(artefacts.data), str(folder / "result.json"))
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "result.json").read_text())


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("readers", [readers for readers, _ in SIZES])
def test_any_number_of_readers_gives_the_batches_of_the_stream(found: dict[str, Any], readers: int, world: int) -> None:
    alone = found[f"alone {world}"]
    assert len(alone) == 7 * world  # 16 studies in batches of 4: three of epoch 0, four of epoch 1
    assert found[f"{readers} readers {world}"] == alone


def test_one_slow_reader_left_of_five_delivers_in_order(found: dict[str, Any]) -> None:
    assert found["slow"] == [0, 1]


def test_what_cannot_be_read_is_told_in_one_line(found: dict[str, Any]) -> None:
    assert found["missing"] == [3, 4, "the shard of step 5 is not there"]


def test_a_part_that_kills_its_readers_ends_the_run_and_the_readers_come_back(found: dict[str, Any]) -> None:
    *before, told = found["deadly"]
    assert before == [0, 1]
    assert told.startswith("readers died 2 times over batch 2")
    assert found["after that"] == [0, 1]


def test_the_death_of_the_only_reader_counts_once(found: dict[str, Any]) -> None:
    assert found["once"] == [0, 1, 2, 3]


def test_data_that_does_not_come_ends_the_wait(found: dict[str, Any]) -> None:
    assert "cluster.data_timeout 3 s" in found["late"][0]


def test_prometheus_gets_rates_and_waits(found: dict[str, Any]) -> None:
    assert set(found["metrics"]) >= COUNTERS
