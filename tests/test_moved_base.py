"""A generator with LoRA whose base model lies elsewhere than in training."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from amrg.cli import main
from amrg.config import Config
from amrg.data.stream import iter_split_samples
from amrg.errors import UserError
from amrg.inference.run import open_generator
from amrg.inference.run_artifacts import find_run_artifacts
from amrg.models.decoder import build_decoder
from amrg.pipeline import STEPS, artifact_root, run_pipeline_step, step_recipe
from amrg.training.stage2 import MODEL, build_generator
from tests.conftest import ChestSource, make_artefacts, report


@pytest.fixture(scope="module")
def moved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, Path, Path, list[str]]:
    """What it was trained with, where the base is now, another base, and the reports written before the move."""
    folder = tmp_path_factory.mktemp("moved")
    made = make_artefacts(folder / "runs", ChestSource())
    for seed, name in ((0, "base"), (1, "other")):
        for part in build_decoder(made.config.decoder, [report(n) for n in range(6)], seed):
            part.save_pretrained(folder / name)
    decoder = replace(made.config.decoder, model=str(folder / "base"), tuning="lora", lora_rank=2)
    config = replace(made.config, decoder=decoder)

    def untrained(config: Config, inputs: dict[str, Path], partial: Path) -> None:
        build_generator(config, inputs["data"], inputs["stage1"], inputs["banks"]).save_pretrained(partial / MODEL)

    run_pipeline_step("stage2", config, untrained)
    before = folder / "before"
    before.mkdir()
    inputs = {kind: artifact.path for kind, artifact in step_recipe("generate", config).inputs.items()}
    STEPS["generate"].run(config, inputs, before)
    (folder / "base").rename(folder / "new")
    return config, folder / "new", folder / "other", (before / "reports.jsonl").read_text().splitlines()


def at(config: Config, base: Path) -> Config:
    return replace(config, decoder=replace(config.decoder, model=str(base)))


def test_generate_finds_the_artefact_and_writes_the_same(moved: Any) -> None:
    config, new, other, before = moved
    plan = step_recipe("generate", at(config, new))
    assert plan.inputs["stage2"].path == step_recipe("stage2", config).path(artifact_root(config))
    assert plan.identity == step_recipe("generate", config).identity
    for base, error in ((Path(config.decoder.model), "no such folder"), (other, "trained with another base model")):
        with pytest.raises(UserError, match=error) as caught:
            run_pipeline_step("generate", at(config, base))
        assert "--decoder.model" in str(caught.value)
    made = run_pipeline_step("generate", at(config, new))
    assert (made.path / "reports.jsonl").read_text().splitlines() == before
    assert step_recipe("stage2", at(config, other)).identity != step_recipe("stage2", config).identity
    with pytest.raises(UserError, match="no stage2 artefact"):
        step_recipe("generate", replace(config, decoder=replace(config.decoder, model=str(new), lora_rank=3)))


def test_write_and_view_are_told_where_it_is(moved: Any, tmp_path: Path, capfd: Any) -> None:
    config, new, other, _ = moved
    folder = artifact_root(config)
    sample = next(iter(iter_split_samples(step_recipe("generate", config).inputs["data"].path, "test")))
    for number, view in enumerate(sample.views):
        Image.fromarray(view).save(tmp_path / f"{number}.png")
    arguments = ["write", str(step_recipe("stage2", config).path(folder)), str(tmp_path), "--json"]
    for more, error in (
        ([], "no such folder"),
        (["--decoder.model", str(other)], "trained with another base model"),
    ):
        with pytest.raises(SystemExit) as stop:
            main(arguments + more)
        assert stop.value.code == 2
        assert error in capfd.readouterr().err.splitlines()[-1]
    main([*arguments, "--decoder.model", str(new)])
    (line,) = map(json.loads, capfd.readouterr().out.splitlines())
    assert line.keys() >= {"generated", "memory"}
    model, *_ = open_generator(find_run_artifacts(folder, str(new)), 1)
    saved = json.loads((Path(arguments[1]) / MODEL / "config.json").read_text())
    assert model.base_fingerprint() == saved["base_fingerprint"]
