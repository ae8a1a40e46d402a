"""``generate.context``: the reports of a split with the own context, another patient's and none."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from amrg.inference.generate import generate_faults, generate_reports_file
from amrg.inference.run import find_run_artifacts
from tests.conftest import report


@pytest.mark.parametrize("whose", ["own", "shuffled", "none"])
def test_reports_are_written_with_the_chosen_context(informed: Path, tmp_path: Path, whose: str) -> None:
    """The decoder has learned report 0 for a cough, which studies of even number have, and report 1 for no context."""
    chain = find_run_artifacts(informed)
    config = replace(chain.config, generate=replace(chain.config.generate, context=whose))
    generate_reports_file(
        config, *(getattr(chain, kind).path for kind in ("data", "stage1", "banks", "stage2")), tmp_path
    )
    text = (tmp_path / "reports.jsonl").read_text()
    found = {line["key"]: line["generated"] for line in map(json.loads, text.splitlines())}
    coughs = {
        "own": [True, False, True, False, True],
        "shuffled": [True, False, True, True, False],  # of the study two places on
        "none": [False] * 5,
    }[whose]
    assert [found[f"test-{number}"] for number in range(5)] == [report(0 if cough else 1) for cough in coughs]
    assert "Cough" not in text


def test_a_decoder_without_context_has_none_to_change(informed: Path) -> None:
    config = find_run_artifacts(informed).config  # of which the decoder's settings are in the model alone
    changed = replace(config, generate=replace(config.generate, context="shuffled"))
    assert "generate.context shuffled changes the context" in " ".join(generate_faults(changed))
