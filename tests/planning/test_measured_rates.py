"""Rates of this machine, taken from real training, and what is made of them."""

import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from amrg.commands.simulate import main
from amrg.config_files import load_config
from amrg.errors import UserError
from amrg.planning.measured_rates import MeasuredRates, _start, _timed, measure_rates
from amrg.planning.scaling import clusters_like_measured, predict_two_workers, scaling_curve
from amrg.training.stage2 import build_generator
from tests.conftest import TINY

OBSERVED = {"1": 13.0, "2": 20.0, "1+1": 16.0}
RATES = MeasuredRates(8, 0.5, 0.01, 0.001, 1e8, 10**7, 0.0, 0.1, 0.4, 0.3, 3 * 10**7, OBSERVED)


def write(folder: Path, rates: MeasuredRates = RATES) -> Path:
    path = folder / "rates.json"
    path.write_text(json.dumps(vars(rates)))
    return path


def test_what_is_measured_is_of_the_model_that_is_trained(artefacts: Any) -> None:
    inputs = {"data": artefacts.data, "stage1": artefacts.stage1, "banks": artefacts.banks}
    between = {"latency": 1, "rate": 1, "gather": 1}
    alone = _start(1, "calibrate", artefacts.config, inputs, 3, 1)
    found = MeasuredRates(samples=3, observed=OBSERVED, **between, **alone)
    model = build_generator(artefacts.config, artefacts.data, artefacts.stage1, artefacts.banks)
    assert found.reduced == 4 * sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert found.saved == pytest.approx(3 * found.reduced, rel=0.01)  # and some buffers
    assert min(found.compute, found.read, found.copy, found.write) > 0


def test_two_workers_train_and_are_timed(artefacts: Any) -> None:
    inputs = {"data": artefacts.data, "stage1": artefacts.stage1, "banks": artefacts.banks}
    assert _start(2, "train", artefacts.config, inputs, 3, 1)["samples_per_second"] > 0


def test_a_process_that_fails_is_told(artefacts: Any, tmp_path: Path) -> None:
    inputs = {"data": tmp_path, "stage1": artefacts.stage1, "banks": artefacts.banks}
    with pytest.raises(UserError, match="exit codes"):
        measure_rates(artefacts.config, inputs, 3, 1, tmp_path / "kept.json")


def test_measuring_goes_on_where_it_was_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calibrated, between = (
        {name: getattr(RATES, name) for name in names.split()}
        for names in ("compute read reduced noise copy write saved", "latency rate gather")
    )
    rates = iter([*range(10, 22)])  # of three turns: one worker, two, and one beside another
    taken: list[tuple[int, str]] = []
    stop_at = [2, 3, 99]

    def start(workers: int, what: str, *_: Any) -> dict[str, Any]:
        if len(taken) == stop_at[0]:
            stop_at.pop(0)
            raise KeyboardInterrupt
        taken.append((workers, what))
        if what == "train":
            return {"samples_per_second": next(rates)}
        return calibrated if what == "calibrate" else between

    monkeypatch.setattr("amrg.planning.measured_rates._start", start)
    config, kept = load_config(str(TINY)), tmp_path / "kept.json"
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            measure_rates(config, {}, 8, 1, kept)
    found = measure_rates(config, {}, 8, 1, kept)
    assert taken == [(1, "calibrate"), (2, "exchange"), *[(1, "train"), (2, "train"), (1, "train"), (1, "train")] * 3]
    assert found == dataclasses.replace(RATES, observed={"1": 18, "2": 19, "1+1": 20 + 21})
    count = len(taken)
    assert measure_rates(config, {}, 8, 1, kept) == found
    assert len(taken) == count
    with pytest.raises(StopIteration):
        measure_rates(config, {}, 9, 1, kept)  # of another training nothing counts


@pytest.mark.parametrize(("stretch", "least"), [(1, 1.0), (2, 2.5), (5, 4.0)])
def test_the_fastest_stretch_counts(stretch: int, least: float, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.chain.from_iterable((0.0, seconds) for seconds in (0.5, 0.5, 1.0, 5.0, 2.0, 3.0, 9.0))
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    seconds, results, _ = _timed(lambda: None, 5, stretch)
    assert seconds == pytest.approx(least)
    assert len(results) == 7  # two that warm up are not counted


def test_a_ring_moves_twice_the_gradients() -> None:
    assert RATES.exchange(1) == 0.0
    assert RATES.exchange(2) == pytest.approx(0.001 + 0.1)
    assert RATES.exchange(5) == pytest.approx(4 * 0.001 + 2 * 4 / 5 * 0.1)


def test_a_checkpoint_is_collected_in_a_ring_from_more_than_one() -> None:
    assert [RATES.checkpoint_gather_time(workers) for workers in (1, 2, 5)] == pytest.approx([0.1, 0.4, 0.64])


def test_two_workers_of_one_machine_are_as_slow_as_it_makes_them(artefacts: Any) -> None:
    """2 × 13 against 16 of two alone: each takes 1.625 times as long; exchange, and a checkpoint (0.4) in 200 steps."""
    assert RATES.contention == pytest.approx(1.625)
    two = clusters_like_measured(RATES, artefacts.config, 0.0, (2,))[0]
    step = 1.625 * (0.5 + 8 * 0.01) + RATES.exchange(2)
    assert predict_two_workers(RATES, two) == pytest.approx(16 / (step + 0.4 / 200))


def test_failures_take_more_of_more_workers(artefacts: Any) -> None:
    """Against the first-order cost of a failure: the restart, half an interval between checkpoints, and its write."""
    points = scaling_curve(
        clusters_like_measured(RATES, artefacts.config, restart=60.0, sizes=(1, 64, 1024)), 1000.0, 0
    )
    assert points[0].goodput_share > points[1].goodput_share > points[2].goodput_share
    last = points[-1]
    interval = 200 * last.steady.seconds / last.steady.steps
    lost = 1 - last.goodput_share
    expected = (60 + interval / 2 + 0.3) / (1000 * 3600 / 1024)
    assert lost == pytest.approx(expected / (1 + expected), rel=0.1)


def test_the_command_prints_and_draws(artefacts: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path)
    main([str(TINY), "--rates", str(path), "--plot", str(tmp_path / "plot.png")])
    out = capsys.readouterr().out
    assert "4,096" in out
    assert "13.0" in out
    assert "20.0 were measured" in out
    assert (tmp_path / "plot.png").stat().st_size > 10_000
    main([str(TINY), "--rates", str(path), "--device", "h100", "--micro", "4"])
    assert "13.0" not in capsys.readouterr().out  # what a CPU did says nothing of a GPU


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rates", "nowhere.json"], "nowhere.json holds no measured rates"),
        (["--micro", "0"], "--micro 0"),
        (["--failure-hours", "-1"], "--failure-hours"),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        main([str(TINY), *arguments])
