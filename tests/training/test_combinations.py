"""Combinations of tuning, base dtype, ZeRO stage and dtype are refused at once, or work to the written reports.

Under ZeRO 3 reports are written in parts, too. All on one rank, as two take several times as long: with two there are
``test_zero3_loading.py`` and ``test_sharding_equivalence.py``. Every pair of values is tried, and with
``AMRG_ALL_COMBINATIONS=1`` every combination.
"""

import itertools
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from amrg.config import Config
from amrg.errors import UserError
from amrg.pipeline import check_before_start, run_pipeline_step
from benchmarks.architectures import make_folder
from tests.conftest import Artefacts

TUNINGS = ("full", "lora", "frozen")
BASES = ("float32", "bfloat16", "int8", "nf4")
STAGES = (0, 1, 2, 3)
DTYPES = ("float32", "bfloat16", "float16")


def refused(tuning: str, base: str, stage: int, dtype: str) -> bool:
    """What docs/training.md says, on a machine without a GPU."""
    return dtype == "float16" or (tuning == "full" and base != "float32") or (stage == 3 and base in ("int8", "nf4"))


def covering(combinations: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """A few of them, so that every pair of values that occurs in one occurs; all, where all are asked for."""
    if os.environ.get("AMRG_ALL_COMBINATIONS") == "1":
        return combinations
    chosen, wanted = [], {pair for one in combinations for pair in pairs(one)}
    while wanted:
        chosen.append(max(combinations, key=lambda one: len(wanted & pairs(one))))
        wanted -= pairs(chosen[-1])
    return chosen


def pairs(one: tuple[Any, ...]) -> set[Any]:
    return set(itertools.combinations(enumerate(one), 2))


ALL = list(itertools.product(TUNINGS, BASES, STAGES, DTYPES))
WORKING = covering([one for one in ALL if not refused(*one)])
REFUSED = covering([one for one in ALL if refused(*one)])


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "llama"
    make_folder("llama", folder)
    return folder


def configured(artefacts: Artefacts, folder: Path, tuning: Any, base: Any, stage: int, dtype: Any) -> Config:
    config = artefacts.config
    return replace(
        config,
        decoder=replace(config.decoder, model=str(folder), tuning=tuning, base_dtype=base, lora_rank=2),
        stage2=replace(
            config.stage2, epochs=1, batch_size=16, dtype=dtype, ds_config=f"zero{stage}.json", max_report_tokens=12,
            num_sample_reports=1,
        ),
        generate=replace(
            config.generate, num_beams=1, max_new_tokens=4, batch_size=8, ds_config="zero3.json" if stage == 3 else None
        ),
    )  # fmt: skip


def test_every_pair_of_values_is_tried() -> None:
    assert len(REFUSED) >= 12
    assert {pair for one in (*WORKING, *REFUSED) for pair in pairs(one)} == {pair for one in ALL for pair in pairs(one)}


def test_what_cannot_work_is_refused_in_a_line(artefacts: Artefacts, base: Path) -> None:
    for one in REFUSED:
        with pytest.raises(UserError) as caught:
            check_before_start(["stage2"], configured(artefacts, base, *one))
        assert all("decoder.base_dtype" in line or "float16 needs" in line for line in str(caught.value).splitlines())


@pytest.mark.parametrize("one", WORKING, ids=lambda one: "-".join(map(str, one)))
def test_what_is_not_refused_ends_with_written_reports(
    artefacts: Artefacts, base: Path, one: Any, tmp_path: Path
) -> None:
    config = configured(artefacts.linked(tmp_path), base, *one)
    check_before_start(["stage2"], config)
    run_pipeline_step("stage2", config)
    made = run_pipeline_step("generate", config)
    lines = [json.loads(line) for line in (made.path / "reports.jsonl").read_text().splitlines()]
    assert len(lines) == 5
    assert all(line["generated"] is not None for line in lines)
