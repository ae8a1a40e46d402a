"""Predicted bytes beside those of real tensors: stage 2 on two real ranks, under every ZeRO stage."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import BertConfig

from amrg.banks.bank import REPORTS, MemoryBank
from amrg.config import DecoderConfig, ShardingConfig
from amrg.models.decoder import build_decoder, save_decoder
from amrg.planning.devices import DEVICES
from amrg.planning.stage_estimate import Assumptions, estimate_stage
from amrg.planning.step_time import place_banks_on_ranks
from amrg.retrieval.communication_cost import BankShape
from tests.conftest import Artefacts, report
from tests.planning.zero_memory_worker import configure
from tests.processes import finish, start_ranks

#: tuning, micro-batches of a step, DeepSpeed JSON
CASES = ["full-1-zero0", "full-2-zero1", "lora-1-zero2", "lora-2-zero3", "frozen-1-zero3_offload"]


@pytest.fixture(scope="module")
def made(artefacts: Artefacts) -> tuple[Path, Any]:
    """The runs folder with a decoder in it, and its tokenizer."""
    runs = artefacts.data.parent.parent
    sizes = DecoderConfig(hidden_size=32, layers=1, heads=2, vocab_size=200)
    model, tokenizer = build_decoder(sizes, [report(number) for number in range(16)], 0)
    save_decoder(model, tokenizer, runs / "decoder")
    BertConfig(hidden_size=384).save_pretrained(runs / "encoder")  # the artefact's report bank is so wide
    return runs, tokenizer


@pytest.fixture(scope="module")
def measured(made: tuple[Path, Any]) -> dict[str, dict[str, int]]:
    """Bytes by case and part, of the rank that holds more."""
    runs, _ = made
    finish(start_ranks(2, "tests.planning.zero_memory_worker", runs, runs / "bytes", *CASES))
    first, second = (json.loads((runs / f"bytes-{rank}.json").read_text()) for rank in range(2))
    return {case: {part: max(first[case][part], second[case][part]) for part in first[case]} for case in CASES}


@pytest.mark.parametrize("case", CASES)
def test_every_part_is_within_two_percent_of_what_deepspeed_holds(case: str, made: Any, measured: Any) -> None:
    runs, tokenizer = made
    parts = estimate_stage(configure(runs, case), "stage2", Assumptions(2, DEVICES["h100"], 80e9), tokenizer).parts
    names = ("weights", "gradients", "optimiser")
    predicted = {name: parts[name].device + parts[name].host for name in names}
    assert predicted == pytest.approx({name: measured[case][name] for name in names}, rel=0.02)


def test_banks_weigh_what_their_rows_do(measured: Any, artefacts: Artefacts) -> None:
    reports = MemoryBank.open(artefacts.banks / REPORTS)
    rows = (BankShape(16, 32, 4), BankShape(len(reports), 384, 4))
    held = place_banks_on_ranks(rows, ShardingConfig(), "exact", 2, queries=1, expected=1, node=8).held
    assert {found["banks"] for found in measured.values()} == {held}
