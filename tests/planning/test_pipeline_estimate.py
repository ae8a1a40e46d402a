"""What comes between the stages and after them, beside arithmetic by hand."""

import dataclasses
from math import ceil
from typing import Any

import pytest
import torch
from torch import nn

from amrg.config import Config
from amrg.config_files import load_config
from amrg.models.classifier import DiseaseClassifier
from amrg.planning.architectures import Size
from amrg.planning.devices import Device
from amrg.planning.pipeline_estimate import (
    ImageCost,
    estimate_mining,
    estimate_pipeline,
    generation_step,
    seconds_per_film,
)
from amrg.planning.stage_estimate import Assumptions, estimate_stage
from tests.conftest import TINY

CONFIG = load_config(str(TINY))
SLOW = Device("slow", 80e9, {"float32": 1e9, "bfloat16": 1e9}, 1e30, 1e30, 1e30, 1e30)  # arithmetic alone takes time
NARROW = Device("narrow", 80e9, {"float32": 1e30, "bfloat16": 1e30}, 1e9, 1e30, 1e30, 1e30)  # own memory alone does


def changed(section: str, config: Config = CONFIG, **values: Any) -> Config:
    return dataclasses.replace(config, **{section: dataclasses.replace(getattr(config, section), **values)})


FLOAT32 = changed("stage2", dtype="float32")


def given(device: Device, gpus: int = 2, **values: Any) -> Assumptions:
    return Assumptions(gpus, device, 80e9, efficiency=0.5, bandwidth=0.25, **values)


def mined(films: int | None, size: Size, source: str = "iu_xray") -> float:
    few = dataclasses.replace(CONFIG.banks.mining, max_studies=films)
    config = changed("banks", changed("data", source=source), mining=few)
    return estimate_mining(config, size, ImageCost(forward_seconds=2.0, cam_seconds=0.5), given(SLOW, gpus=4))[1]


def test_mining_by_hand() -> None:
    assert mined(None, Size(10, 20)) == 20 * 2.5 / 4
    assert mined(5, Size(10, 20)) == mined(None, Size(5, 10))  # two films of each study
    assert mined(5, Size(10, 20), "openi_drr") == 5 * 2.5 / 4  # each render is a sample
    assert mined(None, Size(10, 40)) - mined(None, Size(10, 20)) == 20 * 2.5 / 4


def test_twice_the_films_take_twice_the_mining() -> None:
    film = ImageCost(forward_seconds=0.3, cam_seconds=0.1)
    once, twice = (estimate_mining(CONFIG, Size(n, n), film, given(SLOW))[1] for n in (100, 200))
    assert twice == pytest.approx(2 * once)


def real_flops(model: DiseaseClassifier) -> float:
    """Of one film: convolutions and linear layers as they are called, and attention by hand."""
    counted = 0.0

    def count(module: Any, _: Any, out: Any) -> None:
        nonlocal counted
        counted += 2.0 * out.numel() * (module.weight.numel() / len(module.weight))

    hooks = [m.register_forward_hook(count) for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    with torch.no_grad():
        model(torch.zeros(1, 3, 224, 224))
    for hook in hooks:
        hook.remove()
    swin = 4 * (4 * 49 * 49 * 32) + 4 * 49 * 49 * 64  # four windows on the fine grid, one on the coarse one
    qformer = 4 * 14 * (14 + 49 + 196) * 32  # the queries see each other, and both grids
    return counted + swin + qformer


def test_a_film_costs_the_arithmetic_of_the_real_classifier_and_of_its_maps() -> None:
    model = DiseaseClassifier(CONFIG.vision, pretrained=False).eval()
    sums = 2 * 196 * 32 * 14  # of all cells and labels over 32 features: scores, maps, and what regions look like
    film = seconds_per_film(CONFIG, estimate_stage(CONFIG, "stage1", given(SLOW)), given(SLOW))
    assert film.forward_seconds * 0.5e9 == pytest.approx(real_flops(model), rel=0.01)
    assert film.cam_seconds * 0.5e9 == pytest.approx(3 * sums)


def prompt() -> int:
    before, after = CONFIG.decoder.prompt.split("{image}")
    return 1 + ceil(len(before) / 4) + ceil(len(after) / 4) + 4 + 3 * 14


#: Of the decoder: one layer, 32 wide (96 inside), 200 tokens, input and output tied, three norms.
MATRICES = 4 * 32 * 32 + 3 * 32 * 96
WEIGHTS = MATRICES + 200 * 32 + 3 * 32
POSITION = 2 * 32 * 4  # bytes of keys and values


def test_bytes_of_writing_by_hand() -> None:
    # 8 studies are batches of 3, 3 and 2: two of each on the fuller rank, with two beams four sequences.
    begin = 4 * WEIGHTS + prompt() * 4 * POSITION
    tokens = [4 * WEIGHTS + 5 * (prompt() + done) * 4 * POSITION for done in range(1, 12)]
    assert generation_step(FLOAT32, 8, given(NARROW)) == pytest.approx(3 * (begin + sum(tokens)) / 0.25e9)
    one_beam = changed("generate", FLOAT32, num_beams=1)
    tokens = [4 * WEIGHTS + 3 * (prompt() + done) * 2 * POSITION for done in range(1, 12)]
    begin = 4 * WEIGHTS + prompt() * 2 * POSITION
    assert generation_step(one_beam, 8, given(NARROW)) == pytest.approx(3 * (begin + sum(tokens)) / 0.25e9)


def test_a_split_decoder_is_gathered_for_each_token() -> None:
    wired = dataclasses.replace(NARROW, node_rate=1e6)
    whole, apart = (
        generation_step(c, 8, given(wired)) for c in (FLOAT32, changed("generate", FLOAT32, ds_config="zero3.json"))
    )
    assert apart - whole == pytest.approx(3 * 12 * (4 * WEIGHTS / 2) / 0.25e6)


def test_arithmetic_of_writing_by_hand() -> None:
    def of(beams: int) -> float:
        return generation_step(changed("generate", FLOAT32, num_beams=beams), 3, given(SLOW, gpus=1))

    length, output = prompt(), 2 * 32 * 200
    reading = length * 2 * MATRICES + 4 * length**2 * 32 + output
    tokens = [2 * MATRICES + 4 * (length + done) * 32 + output for done in range(1, 12)]
    assert (of(2) - of(1)) * 0.5e9 == pytest.approx(3 * (reading + sum(tokens)), rel=0.01)


def test_a_size_that_is_not_known_leaves_its_line_open() -> None:
    openi = changed("data", changed("stage2", train_vision=True), source="openi", test_studies=None)
    plans = {stage: estimate_stage(openi, stage, given(SLOW)) for stage in ("stage1", "stage2")}
    steps = estimate_pipeline(openi, plans, given(SLOW))
    assert [step.verb for step in steps] == ["stage1", "banks", "stage2", "generate"]  # vision that is trained looks
    assert steps[-1].seconds is None
    assert "give --held-out" in steps[-1].what
    told = estimate_pipeline(openi, plans, given(SLOW, held_out=8))[-1]
    assert told.seconds is not None
    assert told.what.startswith("8 reports")
