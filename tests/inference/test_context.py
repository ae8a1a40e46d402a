"""``generate.context``: the reports of a split with the own context, another patient's and none."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from amrg.banks.bank import REPORTS, VISUAL
from amrg.banks.writer import BankWriter
from amrg.config import DecoderConfig, GenerateConfig
from amrg.config_files import load_config
from amrg.errors import UserError
from amrg.experiments.sweep import with_overrides
from amrg.inference.generate import generate_faults, generate_reports_file
from amrg.inference.run import read_context_fields
from amrg.inference.run_artifacts import find_run_artifacts
from amrg.models.text_encoder import TextEncoder
from tests.conftest import TINY, report
from tests.webapp.tiny_run import make_run, run_config


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


EFFUSION, OTHER_WORDS = "There is a small left pleural effusion.", "Small left effusion."


@pytest.mark.parametrize("coughed", [EFFUSION, OTHER_WORDS])
def test_the_context_asks_the_memories_for_their_words(tmp_path: Path, coughed: str) -> None:
    """Studies of even number have a cough, and say the effusion in the words of the row with one."""
    chain = find_run_artifacts(make_run(tmp_path, "retrieved", informed=True, steps=0)["stage2"].path)
    banks = tmp_path / "banks"
    shutil.copytree(chain.banks.path / VISUAL, banks / VISUAL)
    encoder = TextEncoder(chain.config.banks.reports.encoder, 64)
    origins = [
        {"key": f"train-{i}", "group": f"other-{i}", "split": "train", "source": "sentence", "text": text}
        | {"context": {"indication": "Productive cough." if text == coughed else "Fall."}}
        for i, text in enumerate((EFFUSION, OTHER_WORDS))
    ]
    with BankWriter(banks / REPORTS, encoder.dim) as writer:
        writer.add(encoder.encode([EFFUSION, OTHER_WORDS]), origins)
    sentences = {}
    controls = [("own", "shuffled"), ("none", "shuffled"), ("own", "uniform")]
    for whose, memory in [("own", "own"), ("shuffled", "own"), ("none", "own"), *controls]:
        generate = replace(
            run_config(tmp_path, "retrieved", informed=True).generate,
            num_beams=1, memory=memory, context=whose, recall_context=("indication",), context_sharpness=100.0,
        )  # fmt: skip
        folder = tmp_path / f"{whose} {memory}"
        folder.mkdir()
        paths = chain.data.path, chain.stage1.path, banks, chain.stage2.path
        generate_reports_file(replace(chain.config, generate=generate), *paths, folder)
        lines = map(json.loads, (folder / "reports.jsonl").read_text().splitlines())
        sentences[whose, memory] = [[one["text"] for one in line["sentences"]] for line in lines]
    without = sentences["none", "own"][1]  # the film decides, for each of these films of noise alike
    assert sentences["none", "own"] == [without] * 5
    assert sentences["own", "own"] == [[coughed], without, [coughed], without, [coughed]]
    assert sentences["shuffled", "own"] == [[coughed], without, [coughed], [coughed], without]
    assert sentences["own", "shuffled"] == sentences["shuffled", "own"]  # what asks is of one study
    assert sentences["none", "shuffled"] == [without] * 5
    assert sentences["own", "uniform"] == [[]] * 5  # nothing is named


def test_settings_of_the_recall_that_contradict_each_other() -> None:
    config = load_config(str(TINY))
    recall = replace(config, generate=replace(config.generate, recall_context=("age",)))
    assert generate_faults(recall) == []  # as a shipped file says it, where the decoder writes the report
    shuffled = replace(recall, generate=replace(recall.generate, context="shuffled"))
    assert "which neither this decoder reads" in " ".join(generate_faults(shuffled))
    twice = replace(recall.generate, recall_context=("age", "age"), outline_source="retrieved")
    assert "generate.recall_context age age names a field twice" in generate_faults(replace(recall, generate=twice))
    for sharpness in ("inf", "nan", "0", "1e39"):
        with pytest.raises(UserError, match="context_sharpness"):
            with_overrides(config, {"generate.context_sharpness": float(sharpness)})
    uniform = replace(config, generate=replace(config.generate, memory="uniform"))
    assert "generate.memory uniform is a control of composed reports" in " ".join(generate_faults(uniform))


def test_fields_of_the_decoder_come_first_and_once() -> None:
    decoder, generate = DecoderConfig(context=("sex", "indication")), GenerateConfig()
    assert read_context_fields(decoder, generate) == ("sex", "indication")
    asking = replace(generate, recall_context=("indication", "comparison"))
    assert read_context_fields(decoder, asking) == ("sex", "indication", "comparison")
