"""The text that studies retrieve: whose it is, when it is composed, and what training and writing make of it."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from amrg.banks.bank import REPORTS, VISUAL, MemoryBank, patient_group_id
from amrg.config import Config
from amrg.errors import UserError
from amrg.inference.generate import generate_reports_file, mismatched_permutation
from amrg.models.composer import ROWS, Composer
from amrg.models.finding_calibration import Certainty
from amrg.models.open_banks import open_memory_banks
from amrg.models.report_generator import ReportGenerator
from amrg.models.tokenizer import IGNORE_INDEX
from amrg.training.calibration import CALIBRATION
from amrg.training.feature_cache import FeatureCache
from amrg.training.retrieved_text import RetrievedText, refuse_changing_text, retrieved_tokens_of
from amrg.training.stage2 import build_generator
from amrg.training.vision_cache import VisionCache
from tests.training.test_stage2 import trained


def reading(artefacts: Any, **changes: Any) -> Any:
    decoder = dataclasses.replace(
        artefacts.config.decoder, use_retrieved_text=True, prompt="{image}Alike: {retrieved} Text:", **changes
    )
    return dataclasses.replace(artefacts, config=dataclasses.replace(artefacts.config, decoder=decoder))


@pytest.fixture(scope="module")
def stage2(artefacts: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    folder = tmp_path_factory.mktemp("read")
    ours = reading(artefacts, retrieved_tokens=12)
    trained(ours, folder)
    return ours, folder


def test_reports_are_written_from_the_text_that_the_film_retrieves(stage2: tuple[Any, Path], tmp_path: Path) -> None:
    """The text of the line is composed here again, study by study, from the visual memory alone."""
    ours, folder = stage2
    generate_reports_file(ours.config, ours.data, ours.stage1, ours.banks, folder, tmp_path / "own")
    lines = [json.loads(line) for line in (tmp_path / "own" / "reports.jsonl").read_text().splitlines()]
    model = ReportGenerator.from_pretrained(folder / "model", open_memory_banks(ours.config, ours.banks, 1))
    banks = [MemoryBank.open(ours.banks / name) for name in (VISUAL, REPORTS)]
    composer = Composer(Certainty.load(folder / CALIBRATION / "test"), *banks)
    seen = VisionCache(model, ours.data, "test", tmp_path / "seen", ours.config.stage2.dtype)
    texts = {}
    for row, study in enumerate(seen.studies):
        sight, group_1 = seen[torch.tensor([row])], torch.tensor([patient_group_id(study.group)])
        visual = {"visual": model.associations(sight, group_1, ROWS)["visual"]}
        (composed,) = composer.compose(sight, visual, group_1)
        texts[study.key] = " ".join(sentence.text for sentence in composed.sentences)
    assert {line["key"]: line["retrieved_text"] for line in lines} == texts
    assert any(texts.values())
    mismatched = dataclasses.replace(ours.config.generate, memory="shuffled")
    config = dataclasses.replace(ours.config, generate=mismatched)
    generate_reports_file(config, ours.data, ours.stage1, ours.banks, folder, tmp_path / "other")
    other = [json.loads(line) for line in (tmp_path / "other" / "reports.jsonl").read_text().splitlines()]
    of = mismatched_permutation([study.group for study in seen.studies]).tolist()
    assert len(set(texts.values())) > 1
    # The stranger asks, and the study's own patient stays hidden; nobody here is in the bank.
    expected = {study.key: texts[seen.studies[of[row]].key] for row, study in enumerate(seen.studies)}
    assert {line["key"]: line["retrieved_text"] for line in other} == expected


def test_the_text_of_a_train_study_is_none_of_its_own_patients(stage2: tuple[Any, Path], tmp_path: Path) -> None:
    """Composed once; an interrupted composition goes on, and the tokens are those of the text, cut."""
    ours, _ = stage2
    model = build_generator(ours.config, ours.data, ours.stage1, ours.banks)
    seen = {"train": VisionCache(model, ours.data, "train", tmp_path, ours.config.stage2.dtype)}
    tokens = retrieved_tokens_of(ours.config, model, ours.data, ours.banks, seen, tmp_path)
    assert tokens is not None
    rows = torch.arange(len(seen["train"]))
    ids_BL = tokens["train"][rows]
    sight = seen["train"][rows]
    groups = torch.tensor([patient_group_id(study.group) for study in seen["train"].studies])
    text = RetrievedText(model, ours.banks, tmp_path / CALIBRATION / "val")
    composed = text.compose(sight, groups, model.associations(sight, groups, ROWS))
    longest = 0
    for row, said in zip(ids_BL, composed, strict=True):
        expected = model.tokenizer(said, add_special_tokens=False).input_ids[:12]
        assert row[row != IGNORE_INDEX].tolist() == expected
        longest = max(longest, len(expected))
    assert ids_BL.shape[1] == longest == 12
    bank = MemoryBank.open(ours.banks / REPORTS)
    owners: dict[str, set[int]] = {}
    for said, group in zip(bank.provenance["text"].to_pylist(), bank.groups.tolist(), strict=True):
        owners.setdefault(said, set()).add(group)
    for study, said in zip(seen["train"].studies, composed, strict=True):
        alone = [one for one, of in owners.items() if of == {patient_group_id(study.group)}]
        assert not any(one in said for one in alone)
    cache = tmp_path / "text-train"
    FeatureCache(cache, len(rows), (12,), torch.int32).rows_N[:] = 0
    cache.with_name("text-train.done").write_text("0")
    again = retrieved_tokens_of(ours.config, model, ours.data, ours.banks, seen, tmp_path)
    assert again is not None
    assert torch.equal(again["train"][rows], ids_BL)


@pytest.mark.parametrize(
    ("section", "change", "named"),
    [
        ("stage2", {"train_vision": True}, "stage2.train_vision"),
        ("stage2", {"association_loss_weight": 0.5}, "stage2.association_loss_weight"),
        ("memory", {"learn_beta": True}, "memory.learn_beta"),
        ("memory", {"visual_query": "queries"}, "memory.visual_query queries"),
        ("memory", {"retrieval": "cross_attention"}, "memory.retrieval cross_attention"),
    ],
)
def test_a_text_that_training_would_change_is_refused(section: str, change: dict[str, Any], named: str) -> None:
    config = Config(decoder=dataclasses.replace(Config().decoder, use_retrieved_text=True))
    refuse_changing_text(config)
    changed = dataclasses.replace(config, **{section: dataclasses.replace(getattr(config, section), **change)})
    with pytest.raises(UserError, match=f"composes each study's text once, before training.*leave out {named}$"):
        refuse_changing_text(changed)
    refuse_changing_text(dataclasses.replace(changed, decoder=Config().decoder))
