"""Stage 2 with earlier studies: the whole way on a few studies, and which priors a batch leaves out."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from amrg.data.stream import load_split_studies
from amrg.errors import UserError
from amrg.models.prior import ALONE, FILMS, TEXT
from amrg.models.tokenizer import IGNORE_INDEX
from amrg.pipeline import artifact_root, run_pipeline_step, step_recipe
from amrg.training.stage2 import build_generator, stage2_faults
from amrg.training.stage2_batches import build_batch_source, read_split_priors
from tests.conftest import Artefacts, VisitedSource, make_artefacts


@pytest.fixture(scope="module")
def visited(tmp_path_factory: pytest.TempPathFactory) -> Artefacts:
    made = make_artefacts(tmp_path_factory.mktemp("visited"), VisitedSource())
    config = dataclasses.replace(
        made.config,
        decoder=dataclasses.replace(made.config.decoder, prior=("report", "films"), prior_tokens=20),
        stage2=dataclasses.replace(made.config.stage2, batch_size=4, dtype="float32"),
        generate=dataclasses.replace(made.config.generate, num_beams=1, max_new_tokens=4),
    )
    return dataclasses.replace(made, config=config)


def test_training_and_generation_with_priors(visited: Artefacts) -> None:
    stage2 = run_pipeline_step("stage2", visited.config)
    rows = [json.loads(line) for line in (stage2.path / "curves.jsonl").read_text().splitlines()]
    assert rows[1]["val_loss"] < rows[0]["val_loss"]
    reports = run_pipeline_step("generate", visited.config)
    lines = [json.loads(line) for line in (reports.path / "reports.jsonl").read_text().splitlines()]
    assert {line["key"]: line["prior"] for line in lines} == {f"test-{n}": n % 2 == 1 for n in range(5)}


def test_validation_is_without_what_no_training_batch_has(visited: Artefacts, tmp_path: Path) -> None:
    for context, prior in ((0.3, 0.3), (1.0, 0.3), (0.3, 1.0)):
        settings = dataclasses.replace(visited.config.stage2, context_dropout=context, prior_dropout=prior)
        config = dataclasses.replace(visited.config, stage2=settings)
        model = build_generator(config, visited.data, visited.stage1, visited.banks).eval()
        source = build_batch_source(config, model, visited.data, visited.banks, tmp_path)
        batch = next(iter(source.validation())) | {"context": torch.ones(4, 7, dtype=torch.long)}
        validated = source.as_trained(batch)
        assert bool((validated["context"] != IGNORE_INDEX).any()) == (context < 1)
        assert bool((validated[TEXT] != IGNORE_INDEX).any()) == (prior < 1)
        assert bool(validated[FILMS].given_B.any()) == (prior < 1)
        assert torch.equal(validated["report"], batch[ALONE if prior == 1 else "report"])


def test_batches_leave_out_a_share_of_the_priors(visited: Artefacts, tmp_path: Path) -> None:
    """Which ones depends on the epoch and the study; films of no prior are marked so."""
    config = visited.config
    model = build_generator(config, visited.data, visited.stage1, visited.banks).eval()
    source = build_batch_source(config, model, visited.data, visited.banks, tmp_path)

    def given(epoch: int, source: Any = source) -> dict[str, bool]:
        found = {}
        for batch in source.batches(epoch, 0):
            has_text = (batch[TEXT] != IGNORE_INDEX).any(1)
            assert torch.equal(batch[FILMS].given_B, has_text)
            assert torch.equal(batch["report"][~has_text], batch[ALONE][~has_text])
            found |= dict(zip(batch["study"], has_text.tolist(), strict=True))
        return found

    first, again, other = given(0), given(0), given(1)
    assert first == again
    assert first != other
    counts = [sum(given(epoch).values()) for epoch in range(20)]
    assert max(counts) <= 8  # of 16 studies, 8 have a prior
    assert sum(counts) / 160 == pytest.approx(0.7, abs=0.1)
    always = dataclasses.replace(config, stage2=dataclasses.replace(config.stage2, prior_dropout=1.0))
    source_without = build_batch_source(always, model, visited.data, visited.banks, tmp_path)
    assert not any(given(0, source_without).values())


def test_films_of_a_prior_are_those_of_its_study(visited: Artefacts, tmp_path: Path) -> None:
    config = visited.config
    model = build_generator(config, visited.data, visited.stage1, visited.banks).eval()
    cache = build_batch_source(config, model, visited.data, visited.banks, tmp_path).val
    keys = [study.key for study in cache.studies]
    priors = read_split_priors(config.decoder, visited.data, "val")
    assert {key: prior.key for key, prior in priors.items()} == {"val-1": "val-0"}
    films = cache.prior_films([priors.get(key) for key in keys])
    assert films.given_B.tolist() == [key == "val-1" for key in keys]
    own = cache[torch.tensor([keys.index("val-0")])]
    for part, expected in zip(films[:3], own[:3], strict=True):
        assert torch.equal(part[keys.index("val-1")], expected[0])


def test_what_cannot_be_is_refused(visited: Artefacts, artefacts: Artefacts) -> None:
    config = visited.config
    trained = dataclasses.replace(config, stage2=dataclasses.replace(config.stage2, train_vision=True))
    assert "decoder.prior films are encoded once, by a frozen encoder" in " ".join(stage2_faults(trained, 1))
    assert not read_split_priors(config.decoder, artefacts.data, "train")
    with pytest.raises(UserError, match=r"decoder\.prior report films: no train study has an earlier one"):
        build_generator(config, artefacts.data, artefacts.stage1, artefacts.banks)
    assert load_split_studies(artefacts.data, "train")[0].prior == ""


def test_settings_of_priors_are_part_of_what_identifies_a_generator(visited: Artefacts) -> None:
    plain = dataclasses.replace(
        visited.config, decoder=dataclasses.replace(visited.config.decoder, prior=(), prior_tokens=128)
    )
    settings = step_recipe("stage2", plain).config
    assert not {"prior", "prior_study", "prior_tokens"} & settings["decoder"].keys()
    assert "prior_dropout" not in settings["stage2"]
    assert step_recipe("stage2", visited.config).path(artifact_root(plain)) != step_recipe("stage2", plain).path(
        artifact_root(plain)
    )
