"""The earlier study at inference: of a split (``generate.prior``), and as a user gives it."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

import amrg
from amrg.data.film_checks import VIEW_KINDS
from amrg.data.own_studies import GivenPrior
from amrg.data.stream import iter_split_samples, load_split_studies
from amrg.errors import UserError
from amrg.inference.generate import choose_prior_studies, generate_faults, generate_reports_file
from amrg.inference.run_artifacts import find_run_artifacts
from tests.conftest import report


def lines(comparing: Path, folder: Path, whose: str) -> dict[str, dict]:
    chain = find_run_artifacts(comparing)
    config = replace(chain.config, generate=replace(chain.config.generate, prior=whose))
    generate_reports_file(
        config, *(getattr(chain, kind).path for kind in ("data", "stage1", "banks", "stage2")), folder
    )
    return {line["key"]: line for line in map(json.loads, (folder / "reports.jsonl").read_text().splitlines())}


@pytest.mark.parametrize("whose", ["own", "shuffled", "none"])
def test_reports_are_written_with_the_chosen_prior(comparing: Path, tmp_path: Path, whose: str) -> None:
    """The decoder has learned report 0 for a prior, which studies of odd number have, and report 1 for none."""
    found = lines(comparing, tmp_path, whose)
    given = {f"test-{number}": whose != "none" and number % 2 == 1 for number in range(5)}
    assert {key: line["prior"] for key, line in found.items()} == given
    assert {key: line["generated"] for key, line in found.items()} == {
        key: report(0 if prior else 1) for key, prior in given.items()
    }


def test_another_patients_prior_is_given_in_place_of_the_own_one(comparing: Path) -> None:
    chain = find_run_artifacts(comparing)
    config = replace(chain.config, generate=replace(chain.config.generate, prior="shuffled"))
    decoder = replace(config.decoder, prior=("report",))
    assert {key: prior.key for key, prior in choose_prior_studies(config, decoder, chain.data.path).items()} == {
        "test-1": "test-2",
        "test-3": "test-0",
    }
    own = replace(config, generate=replace(config.generate, prior="own"))
    assert {key: prior.key for key, prior in choose_prior_studies(own, decoder, chain.data.path).items()} == {
        "test-1": "test-0",
        "test-3": "test-2",
    }
    assert choose_prior_studies(own, replace(decoder, prior=()), chain.data.path) == {}
    assert "generate.prior shuffled changes the earlier study" in " ".join(generate_faults(config))


def test_a_prior_that_a_user_gives_is_read_as_that_of_a_split(comparing: Path, tmp_path: Path) -> None:
    found = lines(comparing, tmp_path, "own")
    data = find_run_artifacts(comparing).data.path
    films = {sample.study.key: sample.views for sample in iter_split_samples(data, "test")}
    reports = {study.key: study.report for study in load_split_studies(data, "test")}
    loaded = amrg.load_run(str(comparing))
    assert loaded.prior_parts == ("report", "films")
    given = [GivenPrior(reports[f"test-{n - 1}"], films[f"test-{n - 1}"], 30) if n % 2 else None for n in range(5)]
    written = loaded.generate([films[f"test-{n}"] for n in range(5)], priors=given)
    assert written == [found[f"test-{n}"]["generated"] for n in range(5)] == [report(1 - n % 2) for n in range(5)]
    alone = [GivenPrior(reports["test-0"]), GivenPrior(films=films["test-0"])]
    records = loaded.generate_records([films["test-1"]] * 3, None, [*map(loaded.read_prior, alone), None])
    assert [record["prior"] for record in records] == [True, True, False]
    assert loaded.read_prior(GivenPrior()) is None
    with pytest.raises(UserError, match="1 priors for 2 studies"):
        loaded.generate([films["test-0"]] * 2, priors=[None])


def test_films_of_a_prior_are_encoded_with_their_views(comparing: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = amrg.load_run(str(comparing))
    film = next(iter(iter_split_samples(find_run_artifacts(comparing).data.path, "test"))).views[0]
    asked = []
    encode = loaded._model.encode_images

    def recorded(images, counts, kinds):
        asked.append((counts, kinds))
        return encode(images, counts, kinds)

    monkeypatch.setattr(loaded._model, "encode_images", recorded)
    priors = [None, GivenPrior(films=[film, film], views=("AP", "LATERAL")), GivenPrior("Clear lungs.")]
    loaded.generate_records([[film]] * 3, None, priors, [("PA",), ("LATERAL",), ()])
    kinds = [[VIEW_KINDS[kind] for kind in one] for _, one in asked]
    assert kinds == [["frontal", "lateral", "unknown"], ["frontal", "lateral"]]
    assert [counts for counts, _ in asked] == [[1, 1, 1], [2]]
    read = loaded.read_prior(GivenPrior(films=[film]))
    assert read is not None
    assert read.views == ("",)
